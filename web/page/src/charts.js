// One panel: a figure with its own legend and a uPlot canvas; all panels of a page share crosshair and range.
import uPlot from "uplot";
import { attribute, h, text } from "./dom.js";
import { clock, day, withUnit } from "./format.js";

const HEIGHT = 132;
const TIME_STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800];
const BYTE_STEPS = [];
for (let power = 0; power < 50; power += 1) BYTE_STEPS.push(2 ** power);

function colours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return {
    series: [1, 2, 3, 4, 5, 6, 7, 8].map((n) => get(`--series-${n}`)),
    grid: get("--line"),
    text: get("--muted"),
    mark: get("--mark"),
  };
}

function timeLabels(_plot, splits, _axis, _space, step) {
  return splits.map((time_s) => {
    const ms = time_s * 1000;
    const midnight = clock(ms) === "00:00:00";
    if (step >= 86400 || midnight) return day(ms);
    return clock(ms, step < 60);
  });
}

function valueLabels(unit) {
  return (_plot, splits) => splits.map((value) => (value === 0 ? "0" : withUnit(value, unit).replace(/\/s$|\u00a0\/min$/, "").replace(/\.0(?=\u00a0|$)/, "")));
}

// Neighbouring quantiles: the wider apart, the fainter the band between them.
function bandsOf(count, colour) {
  return Array.from({ length: count - 1 }, (_, at) => ({ series: [at + 2, at + 1], fill: colour + (at === 0 ? "38" : "1c") }));
}

function lineStyle(kind, at, palette) {
  if (kind !== "band") return { stroke: palette[at % palette.length], width: 1.4, dash: at >= palette.length ? [4, 3] : undefined };
  return { stroke: palette[0] + ["", "b0", "70"][Math.min(at, 2)], width: at === 0 ? 1.6 : 1 };
}

export class Panel {
  #plot = null;
  #lineNames = "";
  #data = null;

  // page: {window(): [from_s, to_s], marks: [{time_ms, ...}], zoom(from_s, to_s), hover(time_s or null)}
  constructor(page, id) {
    this.page = page;
    this.id = id;
    this.title = h("h3");
    this.values = h("div", { class: "values" });
    this.box = h("div", { class: "plot" });
    this.node = h("figure", { class: "panel", role: "group" }, h("figcaption", {}, this.title, this.values), this.box);
  }

  get width() {
    return Math.max(200, this.box.clientWidth);
  }

  // panel: one of the answer's; times: Unix seconds of its steps.
  show(panel, times) {
    this.panel = panel;
    this.#data = [times, ...panel.lines.map((line) => line.values)];
    text(this.title, panel.title);
    const lineNames = JSON.stringify([panel.kind, panel.lines.map((line) => line.name)]);
    if (lineNames !== this.#lineNames) {
      this.#lineNames = lineNames;
      this.#make();
    } else this.#plot.setData(this.#data);
    this.#legend(null);
  }

  resize() {
    if (this.#plot && this.#plot.width !== this.width) this.#plot.setSize({ width: this.width, height: HEIGHT });
  }

  redraw() {
    this.#plot?.redraw(false);
  }

  recolour() {
    if (this.#plot) this.#make();
  }

  destroy() {
    this.#plot?.destroy();
    this.#plot = null;
    this.node.remove();
  }

  #make() {
    this.#plot?.destroy();
    const palette = colours();
    const { kind, lines, unit } = this.panel;
    this.swatches = lines.map((line, at) => {
      const { stroke } = lineStyle(kind, at, palette.series);
      const key = h("i", { "aria-hidden": "true" });
      key.style.background = stroke;
      const value = h("b");
      return { value, node: h("span", {}, key, h("bdi", {}, line.name), value) };
    });
    this.values.replaceChildren(...this.swatches.map((swatch) => swatch.node));
    const axis = { stroke: palette.text, grid: { stroke: palette.grid, width: 1 }, ticks: { show: false }, font: "11px " + getComputedStyle(document.body).fontFamily };
    this.#plot = new uPlot(
      {
        width: this.width,
        height: HEIGHT,
        padding: [6, 16, 0, 0],
        legend: { show: false },
        cursor: {
          sync: { key: "agent", setSeries: false },
          drag: { x: true, y: false, setScale: false },
          points: { size: 6 },
          y: false,
        },
        scales: {
          x: { time: true, range: () => this.page.window() },
          y: { range: (_plot, _low, high) => [0, this.#top(high)] },
        },
        axes: [
          { ...axis, size: 22, gap: 3, space: 58, values: timeLabels, incrs: TIME_STEPS_S },
          { ...axis, size: 56, gap: 4, space: 28, values: valueLabels(unit), incrs: unit.startsWith("By") ? BYTE_STEPS : undefined },
        ],
        series: [{}, ...lines.map((line, at) => ({ label: line.name, points: { size: 4 }, ...lineStyle(kind, at, palette.series) }))],
        bands: kind === "band" && lines.length > 1 ? bandsOf(lines.length, palette.series[0]) : [],
        hooks: {
          drawClear: [(plot) => this.#marks(plot, palette)],
          setCursor: [(plot) => this.#hover(plot)],
          setSelect: [(plot) => this.#select(plot)],
        },
      },
      this.#data,
      this.box,
    );
  }

  #top(high) {
    if (!(high > 0)) return 1;
    return this.panel.id === "context" ? 1 : high * 1.08;
  }

  #marks(plot, palette) {
    const pen = plot.ctx;
    pen.save();
    pen.strokeStyle = palette.mark;
    pen.lineWidth = devicePixelRatio;
    pen.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    const [from, to] = this.page.window();
    for (const mark of this.page.marks) {
      const time_s = mark.time_ms / 1000;
      if (time_s < from || time_s > to) continue;
      const x = Math.round(plot.valToPos(time_s, "x", true)) + 0.5;
      pen.beginPath();
      pen.moveTo(x, plot.bbox.top);
      pen.lineTo(x, plot.bbox.top + plot.bbox.height);
      pen.stroke();
    }
    pen.restore();
  }

  #hover(plot) {
    const at = plot.cursor.left >= 0 ? plot.cursor.idx : null;
    this.#legend(at);
    if (at != null || plot.cursor.left < 0) this.page.hover(at == null ? null : plot.data[0][at]);
  }

  // At the crosshair, else the newest value.
  #legend(at) {
    this.panel.lines.forEach((line, n) => {
      const value = at == null ? line.values.findLast((known) => known != null) : line.values[at];
      text(this.swatches[n].value, withUnit(value ?? null, this.panel.unit));
    });
    const said = this.swatches.map((swatch) => swatch.node.textContent).join(", ");
    if (at == null) attribute(this.node, "aria-label", `${this.panel.title}: ${said}`);
  }

  #select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const from = plot.posToVal(left, "x");
    const to = plot.posToVal(left + width, "x");
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.page.zoom(from, to);
  }
}

