// Chapter 8, for its explorables. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const tagsOf = (spans, length) => {
  const tags = Array.from({ length }, () => [0, 0]);
  for (const [first, last] of spans) {
    tags[first][0] = 1;
    tags[last][1] = 1;
  }
  return tags;
};

/** eq:casrel-subject-tags; lib.casrel.subject_tags. A triple is five numbers: first and last token
    of the subject, relation, first and last token of the object. */
export function subjectTags(triples, length) {
  return tagsOf(triples.map((t) => [t[0], t[1]]), length);
}

/** eq:casrel-object-tags, relation by relation; lib.casrel.object_tags */
export function objectTags(triples, [first, last], length, relations) {
  const own = triples.filter((t) => t[0] === first && t[1] === last);
  return Array.from({ length: relations }, (_, r) => tagsOf(own.filter((t) => t[2] === r).map((t) => [t[3], t[4]]), length));
}

/** eq:casrel-nearest; lib.casrel.nearest_end_spans */
export function nearestEnds(starts, ends) {
  return [...new Set(starts)].sort((a, b) => a - b).flatMap((a) => {
    const later = ends.filter((b) => b >= a);
    return later.length ? [[a, Math.min(...later)]] : [];
  });
}

/** eq:casrel-exact: whether spans come back from their tags. */
export function comesBack(spans) {
  return spans.every(([a, b]) => spans.every(([, end]) => end < a || end >= b));
}

const TOKENS = ["In", "Oslo", "Mira", "Voss", "founded", "Tarn", "Labs", "."];
const RELATIONS = ["founded", "based_in"];
const GOLD = [[2, 3, 0, 5, 6], [5, 6, 1, 1, 1]];
const SUBJECTS = [[2, 3], [5, 6], [1, 1]];
const words = ([first, last]) => TOKENS.slice(first, last + 1).join(" ");

/** One subject at a time: the tags of its objects. */
function asked(board) {
  const { text, line, box, path, list } = explore;
  const choice = board.choice("ask about", SUBJECTS.map(words));
  const X = (token) => 96 + token * 49;
  const half = 21;
  const row = (y, name, tags, ink) =>
    text(66, y + 5, name, { anchor: "end", look: `small ${ink}` }) +
    tags.map(([start, end], i) =>
      (start ? path([[X(i) - half + 8, y - 9], [X(i) - half, y - 9], [X(i) - half, y + 9], [X(i) - half + 8, y + 9]], ink) : "") +
      (end ? path([[X(i) + half - 8, y - 9], [X(i) + half, y - 9], [X(i) + half, y + 9], [X(i) + half - 8, y + 9]], ink) : "") +
      (start || end ? text(X(i), y + 5, "yes", { look: "small" }) : text(X(i), y + 4, "·", { look: "small" })),
    ).join("");
  return () => {
    const subject = SUBJECTS[choice.value];
    const [first, last] = subject;
    const tags = objectTags(GOLD, subject, TOKENS.length, RELATIONS.length);
    const found = tags.flatMap((row, r) =>
      nearestEnds(row.flatMap(([s], i) => (s ? [i] : [])), row.flatMap(([, e], i) => (e ? [i] : []))).map((span) => [r, span]));
    const middle = ([a, b]) => (X(a) + X(b)) / 2;
    let picture = box(X(first) - half - 2, 66, X(last) - X(first) + 2 * half + 4, 28, "ink-blue pale");
    picture += TOKENS.map((token, i) => text(X(i), 85, token)).join("");
    for (const [r, span] of found) {
      const [from, to] = [middle(subject), middle(span)];
      picture += `<path d="M${from} 64Q${(from + to) / 2} 8 ${to} 64" class="line ink-blue"></path>` + text((from + to) / 2, 30, RELATIONS[r], { look: "small halo" });
      picture += path([[to - 5, 56], [to, 64], [to + 6, 57]], "ink-blue");
    }
    picture += row(122, "subjects", subjectTags(GOLD, TOKENS.length), "ink-black") + line(20, 142, 466, 142, "axis");
    picture += RELATIONS.map((name, r) => row(164 + 34 * r, name, tags[r], "ink-blue")).join("");
    const facts = found.map(([r, span]) => `${RELATIONS[r]} ${words(span)}`);
    return {
      height: 220,
      picture,
      said: found.length ? `Asked about ${words(subject)}, the tagger says: ${list(facts)}.` : `${words(subject)} is no subject here: if it is asked about all the same, every tag says no, and no triple comes of it.`,
    };
  };
}

/** Two spans, their tags, and what nearest ends make of them. */
function nest(board) {
  const { text, line, box, list, number } = explore;
  const token = (v) => number(v, 0);
  const rows = [["long span", 0, 5], ["short span", 2, 3]].map(([name, a, b]) => ({
    first: board.range(`${name}, first`, { min: 0, max: 7, step: 1, value: a, show: token }),
    last: board.range(`${name}, last`, { min: 0, max: 7, step: 1, value: b, show: token }),
  }));
  const X = (place) => 104 + place * 48;
  return () => {
    // A span that is turned round is the same span.
    const spans = rows.map(({ first, last }) => [Math.min(first.value, last.value), Math.max(first.value, last.value)]);
    const back = nearestEnds(spans.map(([a]) => a), spans.map(([, b]) => b));
    const same = (s, t) => s[0] === t[0] && s[1] === t[1];
    let picture = "";
    for (let k = 0; k < 8; k++) picture += text(X(k), 16, String(k), { look: "small" }) + line(X(k), 24, X(k), 190, "axis dotted");
    const bar = (y, [a, b], look) => box(X(a) - 14, y, X(b) - X(a) + 28, 14, look);
    picture += text(64, 47, "gold", { anchor: "end" }) + text(64, 106, "tags", { anchor: "end" }) + text(64, 160, "read back", { anchor: "end" });
    spans.forEach((span, k) => {
      picture += bar(32 + 20 * k, span, "ink-blue");
      picture += board.grip(`first ${k}`, X(span[0]), 39 + 20 * k, (px) => { rows[k][rows[k].first.value <= rows[k].last.value ? "first" : "last"].value = (px - 104) / 48; });
      picture += board.grip(`last ${k}`, X(span[1]), 39 + 20 * k, (px) => { rows[k][rows[k].first.value <= rows[k].last.value ? "last" : "first"].value = (px - 104) / 48; });
    });
    for (const [a, b] of spans) picture += text(X(a) - 6, 107, "[", { look: "strong" }) + text(X(b) + 6, 107, "]", { look: "strong" });
    back.forEach((span, k) => {
      const right = spans.some((s) => same(s, span));
      picture += bar(140 + 20 * k, span, right ? "ink-blue" : "ink-vermilion open dashed") + text(X(span[1]) + 26, 152 + 20 * k, right ? "✓" : "✗", { look: right ? "ink-blue" : "ink-vermilion" });
    });
    const lost = spans.filter((span) => !back.some((s) => same(s, span)));
    const wrong = back.filter((span) => !spans.some((s) => same(s, span)));
    const say = ([a, b]) => `${a} to ${b}`;
    return {
      height: 200,
      picture,
      said: comesBack(spans) ? `Gold: ${list(spans.map(say))}. Both come back.` : `Gold: ${list(spans.map(say))}. Lost: ${list(lost.map(say))}${wrong.length ? `; wrong, in its place: ${list(wrong.map(say))}` : ""}.`,
    };
  };
}

export const explorables = { asked, nest };
