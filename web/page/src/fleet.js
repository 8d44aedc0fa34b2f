// The fleet's page: what needs attention, tiles, and the table.
import { ordering } from "./columns.js";
import { h, text } from "./dom.js";
import { parse } from "./filter.js";
import { whole } from "./format.js";
import { Attention } from "./attention.js";
import { Table } from "./table.js";
import { Tiles } from "./tiles.js";

const REORDER_MS = 5000; // figures move each second; rows that jumped as often could not be read

export class Fleet {
  #orderedAt = 0;
  #orderedBy = "";

  constructor(root, store, view) {
    this.store = store;
    this.view = view;
    this.attention = new Attention(store, view);
    this.tiles = new Tiles(store, view);
    this.table = new Table(store, view);
    this.none = h("p", { class: "none", hidden: true });
    root.append(this.attention.node, this.tiles.node, this.table.node, this.none);
    this.root = root;
  }

  // After an event: `moved` when somebody came, left or changed state.
  update({ changed, moved, reasons }) {
    if (moved || reasons) this.attention.update();
    const rested = performance.now() - this.#orderedAt > REORDER_MS && !this.table.body.matches(":hover, :focus-within");
    if (moved || rested) this.#order();
    this.table.update(changed);
    if (!moved && this.tiles.by !== "off" && this.tiles.by !== "state") this.tiles.draw();
    this.tick();
  }

  show() {
    this.attention.update();
    this.#order();
    this.tick();
  }

  tick() {
    const nowMs = this.store.nowMs();
    this.attention.tick(nowMs);
    this.table.tick(nowMs);
  }

  #order() {
    const wanted = parse(this.view.q);
    const rows = [...this.store.rows.values()].filter(wanted);
    this.tiles.setRows([...rows].sort(ordering("agent")));
    rows.sort(ordering(this.view.sort));
    this.table.setOrder(rows.map((row) => row.instance));
    this.#orderedAt = performance.now();
    this.none.hidden = rows.length > 0;
    this.table.node.hidden = rows.length === 0;
    if (!rows.length) {
      text(this.none, `None of ${whole(this.store.rows.size)} agents matches “${this.view.q}”. Esc in the filter clears it.`);
    }
    const key = `${this.view.q}\n${this.view.sort}`;
    if (this.#orderedBy && key !== this.#orderedBy && scrollY > this.table.node.offsetTop) {
      scrollTo({ top: this.table.node.offsetTop, behavior: "instant" });
    }
    this.#orderedBy = key;
  }
}
