// Chapter 4, for its explorables. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const dot = (a, b) => a.reduce((sum, v, k) => sum + v * b[k], 0);

/** eq:rope-solution, plane by plane; a row of lib.global_pointer.apply_rope */
export function turned(vector, position, base = 10000) {
  const out = [];
  for (let k = 0; k < vector.length; k += 2) {
    const angle = position * base ** (-k / vector.length);
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    out.push(vector[k] * c - vector[k + 1] * s, vector[k] * s + vector[k + 1] * c);
  }
  return out;
}

/** eq:gp-score without its constant: the product of what lib.global_pointer.apply_rope gives. */
export function score(query, key, i, j, base = 10000) {
  return dot(turned(query, i, base), turned(key, j, base)) / Math.sqrt(query.length);
}

/** Whether some b and c give b_i + c_j, eq:gp-difference, the wished signs. Wishes are rows
    (i, j, +1 or −1). A plus says that b_i is larger than −c_j, a minus that it is smaller: there are
    such numbers unless the wishes go round in a circle. Gives { b, c }, or { circle } of cells. */
export function rulers(wishes, length) {
  // Nodes: 0 … L−1 are b_i, L … 2L−1 are −c_j; an arrow leads to what must be smaller.
  const arrows = Array.from({ length: 2 * length }, () => []);
  for (const [i, j, sign] of wishes) {
    const [from, to] = sign > 0 ? [i, length + j] : [length + j, i];
    arrows[from].push([to, [i, j]]);
  }
  // The shortest way round from each node, if there is one.
  const round = (start) => {
    const came = new Map();
    for (let queue = [start]; queue.length; ) {
      const node = queue.shift();
      for (const [next, cell] of arrows[node]) {
        if (came.has(next)) continue;
        came.set(next, [node, cell]);
        if (next !== start) queue.push(next);
      }
    }
    const circle = [];
    for (let node = start; came.has(start) && (node !== start || !circle.length); ) {
      const [before, cell] = came.get(node);
      circle.push(cell);
      node = before;
    }
    return circle;
  };
  const circles = arrows.map((_, node) => round(node)).filter((circle) => circle.length);
  if (circles.length) return { circle: circles.reduce((a, b) => (b.length < a.length ? b : a)) };
  // No circle: the number of a node is how many steps lead down from it.
  const height = Array(2 * length).fill(null);
  const climb = (node) => (height[node] ??= Math.max(0, ...arrows[node].map(([next]) => climb(next) + 1)));
  for (let node = 0; node < 2 * length; node++) climb(node);
  return { b: height.slice(0, length), c: height.slice(length).map((v) => -v || 0) };
}

/** eq:gp-difference for one pair of heads: b_i + c_j. */
function additive(b, c) {
  return b.map((v) => c.map((w) => v + w));
}

const TOKENS = ["In", "Oslo", "Mira", "Voss", "founded", "Tarn", "Labs", "."];

/** One cell: the span it stands for, and what is left of two turned vectors. */
function cell(board) {
  const { number, clamp, text, box, disc, arrow, path, span } = explore;
  const token = (k) => TOKENS[k];
  const first = board.range("first token", { min: 0, max: 7, step: 1, value: 2, show: token });
  const last = board.range("last token", { min: 0, max: 7, step: 1, value: 3, show: token });
  const together = board.check("Move both together", false);
  // Whoever is moved takes the other along, if asked to.
  const before = { i: 2, j: 3 };
  const both = () => {
    if (together.value) {
      const step = first.value - before.i || last.value - before.j;
      const far = clamp(step, -Math.min(before.i, before.j), 7 - Math.max(before.i, before.j));
      [first.value, last.value] = [before.i + far, before.j + far];
    }
    [before.i, before.j] = [first.value, last.value];
  };
  const TURN = 1; // one radian a position: the library's frequency in two dimensions
  const [query, key] = [-0.6, 0.2].map((angle) => [Math.cos(angle), Math.sin(angle)]);
  return () => {
    both();
    const [i, j] = [first.value, last.value];
    const [left, top, size] = [74, 26, 21];
    let picture = "";
    for (let a = 0; a < 8; a++)
      for (let b = 0; b < 8; b++)
        picture += box(left + b * size, top + a * size, size, size, a === i && b === j ? (a > b ? "cell ink-vermilion" : "cell ink-blue") : a > b ? "cell band" : a === i || b === j ? "cell ink-blue pale" : "cell none");
    TOKENS.forEach((word, k) => {
      picture += text(left - 5, top + k * size + 15, `${word} ${k}`, { anchor: "end", look: k === i ? "small strong" : "small" });
      picture += text(left + k * size + 11, top - 7, String(k), { look: k === j ? "small strong" : "small" });
    });
    // The sentence, with the span under a bar.
    TOKENS.forEach((word, k) => {
      const inside = i <= k && k <= j;
      if (inside) picture += box(28 + k * 54 - 6, 226, 54, 26, "ink-blue pale noline");
      picture += text(28 + k * 54 + 21, 244, word, { look: inside ? "strong" : "" });
    });
    // Two arrows on a circle.
    const [cx, cy, r] = [366, 112, 56];
    const [q, k] = [turned(query, i), turned(key, j)];
    picture += disc(cx, cy, r, "none thin ink-grey");
    picture += arrow(cx, cy, cx + r * q[0], cy - r * q[1], "ink-blue") + arrow(cx, cy, cx + r * k[0], cy - r * k[1], "ink-vermilion");
    const name = (v, words, ink) => text(cx + (r + 12) * v[0], cy - (r + 12) * v[1] + 4, words, { look: ink, anchor: v[0] > 0.3 ? "start" : v[0] < -0.3 ? "end" : "middle" });
    picture += name(q, `q at ${i}`, "ink-blue") + name(k, `k at ${j}`, "ink-vermilion");
    const between = 0.8 + (j - i) * TURN;
    picture += path(span(-0.6 + i * TURN, -0.6 + i * TURN + between, 40).map((angle) => [cx + 24 * Math.cos(angle), cy - 24 * Math.sin(angle)]), "thin");
    const product = dot(q, k);
    for (let a = 0; a < 8; a++)
      for (let b = 0; b < 8; b++)
        picture += board.grip(8 * a + b, left + b * size + 11, top + a * size + 11, (px, py) => {
          [first.value, last.value] = [Math.floor((py - top) / size), Math.floor((px - left) / size)];
        }, 11);
    const degrees = (between * 180) / Math.PI;
    return {
      height: 262,
      picture,
      said: i > j
        ? `Row ${i}, column ${j} lies below the diagonal: a span does not end before it begins.`
        : `${together.value ? "Both move together. " : ""}Row ${i}, column ${j} is the span “${TOKENS.slice(i, j + 1).join(" ")}”. From query to key it is ${number(degrees, 0)} degrees at a distance of ${j - i}, wherever the span stands; their product is ${number(product)}.`,
    };
  };
}

const PHRASE = ["New", "York", "Times", "staff"];
const CELLS = PHRASE.flatMap((_, i) => PHRASE.flatMap((_, j) => (i <= j ? [[i, j]] : [])));
const EASY = (i) => i === 0;
const LENGTHS = (i, j) => j - i === 1;

/** Where type a is preferred to type a′: which tables two efficient heads can draw. */
function heads(board) {
  const { list, number, text, box } = explore;
  const row = board.row("explore-free");
  const ticks = CELLS.map(([i, j]) => board.check(PHRASE.slice(i, j + 1).join(" "), EASY(i, j), { row }));
  const wish = (rule) => () => CELLS.forEach(([i, j], k) => { ticks[k].value = rule(i, j); });
  board.button("Spans that begin with New", wish(EASY));
  board.button("Spans of two tokens", wish(LENGTHS));
  return () => {
    const wishes = CELLS.map(([i, j], k) => [i, j, ticks[k].value ? 1 : -1]);
    const found = rulers(wishes, PHRASE.length);
    const [left, top, width, tall] = [130, 66, 78, 44];
    let picture = text(left - 8, 20, found.circle ? "no rulers" : "rulers", { anchor: "end", look: "small strong" });
    const made = found.circle ? null : additive(found.b, found.c);
    wishes.forEach(([i, j, sign], k) => {
      const [x, y] = [left + j * width, top + i * tall];
      const blamed = found.circle?.some(([a, b]) => a === i && b === j);
      picture += box(x, y, width, tall, `cell ${sign > 0 ? "ink-blue pale" : "none"}`);
      picture += text(x + width / 2, y + 27, `${sign > 0 ? "a" : "a′"}${made ? `  ${number(made[i][j], 0)}` : ""}`, { look: sign > 0 ? "strong" : "" });
      if (blamed) picture += box(x + 3, y + 3, width - 6, tall - 6, "ink-vermilion none dashed thick");
      picture += board.grip(k, x + width / 2, y + tall / 2, (px, py, pressed) => { if (pressed) ticks[k].value = !ticks[k].value; });
    });
    PHRASE.forEach((word, k) => {
      picture += text(left - 8, top + k * tall + 27, made ? `${word}  ${number(found.b[k], 0)}` : word, { anchor: "end" });
      picture += text(left + k * width + width / 2, top - 10, word) + (made ? text(left + k * width + width / 2, top - 28, number(found.c[k], 0)) : "");
    });
    const name = ([i, j]) => `“${PHRASE.slice(i, j + 1).join(" ")}”`;
    const chosen = wishes.filter((w) => w[2] > 0);
    const of = (sign) => wishes.filter((w) => w[2] === sign && found.circle.some(([i, j]) => i === w[0] && j === w[1])).map(name);
    return {
      height: 250,
      picture,
      said: found.circle
        ? `Impossible: ${list(of(1))} want a, ${list(of(-1))} want a′, but both sides have the same sum.`
        : `Possible: type a for ${list(chosen.map(name), "no span")}. Each cell is the number of its row plus that of its column, above 0 for a.`,
    };
  };
}

export const explorables = { cell, heads };
