// The fleet as the daemon tells it: one event stream, everything first, then differences. A hidden tab holds none.

const SILENCE_MS = 5000; // the daemon says something each second; this much silence is a lost connection
const RETRY_MS = 1500;

export class Store extends EventTarget {
  rows = new Map();
  totals = {};
  loaded = false;
  lost = false;
  toldMs = 0; // the daemon's clock at the last event
  #heardAt = 0; // performance.now() then
  #stream = null;
  #timer = 0;
  #lostSince = 0;

  start() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", () => this.#open());
    setInterval(() => this.#watch(), 1000);
    if (!document.hidden) this.#open();
  }

  // The daemon's clock now: ages are against it, whatever this machine's clock says.
  nowMs() {
    return this.toldMs ? this.toldMs + performance.now() - this.#heardAt : Date.now();
  }

  silentS() {
    return (performance.now() - this.#heardAt) / 1000;
  }

  #open() {
    if (document.hidden || this.#stream) return;
    clearTimeout(this.#timer);
    const stream = new EventSource("/api/live");
    this.#stream = stream;
    this.#lostSince = performance.now();
    stream.addEventListener("all", (event) => this.#all(JSON.parse(event.data)));
    stream.addEventListener("change", (event) => this.#change(JSON.parse(event.data)));
    stream.addEventListener("error", () => {
      if (stream !== this.#stream) return;
      this.#lose();
      if (stream.readyState === EventSource.CLOSED) this.#again();
    });
  }

  #close() {
    clearTimeout(this.#timer);
    this.#stream?.close();
    this.#stream = null;
  }

  #again() {
    this.#close();
    this.#timer = setTimeout(() => this.#open(), RETRY_MS);
  }

  #watch() {
    if (document.hidden) return;
    const since = Math.max(this.#heardAt, this.#lostSince);
    if (this.#stream && performance.now() - since > SILENCE_MS) {
      this.#lose();
      this.#again();
    }
    this.#tell("tick");
  }

  #lose() {
    if (this.lost) return;
    this.lost = true;
    this.#tell("connection");
  }

  #heard(told) {
    this.toldMs = told.now_ms;
    this.#heardAt = performance.now();
    if (this.lost) {
      this.lost = false;
      this.#tell("connection");
    }
  }

  #all(told) {
    this.#heard(told);
    this.rows = new Map(told.rows.map((row) => [row.instance, row]));
    this.totals = told.totals;
    this.loaded = true;
    this.#tell("rows", { all: true, changed: new Set(this.rows.keys()), moved: true, reasons: true });
  }

  #change(told) {
    this.#heard(told);
    Object.assign(this.totals, told.totals);
    const changed = new Set(Object.keys(told.rows ?? {}));
    let moved = false; // somebody came, left, or is in another state
    let reasons = false;
    for (const [instance, difference] of Object.entries(told.rows ?? {})) {
      const row = this.rows.get(instance);
      if (!row) this.rows.set(instance, difference);
      else merge(row, difference);
      moved ||= !row || "state" in difference;
      reasons ||= "reason" in difference;
    }
    for (const instance of told.gone ?? []) {
      this.rows.delete(instance);
      changed.add(instance);
      moved = true;
    }
    this.#tell("rows", { all: false, changed, moved, reasons });
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

export function merge(row, difference) {
  for (const [name, value] of Object.entries(difference)) {
    if (name.endsWith("_tail")) {
      const spark = name.slice(0, -"_tail".length);
      const [steps, ...newest] = value;
      row[spark] = row[spark].slice(steps, row[spark].length - 1).concat(newest);
    } else row[name] = value;
  }
}
