// Puts the page together: one store, one view, and what of them is shown.
import { Agent } from "./agent.js";
import { h, text } from "./dom.js";
import { Empty } from "./empty.js";
import { toggled } from "./filter.js";
import { Fleet } from "./fleet.js";
import { age, clock, number, whole } from "./format.js";
import { fillHelp, listen } from "./keys.js";
import { severity, STATES, StateMark } from "./states.js";
import { Store } from "./store.js";
import { follow, RANGES, View } from "./view.js";

const byId = (id) => document.getElementById(id);

class Header {
  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.buttons = new Map();
    // Well-being first, then trouble: the order in which a person asks.
    for (const state of ["live", "busy", ...STATES.filter((name) => name !== "live" && name !== "busy")]) {
      const count = h("b");
      const button = h("button", { type: "button", hidden: true, title: `only ${state} agents` }, new StateMark().show(state).node);
      button.firstChild.firstChild.after(count);
      button.addEventListener("click", () => view.go({ agent: "", from: "", to: "", range: "", q: toggled(view.q, "state", state) }));
      this.buttons.set(state, { button, count });
      byId("counts").append(button);
    }
  }

  update() {
    const counts = new Map();
    for (const row of this.store.rows.values()) counts.set(row.state, (counts.get(row.state) ?? 0) + 1);
    for (const [state, { button, count }] of this.buttons) {
      const agents = counts.get(state) ?? 0;
      button.hidden = !agents && !(state === "live" && this.store.rows.size);
      text(count, whole(agents));
      button.setAttribute("aria-pressed", String(this.view.q.includes(`state=${state}`)));
    }
    const rate = this.store.totals.samples_per_s;
    text(byId("rate"), rate == null ? "" : `${number(rate)}\u00a0samples/s`);
    if (!this.view.agent) {
      const bad = [...counts].filter(([state]) => severity[state] < severity["never-seen"]).sort((a, b) => severity[a[0]] - severity[b[0]]);
      document.title = bad.length ? `${bad.map(([state, agents]) => `${agents} ${state}`).join(", ")} · collectord` : "collectord";
    }
  }

  tick() {
    const { store } = this;
    if (!store.loaded && !store.lost) return;
    const silent = store.silentS();
    text(byId("updated"), !store.loaded ? "not connected" : store.lost ? `from ${age(silent)} ago` : silent < 2.5 ? "updated just now" : `updated ${age(silent)} ago`);
    byId("updated").className = store.lost ? "is-lost" : "";
    if (store.lost) text(byId("lost-age"), store.loaded ? ` What you see is of ${clock(store.toldMs)}, ${age(silent)} ago.` : "");
  }

  connection() {
    const { store } = this;
    const bar = byId("lost");
    bar.hidden = !store.lost;
    bar.replaceChildren();
    document.body.classList.toggle("is-lost", store.lost);
    if (store.lost) {
      bar.append(
        h("strong", {}, store.loaded ? "Connection to collectord lost." : `Cannot reach collectord at ${location.host}.`),
        h("span", { id: "lost-age", "aria-live": "off" }),
        " Trying again by itself.",
      );
    }
    this.tick();
  }
}

const store = new Store();
const view = new View();
const header = new Header(store, view);
const fleet = new Fleet(byId("fleet"), store, view);
const agent = new Agent(byId("agent"), store, view);
const empty = new Empty(byId("empty"));
const search = byId("search");
const help = byId("help");
let scrolled = 0; // how far down the fleet was when an agent was opened
let shown = "";

function which() {
  if (view.agent) return "agent";
  if (!store.loaded) return "";
  return store.rows.size ? "fleet" : "empty";
}

// Another page, or the same with another view of it.
function show() {
  const next = which();
  if (shown === "fleet" && next !== "fleet") scrolled = scrollY;
  for (const name of ["fleet", "agent", "empty"]) byId(name).hidden = name !== next;
  if (search.value !== view.q && document.activeElement !== search) search.value = view.q;
  header.update();
  if (shown === "agent" && next !== "agent") agent.hide();
  if (next === "fleet") fleet.show();
  else if (next === "agent") agent.show();
  else if (next === "empty") empty.show(store.totals);
  if (next !== shown) scrollTo({ top: next === "fleet" ? scrolled : 0, behavior: "instant" });
  shown = next;
}

store.addEventListener("rows", ({ detail }) => {
  header.update();
  header.tick();
  if (which() !== shown) show();
  else if (shown === "fleet") fleet.update(detail);
  else if (shown === "agent") agent.update(detail);
  else if (shown === "empty") empty.show(store.totals);
});
store.addEventListener("tick", () => {
  header.tick();
  if (shown === "fleet") fleet.tick();
  else if (shown === "agent") agent.tick();
});
store.addEventListener("connection", () => header.connection());
view.addEventListener("change", show);

search.addEventListener("input", () => view.go({ q: search.value, agent: "", from: "", to: "", range: "" }, { replace: !view.agent }));
document.addEventListener("click", (event) => follow(view, event));
byId("help-button").addEventListener("click", () => help.showModal());
fillHelp(help);
listen({ search, help, table: fleet.table, view, time: agent.time, ranges: RANGES.map(([id]) => id) });
show();
store.start();
