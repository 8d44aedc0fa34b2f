// One agent: what it is now, its states and charts over a range, and what else is known of it.
import { FIGURES } from "./figures.js";
import { Panel } from "./charts.js";
import { Details } from "./details.js";
import { h, name, text } from "./dom.js";
import { age, moment } from "./format.js";
import { Ribbon } from "./ribbon.js";
import { StateMark } from "./states.js";
import { TimeBar } from "./timebar.js";

const LEAST_REFRESH_MS = 2000;
const STEPS = 240;

export class Agent {
  marks = [];
  #instance = "";
  #panels = new Map();
  #answer = null; // the newest charts, and the time they were asked for
  #detail = null;
  #timer = 0;
  #asking = null;

  constructor(root, store, view) {
    this.root = root;
    this.store = store;
    this.view = view;
    this.time = new TimeBar(store, view);
    this.ribbon = new Ribbon();
    this.details = new Details(view);
    this.title = h("h1");
    this.mark = new StateMark();
    this.reason = name("", { class: "reason" });
    this.since = h("span", { class: "since" });
    this.figures = FIGURES.map((figure) => ({ figure, value: h("dd") }));
    this.charts = h("div", { class: "panels" });
    this.missing = h("p", { class: "none" });
    this.unknown = h("p", { class: "none", hidden: true });
    this.back = h("a", { class: "back", href: "/" }, "← all agents");
    this.body = h(
      "div",
      {},
      h("dl", { class: "figures" }, ...this.figures.map(({ figure, value }) => h("div", { title: figure.about }, h("dt", {}, figure.title), value))),
      this.ribbon.node,
      this.charts,
      this.missing,
      this.details.node,
    );
    root.append(
      h("div", { class: "crumb" }, this.back, this.time.node),
      h("div", { class: "headline" }, this.title, this.mark.node, this.reason, this.since),
      this.unknown,
      this.body,
    );
    addEventListener("resize", () => this.#panels.forEach((panel) => panel.resize()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#panels.forEach((panel) => panel.recolour()));
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stop() : this.#ask()));
  }

  // The view is another: another agent, or another time.
  show() {
    if (this.view.agent !== this.#instance) this.#forget();
    this.#instance = this.view.agent;
    this.back.setAttribute("href", this.view.address({ agent: "", range: "", from: "", to: "" }));
    this.time.update();
    this.#now();
    if (this.#answer) this.#draw();
    this.#ask();
  }

  hide() {
    this.#stop();
    this.#forget();
    this.#instance = "";
  }

  update({ changed, moved }) {
    if (!changed.has(this.#instance)) return;
    this.#now();
    if (moved) this.#ask();
  }

  tick() {
    const row = this.store.rows.get(this.#instance);
    if (!row) return;
    text(this.since, `for ${age((this.store.nowMs() - row.since_ms) / 1000)}`);
    this.since.title = `since ${moment(row.since_ms)}`;
    if (row.seen_ms) {
      text(this.since, `${this.since.textContent}, last heard of ${age((this.store.nowMs() - row.seen_ms) / 1000)} ago`);
    }
  }

  // What the charts ask of their page.
  window() {
    return this.#shownWindow ?? this.view.window(this.store.nowMs());
  }

  zoom(from_s, to_s) {
    this.time.zoom(from_s, to_s);
  }

  hover(time_s) {
    this.ribbon.hover(time_s);
  }

  #shownWindow = null;

  #forget() {
    this.#panels.forEach((panel) => panel.destroy());
    this.#panels.clear();
    this.#answer = this.#detail = this.#shownWindow = null;
    this.marks = [];
    this.unknown.hidden = true;
    this.body.hidden = false;
    this.details.clear();
    for (const { value } of this.figures) value.textContent = "";
    this.missing.textContent = "";
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#asking = null;
  }

  #now() {
    const row = this.store.rows.get(this.#instance) ?? this.#detail;
    if (!row) return;
    text(this.title, row.agent);
    document.title = `${row.agent} · ${row.state} · collectord`;
    this.mark.show(row.state);
    text(this.reason, row.reason);
    for (const { figure, value } of this.figures) text(value, figure.show(row));
    this.tick();
  }

  async #ask() {
    this.#stop();
    if (document.hidden || !this.#instance) return;
    const asking = new AbortController();
    this.#asking = asking;
    const [from, to] = this.view.window(this.store.nowMs());
    const step = Math.max(1, Math.ceil((to - from) / STEPS));
    const path = `/api/agents/${encodeURIComponent(this.#instance)}`;
    try {
      const answers = await Promise.all([
        fetch(path, { signal: asking.signal }),
        fetch(`${path}/panels?from=${from.toFixed(3)}&to=${to.toFixed(3)}&step=${step}`, { signal: asking.signal }),
      ]);
      if (answers[0].status === 404) {
        this.#gone();
        return;
      }
      const [detail, charts] = await Promise.all(answers.map((answer) => answer.json()));
      if (asking.signal.aborted) return;
      if (answers[1].ok) this.#answer = charts;
      if (answers[0].ok) this.#detail = detail;
      this.#shownWindow = [from, to];
      if (this.#answer && this.#detail) this.#draw();
    } catch (problem) {
      // Aborted: another question is on its way. A TypeError is fetch's lost connection, which the header tells.
      if (problem.name !== "AbortError" && !(problem instanceof TypeError)) throw problem;
    }
    if (!asking.signal.aborted && (this.view.live || !this.#answer)) {
      this.#timer = setTimeout(() => this.#ask(), Math.max(LEAST_REFRESH_MS, step * 1000));
    }
  }

  #gone() {
    this.unknown.hidden = false;
    this.body.hidden = true;
    text(this.title, "Unknown instance");
    text(this.unknown, `No instance ${this.#instance} is known here: it never said hello to this daemon, or it left and was forgotten.`);
  }

  #draw() {
    this.unknown.hidden = true;
    this.body.hidden = false;
    const detail = this.#detail;
    this.marks = detail.marks;
    const [from, to] = this.window();
    this.ribbon.show(detail.history, detail.marks, from * 1000, to * 1000, this.store.nowMs());
    this.#drawCharts();
    this.details.show(detail, this.store.nowMs());
    if (!this.store.rows.has(this.#instance)) this.#now();
  }

  #drawCharts() {
    const { from_ms, to_ms, step_ms, panels } = this.#answer;
    const times = [];
    for (let time = from_ms; time <= to_ms; time += step_ms) times.push(time / 1000);
    const missing = [];
    let before = null;
    for (const panel of panels) {
      let shown = this.#panels.get(panel.id);
      if (!panel.lines.length) {
        missing.push(panel.title);
        shown?.destroy();
        this.#panels.delete(panel.id);
        continue;
      }
      if (!shown) {
        shown = new Panel(this, panel.id);
        this.#panels.set(panel.id, shown);
        if (before) before.node.after(shown.node);
        else this.charts.prepend(shown.node);
      }
      shown.show(panel, times);
      before = shown;
    }
    text(this.missing, missing.length ? `Nothing in this time: ${missing.join(", ")}.` : "");
  }
}
