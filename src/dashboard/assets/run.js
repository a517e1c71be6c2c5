// The view of one run: the verdict, the world, the timeline, and the facts.

import { picture, table } from "./timeline.js";
import { World, sample } from "./world.js";
import { NODE_STATES, RUN_STATES, clock, duration, element, icon, live, plural, shortened, stateWord, update } from "./words.js";

const by = (id) => document.getElementById(id);
const MOST_LISTED = 8;
const MOST_LISTED_AT_ALL = 200;
// Up to so many nodes are all listed. Of more nodes, only those that differ are listed.
const FEW = 40;
const LARGE = 300;
const RANGES = [["All", 0], ["Last hour", 3600], ["Last 10 min", 600]];
const view = { status: null, world: null, state: null, range: 0, drawn: 0, isLong: false };

export function clearRun() {
  Object.assign(view, { status: null, state: null, isLong: false });
  by("badge").replaceChildren();
  by("sentence").textContent = "Reading the run.";
  by("since").replaceChildren();
  by("reason").textContent = "";
  by("find").value = "";
  by("verdict").dataset.state = "";
  for (const id of ["waits", "next", "act", "world", "timeline", "facts"]) by(id).hidden = true;
  for (const id of ["notes", "outliers", "rounds", "picture", "facts-body", "unreadable", "legend", "waits-body", "next-body", "act-body", "since", "badge"]) {
    by(id).replaceChildren();
    delete by(id).dataset.key;
  }
  by("picked").textContent = "";
}

export function showRun(status, now) {
  view.status = status;
  const { verdict } = status;
  by("verdict").dataset.state = verdict.state;
  // A service that does not respond leaves what was known before.
  document.body.toggleAttribute("data-last-known", verdict.state === "unreachable");
  showVerdict(status, now);
  showWaits(status);
  showNext(verdict);
  showAct(verdict);
  update(by("notes"), verdict.notes, () => verdict.notes.length && element("ul", { class: "notes" }, verdict.notes.map((note) => element("li", {}, shortened(note)))));
  showWorld(status, now);
  showTimeline(status, now);
  showFacts(status, now);
}

// Draws the parts that grow with time.
export function tickRun(status, now) {
  if (now - view.drawn > 5 && status.verdict.state !== "closed") showPicture(status, now);
}

// --- the verdict ----------------------------------------------------------------------------------------------------

function showVerdict({ verdict, run }, now) {
  const since = verdict.since ?? run.phase_since;
  update(by("badge"), verdict.state, () => {
    by("badge").dataset.state = verdict.state;
    return [icon(verdict.state), document.createTextNode(RUN_STATES[verdict.state].word)];
  });
  update(by("since"), [since, verdict.state], () => since && [
    live("since", since, ["for ", ""]),
    element("span", { class: "quiet" }, `, since ${clock(since, now)}`),
  ]);
  const sentence = shortened(verdict.sentence);
  if (by("sentence").textContent !== sentence) by("sentence").textContent = sentence;
  // The reason often repeats the sentence.
  const says = verdict.reason && !verdict.sentence.includes(verdict.reason) && verdict.state !== "formed";
  by("reason").textContent = says ? `Coordinator: ${shortened(verdict.reason)}.` : "";
}

function showWaits({ verdict, nodes }) {
  by("waits").hidden = verdict.waits_for_count === 0;
  const where = place(verdict.waits_for, nodes);
  update(by("waits-body"), [verdict.waits_for, verdict.waits_for_count, where], () => {
    const groups = alike(verdict.waits_for);
    const items = groups.slice(0, 4).map(awaited);
    const rest = verdict.waits_for_count - groups.slice(0, 4).reduce((sum, group) => sum + group.length, 0);
    if (rest > 0) {
      items.push(element("li", {}, element("strong", {}, plural(rest, groups.length ? "further node" : "node")),
        groups.length ? null : element("div", { class: "quiet" }, "not known by name: they have not joined")));
    }
    return [element("ul", { class: "waits" }, items), where && element("p", { class: "where" }, where)];
  });
}

// Nodes that wait for the same reason, apart from names and addresses.
function alike(nodes) {
  const groups = new Map();
  for (const node of nodes) {
    const key = node.evidence.replace(/ at \S+| \(seen by [^)]*\)/g, "");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(node);
  }
  return [...groups.values()];
}

function awaited(group) {
  const [first] = group;
  const shown = group.slice(0, 6);
  const names = shown.flatMap((node, index) => [element("span", { class: "name" }, node.name + (index < shown.length - 1 ? "," : "")), " "]);
  const more = group.length > 6 ? `and ${group.length - 6} more` : "";
  const ranks = group.length === 1 && first.rank !== null ? `rank ${first.rank}` : group.length > 1 ? `${group.length} nodes` : "";
  const since = Math.min(...group.map((node) => node.since ?? Infinity));
  const seen = Math.max(...group.map((node) => node.last_seen ?? -Infinity));
  const evidence = group.length === 1 ? first.evidence : `${first.evidence.replace(/^it has/, "they have")}${/ at | \(seen/.test(first.evidence) ? ", and the like" : ""}`;
  return element("li", {},
    element("strong", {}, names, more), " ", element("span", { class: "quiet" }, ranks),
    Number.isFinite(since) ? element("div", {}, live("since", since, ["for ", ""])) : null,
    first.evidence ? element("div", { class: "evidence" }, evidence) : null,
    Number.isFinite(seen) ? element("div", { class: "quiet" }, live("since", seen, ["last sign of life ", " ago"])) : null);
}

// The topology that only the awaited nodes have, and all of them, because the switch or the rack is often the cause.
function place(awaitedNodes, nodes) {
  if (awaitedNodes.length < 2) return null;
  const ids = new Set(awaitedNodes.map((node) => node.id));
  const theirs = new Set(nodes.filter((node) => ids.has(node.id)).map((node) => node.topology));
  const all = new Set(nodes.map((node) => node.topology));
  const [only] = theirs;
  return theirs.size === 1 && all.size > 1 && only ? `All of them are in ${only}.` : null;
}

function showNext({ next, state }) {
  by("next").hidden = !next;
  update(by("next-body"), [next, state], () => next && [
    next.at === null ? null : element("p", { class: "countdown" }, live("countdown", next.at, ["in ", ""])),
    element("p", {}, shortened(next.what), next.limit ? element("span", { class: "quiet" }, ` (${next.limit})`) : null),
    next.at === null && state !== "closed" ? element("p", { class: "quiet" }, "This does not happen by itself.") : null,
  ]);
}

function showAct({ command }) {
  by("act").hidden = !command;
  update(by("act-body"), command, () => {
    if (!command) return null;
    if (!/^(lattice-rdzv|etcdctl|kubectl) /.test(command)) {
      return element("p", {}, command.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part)));
    }
    const code = element("code", { class: "command" }, command);
    const button = element("button", { type: "button", class: "copy", click: () => copy(code, button) }, "Copy");
    return [element("div", { class: "command-line" }, code, button)];
  });
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    // Without the permission, the text is selected for the keyboard.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// --- the world ------------------------------------------------------------------------------------------------------

function showWorld(status, now) {
  const { nodes, counts, run } = status;
  by("world").hidden = nodes.length === 0;
  if (nodes.length === 0) return;
  view.world ??= new World(by("grid"), (node) => pick(node));
  const size = run.size ? `${plural(run.size, "place")} in round ${run.round}` : "no round yet";
  const asked = run.min_nodes === null ? "" : run.min_nodes === run.max_nodes ? `, ${run.min_nodes} wanted` : `, ${run.min_nodes} to ${run.max_nodes} wanted`;
  by("world-title").textContent = `${lastKnown(status, now)}World: ${plural(nodes.length, "node")}, ${size}${asked}`;
  if (view.state && !counts[view.state]) view.state = null;
  const states = Object.keys(NODE_STATES).filter((state) => counts[state]);
  update(by("legend"), [states.map((state) => [state, counts[state]]), view.state], () => states.map((state) =>
    element("button", {
      type: "button", class: "legend-item", "aria-pressed": String(view.state === state), title: NODE_STATES[state].about,
      click: () => {
        view.state = view.state === state ? null : state;
        redraw();
        by("legend").querySelector(`[data-state=${state}]`)?.focus();
      },
      "data-state": state,
    }, sample(state), element("strong", {}, counts[state].toLocaleString("en")), ` ${stateWord(state, counts[state])}`)));
  showNodes(status);
}

function redraw() {
  showWorld(view.status, view.status.at);
}

// The nodes that the search and the legend select; null without a selection.
function selected(nodes) {
  const text = by("find").value.trim().toLowerCase();
  if (!text && !view.state) return null;
  return nodes.filter((node) => {
    const words = [node.name, node.address, node.topology ?? "", node.rank === null ? "" : `rank ${node.rank}`];
    return (!view.state || node.state === view.state) && (!text || words.some((word) => word.toLowerCase().includes(text)));
  });
}

function showNodes({ nodes, counts }) {
  const chosen = selected(nodes);
  view.world.show(nodes, chosen && new Set(chosen.map((node) => node.id)));
  const usual = Object.entries(counts).sort((one, other) => other[1] - one[1])[0][0];
  const order = Object.keys(NODE_STATES);
  const first = (one, other) => order.indexOf(one.state) - order.indexOf(other.state);
  const isWhole = !chosen && nodes.length <= FEW;
  const listed = chosen ?? (isWhole ? nodes : nodes.filter((node) => node.state !== usual).sort(first));
  const title = chosen ? `${plural(chosen.length, "node")} selected` : isWhole ? "All nodes" : `${plural(listed.length, "node")} not like the others`;
  const shown = listed.slice(0, isWhole ? FEW : view.isLong ? MOST_LISTED_AT_ALL : MOST_LISTED);
  by("world").classList.toggle("large", nodes.length > LARGE);
  update(by("outliers"), [title, shown, listed.length], () => {
    if (!shown.length) return chosen ? element("p", { class: "empty" }, "No node matches.") : null;
    const head = ["Node", "State", "Rank", "Address", "Topology"].map((text) => element("th", { scope: "col" }, text));
    const rows = shown.map((node) => element("tr", {},
      element("th", { scope: "row" }, element("button", { type: "button", class: "plain", click: () => view.world.find(node.id) }, node.name)),
      element("td", {}, element("span", { class: `state-word node-${node.state}` }, sample(node.state), NODE_STATES[node.state].word),
        node.since === null ? null : live("since", node.since, [" for ", ""]),
        node.why ? element("div", { class: "evidence" }, node.why) : null),
      element("td", { class: "number" }, node.rank ?? "–"),
      element("td", {}, node.address ? `${node.address}:${node.port}` : "–"),
      element("td", {}, node.topology ?? "–")));
    const rest = listed.length - shown.length;
    const caption = element("caption", {}, title, rest > 0 ? `, of which the first ${shown.length} are listed` : "");
    const list = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Nodes" }, element("table", {},
      caption, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)));
    const isMore = rest > 0 && !view.isLong;
    return [list, isMore && element("button", { type: "button", class: "more", click: () => {
      view.isLong = true;
      redraw();
      by("outliers").querySelector(".scroll").focus();
    } }, `List ${Math.min(rest, MOST_LISTED_AT_ALL - MOST_LISTED)} more`)];
  });
}

function pick(node) {
  if (!node) return;
  const parts = [
    node.rank === null ? null : `rank ${node.rank}`, NODE_STATES[node.state].word, node.why,
    node.address && `${node.address}:${node.port}`, node.topology,
    node.last_seen === null ? null : `last sign of life ${clock(node.last_seen, view.status.at)}`,
  ];
  by("picked").replaceChildren(element("strong", {}, node.name), `: ${parts.filter(Boolean).join(" · ")}`);
}

export function findInWorld() {
  by("find").focus();
  by("find").scrollIntoView({ block: "center" });
}

by("find").addEventListener("input", () => view.status && redraw());
by("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !view.status) return;
  const first = selected(view.status.nodes)?.[0];
  if (first) view.world.find(first.id);
});

// --- the timeline ---------------------------------------------------------------------------------------------------

function showTimeline(status, now) {
  by("timeline").hidden = status.rounds.length === 0 && status.verdict.since === null;
  if (by("timeline").hidden) return;
  by("timeline-title").textContent = `${lastKnown(status, now)}Timeline`;
  update(by("range"), view.range, () => RANGES.map(([text, seconds]) => element("button", {
    type: "button", "aria-pressed": String(view.range === seconds), "data-range": seconds,
    click: () => {
      view.range = seconds;
      showTimeline(view.status, view.now);
      by("range").querySelector(`[data-range="${seconds}"]`).focus();
    },
  }, text)));
  showPicture(status, now);
  update(by("rounds"), [status.rounds, status.run.change, status.verdict.since], () => table(status, now));
}

function showPicture(status, now) {
  // The last known state ends at the time when it was known.
  const end = status.verdict.state === "unreachable" ? (status.verdict.since ?? now) : now;
  Object.assign(view, { drawn: now, now });
  by("picture").replaceChildren(picture(status, end, Math.max(280, Math.floor(by("picture").clientWidth)), view.range));
}

addEventListener("resize", () => view.status && !by("timeline").hidden && showPicture(view.status, view.now));

function lastKnown({ verdict }, now) {
  if (verdict.state !== "unreachable") return "";
  return verdict.since ? `As known at ${clock(verdict.since, now)} · ` : "As last known · ";
}

// --- the facts ------------------------------------------------------------------------------------------------------

function showFacts(status, now) {
  const { service, run } = status;
  by("facts").hidden = false;
  const isAway = status.verdict.state === "unreachable";
  const health = isAway ? "does not respond" : service.has_leader === false ? "has no leader" : service.errors.length ? "reports errors" : "responds";
  const pairs = [
    ["Service", `${service.endpoint || "not found yet"} ${health}`],
    ["Version", service.version],
    ["Read of the run", service.latency_seconds === null || isAway ? null : `${Math.round(service.latency_seconds * 1000)} ms`],
    ["Errors", service.errors.join("; ")],
    ["Run", run.tenant === "default" ? run.id : `${run.id} (tenant ${run.tenant})`],
    ["Phase", run.phase],
    ["Round", run.round],
    ["Nodes wanted", run.min_nodes === null ? null : run.min_nodes === run.max_nodes ? run.min_nodes : `${run.min_nodes} to ${run.max_nodes}`],
    ["Sizes", sizes(run.sizing)],
    ["Rank 0", run.master_address ? `${run.master_address}:${run.master_port}` : null],
    ["Coordinator", run.coordinator?.name],
    ["Hosts the service", run.host],
    ["Submission", run.submission],
  ];
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const seen = isAway ? null : (run.coordinator?.last_seen ?? null);
  update(by("facts-body"), [shown, seen], () => shown.map(([name, value]) => element("div", {}, element("dt", {}, name),
    element("dd", { class: name === "Service" && health !== "responds" ? "bad-word" : null }, String(value),
      name === "Coordinator" && seen !== null ? live("since", seen, [", last sign of life ", " ago"]) : null))));
  update(by("unreadable"), status.unreadable, () => status.unreadable.length && element("div", { class: "notes" },
    element("p", {}, `${plural(status.unreadable.length, "record")} cannot be read:`), element("ul", {}, status.unreadable.slice(0, 10).map((text) => element("li", {}, text)))));
}

function sizes(sizing) {
  if (!sizing) return null;
  const parts = [];
  if (sizing.sizes?.length) parts.push(sizing.sizes.join(", "));
  if (sizing.node_unit) parts.push(`multiples of ${sizing.node_unit}`);
  if (sizing.wanted) parts.push(`first round at once with ${sizing.wanted}`);
  return parts.join("; ") || null;
}
