// What needs attention: one sentence each, the worst first, and of many alike only one.
import { attribute, h, name, text } from "./dom.js";
import { age, moment, whole } from "./format.js";
import { toggled } from "./filter.js";
import { BAD, severity, stateMark } from "./states.js";

const MOST_SENTENCES = 8;
const ALIKE = 4; // this many with one state and one reason are one sentence
const WHERE = ["k8s.pod.name", "container.name", "host.name"];

export function where(row) {
  for (const label of WHERE) if (row.labels[label]) return row.labels[label];
  return "";
}

function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    const key = `${row.state}\n${row.reason}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return [...groups.values()].flatMap((alike) => (alike.length >= ALIKE ? [alike] : alike.map((row) => [row])));
}

export class Attention {
  #items = new Map(); // key of a sentence -> its item: kept as long as it is about the same agents
  #sinces = [];

  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.title = h("h2", {}, "Needs attention");
    this.list = h("ul");
    this.node = h("section", { class: "attention", "aria-label": "Needs attention" }, this.title, this.list);
  }

  // Called when somebody came, left, or is in another state or for another reason.
  update() {
    const bad = [...this.store.rows.values()].filter((row) => BAD.has(row.state));
    bad.sort((a, b) => severity[a.state] - severity[b.state] || b.since_ms - a.since_ms || (a.agent < b.agent ? -1 : 1));
    const groups = grouped(bad);
    this.#sinces = [];
    const shown = groups.slice(0, MOST_SENTENCES).map((rows) => this.#sentence(rows));
    this.#items = new Map(shown);
    const items = [...this.#items.values()].map((item) => item.node);
    const rest = groups.slice(MOST_SENTENCES).reduce((sum, rows) => sum + rows.length, 0);
    if (rest) items.push(h("li", { class: "rest" }, `and ${whole(rest)} more, first in the table below`));
    if (!bad.length) items.push(h("li", { class: "calm" }, stateMark("live", false), h("span", {}, "Nothing needs attention")));
    this.node.classList.toggle("is-calm", !bad.length);
    this.title.hidden = !bad.length;
    if (items.length !== this.list.children.length || items.some((item, at) => item !== this.list.children[at])) {
      this.list.replaceChildren(...items);
    }
    this.tick(this.store.nowMs());
  }

  tick(nowMs) {
    for (const [node, sinceMs, about] of this.#sinces) {
      text(node, about + age((nowMs - sinceMs) / 1000));
      attribute(node, "title", `since ${moment(sinceMs)}`);
    }
  }

  #sentence(rows) {
    const [first] = rows;
    const key = [this.view.address(), first.state, ...rows.map((row) => row.instance)].join("\n");
    const item = this.#items.get(key) ?? this.#item(rows);
    text(item.reason, first.reason);
    this.#sinces.push([item.since, Math.min(...rows.map((row) => row.since_ms)), rows.length > 1 ? "up to " : ""]);
    return [key, item];
  }

  #item(rows) {
    const [first] = rows;
    const since = h("span", { class: "since" });
    const reason = name("");
    const told = h("span", { class: "reason" }, reason);
    const who = h("span", { class: "who" });
    if (rows.length === 1) who.append(this.#link(first));
    else {
      const query = toggled("", "state", first.state);
      who.append(h("a", { href: this.view.address({ q: query }) }, `${whole(rows.length)} agents`));
      told.append(": ", this.#link(rows[0]), ", ", this.#link(rows[1]), ` and ${whole(rows.length - 2)} more`);
    }
    const place = rows.length === 1 ? [first.version, where(first)].filter(Boolean).join(" · ") : "";
    return { node: h("li", {}, stateMark(first.state), who, told, h("bdi", { class: "place" }, place), since), reason, since };
  }

  #link(row) {
    return h("a", { href: this.view.address({ agent: row.instance, from: "", to: "" }) }, name(row.agent));
  }
}
