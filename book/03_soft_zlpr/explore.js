// Chapter 3, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

/** log(1 + sum of exp(terms)), right at any size. */
function nullLogSumExp(terms) {
  const top = Math.max(0, ...terms);
  let rest = Math.expm1(-top);
  for (const t of terms) rest += Math.exp(t - top);
  return top + Math.log1p(rest);
}

/** What the two logarithms of eq:soft-loss hold: each label in both, by its degree. */
const terms = (scores, degrees) => [
  scores.map((s, i) => Math.log(degrees[i]) - s),
  scores.map((s, i) => Math.log1p(-degrees[i]) + s),
];

/** eq:soft-loss; lib.soft_zlpr.soft_zlpr_loss */
export function softZlpr(scores, degrees) {
  const [above, below] = terms(scores, degrees);
  return nullLogSumExp(above) + nullLogSumExp(below);
}

/** eq:soft-gradient; the gradient of lib.soft_zlpr.soft_zlpr_loss */
export function softGradient(scores, degrees) {
  const [up, down] = terms(scores, degrees).map((group) => {
    const top = Math.max(0, ...group);
    const whole = group.reduce((sum, t) => sum + Math.exp(t - top), Math.exp(-top));
    return group.map((t) => Math.exp(t - top) / whole);
  });
  return scores.map((_, i) => down[i] - up[i]);
}

/** eq:soft-minimiser */
export function lowest(degree) {
  return (Math.log(degree) - Math.log1p(-degree)) / 2;
}

/** The expected loss of one hard label that holds with a chance; lib.zlpr.zlpr_loss, averaged. */
export function lottery(score, chance) {
  return chance * softplus(-score) + (1 - chance) * softplus(score);
}

export function sigmoid(x) {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/** One label: its degree makes one bowl, a lottery of the same chance another. */
function degree(board) {
  const { number, span, text, line, box, disc, square, plot } = explore;
  const t = board.range("degree, or chance", { min: 0.02, max: 0.98, value: 0.75 });
  const s = board.range("score s", { min: -4, max: 4, value: 0 });
  board.button("To the degree’s lowest point", () => { s.value = lowest(t.value); });
  board.button("To the lottery’s lowest point", () => { s.value = 2 * lowest(t.value); });
  return () => {
    const best = lowest(t.value);
    const axes = plot({ x: [-4, 4], y: [0, 3.4], left: 34, width: 434, top: 14, height: 170, xticks: [-4, -2, 0, 2, 4], yticks: [0, 1, 2, 3], xlabel: "score", ylabel: "loss" });
    const places = span(-4, 4, 121);
    const bowls = [
      ["degree", (v) => softZlpr([v], [t.value]), best, "ink-blue", disc],
      ["lottery", (v) => lottery(v, t.value), 2 * best, "ink-vermilion", square],
    ];
    let picture = axes.frame;
    for (const [name, loss, low, ink, mark] of bowls) {
      picture += axes.curve(places.map((v) => [v, loss(v)]), name === "degree" ? ink : `${ink} dashed`);
      if (Math.abs(low) <= 4)
        picture += line(axes.X(low), axes.Y(0), axes.X(low), axes.Y(loss(low)), `${ink} thin dotted`) + mark(axes.X(low), axes.Y(loss(low)), 5, `${ink} open`);
      const y = name === "degree" ? 20 : 38; // between the arms of all bowls
      picture += line(264, y, 298, y, name === "degree" ? ink : `${ink} dashed`) + text(304, y + 4.5, name, { anchor: "start", look: "halo" });
    }
    const x = axes.X(s.value);
    picture += line(x, 14, x, 184, "thin ink-black") + bowls.map(([, loss, , ink, mark]) => mark(x, axes.Y(loss(s.value)), 6, ink)).join("");
    picture += board.grip("s", x, axes.Y(softZlpr([s.value], [t.value])), (px) => { s.value = axes.toX(px); });
    // Two readings of the score, and the truth.
    const bar = (y, name, value, look) => text(66, y + 15, name, { anchor: "end" }) + box(74, y, 340 * value, 20, look) + text(80 + 340 * value + (value > 0.92 ? 28 : 0), y + 15, number(value), { anchor: "start" });
    const [once, twice] = [sigmoid(s.value), sigmoid(2 * s.value)];
    picture += bar(228, "σ(s)", once, "ink-vermilion pale") + bar(254, "σ(2s)", twice, "ink-blue pale");
    const truth = 74 + 340 * t.value;
    picture += line(truth, 222, truth, 280, "dashed") + text(truth, 294, `t = ${number(t.value)}`, { look: "small" });
    return {
      height: 300,
      picture,
      said: `For ${number(t.value)} the bowl of the degree is lowest at ${number(best)}, that of the lottery at ${number(2 * best)}. At score ${number(s.value)}, σ(s) reads ${number(once)} and σ(2s) reads ${number(twice)}.`,
    };
  };
}

export const explorables = { degree };
