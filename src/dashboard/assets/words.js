// Times, states and elements as the other scripts need them. Nothing here depends on the source of the data.

// Each state of a run: its word, its color in style.css, and the shape of the icon, so that color is not the only sign.
export const RUN_STATES = {
  stuck: { word: "Stuck", rank: 0, shape: "M8 1h8l7 7v8l-7 7H8l-7-7V8zM11 6h2v7h-2zM11 16h2v2h-2z" },
  unreachable: { word: "Unreachable", rank: 1, shape: "M12 2 23 22H1zM11 9h2v6h-2zM11 17h2v2h-2z" },
  forming: { word: "Forming", rank: 2, shape: "M12 1a11 11 0 1 0 0 22A11 11 0 0 0 12 1zM11 5h2v7.5l4 2.5-1 1.7-5-3.2z" },
  formed: { word: "Formed", rank: 3, shape: "M12 1a11 11 0 1 0 0 22A11 11 0 0 0 12 1zM10.5 17l-4.8-4.8 1.6-1.6 3.2 3.2 6.2-6.4 1.6 1.6z" },
  closed: { word: "Closed", rank: 4, shape: "M3 3h18v18H3zM7 11h10v2H7z" },
  absent: { word: "No such run", rank: 5, shape: "M12 1a11 11 0 1 0 0 22A11 11 0 0 0 12 1zM7 11h10v2H7z" },
};

// Each state of a node, the ones that need attention first.
export const NODE_STATES = {
  missing: { word: "missing", about: "a member whose record is gone" },
  told: { word: "told", about: "knows of the change and has not requested the next round" },
  excluded: { word: "excluded", about: "present and not counted" },
  leaving: { word: "leaving", about: "has announced that it leaves" },
  waiting: { word: "waiting", about: "waits for the next round" },
  spare: { word: "spare", about: "waits because there is no place for it" },
  finished: { word: "finished", about: "has finished and waits for the end of the run" },
  member: { word: "member", about: "in the world, which runs" },
};

export const CAUSES = {
  lost: "a member was lost",
  leaving: "a member left",
  seeking: "a member requested the next round",
  newcomers: "new nodes joined",
  closed: "the run was closed",
  replaced: "the round was replaced",
};

const SVG = "http://www.w3.org/2000/svg";

// An element. `text` and `class` are set as such, functions become listeners, everything else an attribute.
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  return filled(made, properties, children);
}

export function drawing(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(made, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function icon(state) {
  const path = drawing("path", { d: RUN_STATES[state].shape, "fill-rule": "evenodd" });
  return drawing("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" }, path);
}

export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// How many nodes are in a state: `2 members`, `3 missing`.
export function stateCount(state, count) {
  return `${count.toLocaleString("en")} ${stateWord(state, count)}`;
}

export function stateWord(state, count) {
  const { word } = NODE_STATES[state];
  return count !== 1 && (state === "member" || state === "spare") ? `${word}s` : word;
}

// A sentence whose long lists of names are shortened, or omitted in parentheses. The list of nodes has all names.
export function shortened(sentence) {
  return sentence.replace(/( \()?((?:[^\s,()]+, ){4,}[^\s,()]+)(?: and (\d+) more)?(\))?/g, (all, open, list, more, close) => {
    if (open && close) return "";
    const names = list.split(", ");
    return `${open ?? ""}${names.slice(0, 3).join(", ")} and ${names.length - 3 + Number(more ?? 0)} more${close ?? ""}`;
  });
}

// A length of time: at most two units.
export function duration(seconds) {
  const whole = Math.max(0, seconds);
  if (whole < 10) return `${whole.toFixed(whole < 1 ? 1 : 0)} s`;
  if (whole < 60) return `${Math.round(whole)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  const [name, size] = units[first];
  const [smaller, part] = units[first + 1];
  const rest = Math.floor((whole % size) / part);
  return `${Math.floor(whole / size)} ${name}${rest ? ` ${rest} ${smaller}` : ""}`;
}

// A countdown: 0:49, 12:05, 1:02:03.
export function countdown(seconds) {
  const whole = Math.ceil(Math.max(0, seconds));
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${two(whole % 60)}`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}

// A time of day, with the date if it is another day.
export function clock(at, now) {
  const [then, today] = [new Date(at * 1000), new Date(now * 1000)];
  const time = then.toLocaleTimeString("en-GB");
  if (then.toDateString() === today.toDateString()) return time;
  return `${then.toLocaleDateString("en-CA")} ${time}`;
}

// Text that changes with time. `tick` updates all of these that are in the page.
export function live(kind, at, words = ["", ""]) {
  return element("span", { "data-live": kind, "data-at": at, "data-before": words[0], "data-after": words[1] });
}

export function tick(root, now) {
  for (const each of root.querySelectorAll("[data-live]")) {
    const at = Number(each.dataset.at);
    let text = duration(each.dataset.live === "until" ? at - now : now - at);
    if (each.dataset.live === "countdown") text = at > now ? countdown(at - now) : "due now";
    text = `${each.dataset.before}${text}${each.dataset.after}`;
    if (each.textContent !== text) each.textContent = text;
  }
}

// Replaces the content of an element only if its data differ, so that focus and selection stay.
export function update(target, data, make) {
  const key = JSON.stringify(data);
  if (target.dataset.key === key) return;
  target.dataset.key = key;
  target.replaceChildren(...[make()].flat().filter(Boolean));
}

// Orders names so that `rack-9` comes before `rack-10`.
export const naturally = new Intl.Collator("en", { numeric: true }).compare;
