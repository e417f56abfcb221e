// Chapter 2, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

/** log(1 + sum of exp(terms)): the null class and a group, right at any size. */
function nullLogSumExp(terms) {
  const top = Math.max(0, ...terms);
  let rest = Math.expm1(-top); // the null class, less the 1 that log1p adds
  for (const t of terms) rest += Math.exp(t - top);
  return top + Math.log1p(rest);
}

const logSumExp = (terms) => {
  const top = Math.max(...terms);
  return terms.length ? top + Math.log(terms.reduce((sum, t) => sum + Math.exp(t - top), 0)) : -Infinity;
};
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** What each group puts into a logarithm: negatives s, positives −s. */
const groups = (scores, labels) => [
  scores.filter((_, i) => !labels[i]),
  scores.filter((_, i) => labels[i]).map((s) => -s),
];
/** exp(terms) over their sum, with the null class in the sum or without. */
const shares = (terms, nullClass) => {
  const top = Math.max(...terms, nullClass ? 0 : -Infinity);
  const parts = terms.map((t) => Math.exp(t - top));
  const whole = parts.reduce((a, b) => a + b, nullClass ? Math.exp(-top) : 0);
  return parts.map((part) => part / whole);
};
/** A gradient of what its negatives and its positives get, each in order. */
const placed = (labels, negatives, positives) => {
  const [no, yes] = [negatives.values(), positives.values()];
  return labels.map((label) => (label ? -yes.next().value : no.next().value));
};

/** eq:zlpr-loss; lib.zlpr.zlpr_loss */
export function zlpr(scores, labels) {
  const [negatives, positives] = groups(scores, labels);
  return nullLogSumExp(negatives) + nullLogSumExp(positives);
}

/** eq:zlpr-gradient; the gradient of lib.zlpr.zlpr_loss */
export function zlprGradient(scores, labels) {
  return placed(labels, ...groups(scores, labels).map((terms) => shares(terms, true)));
}

/** eq:pair-factored */
export function pairs(scores, labels) {
  const [negatives, positives] = groups(scores, labels).map(logSumExp);
  return negatives === -Infinity || positives === -Infinity ? 0 : softplus(negatives + positives);
}

/** The gradient of eq:pair-factored: both groups have the same mass. */
export function pairsGradient(scores, labels) {
  const both = groups(scores, labels);
  if (both.some((terms) => terms.length === 0)) return scores.map(() => 0);
  const mass = sigmoid(logSumExp(both[0]) + logSumExp(both[1]));
  return placed(labels, ...both.map((terms) => shares(terms, false).map((share) => mass * share)));
}

/** The wishes at the line alone: log(1 + N + P), one null class for both groups. */
export function lineOnly(scores, labels) {
  return nullLogSumExp(groups(scores, labels).flat());
}

/** Its gradient. */
export function lineOnlyGradient(scores, labels) {
  const [negatives, positives] = groups(scores, labels);
  const all = shares([...negatives, ...positives], true);
  return placed(labels, all.slice(0, negatives.length), all.slice(negatives.length));
}

/** eq:zlpr-bce; torch.nn.functional.binary_cross_entropy_with_logits, summed */
export function bce(scores, labels) {
  return scores.reduce((sum, s, i) => sum + softplus(labels[i] ? -s : s), 0);
}

/** Its gradient. */
export function bceGradient(scores, labels) {
  return scores.map((s, i) => (labels[i] ? -sigmoid(-s) : sigmoid(s)));
}

const LOSSES = [
  ["pairs", pairs, pairsGradient],
  ["the zero line", lineOnly, lineOnlyGradient],
  ["ZLPR", zlpr, zlprGradient],
  ["BCE", bce, bceGradient],
];
const FILM = [
  ["drama", Math.log(4), true],
  ["war", Math.log(2), true],
  ["comedy", Math.log(3), false],
  ["musical", -Math.log(2), false],
];
const OTHERS = [0, 10, 30, 100, 300, 1000];
const OTHERS_AT = -4;
const REACH = 5;

/** The film's scores: who pulls at whom, under four losses. */
function film(board) {
  const { number, list, clamp, text, line, box, disc, square, arrow } = explore;
  const loss = board.choice("loss", LOSSES.map(([name]) => name), 2);
  const tags = FILM.map(([name, score, right]) => {
    const range = board.range(name, { min: -REACH, max: REACH, value: score });
    return { name, range, right: board.check("right", right, { row: range.row, name: `${name} is right` }) };
  });
  const others = board.range("other wrong tags", {
    min: 0, max: OTHERS.length - 1, step: 1, value: 0, show: (k) => (OTHERS[k] ? `${OTHERS[k]} at −4` : "none"),
  });
  const state = () => {
    const count = OTHERS[others.value];
    const scores = [...tags.map((t) => t.range.value), ...Array(count).fill(OTHERS_AT)];
    const labels = [...tags.map((t) => t.right.value), ...Array(count).fill(false)];
    const [name, value, gradient] = LOSSES[loss.value];
    return { count, scores, labels, name, value: value(scores, labels), gradient: gradient(scores, labels) };
  };
  board.button("Take a step down", () => {
    const { gradient } = state();
    tags.forEach((t, i) => { t.range.value = t.range.value - gradient[i]; });
  });

  const X = (score) => 240 + (score / REACH) * 205;
  const rowOf = (label) => (label ? 62 : 134);
  return () => {
    const { count, scores, labels, name, value, gradient } = state();
    const wrong = tags.map((_, i) => scores[i] > 0 !== labels[i]);
    let picture = box(X(0), 26, 205, 142, "band") + text(X(0) + 6, 20, "chosen", { anchor: "start", look: "small" }) + text(X(0) - 6, 20, "not chosen", { anchor: "end", look: "small" });
    picture += line(X(-REACH), 168, X(REACH), 168, "axis");
    for (let s = -4; s <= 4; s += 2) picture += line(X(s), 168, X(s), 172, "axis") + text(X(s), 185, number(s, 0), { look: "small" });
    // Wishes: between pairs, and to the line.
    const wish = (x1, y1, x2, y2, met) => line(x1, y1, x2, y2, met ? "wish" : "wish broken");
    if (name !== "the zero line" && name !== "BCE")
      tags.forEach((_, i) => tags.forEach((_, j) => {
        if (!labels[i] && labels[j]) picture += wish(X(scores[i]), rowOf(false), X(scores[j]), rowOf(true), scores[i] < scores[j]);
      }));
    picture += line(X(0), 26, X(0), 168, name === "pairs" ? "axis dotted" : "zero");
    // Names that would lie upon each other take turns above and below.
    const order = tags.map((_, i) => i).sort((a, b) => scores[a] - scores[b]);
    const seen = { true: [-99, 1], false: [-99, 1] };
    for (const i of order) {
      const [x, y] = [X(scores[i]), rowOf(labels[i])];
      const [last, side] = seen[labels[i]];
      seen[labels[i]] = [x, x - last < 62 ? -side : 1];
      const below = (seen[labels[i]][1] > 0) !== labels[i];
      const ink = labels[i] ? "ink-blue" : "ink-vermilion";
      const edge = x - Math.sign(gradient[i]) * 8;
      picture += arrow(edge, y, clamp(edge - gradient[i] * 72, X(-REACH) - 8, X(REACH) + 8), y, `${ink} pull`);
      picture += (labels[i] ? disc(x, y, 8, ink) : square(x, y, 7, ink)) + (wrong[i] ? text(x, y + 4.5, "✗", { look: "on" }) : "");
      picture += text(x, below ? y + 24 : y - 15, tags[i].name);
      picture += board.grip(i, x, y, (px) => { tags[i].range.value = ((px - 240) / 205) * REACH; });
    }
    picture += text(6, 40, "right: must be above", { anchor: "start", look: "small" }) + text(6, 112, "wrong: must be below", { anchor: "start", look: "small" });
    // The balance: what pulls up, what pushes down, tag by tag, and a mark at 1.
    const bar = (y, words, up) => {
      let [x, total, drawn] = [112, 0, ""];
      const parts = tags.map((t, i) => [t.name, labels[i] === up ? Math.abs(gradient[i]) : 0]);
      if (!up && count) parts.push(["others", gradient.slice(4).reduce((a, b) => a + b, 0)]);
      for (const [part, size] of parts) {
        total += size;
        const width = Math.min(size * 150, 430 - x);
        if (width <= 0) continue;
        drawn += box(x, y, width, 20, `${up ? "ink-blue" : "ink-vermilion"} ${part === "others" ? "open" : "pale"}`);
        if (width > 7 * part.length + 8) drawn += text(x + width / 2, y + 14.5, part, { look: "small" });
        x += width;
      }
      if (total > (430 - 112) / 150) drawn += text(x + 4, y + 15, "⋯", { anchor: "start" });
      return [text(104, y + 15, words, { anchor: "end" }) + drawn + text(476, y + 15, number(total), { anchor: "end" }), total];
    };
    const [up, upTotal] = bar(216, "pulled up", true);
    const [down, downTotal] = bar(244, "pushed down", false);
    picture += up + down + line(262, 208, 262, 272, "dashed") + text(262, 285, "1", { look: "small" });

    const hardest = scores.reduce((best, _, i) => (Math.abs(gradient[i]) > Math.abs(gradient[best]) ? i : best), 0);
    const moved = Math.abs(gradient[hardest]) < 0.005 ? "Hardly anything is moved" :
      `Hardest moved: ${hardest < 4 ? tags[hardest].name : "each of the others"}, by ${number(Math.abs(gradient[hardest]))} ${gradient[hardest] > 0 ? "down" : "up"}`;
    const chosen = list(tags.filter((_, i) => scores[i] > 0).map((t) => t.name));
    const errors = wrong.filter(Boolean).length;
    return {
      height: 290,
      picture,
      said: `Chosen: ${chosen}; ${errors ? `${errors} wrong` : "all right"}. ${name === "the zero line" ? "Loss of the line alone" : name === "pairs" ? "Loss of the pairs" : name} is ${number(value)}; it pulls up with ${number(upTotal)} and pushes down with ${number(downTotal)}. ${moved}.`,
    };
  };
}

export const explorables = { film };
