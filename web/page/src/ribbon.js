// The states of one agent over the time shown: a ribbon, and on it the marks that all charts have.
import { attribute, h, name } from "./dom.js";
import { age, clock, moment, ratio } from "./format.js";
import { known, stateMark } from "./states.js";

const ROOM_FOR_WORD = 0.09; // of the ribbon: a narrower segment keeps shape and colour, its word is in the tip

// history: [{time_ms, state, reason}], oldest first. Returns segments clipped to the window (milliseconds).
export function segments(history, fromMs, toMs, nowMs) {
  const end = Math.min(toMs, nowMs);
  return history
    .map((entry, at) => ({
      ...entry,
      start: Math.max(fromMs, entry.time_ms),
      stop: Math.min(end, history[at + 1]?.time_ms ?? end),
    }))
    .filter((segment) => segment.stop > segment.start);
}

export class Ribbon {
  constructor() {
    this.band = h("div", { class: "band", role: "img" });
    this.hair = h("div", { class: "hair", hidden: true });
    this.ends = [h("span"), h("span")];
    this.marks = h("ul", { class: "marks" });
    this.node = h(
      "section",
      { class: "ribbon", "aria-label": "State over time" },
      h("div", { class: "track" }, this.band, this.hair),
      h("div", { class: "ends" }, ...this.ends),
      this.marks,
    );
  }

  show(history, marks, fromMs, toMs, nowMs) {
    this.from = fromMs;
    this.span = toMs - fromMs;
    const parts = segments(history, fromMs, toMs, nowMs);
    this.band.replaceChildren(...parts.map((part) => this.#segment(part)), ...marks.map((mark) => this.#tick(mark)).filter(Boolean));
    const total = parts.reduce((sum, part) => sum + part.stop - part.start, 0);
    const shares = new Map();
    for (const part of parts) shares.set(part.state, (shares.get(part.state) ?? 0) + part.stop - part.start);
    const said = [...shares].map(([state, ms]) => `${state} ${ratio(ms / total)}`).join(", ");
    attribute(this.band, "aria-label", said || "nothing known of this time");
    const far = this.span > 86400e3 * 0.9;
    this.ends[0].textContent = far ? moment(fromMs) : clock(fromMs);
    this.ends[1].textContent = far ? moment(toMs) : clock(toMs);
    const inSight = marks.filter((mark) => mark.time_ms >= fromMs && mark.time_ms <= toMs);
    this.marks.replaceChildren(
      ...inSight.slice(-6).map((mark) => h("li", { title: moment(mark.time_ms) }, h("time", {}, clock(mark.time_ms)), name(mark.text || mark.kind))),
    );
    this.marks.hidden = !inSight.length;
  }

  hover(timeS) {
    this.hair.hidden = timeS == null;
    if (timeS != null) this.hair.style.left = `${((timeS * 1000 - this.from) / this.span) * 100}%`;
  }

  #segment({ state, reason, start, stop }) {
    const share = (stop - start) / this.span;
    const node = h(
      "div",
      {
        class: `segment state-${known(state)}`,
        title: `${state} for ${age((stop - start) / 1000)}, ${clock(start)} to ${clock(stop)}: ${reason}`,
      },
      share > ROOM_FOR_WORD / 4 ? stateMark(state, share > ROOM_FOR_WORD) : null,
    );
    node.style.left = `${((start - this.from) / this.span) * 100}%`;
    node.style.width = `${share * 100}%`;
    return node;
  }

  #tick(mark) {
    const share = (mark.time_ms - this.from) / this.span;
    if (share < 0 || share > 1) return null;
    const node = h("div", { class: "mark", title: `${clock(mark.time_ms)} ${mark.text || mark.kind}` });
    node.style.left = `${share * 100}%`;
    return node;
  }
}
