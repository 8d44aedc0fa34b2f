// Below the charts: dependencies, what it is, its relatives, events and logs.
import { toggled } from "./filter.js";
import { h, name } from "./dom.js";
import { age, clock, moment, seconds, whole } from "./format.js";
import { stateMark } from "./states.js";

const SEVERITIES = [
  [21, "fatal"],
  [17, "error"],
  [13, "warn"],
  [9, "info"],
  [5, "debug"],
  [1, "trace"],
];

function severityWord(severity) {
  return typeof severity === "string" ? severity.toLowerCase() : (SEVERITIES.find(([least]) => severity >= least)?.[1] ?? "");
}

function severityNode(severity) {
  const word = severityWord(severity);
  return h("span", { class: `severity${/fatal|error/.test(word) ? " is-bad" : ""}` }, word);
}

function section(title, ...content) {
  return h("section", { "aria-label": title }, h("h2", {}, title), ...content);
}

function when(timeMs, nowMs) {
  const today = nowMs - timeMs < 43_200_000;
  return h("time", { title: `${moment(timeMs)}, ${age((nowMs - timeMs) / 1000)} ago` }, today ? clock(timeMs) : moment(timeMs).slice(5));
}

function table(title, heads, rows) {
  return h(
    "table",
    {},
    h("caption", { class: "sr" }, title),
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, ...rows),
  );
}

function cell(content, properties = {}) {
  return h("td", properties, content);
}

function fieldText(value) {
  return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}

export class Details {
  #sections = new Map(); // name -> {told, node}

  constructor(view) {
    this.view = view;
    this.left = h("div", { class: "column" });
    this.right = h("div", { class: "column" });
    this.node = h("div", { class: "details" }, this.left, this.right);
  }

  clear() {
    this.#sections.clear();
    this.left.replaceChildren();
    this.right.replaceChildren();
  }

  show(detail, nowMs) {
    const { dependencies, other_instances, config_hash, events, logs } = detail;
    this.#put(this.left, "dependencies", dependencies, () => this.#dependencies(dependencies, nowMs));
    this.#put(this.left, "about", this.#facts(detail), () => this.#about(detail));
    this.#put(this.left, "configuration", config_hash, () => this.#configuration(config_hash));
    this.#put(this.left, "relatives", other_instances, () => this.#relatives(detail.agent, other_instances));
    this.#put(this.right, "events", events, () => this.#events(events, nowMs));
    this.#put(this.right, "logs", logs, () => this.#logs(logs, nowMs));
  }

  // Made anew only when its content is another, scrolled as it was.
  #put(column, called, content, make) {
    const told = JSON.stringify(content);
    const before = this.#sections.get(called);
    if (before?.told === told) return;
    const node = make();
    if (before) {
      const scrolled = before.node.querySelector(".scroll")?.scrollTop ?? 0;
      before.node.replaceWith(node);
      const scroll = node.querySelector(".scroll");
      if (scroll) scroll.scrollTop = scrolled;
    } else column.append(node);
    this.#sections.set(called, { told, node });
  }

  #dependencies(list, nowMs) {
    if (!list.length) return section("Dependencies", h("p", { class: "plain" }, "None declared."));
    const rows = list.map(({ name: called, ok, reason, since_ms }) =>
      h("tr", {}, h("th", { scope: "row" }, stateMark(ok ? "live" : "offline", false), " ", name(called)), cell(ok ? "up" : "down"), cell(name(reason || "")), cell(when(since_ms, nowMs))),
    );
    return section("Dependencies", table("Dependencies", ["name", "state", "reason", "since"], rows));
  }

  #facts(detail) {
    return [
      ["instance", detail.instance],
      ["version", detail.version],
      ["doing", [detail.activity, detail.open_tasks ? `open tasks: ${whole(detail.open_tasks)}` : ""].filter(Boolean).join("; ")],
      ["started", detail.started_ms ? moment(detail.started_ms) : ""],
      ["address", detail.address],
      ["client", detail.client],
      ["clock offset", detail.clock_offset_s == null ? "" : seconds(detail.clock_offset_s)],
      ["samples", whole(detail.samples_total)],
      ...Object.entries(detail.drops).map(([reason, samples]) => [`dropped, ${reason}`, samples ? `${whole(samples)} samples` : ""]),
      ...Object.entries(detail.attributes).map(([label, value]) => [label, fieldText(value), label in detail.labels]),
    ].filter(([, value]) => value !== "" && value != null);
  }

  #about(detail) {
    const rows = this.#facts(detail).map(([label, value, filters]) => {
      const href = filters ? this.view.address({ agent: "", range: "", from: "", to: "", q: toggled("", label, value) }) : null;
      const shown = href ? h("a", { href, title: "all agents with this label" }, name(value)) : name(value);
      return h("div", {}, h("dt", {}, name(label)), h("dd", {}, shown));
    });
    return section("About", h("dl", { class: "facts" }, ...rows));
  }

  #configuration(hash) {
    return section("Configuration", h("p", { class: "plain" }, hash ? h("code", {}, hash) : "None was sent to this agent: it runs with its own."));
  }

  #relatives(agent, list) {
    if (!list.length) return section("Other instances", h("p", { class: "plain" }, `${agent} runs once.`));
    const rows = list.map(({ instance, state, started_ms }) =>
      h("tr", {}, h("th", { scope: "row" }, h("a", { href: this.view.address({ agent: instance }) }, name(instance))), cell(stateMark(state)), cell(moment(started_ms))),
    );
    return section("Other instances", table(`Other instances of ${agent}`, ["instance", "state", "started"], rows));
  }

  #events(list, nowMs) {
    if (!list.length) return section("Events", h("p", { class: "plain" }, "None yet."));
    const rows = list.map((event) => {
      const fields = h("div");
      for (const [label, value] of Object.entries(event.fields)) {
        fields.append(h("span", {}, h("em", {}, name(label)), " ", name(fieldText(value))));
      }
      return h("tr", {}, cell(when(event.time_ms, nowMs)), cell(severityNode(event.severity)), h("th", { scope: "row" }, name(event.kind)), cell(fields, { class: "fields" }));
    });
    return section("Events", h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Events" }, table("Events, newest first", ["time", "severity", "kind", "fields"], rows)));
  }

  #logs(list, nowMs) {
    if (!list.length) return section("Logs", h("p", { class: "plain" }, "None yet."));
    const rows = list.map((log) =>
      h("tr", {}, cell(when(log.time_ms, nowMs)), cell(severityNode(log.severity)), cell(name(log.logger), { class: "logger" }), cell(name(log.body), { class: "body" })),
    );
    return section("Logs", h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Logs" }, table("Logs, newest first", ["time", "severity", "logger", "message"], rows)));
  }
}
