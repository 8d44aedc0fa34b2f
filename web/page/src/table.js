// The fleet as one table: only the rows in sight are in the document, reused as the page scrolls.
import { COLUMNS, DEFAULT_SORT } from "./columns.js";
import { attribute, h, svg, text } from "./dom.js";
import { age, moment, shortAge } from "./format.js";
import { HERE, StateMark } from "./states.js";

const ROW_PX = 30; // style.css: --row
const MORE_ROWS = 6; // above and below what is in sight, so that a quick scroll shows no gap
const SPARK_W = 100;
const SPARK_H = 20;

// A polyline over the box; gaps where nothing is known. The scale begins at zero: height is size.
export function sparkPath(values) {
  let top = 0;
  for (const value of values) if (value > top) top = value;
  if (!(top > 0)) return values.some((value) => value != null) ? `M0 ${SPARK_H - 1}H${SPARK_W}` : "";
  const step = SPARK_W / Math.max(1, values.length - 1);
  let path = "";
  let pen = "M";
  for (let at = 0; at < values.length; at += 1) {
    if (values[at] == null) {
      if (pen === "L" && values[at - 2] == null) path += "h.1"; // a point that stands alone
      pen = "M";
    } else {
      path += `${pen}${(at * step).toFixed(1)} ${(SPARK_H - 1 - (values[at] / top) * (SPARK_H - 2)).toFixed(1)}`;
      pen = "L";
    }
  }
  return path;
}

class Cell {
  constructor(column) {
    this.column = column;
    this.value = h("span", { class: "value" });
    this.node = h("td", { class: `c-${column.id} rank-${column.rank}${column.figure ? " num" : ""}` });
    if (column.spark) {
      this.line = svg("path");
      this.node.append(
        svg("svg", { viewBox: `0 0 ${SPARK_W} ${SPARK_H}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, this.line),
      );
    }
    this.node.append(this.value);
  }

  show(row) {
    text(this.value, this.column.show(row));
    if (this.line && this.drawn !== row[this.column.spark]) {
      this.drawn = row[this.column.spark];
      this.line.setAttribute("d", sparkPath(this.drawn));
    }
  }
}

class Row {
  constructor(view) {
    this.view = view;
    this.link = h("a", { class: "agent" }, h("bdi"), h("small"));
    this.mark = new StateMark();
    this.since = h("small", { class: "since" });
    this.cells = COLUMNS.slice(2).map((column) => new Cell(column));
    this.node = h(
      "tr",
      {},
      h("th", { scope: "row", class: "c-agent rank-0" }, this.link),
      h("td", { class: "c-state rank-0" }, this.mark.node, this.since),
      ...this.cells.map((cell) => cell.node),
    );
  }

  show(row, at, twins) {
    this.row = row;
    const [name, uid] = this.link.children;
    text(name, row.agent);
    text(uid, twins ? row.instance.slice(0, 6) : "");
    attribute(this.link, "href", this.view.address({ agent: row.instance, from: "", to: "" }));
    attribute(this.link, "title", `${row.agent} · ${row.instance}`);
    this.mark.show(row.state);
    attribute(this.node, "class", HERE.has(row.state) || row.state === "stuck" || row.state === "flapping" ? null : "is-away");
    attribute(this.mark.node, "title", row.reason);
    attribute(this.node, "aria-rowindex", String(at + 2));
    for (const cell of this.cells) cell.show(row);
  }

  tick(nowMs) {
    if (!this.row) return;
    const since_s = (nowMs - this.row.since_ms) / 1000;
    text(this.since, shortAge(since_s));
    attribute(this.since, "title", `for ${age(since_s)}, since ${moment(this.row.since_ms)}`);
  }
}

export class Table {
  #order = [];
  #twins = new Map(); // agent name -> number of instances with it
  #shown = new Map(); // instance -> Row
  #nowMs = 0;

  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.above = h("tbody", { "aria-hidden": "true" });
    this.body = h("tbody");
    this.below = h("tbody", { "aria-hidden": "true" });
    this.heads = COLUMNS.map((column) => this.#head(column));
    this.table = h(
      "table",
      { class: "fleet" },
      h("caption", { class: "sr" }, "All agents; the column heads sort"),
      h("thead", {}, h("tr", {}, ...this.heads)),
      this.above,
      this.body,
      this.below,
    );
    this.node = h("div", { class: "table" }, this.table);
    for (const spacer of [this.above, this.below]) spacer.append(h("tr", {}, h("td")));
    addEventListener("scroll", () => this.#inSight(), { passive: true });
    new ResizeObserver(() => this.#inSight()).observe(document.body); // also when what stands above it grows
  }

  #head(column) {
    const button = h("button", { type: "button", title: column.about }, column.title, h("span", { class: "arrow", "aria-hidden": "true" }));
    button.addEventListener("click", () => {
      const now = this.view.sort || DEFAULT_SORT;
      const first = column.first > 0 ? column.id : `-${column.id}`;
      const other = column.first > 0 ? `-${column.id}` : column.id;
      const next = now === first ? other : first;
      this.view.go({ sort: next === DEFAULT_SORT ? "" : next }, { replace: true });
    });
    return h("th", { scope: "col", class: `c-${column.id} rank-${column.rank}${column.figure ? " num" : ""}` }, button);
  }

  // Rows in the order given. REQUIRES: all are in the store.
  setOrder(instances) {
    this.#order = instances;
    this.#twins = new Map();
    for (const row of this.store.rows.values()) this.#twins.set(row.agent, (this.#twins.get(row.agent) ?? 0) + 1);
    attribute(this.table, "aria-rowcount", String(instances.length + 1));
    const sort = this.view.sort || DEFAULT_SORT;
    COLUMNS.forEach((column, at) => {
      const order = sort === column.id ? "ascending" : sort === `-${column.id}` ? "descending" : null;
      attribute(this.heads[at], "aria-sort", order);
      text(this.heads[at].querySelector(".arrow"), order === "ascending" ? "▲" : order === "descending" ? "▼" : "");
    });
    this.#inSight(true);
  }

  update(changed) {
    for (const [instance, row] of this.#shown) {
      if (changed.has(instance) && this.store.rows.has(instance)) this.#fill(row, instance);
    }
  }

  tick(nowMs) {
    this.#nowMs = nowMs;
    for (const row of this.#shown.values()) row.tick(nowMs);
  }

  #fill(row, instance) {
    const data = this.store.rows.get(instance);
    row.show(data, this.#order.indexOf(instance), this.#twins.get(data.agent) > 1);
    row.tick(this.#nowMs);
  }

  #inSight(refill = false) {
    if (!this.node.isConnected || this.node.offsetParent === null) return;
    const top = this.above.getBoundingClientRect().top;
    const count = this.#order.length;
    const first = Math.max(0, Math.min(count, Math.floor(-top / ROW_PX) - MORE_ROWS));
    const last = Math.min(count, Math.ceil((innerHeight - top) / ROW_PX) + MORE_ROWS);
    const wanted = this.#order.slice(first, Math.max(first, last));
    this.above.firstChild.style.height = `${first * ROW_PX}px`;
    this.below.firstChild.style.height = `${(count - Math.max(first, last)) * ROW_PX}px`;
    this.#place(wanted, refill);
  }

  #place(wanted, refill) {
    const keep = new Set(wanted);
    const free = [];
    for (const [instance, row] of this.#shown) {
      if (keep.has(instance)) continue;
      this.#shown.delete(instance);
      if (row.node.contains(document.activeElement)) row.link.blur();
      free.push(row);
    }
    let next = this.body.firstChild;
    for (const instance of wanted) {
      let row = this.#shown.get(instance);
      const fresh = !row;
      if (fresh) {
        row = free.pop() ?? new Row(this.view);
        this.#shown.set(instance, row);
      }
      if (row.node === next) next = next.nextSibling;
      else this.body.insertBefore(row.node, next);
      if (fresh || refill) this.#fill(row, instance);
    }
    for (const row of free) row.node.remove();
  }

  // Moves the focus by so many rows, scrolling as needed; from nowhere it goes to the first row in sight.
  move(by) {
    const count = this.#order.length;
    if (!count) return;
    const now = [...this.#shown].find(([, row]) => row.node.contains(document.activeElement));
    const at = now ? Math.max(0, Math.min(count - 1, this.#order.indexOf(now[0]) + by)) : 0;
    this.#scrollTo(at);
    this.#shown.get(this.#order[at])?.link.focus({ preventScroll: true });
  }

  #scrollTo(at) {
    const top = this.above.getBoundingClientRect().top + at * ROW_PX;
    const head = this.table.tHead.getBoundingClientRect().bottom;
    if (top < head) scrollBy({ top: top - head, behavior: "instant" });
    else if (top + ROW_PX > innerHeight) scrollBy({ top: top + ROW_PX - innerHeight + 8, behavior: "instant" });
    this.#inSight();
  }
}
