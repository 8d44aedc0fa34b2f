// What is shown, as the address holds it: a link shows what the sender saw.

export const RANGES = [
  ["5m", "5 m", 300],
  ["1h", "1 h", 3600],
  ["6h", "6 h", 21600],
  ["24h", "24 h", 86400],
  ["7d", "7 d", 604800],
];
export const DEFAULT_RANGE = "5m";
const FIELDS = ["agent", "q", "sort", "tiles", "range", "from", "to"];

export class View extends EventTarget {
  constructor() {
    super();
    this.#read();
    addEventListener("popstate", () => {
      this.#read();
      this.#tell();
    });
  }

  #read() {
    const query = new URLSearchParams(location.search);
    for (const field of FIELDS) this[field] = query.get(field) ?? "";
    if (!RANGES.some(([id]) => id === this.range)) this.range = "";
    if (!(Number(this.from) > 0 && Number(this.to) > Number(this.from))) this.from = this.to = "";
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  address(changes = {}) {
    const query = new URLSearchParams();
    for (const field of FIELDS) {
      const value = changes[field] ?? this[field];
      if (value) query.set(field, value);
    }
    const text = query.toString();
    return text ? `/?${text}` : "/";
  }

  // A step that the back button undoes, or (replace) a refinement that it skips.
  go(changes, { replace = false } = {}) {
    const address = this.address(changes);
    Object.assign(this, changes);
    if (address !== location.pathname + location.search) {
      if (replace) history.replaceState(null, "", address);
      else history.pushState(null, "", address);
    }
    this.#tell();
  }

  get live() {
    return !this.from;
  }

  get rangeSeconds() {
    const chosen = this.range || DEFAULT_RANGE;
    return RANGES.find(([id]) => id === chosen)[2];
  }

  // The time shown, Unix seconds; a live range ends now.
  window(nowMs) {
    if (this.live) return [nowMs / 1000 - this.rangeSeconds, nowMs / 1000];
    return [Number(this.from), Number(this.to)];
  }
}

// Links inside the page: followed without a reload, unless the viewer asks for a tab of its own.
export function follow(view, event) {
  const link = event.target.closest("a[href^='/?'], a[href='/']");
  if (!link || event.defaultPrevented || event.button !== 0) return;
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const query = new URLSearchParams(link.search);
  view.go(Object.fromEntries(FIELDS.map((field) => [field, query.get(field) ?? ""])));
}
