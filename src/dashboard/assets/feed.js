// One connection to the dashboard. It reconnects by itself, and reports since when it has received nothing.

// The dashboard sends an event every few seconds at least.
const SILENCE_MS = 15000;
const RETRY_MS = 2000;

export class Feed {
  // `handlers` has a function for each event, and `changed`, which is called when the state of the connection changes.
  constructor(path, handlers) {
    this.path = path;
    this.handlers = handlers;
    this.heard = performance.now();
    this.heardAt = Date.now() / 1000;
    this.isOpen = false;
    this.offset = 0;
    this.watch = setInterval(() => this.check(), 1000);
    this.connect();
  }

  connect() {
    this.source?.close();
    this.source = new EventSource(this.path);
    this.began = performance.now();
    for (const [name, handle] of Object.entries(this.handlers)) {
      if (name === "changed") continue;
      this.source.addEventListener(name, (event) => {
        this.heard = performance.now();
        this.heardAt = Date.now() / 1000;
        const data = JSON.parse(event.data);
        // The clock of this machine may be wrong, so times are compared with the clock of the dashboard.
        if (name !== "status" && data.at) this.offset = data.at - this.heardAt;
        handle(data, event);
        this.set(true);
      });
    }
    this.source.onerror = () => {
      this.set(false);
      // Refused with an error, so the browser does not try again.
      if (this.source.readyState === EventSource.CLOSED) this.retry();
    };
  }

  retry() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), RETRY_MS);
  }

  // A connection can be dead without an error.
  check() {
    const silent = performance.now() - Math.max(this.heard, this.began);
    if (silent > SILENCE_MS) {
      this.set(false);
      this.connect();
    }
  }

  set(isOpen) {
    if (this.isOpen === isOpen) return;
    this.isOpen = isOpen;
    this.handlers.changed();
  }

  // The time by the clock of the dashboard.
  now() {
    return Date.now() / 1000 + this.offset;
  }

  close() {
    clearInterval(this.watch);
    clearTimeout(this.timer);
    this.source.close();
  }
}
