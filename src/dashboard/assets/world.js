// The nodes of a run as a grid: one cell for each node, by rank, in blocks by topology. Each state has a color and a
// shape. It is drawn on a canvas, because a run can have 10,000 nodes.

import { NODE_STATES, naturally, plural, stateCount } from "./words.js";

// Sorts after all topologies.
const OUTSIDE = "\uffff";
const GAP = 16;
const LABEL = 18;
// Cells of this size show their rank.
const WITH_RANK = 36;
// Few nodes get large cells with their rank.
const SIZES = [[40, 44], [300, 26], [1500, 18], [4000, 13], [Infinity, 10]];

export class World {
  // `pick` is called with the node under the pointer or the keyboard's focus, or with null.
  constructor(host, pick) {
    this.host = host;
    this.pick = pick;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "grid of nodes");
    host.append(this.canvas);
    this.cells = [];
    this.chosen = null;
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.chosen === null && this.cells.length && this.choose(0));
    new ResizeObserver(() => this.arrange()).observe(host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    // The ratio changes with the zoom and the screen.
    addEventListener("resize", () => this.arrange());
  }

  show(nodes, highlighted) {
    this.nodes = nodes;
    this.highlighted = highlighted;
    const counts = new Map();
    for (const node of nodes) counts.set(node.state, (counts.get(node.state) ?? 0) + 1);
    const states = Object.keys(NODE_STATES).filter((state) => counts.has(state));
    const text = states.map((state) => stateCount(state, counts.get(state))).join(", ");
    this.canvas.setAttribute("aria-label", `${plural(nodes.length, "node")} by rank: ${text}. Arrow keys move from node to node.`);
    this.host.hidden = nodes.length === 0;
    this.arrange();
  }

  // Computes the place of each cell.
  arrange() {
    const width = Math.floor(this.host.clientWidth);
    if (!this.nodes || width === 0) return;
    const size = SIZES.find(([most]) => this.nodes.length <= most)[1];
    const groups = new Map();
    const hasWorld = this.nodes.some((node) => node.rank !== null);
    for (const node of this.nodes) {
      // Nodes without a rank are at the end.
      const name = hasWorld && node.rank === null ? OUTSIDE : (node.topology ?? "");
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(node);
    }
    const names = [...groups.keys()].sort(naturally);
    const hasLabels = names.length > 1 || names[0] !== "";
    // Blocks of equal racks are arranged in columns.
    const largest = Math.max(...[...groups.values()].map((group) => group.length));
    const perRow = Math.max(1, Math.floor(width / size));
    const columns = names.length === 1 ? perRow : Math.min(perRow, Math.max(Math.ceil(88 / size), Math.ceil(Math.sqrt(largest * 1.6))));
    this.cells = [];
    this.labels = [];
    let [x, y, below] = [0, 0, 0];
    for (const name of names) {
      const group = groups.get(name);
      const across = Math.min(columns, Math.max(group.length, Math.ceil(88 / size)));
      const blockWidth = across * size;
      const blockHeight = Math.ceil(group.length / across) * size + (hasLabels ? LABEL : 0);
      if (x > 0 && x + blockWidth > width) [x, y] = [0, below + (size > 12 ? GAP : 8)];
      if (hasLabels) this.labels.push({ text: label(name, group, names), x, y: y + 12, width: blockWidth, isBad: group.some(isOutlier) });
      group.forEach((node, index) => {
        this.cells.push({ node, x: x + (index % across) * size, y: y + (hasLabels ? LABEL : 0) + Math.floor(index / across) * size });
      });
      below = Math.max(below, y + blockHeight);
      x += blockWidth + GAP;
    }
    this.size = size;
    this.width = width;
    this.height = below + 2;
    this.draw();
  }

  draw() {
    if (!this.nodes) return;
    const ratio = devicePixelRatio || 1;
    const { canvas, width, height, size } = this;
    canvas.width = Math.floor(width * ratio);
    canvas.height = Math.floor(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const colors = Object.fromEntries(Object.keys(NODE_STATES).map((state) => [state, color(`node-${state}`)]));
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `12px ${style.fontFamily || "sans-serif"}`;
    for (const { text, x, y, width: most, isBad } of this.labels) {
      pen.fillStyle = isBad ? color("bad") : color("quiet");
      pen.fillText(fitted(pen, text, most + GAP - 6), x, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `600 ${Math.min(13, size * 0.36)}px ${style.fontFamily || "sans-serif"}`;
    const ground = color("ground");
    let last = null;
    this.cells.forEach(({ node, x, y }, index) => {
      const inner = size - (size > 12 ? 4 : 2);
      if (this.highlighted) pen.globalAlpha = this.highlighted.has(node.id) ? 1 : 0.22;
      if (!this.highlighted && index !== this.chosen && node.state === "member" && inner < WITH_RANK) {
        // By far the most cells. Setting a color costs more than drawing a rectangle.
        if (last !== "member") pen.fillStyle = colors.member;
        pen.fillRect(x + 1, y + 1, inner, inner);
        last = "member";
        return;
      }
      last = null;
      glyph(pen, node, x + 1, y + 1, inner, colors[node.state], ground);
      pen.globalAlpha = 1;
      if (index === this.chosen) {
        pen.strokeStyle = color("text");
        pen.lineWidth = 2;
        pen.strokeRect(x, y, size - 1, size - 1);
      }
    });
    pen.textAlign = "start";
    pen.textBaseline = "alphabetic";
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const found = this.cells.findIndex((cell) => x >= cell.x && x < cell.x + this.size && y >= cell.y && y < cell.y + this.size);
    if (found >= 0 && found !== this.chosen) this.choose(found);
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    let to = null;
    if (step !== undefined) to = Math.min(this.cells.length - 1, Math.max(0, (this.chosen ?? 0) + step));
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") to = this.beside(event.key === "ArrowDown" ? 1 : -1);
    if (to === null || !this.cells.length) return;
    event.preventDefault();
    this.choose(to);
  }

  // The nearest cell in the next row, in this block or the one below or above.
  beside(direction) {
    const from = this.cells[this.chosen ?? 0];
    let best = null;
    this.cells.forEach((cell, index) => {
      const down = (cell.y - from.y) * direction;
      if (down <= 0) return;
      const far = down * 4 + Math.abs(cell.x - from.x);
      if (best === null || far < best.far) best = { index, far };
    });
    return best?.index ?? null;
  }

  choose(index) {
    this.chosen = index;
    this.draw();
    this.pick(this.cells[index]?.node ?? null);
  }

  // Chooses the node with this id.
  find(id) {
    const index = this.cells.findIndex((cell) => cell.node.id === id);
    if (index >= 0) this.choose(index);
  }
}

function isOutlier(node) {
  return node.state === "missing" || node.state === "told";
}

function label(name, group, names) {
  const counts = {};
  for (const node of group) counts[node.state] = (counts[node.state] ?? 0) + 1;
  const bad = ["missing", "told"].filter((state) => counts[state]).map((state) => stateCount(state, counts[state]));
  const isPlain = names.every((each) => each === "" || each === OUTSIDE);
  const title = name === OUTSIDE ? "not in the world" : name === "" ? (isPlain ? "in the world" : "no topology") : name;
  return bad.length ? `${title}: ${bad.join(", ")}` : title;
}

function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let cut = text;
  while (cut.length > 3 && pen.measureText(`${cut}…`).width > width) cut = cut.slice(0, -1);
  return `${cut}…`;
}

// The shape of a state: full, hollow, crossed, half or pointed.
function glyph(pen, node, x, y, size, color, ground) {
  const { state } = node;
  pen.fillStyle = color;
  pen.strokeStyle = color;
  pen.lineWidth = Math.max(1.5, size / 9);
  const half = pen.lineWidth / 2;
  const line = (...points) => {
    pen.beginPath();
    points.forEach(([a, b], index) => (index ? pen.lineTo(x + a * size, y + b * size) : pen.moveTo(x + a * size, y + b * size)));
    pen.stroke();
  };
  const box = () => pen.strokeRect(x + half, y + half, size - 2 * half, size - 2 * half);
  if (state === "member" || state === "finished") {
    pen.fillRect(x, y, size, size);
    if (state === "finished") {
      pen.strokeStyle = ground;
      line([0.22, 0.55], [0.43, 0.74], [0.78, 0.28]);
    }
  } else if (state === "missing") {
    box();
    line([0.2, 0.2], [0.8, 0.8]);
    line([0.8, 0.2], [0.2, 0.8]);
  } else if (state === "told") {
    pen.beginPath();
    pen.moveTo(x + size / 2, y);
    pen.lineTo(x + size, y + size);
    pen.lineTo(x, y + size);
    pen.fill();
  } else if (state === "waiting") {
    box();
    pen.fillRect(x + size * 0.34, y + size * 0.34, size * 0.32, size * 0.32);
  } else if (state === "spare") {
    pen.beginPath();
    pen.arc(x + size / 2, y + size / 2, size / 2 - half, 0, 7);
    pen.stroke();
  } else if (state === "leaving") {
    line([0.1, 0.5], [0.9, 0.5]);
    line([0.55, 0.15], [0.9, 0.5], [0.55, 0.85]);
  } else {
    box();
    line([0.2, 0.8], [0.8, 0.2]);
  }
  if (size >= WITH_RANK && node.rank !== null) {
    pen.fillStyle = state === "member" || state === "finished" ? ground : color;
    if (state === "member") pen.fillText(node.rank, x + size / 2, y + size / 2);
    else if (state === "told") {
      pen.fillStyle = ground;
      pen.fillText(node.rank, x + size / 2, y + size * 0.72);
    }
  }
}

// A shape for the legend.
export function sample(state) {
  const canvas = document.createElement("canvas");
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.height = 14 * ratio;
  canvas.className = "sample";
  canvas.setAttribute("aria-hidden", "true");
  const style = getComputedStyle(document.documentElement);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  glyph(pen, { state, rank: null }, 1, 1, 12, color(`node-${state}`), color("ground"));
  return canvas;
}
