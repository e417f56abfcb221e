// Chapter 1, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

/** eq:lse-definition; lib.softmax.smooth_max */
export function smoothMax(scores, sharpness) {
  const top = Math.max(...scores);
  const first = scores.indexOf(top);
  let rest = 0; // all but the largest, which is the 1 that log1p adds
  scores.forEach((s, i) => { if (i !== first) rest += Math.exp(sharpness * (s - top)); });
  return top + Math.log1p(rest) / sharpness;
}

/** eq:softmax-gradient; the gradient of lib.softmax.smooth_max */
export function softmax(scores, sharpness) {
  const top = Math.max(...scores);
  const parts = scores.map((s) => Math.exp(sharpness * (s - top)));
  const whole = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / whole);
}

/** The smooth step σ(γx) of eq:smooth-step: the share of x beside 0. */
export function smoothStep(x, sharpness) {
  return softmax([x, 0], sharpness)[0];
}

/** eq:smooth-abs, second line: twice the smooth maximum of x/2 and −x/2. */
export function smoothAbs(x, sharpness) {
  return 2 * smoothMax([x / 2, -x / 2], sharpness);
}

/** One sharpness for three corners: the step, the distance, the maximum. */
function corner(board) {
  const { number, span, text, line, box, disc, plot } = explore;
  const log = board.range("sharpness γ", { min: -0.7, max: 1.3, value: 0, show: (v) => number(10 ** v) });
  const x = board.range("score x, cat", { min: -3, max: 3, value: Math.log(3) });
  const y = board.range("score y, dog", { min: -3, max: 3, value: Math.log(2) });
  return () => {
    const gamma = 10 ** log.value;
    const gap = x.value - y.value;
    const [step, far, top] = [smoothStep(gap, gamma), smoothAbs(gap, gamma), smoothMax([x.value, y.value], gamma)];
    const sharp = Math.max(x.value, y.value);
    const ends = [-4, 0, 4];
    const common = { top: 34, height: 118, width: 122 };
    const panels = [
      [plot({ ...common, left: 26, x: [-4, 4], y: [0, 1.05], xticks: ends, yticks: [0, 1], title: "step" }),
        (d) => smoothStep(d, gamma), [[-4, 0], [0, 0], [0, 1], [4, 1]], gap, step, -4, 4],
      [plot({ ...common, left: 186, x: [-4, 4], y: [0, 5], xticks: ends, yticks: [0, 4], title: "distance" }),
        (d) => smoothAbs(d, gamma), [[-4, 4], [0, 0], [4, 4]], gap, far, -4, 4],
      [plot({ ...common, left: 346, x: [-3, 3], y: [-3, 4.2], xticks: [-3, 0, 3], yticks: [-3, 0, 3], title: "maximum" }),
        (s) => smoothMax([s, y.value], gamma), [[-3, y.value], [y.value, y.value], [3, 3]], x.value, top, -3, 3],
    ];
    let picture = "";
    panels.forEach(([axes, smooth, corners, here, value, low, high], k) => {
      picture += axes.frame + axes.curve(corners, "ink-grey") + axes.curve(span(low, high, 81).map((v) => [v, smooth(v)]), "ink-blue");
      const [px, py] = [axes.X(Math.min(Math.max(here, low), high)), axes.Y(value)];
      picture += line(px, axes.Y(k === 2 ? -3 : 0), px, py, "thin dotted ink-vermilion") + disc(px, py, 5.5, "ink-vermilion");
      picture += board.grip(k, px, py, (to) => { x.value = axes.toX(to) + (k === 2 ? 0 : y.value); });
    });
    picture += text(148, 183, "x − y", { anchor: "end", look: "small" }) + text(308, 183, "x − y", { anchor: "end", look: "small" }) + text(468, 183, "x", { anchor: "end", look: "small" });
    // Softmax: the slope of the maximum, as shares of one bar.
    const [p] = softmax([x.value, y.value], gamma);
    picture += text(26, 222, "shares", { anchor: "start" }) + box(84, 207, 384 * p, 22, "ink-blue pale") + box(84 + 384 * p, 207, 384 * (1 - p), 22, "ink-blue open");
    if (p > 0.16) picture += text(90, 222.5, `cat ${number(p)}`, { anchor: "start", look: "small" });
    if (p < 0.84) picture += text(462, 222.5, `dog ${number(1 - p)}`, { anchor: "end", look: "small" });
    return {
      height: 236,
      picture,
      said: `x − y is ${number(gap)}. The smooth step is ${number(step)}. The smooth distance is ${number(far)}, too long by ${number(far - Math.abs(gap))}. The smooth maximum is ${number(top)}, above the larger score by ${number(top - sharp, 3)}; at a tie it would be ${number(Math.LN2 / gamma, 3)}.`,
    };
  };
}

export const explorables = { corner };
