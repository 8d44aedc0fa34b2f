// The time shown: named ranges, any two moments, and live, which follows now.
import { attribute, h, text } from "./dom.js";
import { moment } from "./format.js";
import { DEFAULT_RANGE, RANGES } from "./view.js";

export class TimeBar {
  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.buttons = RANGES.map(([id, title]) =>
      h("button", { type: "button", onclick: () => view.go({ range: id === DEFAULT_RANGE ? "" : id, from: "", to: "" }, { replace: true }) }, title),
    );
    this.from = h("input", { type: "datetime-local", step: "1", id: "from" });
    this.to = h("input", { type: "datetime-local", step: "1", id: "to" });
    this.problem = h("span", { class: "problem", role: "alert" });
    this.custom = h(
      "details",
      { class: "custom" },
      h("summary", {}, "custom"),
      h(
        "div",
        { class: "sheet" },
        h("label", { for: "from" }, "from"),
        this.from,
        h("label", { for: "to" }, "to"),
        this.to,
        this.problem,
        h("button", { type: "button", onclick: () => this.#apply() }, "show"),
      ),
    );
    this.custom.addEventListener("toggle", () => this.custom.open && this.#fill());
    this.live = h("button", { type: "button", class: "live", onclick: () => this.toggle() }, "live");
    this.node = h("div", { class: "time", role: "group", "aria-label": "Time shown" }, ...this.buttons, this.custom, this.live);
  }

  update() {
    const chosen = this.view.range || DEFAULT_RANGE;
    RANGES.forEach(([id], at) => attribute(this.buttons[at], "aria-pressed", String(this.view.live && id === chosen)));
    attribute(this.live, "aria-pressed", String(this.view.live));
    attribute(this.live, "title", this.view.live ? "following now; stop here (l)" : "follow now (l)");
    const summary = this.custom.querySelector("summary");
    text(summary, this.view.live ? "custom" : `${moment(this.view.from * 1000)} – ${moment(this.view.to * 1000).slice(11)}`);
    this.custom.classList.toggle("chosen", !this.view.live);
  }

  // Stops at what is shown, or follows now again.
  toggle() {
    if (!this.view.live) this.view.go({ from: "", to: "" });
    else this.zoom(...this.view.window(this.store.nowMs()));
  }

  zoom(from_s, to_s) {
    const least_s = 10;
    const middle = (from_s + to_s) / 2;
    const half = Math.max(least_s, to_s - from_s) / 2;
    this.view.go({ from: String(Math.floor(middle - half)), to: String(Math.ceil(middle + half)) });
  }

  #fill() {
    const [from, to] = this.view.window(this.store.nowMs());
    this.from.value = moment(from * 1000).replace(" ", "T");
    this.to.value = moment(to * 1000).replace(" ", "T");
    text(this.problem, "");
  }

  #apply() {
    const from = Date.parse(this.from.value) / 1000;
    const to = Date.parse(this.to.value) / 1000;
    if (!(to > from)) {
      text(this.problem, "“from” must be before “to”");
      return;
    }
    this.custom.open = false;
    this.zoom(from, to);
  }
}
