// The figures of one agent's headline: the table's, and some more.
import { COLUMNS } from "./columns.js";
import { seconds, uptime, whole } from "./format.js";

export const FIGURES = [
  ...COLUMNS.filter((column) => column.figure),
  { id: "loop", title: "loop lag", show: (row) => seconds(row.loop_lag_s), about: "how late the agent's event loop runs what is due" },
  { id: "uptime", title: "uptime", show: (row) => uptime(row.uptime_ratio) },
  { id: "series", title: "series", show: (row) => whole(row.series) },
  { id: "dropped", title: "dropped", show: (row) => whole(row.dropped_total), about: "samples that were lost, counted by the agent or here" },
];

