// One tile an agent, on one canvas: by state, or by any figure of the table.
import { TILE_FIGURES } from "./columns.js";
import { attribute, h, text } from "./dom.js";
import { DASH, whole } from "./format.js";
import { known, severity, shapePath, STATES } from "./states.js";

export const MANY = 200; // from here on tiles are shown without being asked for
const GAP_PX = 2;

export class Tiles {
  #rows = [];
  #columns = 1;
  #size = 14;
  #frame = 0;
  #width = 0;
  #height = 0;

  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.choice = h(
      "select",
      { id: "tiles-by" },
      h("option", { value: "state" }, "state"),
      ...TILE_FIGURES.map((column) => h("option", { value: column.id }, column.about ?? column.title)),
      h("option", { value: "off" }, "none"),
    );
    this.choice.addEventListener("change", () => view.go({ tiles: this.choice.value }, { replace: true }));
    this.title = h("h2");
    this.legend = h("span", { class: "legend" });
    this.canvas = h("canvas", { role: "img" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.node = h(
      "section",
      { class: "tiles", "aria-label": "Agents" },
      h("div", { class: "bar" }, this.title, this.legend, h("label", { for: "tiles-by" }, "tiles by "), this.choice),
      h("div", { class: "board" }, this.canvas, this.tip),
    );
    this.canvas.addEventListener("mousemove", (event) => this.#point(event));
    this.canvas.addEventListener("mouseleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("click", (event) => {
      const row = this.#at(event);
      if (row) view.go({ agent: row.instance, from: "", to: "" });
    });
    addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get by() {
    return this.view.tiles || (this.store.rows.size >= MANY ? "state" : "off");
  }

  // Tiles keep their place: by name, not by what they show.
  setRows(rows) {
    this.#rows = rows;
    const all = this.store.rows.size;
    text(this.title, rows.length === all ? `${whole(all)} ${all === 1 ? "agent" : "agents"}` : `${whole(rows.length)} of ${whole(all)} agents`);
    this.draw();
  }

  // Takes its room at once, is painted once before the next frame, however often it is asked for.
  draw() {
    this.choice.value = this.by;
    const off = this.by === "off";
    this.canvas.hidden = this.legend.hidden = off;
    this.#width = this.node.clientWidth;
    if (off || !this.#width) return;
    this.#size = this.#rows.length > 4000 ? 7 : this.#rows.length > 1500 ? 10 : 14;
    const pitch = this.#size + GAP_PX;
    this.#columns = Math.max(1, Math.floor((this.#width + GAP_PX) / pitch));
    this.#height = Math.ceil(this.#rows.length / this.#columns) * pitch;
    this.canvas.style.height = `${this.#height}px`;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint(pitch);
    });
  }

  #paint(pitch) {
    const scale = devicePixelRatio;
    this.canvas.width = this.#width * scale;
    this.canvas.height = this.#height * scale;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const figure = TILE_FIGURES.find(({ id }) => id === this.by);
    if (figure) this.#byFigure(pen, pitch, figure);
    else this.#byState(pen, pitch);
  }

  #byState(pen, pitch) {
    const style = getComputedStyle(document.documentElement);
    const colours = Object.fromEntries(STATES.map((state) => [state, style.getPropertyValue(`--${state}`)]));
    const shapes = Object.fromEntries(STATES.map((state) => [state, new Path2D(shapePath(state))]));
    const size = this.#size;
    const counts = new Map();
    this.#rows.forEach((row, at) => {
      const state = known(row.state);
      counts.set(state, (counts.get(state) ?? 0) + 1);
      pen.save();
      pen.translate((at % this.#columns) * pitch, Math.floor(at / this.#columns) * pitch);
      pen.scale(size / 12, size / 12);
      pen.strokeStyle = pen.fillStyle = colours[state];
      pen.lineWidth = 1.8;
      // Well-being is quiet, trouble is solid: the eye goes to what is not a faint square.
      if (state === "live" || state === "busy") {
        pen.globalAlpha = state === "live" ? 0.45 : 0.8;
        pen.fillRect(1, 1, 10, 10);
      } else if (state === "stuck") pen.fill(shapes[state]);
      else pen.stroke(shapes[state]);
      pen.restore();
    });
    const said = [...counts].sort((a, b) => severity[a[0]] - severity[b[0]]).map(([state, count]) => `${count} ${state}`);
    text(this.legend, "");
    attribute(this.canvas, "aria-label", `${this.#rows.length} agents: ${said.join(", ")}`);
  }

  #byFigure(pen, pitch, figure) {
    const values = this.#rows.map((row) => row[figure.field]);
    const seen = values.filter((value) => value != null).sort((a, b) => a - b);
    const top = seen[Math.floor(seen.length * 0.98)] ?? 0; // a single outlier shall not make all others pale
    const style = getComputedStyle(document.documentElement);
    pen.fillStyle = style.getPropertyValue("--scale");
    pen.strokeStyle = style.getPropertyValue("--line-strong");
    values.forEach((value, at) => {
      const x = (at % this.#columns) * pitch;
      const y = Math.floor(at / this.#columns) * pitch;
      pen.globalAlpha = value == null ? 1 : 0.08 + 0.92 * Math.min(1, top > 0 ? value / top : 0);
      if (value == null) pen.strokeRect(x + 1.5, y + 1.5, this.#size - 3, this.#size - 3);
      else pen.fillRect(x, y, this.#size, this.#size);
    });
    text(this.legend, seen.length ? `pale ${figure.format(0)} to full ${figure.format(top)} or more; hollow: unknown` : "no agent tells it");
    attribute(this.canvas, "aria-label", `${this.#rows.length} agents by ${figure.title}: up to ${figure.format(top)}`);
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    const pitch = this.#size + GAP_PX;
    const column = Math.floor((event.clientX - box.left) / pitch);
    if (column >= this.#columns) return undefined;
    return this.#rows[Math.floor((event.clientY - box.top) / pitch) * this.#columns + column];
  }

  #point(event) {
    const row = this.#at(event);
    this.tip.hidden = !row;
    this.canvas.style.cursor = row ? "pointer" : "";
    if (!row) return;
    const figure = TILE_FIGURES.find(({ id }) => id === this.by);
    text(this.tip, `${row.agent} · ${row.state}${figure ? ` · ${figure.show(row) ?? DASH} ${figure.title}` : ` · ${row.reason}`}`);
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    this.tip.style.left = `${Math.min(x, Math.max(0, box.width - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${event.clientY - box.top + 18}px`;
  }
}
