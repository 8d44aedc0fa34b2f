// Numbers and times for people: three significant digits, a unit on every number, an en dash for what is unknown.

export const DASH = "–";
const GAP = "\u00a0";

// As many decimals as the size asks for, always the same: columns stand still while values move.
function digits(value) {
  const size = Math.abs(value);
  if (size >= 99.95 || size === 0) return value.toFixed(0);
  if (size >= 0.995) return value.toFixed(1);
  return value.toPrecision(2);
}

function scaled(value, base, units) {
  let step = 0;
  let size = value;
  while (Math.abs(size) >= base * 0.9995 && step < units.length - 1) {
    size /= base;
    step += 1;
  }
  return units[step] ? digits(size) + GAP + units[step] : digits(size);
}

// A measured amount: 22.0 stays 22.0, so that a column's figures keep their width.
export function amount(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  if (value > 0 && value < 0.01) return "<0.01";
  return scaled(value, 1000, ["", "k", "M", "G", "T"]);
}

// A count, which is whole when it is small.
export function number(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  return Number.isInteger(value) && Math.abs(value) < 1000 ? String(value) : amount(value);
}

export function whole(value) {
  return value == null ? DASH : String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
}

export function ratio(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  const percent = value * 100;
  if (percent > 0 && percent < 0.1) return `<0.1${GAP}%`;
  return (percent >= 9.95 || percent === 0 ? percent.toFixed(0) : percent.toFixed(1)) + GAP + "%";
}

// A ratio that matters near 1: 99.95 % is not 100 %.
export function uptime(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  const percent = Math.floor(value * 10000) / 100;
  return (percent >= 100 ? "100" : percent.toFixed(percent >= 99 ? 2 : 1)) + GAP + "%";
}

export function bytes(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  return scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
}

// A duration that was measured: 320 µs, 12 ms, 2.1 s, 4 min 10 s.
export function seconds(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  const size = Math.abs(value);
  if (size === 0) return `0${GAP}s`;
  if (size < 1e-3) return digits(value * 1e6) + GAP + "µs";
  if (size < 0.9995) return digits(value * 1e3) + GAP + "ms";
  if (size < 60) return digits(value) + GAP + "s";
  return age(value);
}

// How long ago, or for how long: whole seconds, two units at most.
export function age(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  const whole_s = Math.max(0, Math.floor(value));
  if (whole_s < 60) return whole_s + GAP + "s";
  if (whole_s < 3600) return two(whole_s, 60, "min", 1, "s");
  if (whole_s < 86400) return two(whole_s, 3600, "h", 60, "min");
  return two(whole_s, 86400, "d", 3600, "h");
}

// The same in one unit, for narrow columns.
export function shortAge(value) {
  if (value == null || !Number.isFinite(value)) return DASH;
  return age(value).split(" ")[0];
}

function two(value, large, largeUnit, small, smallUnit) {
  const rest = Math.floor((value % large) / small);
  const first = Math.floor(value / large) + GAP + largeUnit;
  return rest ? `${first} ${rest}${GAP}${smallUnit}` : first;
}

const pad = (value) => String(value).padStart(2, "0");
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export function clock(timeMs, withSeconds = true) {
  const t = new Date(timeMs);
  const minutes = `${pad(t.getHours())}:${pad(t.getMinutes())}`;
  return withSeconds ? `${minutes}:${pad(t.getSeconds())}` : minutes;
}

export function day(timeMs) {
  const t = new Date(timeMs);
  return `${t.getDate()}${GAP}${MONTHS[t.getMonth()]}`;
}

export function moment(timeMs) {
  const t = new Date(timeMs);
  return `${t.getFullYear()}-${pad(t.getMonth() + 1)}-${pad(t.getDate())} ${clock(timeMs)}`;
}

const UNITS = {
  "/min": (value) => (value == null ? DASH : `${amount(value)}${GAP}/min`),
  "By/s": (value) => (value == null ? DASH : `${bytes(value)}/s`),
  By: bytes,
  s: seconds,
  ratio,
  1: number,
};

// A value with the unit that a panel names.
export function withUnit(value, unit) {
  return (UNITS[unit] ?? number)(value);
}
