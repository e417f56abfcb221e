// Chapter 7, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const sum = (values) => values.reduce((a, b) => a + b, 0);
const logSumExp = (terms) => {
  const top = Math.max(...terms);
  return top + Math.log(sum(terms.map((t) => Math.exp(t - top))));
};
const softmax = (scores) => {
  const top = Math.max(...scores);
  const parts = scores.map((s) => Math.exp(s - top));
  const whole = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / whole);
};

/** eq:emo-cost by eq:emo-cost-squared: half the squared distance of unit vectors. */
function cost(a, b) {
  const [la, lb] = [Math.hypot(...a), Math.hypot(...b)];
  return sum(a.map((v, k) => (v / la - b[k] / lb) ** 2)) / 2;
}

/** eq:emo-rest; lib.emo.emo_loss */
export function emo(scores, target, vectors) {
  const p = softmax(scores);
  return sum(vectors.map((v, i) => (i === target ? 0 : p[i] * cost(v, vectors[target]))));
}

/** eq:emo-gradient; the gradient of lib.emo.emo_loss */
export function emoGradient(scores, target, vectors) {
  const p = softmax(scores);
  const mean = emo(scores, target, vectors);
  return vectors.map((v, i) => p[i] * ((i === target ? 0 : cost(v, vectors[target])) - mean));
}

/** eq:ce-definition; torch.nn.functional.cross_entropy */
export function crossEntropy(scores, target) {
  return logSumExp(scores) - scores[target];
}

/** eq:ce-gradient; the gradient of torch.nn.functional.cross_entropy */
export function crossEntropyGradient(scores, target) {
  return softmax(scores).map((p, i) => p - (i === target ? 1 : 0));
}

const WORDS = [
  ["book", -90, Math.log(0.2)],
  ["film", 0, Math.log(0.5)],
  ["movie", 26, Math.log(0.3)],
];
const NAMES = WORDS.map(([name]) => name);

/** Three words on a circle: what it costs to move the model's mass to the right one. */
function words(board) {
  const { number, text, line, box, disc, square, arrow } = explore;
  const right = board.choice("right word", NAMES, 1);
  const rows = WORDS.map(([name, angle, score]) => ({
    score: board.range(`score of ${name}`, { min: -4, max: 10, value: score }),
    angle: board.range(`direction of ${name}`, { min: -180, max: 180, step: 1, value: angle, show: (v) => `${number(v, 0)}°` }),
  }));
  const [CX, CY, R] = [132, 132, 70];
  return () => {
    const scores = rows.map((row) => row.score.value);
    const vectors = rows.map((row) => [Math.cos((row.angle.value * Math.PI) / 180), Math.sin((row.angle.value * Math.PI) / 180)]);
    const target = right.value;
    const p = softmax(scores);
    const [loss, ce] = [emo(scores, target, vectors), crossEntropy(scores, target)];
    const at = ([x, y], r = R) => [CX + r * x, CY - r * y];
    let picture = disc(CX, CY, R, "none thin ink-grey");
    const [tx, ty] = at(vectors[target]);
    const bill = [];
    const size = p.map((share) => 4 + 22 * Math.sqrt(share));
    vectors.forEach((v, i) => {
      const [x, y] = at(v);
      const price = cost(v, vectors[target]);
      if (i !== target) {
        bill.push(`${number(p[i])} · ${number(price)}`);
        // From edge to edge of the two discs, where there is room for an arrow and its price.
        const far = Math.hypot(tx - x, ty - y);
        const between = (r) => [x + ((tx - x) / far) * r, y + ((ty - y) / far) * r];
        if (far > size[i] + size[target] + 10) {
          picture += `<g style="--wide: ${number(1 + 6 * p[i], 1)}">${arrow(...between(size[i]), ...between(far - size[target] - 2), "ink-vermilion wide")}</g>`;
          const [mx, my] = between((far + size[i] - size[target]) / 2);
          picture += text(mx - 5, my + 4, number(price), { anchor: "end", look: "small halo" });
        }
      }
      picture += disc(x, y, size[i], `${i === target ? "ink-blue" : "ink-vermilion"} pale`);
      const [nx, ny] = at(v, R + 6 + size[i]);
      picture += text(nx, ny + 4, NAMES[i], { anchor: v[0] > 0.3 ? "start" : v[0] < -0.3 ? "end" : "middle", look: i === target ? "strong" : "" });
      picture += board.grip(i, x, y, (px, py) => { rows[i].angle.value = (Math.atan2(CY - py, px - CX) * 180) / Math.PI; });
    });
    const [mx, my] = at([0, 1].map((k) => sum(vectors.map((v, i) => p[i] * v[k]))));
    picture += square(mx, my, 4, "ink-black") + text(mx - 8, my - 6, "mean", { anchor: "end", look: "small halo" });
    // Minus the gradient: what moves each score, up to the right.
    const moves = [["cross-entropy", crossEntropyGradient(scores, target), "ink-grey"], ["EMO", emoGradient(scores, target, vectors), "ink-blue"]];
    picture += text(384, 24, "moves each score by", {});
    picture += line(384, 34, 384, 226, "axis");
    NAMES.forEach((name, i) => {
      const y = 56 + 62 * i;
      picture += text(292, y - 5, `${name} ${number(p[i])}`, { anchor: "start", look: i === target ? "strong" : "" });
      moves.forEach(([, gradient, ink], k) => {
        const move = -gradient[i];
        picture += box(384, y + 18 * k, move * 78, 15, ink);
        picture += text(384 + (move < 0 ? 6 : -6), y + 12 + 18 * k, number(move), { anchor: move < 0 ? "start" : "end", look: "small" });
      });
    });
    picture += box(306, 244, 12, 12, "ink-grey") + text(323, 255, "cross-entropy", { anchor: "start", look: "small" }) + box(416, 244, 12, 12, "ink-blue") + text(433, 255, "EMO", { anchor: "start", look: "small" });
    const mass = (gradient) => number(sum(gradient.map(Math.abs)));
    return {
      height: 268,
      picture,
      said: `${NAMES[target]} is right and has ${number(p[target])}. EMO is ${bill.join(" + ")} = ${number(loss)}, cross-entropy ${number(ce)}. The gradients sum to ${mass(moves[1][1])} for EMO and ${mass(moves[0][1])} for cross-entropy.`,
    };
  };
}

export const explorables = { words };
