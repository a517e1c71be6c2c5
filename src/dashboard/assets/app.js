// The page: the list of runs, or one run. The address after `#` says which, so that a link leads to a run.

import { Feed } from "./feed.js";
import { showRun, clearRun, tickRun, findInWorld } from "./run.js";
import { RUN_STATES, NODE_STATES, clock, element, icon, live, naturally, plural, shortened, stateCount, tick, update } from "./words.js";

const by = (id) => document.getElementById(id);
const page = { feed: null, runs: new Map(), place: null, status: null, problem: null, pending: false, lostSince: null };

// --- places ---------------------------------------------------------------------------------------------------------

function place() {
  const [kind, ...names] = location.hash.replace(/^#\/?/, "").split("/");
  if (kind !== "run" || names.length !== 2) return { list: true };
  try {
    const [tenant, id] = names.map(decodeURIComponent);
    return { list: false, tenant, id };
  } catch {
    return { list: true };
  }
}

const address = (run) => `#/run/${encodeURIComponent(run.tenant)}/${encodeURIComponent(run.id)}`;

function go() {
  page.feed?.close();
  Object.assign(page, { place: place(), runs: new Map(), status: null, problem: null, lostSince: null });
  const { list, tenant, id } = page.place;
  by("list").hidden = !list;
  by("run").hidden = list;
  by("crumb").textContent = list ? "" : id;
  if (list) {
    delete by("list-body").dataset.key;
    by("list-body").replaceChildren(element("p", { class: "empty" }, "Reading the runs."));
    by("list-more").textContent = "";
  } else {
    clearRun();
  }
  const path = list ? "events/runs" : `events/run/${encodeURIComponent(tenant)}/${encodeURIComponent(id)}`;
  page.feed = new Feed(path, {
    status: (status) => {
      if (list) page.runs.set(address(status.run), status);
      else page.status = status;
      if (!list) page.problem = null;
      draw();
    },
    checked: () => {
      if (page.problem) {
        page.problem = null;
        draw();
      }
    },
    runs: (count) => {
      Object.assign(page, { count, problem: null });
      draw();
    },
    gone: (run) => {
      page.runs.delete(address(run));
      draw();
    },
    problem: (problem) => {
      page.problem = problem;
      draw();
    },
    changed: () => {
      showLink();
      draw();
    },
  });
  page.count = null;
  showLink();
}

// --- the connection -------------------------------------------------------------------------------------------------

// Whether the shown state may not be current.
const isLost = () => page.lostSince !== null || page.problem !== null;

function now() {
  const { feed } = page;
  return page.lostSince === null ? feed.now() : page.lostSince + feed.offset;
}

function showLink() {
  const { feed } = page;
  if (feed.isOpen) page.lostSince = null;
  else if (page.lostSince === null) page.lostSince = feed.heardAt;
  const link = by("link");
  const hasData = page.status !== null || page.count !== null;
  const isAway = page.problem !== null || page.status?.verdict.state === "unreachable";
  const state = feed.isOpen ? (isAway ? "away" : "live") : hasData ? "lost" : "connecting";
  link.dataset.link = state;
  const words = { live: "live", away: "no service", lost: "connection lost", connecting: "connecting" };
  set(by("link-text"), words[state]);
}

function showLost() {
  const { feed, problem } = page;
  const silent = Date.now() / 1000 - feed.heardAt;
  // A short interruption, such as the planned end of a stream, is not worth a banner.
  const isGone = page.lostSince !== null && silent > 2.5;
  const hasData = page.status !== null || page.runs.size > 0;
  by("lost").hidden = !isGone && !problem;
  document.body.toggleAttribute("data-stale", (isGone || problem !== null) && hasData);
  if (problem && !isGone) {
    set(by("lost-title"), `The runs have been unreadable since ${clock(problem.since, feed.now())}.`);
    set(by("lost-text"), problem.message);
  } else if (isGone) {
    const at = clock(page.lostSince + feed.offset, feed.now());
    set(by("lost-title"), `No connection to the dashboard since ${at}.`);
    set(by("lost-text"), hasData ? `The page shows what was known then, and reconnects by itself.` : "The page reconnects by itself.");
  }
}

function set(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

// --- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  if (page.pending) return;
  page.pending = true;
  requestAnimationFrame(() => {
    page.pending = false;
    if (page.place.list) drawList();
    else if (page.status) showRun(page.status, now());
    tickAll();
    name();
  });
}

function tickAll() {
  showLink();
  showLost();
  tick(document.body, now());
  if (!page.place.list && page.status && !isLost()) tickRun(page.status, now());
}

// The title and the icon of the tab show the state also when the tab is in the background.
function name() {
  const states = page.place.list ? [...page.runs.values()].map((status) => status.verdict.state) : page.status ? [page.status.verdict.state] : [];
  const worst = states.sort((one, other) => RUN_STATES[one].rank - RUN_STATES[other].rank)[0];
  const prefix = isLost() ? "? " : "";
  const words = worst ? `${RUN_STATES[worst].word.toUpperCase()} · ` : "";
  document.title = `${prefix}${words}${page.place.list ? "Runs" : page.place.id} · Lattice Rendezvous`;
  if (!worst) return;
  const color = getComputedStyle(document.documentElement).getPropertyValue(`--run-${worst}`).trim();
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="${color}" fill-rule="evenodd" d="${RUN_STATES[worst].shape}"/></svg>`;
  const link = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  if (by("icon").getAttribute("href") !== link) by("icon").setAttribute("href", link);
}

function drawList() {
  const runs = [...page.runs.values()].sort(
    (one, other) => RUN_STATES[one.verdict.state].rank - RUN_STATES[other.verdict.state].rank || naturally(one.run.id, other.run.id),
  );
  const tenants = new Set(runs.map((status) => status.run.tenant));
  if (!runs.length && !page.count) return;
  const data = runs.map(({ verdict, run, counts }) => [verdict, run.id, run.tenant, run.round, run.phase_since, counts]);
  update(by("list-body"), data, () => {
    if (!runs.length) return element("p", { class: "empty" }, "There is no run. A run appears here when its first node joins.");
    return element("ul", { class: "runs" }, runs.map((status) => row(status, tenants.size > 1)));
  });
  const more = page.count?.not_shown ?? 0;
  set(by("list-more"), more ? `${plural(more, "further run")} exist and are not shown. The address of a run is ${location.pathname}#/run/TENANT/ID.` : "");
}

function row(status, hasTenants) {
  const { verdict, run, counts } = status;
  const since = verdict.since ?? run.phase_since;
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const parts = Object.keys(NODE_STATES).filter((state) => counts[state]);
  const bar = element("span", { class: "meter", "aria-hidden": "true" },
    parts.map((state) => {
      const part = element("span", { class: `part node-${state}` });
      part.style.flexGrow = counts[state];
      return part;
    }));
  const text = parts.map((state) => stateCount(state, counts[state])).join(", ");
  const badge = element("span", { class: "badge", "data-state": verdict.state }, icon(verdict.state), RUN_STATES[verdict.state].word);
  return element("li", {},
    element("a", { href: address(run), class: "row", "data-state": verdict.state },
      element("span", { class: "row-state" }, badge, since ? live("since", since, ["for ", ""]) : null),
      element("span", { class: "row-run" },
        element("strong", {}, hasTenants ? `${run.tenant} / ${run.id}` : run.id),
        element("span", { class: "row-sentence" }, shortened(verdict.sentence))),
      element("span", { class: "row-nodes" }, total ? bar : null, element("span", { class: "quiet" }, text))));
}

// --- keys -----------------------------------------------------------------------------------------------------------

addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !isTyping && !page.place.list && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    findInWorld();
  } else if (event.key === "Escape" && !page.place.list) {
    if (isTyping && event.target.value) return;
    if (isTyping) event.target.blur();
    else location.hash = "#/";
  }
});

addEventListener("hashchange", go);
by("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";
setInterval(tickAll, 500);
go();
