// The states: how bad, which shape, which word. Colour comes from style.css by the class state-<name>.
import { h, svg } from "./dom.js";

// Drawn in a 12 x 12 box; told apart by outline alone.
const SHAPES = {
  offline: "M2.2 2.2 9.8 9.8M9.8 2.2 2.2 9.8",
  stuck: "M2 2h8v8H2z",
  flapping: "M1 8.5 3.5 3.5 6 8.5 8.5 3.5 11 8.5",
  stale: "M6 1.6 10.9 10.4H1.1z",
  "never-seen": "M6 1.5a4.5 4.5 0 1 1-.01 0",
  busy: "M6 .9 11.1 6 6 11.1.9 6z",
  live: "M6 1.9a4.1 4.1 0 1 1-.01 0z",
  stopped: "M2.5 2.5h7v7h-7z",
};

export const STATES = Object.keys(SHAPES);
export const severity = Object.fromEntries(STATES.map((state, at) => [state, at]));
export const BAD = new Set(["offline", "stuck", "flapping", "stale"]);
export const HERE = new Set(["live", "busy"]);

export function known(state) {
  return Object.hasOwn(SHAPES, state) ? state : "never-seen";
}

export function shapePath(state) {
  return SHAPES[known(state)];
}

export class StateMark {
  constructor(withWord = true) {
    this.path = svg("path");
    this.shape = svg("svg", { viewBox: "0 0 12 12", class: "shape", "aria-hidden": "true" }, this.path);
    this.word = h("span", { class: "word" });
    this.node = h("span", { class: "state" }, this.shape, withWord ? this.word : null);
    this.state = null;
  }

  show(state) {
    if (state === this.state) return this;
    this.state = state;
    this.path.setAttribute("d", shapePath(state));
    this.node.className = `state state-${known(state)}`;
    this.word.textContent = state;
    return this;
  }
}

export function stateMark(state, withWord = true) {
  return new StateMark(withWord).show(state).node;
}
