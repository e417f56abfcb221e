// Chapter 5, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const logSumExp = (terms) => {
  const top = Math.max(...terms);
  return top + Math.log(terms.reduce((sum, t) => sum + Math.exp(t - top), 0));
};
const softmax = (scores) => {
  const top = Math.max(...scores);
  const parts = scores.map((s) => Math.exp(s - top));
  const whole = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / whole);
};
const sum = (values) => values.reduce((a, b) => a + b, 0);

function sigmoid(x) {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/** The terms of eq:div-softmax, label by label. */
function softmaxCharges(s, u) {
  const [p, q] = [softmax(s), softmax(u)];
  return s.map((_, i) => (p[i] - q[i]) * (s[i] - u[i]));
}

/** eq:div-softmax; lib.divergence.softmax_divergence */
export function softmaxDivergence(s, u) {
  return sum(softmaxCharges(s, u));
}

/** The terms of eq:div-sigmoid, label by label. */
export function sigmoidCharges(s, u) {
  return s.map((_, i) => (sigmoid(s[i]) - sigmoid(u[i])) * (s[i] - u[i]));
}

/** eq:div-sigmoid; lib.divergence.sigmoid_divergence */
export function sigmoidDivergence(s, u) {
  return sum(sigmoidCharges(s, u));
}

/** eq:div-zlpr-cgf; lib.divergence.zlpr_regret. The null class is one cell more, at 0. */
export function zlprRegret(s, u) {
  const cells = [[0, 0], ...s.map((_, i) => [-Math.abs(u[i]) - Math.log1p(Math.exp(-2 * Math.abs(u[i]))), u[i] - s[i]])];
  const whole = logSumExp(cells.map(([weight]) => weight));
  return sum([1, -1].map((sign) => logSumExp(cells.map(([weight, change]) => weight + sign * change)) - whole));
}

/** eq:div-zlpr-symmetric; lib.divergence.zlpr_divergence */
export function zlprDivergence(s, u) {
  return (zlprRegret(s, u) + zlprRegret(u, s)) / 2;
}

const FILM = [["drama", Math.log(4)], ["war", Math.log(2)], ["comedy", Math.log(3)], ["musical", -Math.log(2)]];
const REACH = 5;

/** Two passes over the film: what moves, what flips, what each divergence charges. */
function passes(board) {
  const { number, list, clamp, text, line, box, disc, arrow } = explore;
  const all = board.range("move all tags by", { min: -4, max: 4, value: -2 });
  const own = FILM.map(([name]) => board.range(`and ${name} by`, { min: -4, max: 4, value: 0 }));
  const first = FILM.map(([, score]) => score);
  const X = (score) => 190 + (clamp(score, -REACH, REACH) / REACH) * 118;
  return () => {
    const second = first.map((s, i) => s + all.value + own[i].value);
    const flips = first.map((s, i) => s > 0 !== second[i] > 0);
    const charges = [softmaxCharges(first, second), sigmoidCharges(first, second)];
    const most = Math.max(1, ...charges.flat());
    let picture = box(190, 22, 118, 152, "band") + line(190, 22, 190, 174, "zero") + text(196, 14, "chosen", { anchor: "start", look: "small" }) + text(472, 14, "charge: softmax, sigmoid", { anchor: "end", look: "small" });
    FILM.forEach(([name], i) => {
      const y = 44 + 36 * i;
      const ink = flips[i] ? "ink-vermilion" : Math.abs(second[i] - first[i]) < 0.005 ? "ink-grey" : "ink-blue";
      picture += text(4, y + 5, name, { anchor: "start" });
      picture += arrow(X(first[i]), y, X(second[i]), y, `${ink}${flips[i] ? " dashed" : ""}`) + disc(X(first[i]), y, 7, `${ink} open`) + disc(X(second[i]), y, 6, ink);
      if (flips[i]) picture += text((X(first[i]) + X(second[i])) / 2, y - 10, "flips", { look: "small ink-vermilion halo" });
      picture += board.grip(i, X(second[i]), y, (px) => { own[i].value = ((px - 190) / 118) * REACH - first[i] - all.value; });
      charges.forEach((row, k) => {
        const width = (Math.abs(row[i]) / most) * 90;
        picture += box(row[i] < 0 ? 372 - Math.min(width, 40) : 372, y - 13 + 13 * k, row[i] < 0 ? Math.min(width, 40) : width, 11, k ? "ink-blue" : "ink-grey");
      });
    });
    picture += line(372, 26, 372, 174, "axis");
    const totals = [
      ["softmax", softmaxDivergence(first, second), "ink-grey"],
      ["sigmoid", sigmoidDivergence(first, second), "ink-blue"],
      ["ZLPR", zlprDivergence(first, second), "ink-purple"],
    ];
    const scale = 300 / Math.max(4, ...totals.map(([, v]) => v));
    totals.forEach(([name, value, ink], k) => {
      const y = 190 + 26 * k;
      picture += text(82, y + 15, name, { anchor: "end" }) + line(90, y, 90, y + 20, "axis") + box(90, y, Math.max(value, 0) * scale, 20, ink) + text(98 + Math.max(value, 0) * scale, y + 15, number(value), { anchor: "start" });
    });
    const flipped = FILM.filter((_, i) => flips[i]).map(([name]) => name);
    return {
      height: 274,
      picture,
      said: `${flipped.length ? `The answer flips for ${list(flipped)}` : "No answer flips"}. Softmax charges ${number(totals[0][1])}, the sigmoid ${number(totals[1][1])}, ZLPR ${number(totals[2][1])}.`,
    };
  };
}

export const explorables = { passes };
