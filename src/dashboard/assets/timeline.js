// The rounds of a run as a picture: bars as high as the world is large, changes as marks, and hatched where there
// was no world. The table below the picture has the same facts as text.

import { CAUSES, clock, drawing, duration, element, live, plural } from "./words.js";

const HEIGHT = 132;
const [TOP, BASE, LEFT, RIGHT] = [26, 100, 8, 12];
// A standstill is much shorter than a round, but has to be visible.
const LEAST_WIDTH = 3;
const MARKS = {
  lost: "M-4-4 4 4M4-4-4 4",
  leaving: "M-5 0H5M1-4l4 4-4 4",
  newcomers: "M-5 0H5M0-5V5",
  seeking: "M4-3A5 5 0 1 0 5 2M5-6v4H1",
  closed: "M-4-4H4V4H-4Z",
  replaced: "M-5-2H5M-5 3H5",
};

// The spans of a run: when each round ran, and when there was no world before it.
export function spans(status, now) {
  const found = [];
  const rounds = status.rounds.filter((round) => round.formed_at !== null);
  rounds.forEach((round, index) => {
    const formed = round.formed_at;
    const next = rounds[index + 1];
    const began = formed - round.took_seconds;
    if (round.stood_still_seconds !== null) {
      found.push({ kind: "still", from: Math.max(began, rounds[index - 1]?.formed_at ?? began), to: formed, round });
    } else if (index === 0 && round.took_seconds > 0) {
      found.push({ kind: "first", from: began, to: formed, round });
    }
    let to = next ? Math.max(formed, next.formed_at - (next.stood_still_seconds ?? 0)) : now;
    if (!next && status.run.change && status.verdict.since) to = Math.max(formed, status.verdict.since);
    if (!next && status.verdict.state === "closed") to = formed;
    found.push({ kind: "round", from: formed, to, round, isLast: !next });
  });
  const { run, verdict } = status;
  if (verdict.state !== "closed" && (run.change || !rounds.length) && verdict.since) {
    const kind = rounds.length ? "still" : "first";
    found.push({ kind, from: verdict.since, to: now, open: true, cause: run.change?.kind, why: run.change?.why });
  }
  return found;
}

export function picture(status, now, width, seconds) {
  const all = spans(status, now);
  if (!all.length) return element("p", { class: "empty" }, "No round has formed yet.");
  const end = Math.max(...all.map((span) => span.to));
  const begin = Math.max(Math.min(...all.map((span) => span.from)), seconds ? end - seconds : 0);
  const scale = (width - LEFT - RIGHT) / Math.max(1, end - begin);
  const x = (at) => LEFT + (Math.max(at, begin) - begin) * scale;
  const most = Math.max(1, ...all.map((span) => span.round?.size ?? 0));
  const shown = all.filter((span) => span.to >= begin);
  const still = status.rounds.reduce((sum, round) => sum + (round.stood_still_seconds ?? 0), 0);
  const label = `${plural(status.rounds.length, "round")}, from ${clock(begin, now)} to ${clock(end, now)}; without a world for ${duration(still)} in total. The table has the details.`;
  const svg = drawing("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  svg.append(hatch());
  for (const span of shown) svg.append(bar(span, x, most, now));
  for (const span of shown) {
    const mark = changeMark(span, x, begin);
    if (mark) svg.append(mark);
  }
  svg.append(axis(begin, end, x, width, now));
  return svg;
}

function hatch() {
  const line = drawing("path", { d: "M0 6 6 0", class: "hatch" });
  const pattern = { id: "still", width: 6, height: 6, patternUnits: "userSpaceOnUse" };
  return drawing("defs", {}, drawing("pattern", pattern, drawing("rect", { width: 6, height: 6, class: "hatch-ground" }), line));
}

function bar(span, x, most, now) {
  const left = x(span.from);
  const width = Math.max(x(span.to) - left, span.kind === "round" ? 1 : LEAST_WIDTH);
  const size = span.kind === "round" ? span.round.size : most;
  const height = Math.max(4, ((BASE - TOP) * size) / most);
  const rect = drawing("rect", {
    x: span.kind === "round" ? left : x(span.to) - width,
    y: BASE - height,
    width,
    height,
    class: `span-${span.kind}${span.isLast ? " last" : ""}`,
  });
  rect.append(drawing("title", {}, words(span, now)));
  const group = drawing("g", {}, rect);
  const text = span.kind === "round" ? `round ${span.round.round}` : "";
  if (text && width > 64) {
    group.append(
      drawing("text", { x: left + 6, y: BASE - 8, class: "bar-text" }, text),
      drawing("text", { x: left + 6, y: BASE - 22, class: "bar-text quiet-text" }, plural(span.round.size, "node")),
    );
  } else if (span.kind === "round" && width > 16) {
    group.append(drawing("text", { x: left + 4, y: BASE - 8, class: "bar-text" }, String(span.round.round)));
  }
  const waits = span.open ? "no round yet" : "first round forms";
  if (span.kind === "first" && width > 130) group.append(drawing("text", { x: left + 6, y: BASE - 8, class: "axis-text" }, waits));
  return group;
}

function words(span, now) {
  const length = duration(span.to - span.from);
  if (span.kind === "round") {
    return `round ${span.round.round}: ${plural(span.round.size, "node")}, ${span.isLast ? "since" : "from"} ${clock(span.from, now)}, for ${length}`;
  }
  if (span.open) return `${span.kind === "still" ? "there is no world" : "waits for the first round"} since ${clock(span.from, now)}${span.why ? `: ${span.why}` : ""}`;
  return `${span.kind === "still" ? "there was no world" : "the first round formed"} for ${length}: ${span.round.why}`;
}

function changeMark(span, x, begin) {
  const cause = span.kind === "still" ? (span.cause ?? span.round?.cause) : null;
  if (!cause || span.from < begin) return null;
  const mark = drawing("g", { transform: `translate(${Math.max(x(span.from), 12)} 12)`, class: `mark mark-${cause}` });
  mark.append(drawing("title", {}, CAUSES[cause]), drawing("path", { d: MARKS[cause] }));
  return mark;
}

function axis(begin, end, x, width, now) {
  const group = drawing("g", { class: "axis" }, drawing("path", { d: `M${LEFT} ${BASE}.5H${width - RIGHT}` }));
  const wanted = Math.max(2, Math.floor(width / 130));
  const steps = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800];
  const step = steps.find((each) => (end - begin) / each <= wanted) ?? 2592000;
  const zone = new Date(begin * 1000).getTimezoneOffset() * 60;
  for (let at = Math.ceil((begin - zone) / step) * step + zone; at <= end; at += step) {
    const place = x(at);
    if (place > width - 70 || place < 24) continue;
    const text = step >= 86400 ? new Date(at * 1000).toLocaleDateString("en-CA") : clock(at, at).slice(0, step < 60 ? 8 : 5);
    group.append(
      drawing("path", { d: `M${place} ${BASE}v5` }),
      drawing("text", { x: place, y: BASE + 20, "text-anchor": "middle" }, text),
    );
  }
  if (end >= now - 1) group.append(drawing("text", { x: width - RIGHT, y: BASE + 20, "text-anchor": "end", class: "now" }, "now"));
  return group;
}

// The last rounds as a table, the newest first.
export function table(status, now) {
  const rounds = [...status.rounds].reverse().slice(0, 20);
  if (!rounds.length) return [];
  const heads = ["Round", "Formed", "Nodes", "Took", "Without a world", "Trained after", "Why"];
  const head = element("tr", {}, heads.map((text) => element("th", { scope: "col" }, text)));
  const rows = rounds.map((round) => {
    const lost = round.lost.map((loss) => element("div", { class: "loss" }, `lost ${loss.name}: ${loss.evidence ?? "its lease ended"}`));
    return element(
      "tr", {},
      element("th", { scope: "row" }, String(round.round)),
      element("td", {}, round.formed_at === null ? "" : clock(round.formed_at, now)),
      element("td", { class: "number" }, String(round.size)),
      element("td", { class: "number" }, duration(round.took_seconds)),
      element("td", { class: "number" }, round.stood_still_seconds === null ? "–" : duration(round.stood_still_seconds)),
      element("td", { class: "number" }, round.resumed_after_seconds === null ? "–" : duration(round.resumed_after_seconds)),
      element("td", {}, round.why, ...lost),
    );
  });
  const total = status.rounds.reduce((sum, round) => sum + (round.stood_still_seconds ?? 0), 0);
  const older = status.rounds.length - rounds.length;
  const { run, verdict } = status;
  const isStill = run.change && verdict.since && verdict.state !== "closed";
  const caption = [
    `Between rounds, the members had no world for ${duration(total)} in total. `,
    isStill ? element("span", { class: "ongoing" }, live("since", verdict.since, ["They have had none for ", " now. "])) : null,
    older ? `The ${rounds.length} newest of ${status.rounds.length} rounds:` : null,
  ];
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rounds" },
    element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, rows)));
}
