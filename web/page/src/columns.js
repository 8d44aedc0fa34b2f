// The fleet table's columns, and the figures that tiles can be coloured by: one declarative list.
import { amount, bytes, ratio, seconds } from "./format.js";
import { severity } from "./states.js";

// sort: the value to order by. show: the cell's text. spark: the sparkline beside it. first: the order that the first click
// gives (1 ascending, -1 descending). rank: the lower, the longer it stays on narrow screens (style.css: .rank-n).
export const COLUMNS = [
  { id: "agent", title: "agent", rank: 0, first: 1, sort: (row) => row.agent },
  { id: "state", title: "state", rank: 0, first: 1, sort: (row) => severity[row.state] ?? 4 },
  figure("tasks", "tasks/min", "tasks_per_min", amount, { rank: 1, spark: "spark" }),
  figure("errors", "errors", "error_ratio", ratio, { rank: 1 }),
  figure("p95", "p95", "p95_s", seconds, { rank: 2, spark: "latency_spark" }),
  figure("tokens", "tokens/min", "tokens_per_min", amount, { rank: 3 }),
  figure("context", "context", "context_ratio", ratio, { rank: 4 }),
  figure("cpu", "cpu", "cpu_ratio", ratio, { rank: 2, about: "CPU, of one core" }),
  figure("memory", "memory", "memory_bytes", bytes, { rank: 3 }),
  figure("rtt", "rtt", "rtt_ms", (ms) => seconds(ms == null ? null : ms / 1000), { rank: 5, about: "ping round trip" }),
  { id: "version", title: "version", rank: 5, first: 1, sort: (row) => row.version, show: (row) => row.version },
];

function figure(id, title, field, format, more) {
  return {
    id,
    title,
    field,
    first: -1,
    figure: true,
    sort: (row) => row[field],
    show: (row) => format(row[field]),
    format,
    ...more,
  };
}

export const TILE_FIGURES = COLUMNS.filter((column) => column.figure);
export const DEFAULT_SORT = "state";

const byName = new Intl.Collator("en", { numeric: true }).compare;

// An order from "cpu" (ascending) or "-cpu" (descending): unknown values last, then by name, so that it is total.
export function ordering(sort) {
  const wanted = sort || DEFAULT_SORT;
  const descending = wanted.startsWith("-");
  const column = COLUMNS.find(({ id }) => id === wanted.replace(/^-/, "")) ?? COLUMNS[1];
  const sign = descending ? -1 : 1;
  const value = column.sort;
  return (a, b) => {
    const left = value(a);
    const right = value(b);
    if (left !== right) {
      if (left == null) return 1;
      if (right == null) return -1;
      const by = typeof left === "string" ? byName(left, right) : left - right;
      if (by) return by * sign;
    }
    return byName(a.agent, b.agent) || (a.instance < b.instance ? -1 : 1);
  };
}
