// Chapter 6, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const density = (x) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

/** The distribution function of the normal law: one half, and a series of terms of one sign. */
export function normal(x) {
  const size = Math.abs(x);
  if (size > 9) return x > 0 ? 1 : 0;
  let [term, sum] = [size, size];
  for (let k = 3; sum + term !== sum || k < 5; k += 2) {
    term *= (size * size) / k;
    sum += term;
  }
  return 0.5 + Math.sign(x) * density(size) * sum;
}

/** How far each point lies on its right side of the cut. Labels are −1 and +1. */
const margins = (points, labels, cut) => points.map((x, i) => labels[i] * (x - cut));

/** eq:exact-five-accuracy, for any points */
export function accuracy(points, labels, cut) {
  return mean(margins(points, labels, cut).map((m) => (m > 0 ? 1 : 0)));
}

/** eq:exact-two; lib.exact.expected_accuracy of the scores 0 and x − b, averaged */
export function expectedAccuracy(points, labels, cut, noise) {
  return mean(margins(points, labels, cut).map((m) => normal(m / noise / Math.SQRT2)));
}

/** Its derivative with respect to the cut. */
export function expectedSlope(points, labels, cut, noise) {
  const scale = noise * Math.SQRT2;
  return mean(margins(points, labels, cut).map((m, i) => (-labels[i] * density(m / scale)) / scale));
}

/** eq:ce-definition of the scores 0 and (x − b)/ς; torch.nn.functional.cross_entropy */
export function crossEntropy(points, labels, cut, noise) {
  return mean(margins(points, labels, cut).map((m) => softplus(-m / noise)));
}

/** Its derivative with respect to the cut. */
export function crossEntropySlope(points, labels, cut, noise) {
  return mean(margins(points, labels, cut).map((m, i) => labels[i] / noise / (1 + Math.exp(m / noise))));
}

const SETS = [
  { name: "three points", points: [-0.25, 0, 0.25], labels: [-1, -1, 1], low: -1, high: 1, ticks: [-1, -0.5, 0, 0.5, 1], noise: 1 },
  { name: "five points", points: [-6, -5, -4, 0, 2], labels: [-1, 1, 1, -1, 1], low: -10, high: 6, ticks: [-10, -5, 0, 5], noise: 1 },
];

/** A cut on a line: what is counted, what is expected under noise, what cross-entropy says. */
function cut(board) {
  const { number, clamp, span, text, line, square, disc, path, plot } = explore;
  const set = board.choice("data", SETS.map((s) => s.name), 1);
  const place = board.range("cut, from left to right", { min: 0, max: 1, step: 0.001, value: 0.6, show: (v) => number(at(v)) });
  const log = board.range("noise ς", { min: -1.5, max: 1, value: 0, show: (v) => number(10 ** v) });
  const at = (v) => SETS[set.value].low + v * (SETS[set.value].high - SETS[set.value].low);
  // Follow a slope, a thousandth of the width at a time, until it turns.
  const follow = (slope) => () => {
    const { points, labels } = SETS[set.value];
    const way = Math.sign(slope(points, labels, at(place.value), 10 ** log.value));
    for (let k = 0; way && k < 1000; k++) {
      const next = place.value + way / 1000;
      if (next < 0 || next > 1 || Math.sign(slope(points, labels, at(next), 10 ** log.value)) !== way) break;
      place.value = next;
    }
  };
  board.button("Climb the expected accuracy", follow(expectedSlope));
  board.button("Descend the cross-entropy", follow((...all) => -crossEntropySlope(...all)));
  return () => {
    const { points, labels, low, high, ticks } = SETS[set.value];
    const [b, noise] = [at(place.value), 10 ** log.value];
    const common = { left: 40, width: 428, x: [low, high] };
    const upper = plot({ ...common, top: 18, height: 120, y: [0, 1.04], yticks: [0, [0.5, "½"], 1], ylabel: "share right" });
    const most = Math.max(1, crossEntropy(points, labels, low, noise), crossEntropy(points, labels, high, noise));
    const ceiling = Math.min(most, 4);
    const lower = plot({ ...common, top: 196, height: 90, y: [0, ceiling * 1.05], xticks: ticks.map((v) => [v, number(v, v % 1 ? 1 : 0)]), yticks: [0, 1], ylabel: "cross-entropy", xlabel: "cut" });
    const places = span(low, high, 201);
    const edges = [low, ...points, high];
    const stairs = edges.slice(1).flatMap((end, k) => {
      const share = accuracy(points, labels, (edges[k] + end) / 2);
      return [[edges[k], share], [end, share]];
    });
    let picture = upper.frame + lower.frame + upper.curve(stairs, "ink-grey") + upper.curve(places.map((v) => [v, expectedAccuracy(points, labels, v, noise)]), "ink-blue");
    picture += lower.curve(places.map((v) => [v, crossEntropy(points, labels, v, noise)]), "ink-vermilion dashed");
    // The points, between the two pictures, with what the cut makes of them.
    points.forEach((x, i) => {
      const px = upper.X(x);
      const right = labels[i] * (x - b) > 0;
      picture += labels[i] > 0 ? disc(px, 164, 7, "ink-blue") : path([[px - 6, 158], [px + 6, 170]], "ink-vermilion") + path([[px - 6, 170], [px + 6, 158]], "ink-vermilion");
      if (!right) picture += square(px, 164, 11, "none thin");
    });
    const px = upper.X(b);
    picture += line(px, 18, px, 286, "zero") + text(clamp(px, 70, 440), 12, `no ← ${number(b)} → yes`, { look: "small" });
    const [hard, soft, slope] = [accuracy(points, labels, b), expectedAccuracy(points, labels, b, noise), expectedSlope(points, labels, b, noise)];
    const ce = crossEntropy(points, labels, b, noise);
    picture += disc(px, upper.Y(hard), 4.5, "ink-grey") + disc(px, upper.Y(soft), 5.5, "ink-blue") + square(px, lower.Y(Math.min(ce, ceiling)), 5, "ink-vermilion");
    picture += board.grip("cut", px, 164, (to) => { place.value = (to - 40) / 428; });
    const way = (v) => (Math.abs(v) < 5e-4 ? "is flat" : v > 0 ? "rises to the right" : "rises to the left");
    const right = Math.round(hard * points.length);
    return {
      height: 322,
      picture,
      said: `Cut at ${number(b)}: ${right} of ${points.length} right. With noise ${number(noise)} the expected accuracy is ${number(soft)} and ${way(slope)}. Cross-entropy is ${number(ce)} and ${way(crossEntropySlope(points, labels, b, noise))}.`,
    };
  };
}

export const explorables = { cut };
