// Chapter 9, for its explorable. Formulas first: tests/test_explore.py compares them with the
// library, in a browser.

const inOrder = (rows) => [...new Map(rows.map((row) => [row.join(), row])).values()].sort((a, b) => {
  const k = a.findIndex((v, i) => v !== b[i]);
  return k < 0 ? 0 : a[k] - b[k];
});

/** eq:gplinker-tables; lib.gplinker.table_positives. A triple is five numbers: first and last token
    of the subject, relation, first and last token of the object. */
export function tablesOf(triples, relations) {
  const links = (pair) => Array.from({ length: relations }, (_, r) => inOrder(triples.filter((t) => t[2] === r).map(pair)));
  return {
    subjects: inOrder(triples.map((t) => [t[0], t[1]])),
    objects: inOrder(triples.map((t) => [t[3], t[4]])),
    heads: links((t) => [t[0], t[3]]),
    tails: links((t) => [t[1], t[4]]),
  };
}

/** eq:gplinker-decode; lib.gplinker.decode_tables */
export function decode({ subjects, objects, heads, tails }) {
  const has = (cells, i, j) => cells.some(([a, b]) => a === i && b === j);
  const found = [];
  heads.forEach((_, r) => {
    for (const [sh, st] of subjects)
      for (const [oh, ot] of objects)
        if (has(heads[r], sh, oh) && has(tails[r], st, ot)) found.push([sh, st, r, oh, ot]);
  });
  return found;
}

const TOKENS = ["New", "Tarn", "supplies", "Oslo", "Bay"];
const FACTS = [[0, 1, 0, 3, 3], [0, 1, 0, 3, 4], [1, 1, 0, 3, 3], [1, 1, 0, 3, 4]];
const words = (first, last) => TOKENS.slice(first, last + 1).join(" ");
const named = ([sh, st, , oh, ot]) => `${words(sh, st)} supplies ${words(oh, ot)}`;

/** Facts on and off: the four tables, and what is read back from them. */
function tables(board) {
  const { list, text, line, box, path } = explore;
  const row = board.row("explore-free");
  const on = FACTS.map((fact, k) => board.check(named(fact), k === 0, { row }));
  return () => {
    const facts = FACTS.filter((_, k) => on[k].value);
    const made = tablesOf(facts, 1);
    const back = decode(made).map((t) => t.join());
    const added = FACTS.filter((t) => back.includes(t.join()) && !facts.includes(t));
    const cell = 19;
    let picture = "";
    const grid = (left, top, title, cells, triangle, rows) => {
      picture += text(left, top - 8, title, { anchor: "start", look: "small strong" });
      for (let i = 0; i < 5; i++)
        for (let j = 0; j < 5; j++) {
          const filled = cells.some(([a, b]) => a === i && b === j);
          picture += box(left + j * cell, top + i * cell, cell, cell, filled ? "ink-blue cell" : triangle && i > j ? "cell band" : "cell none");
          if (filled) picture += path([[left + j * cell + 4, top + i * cell + 10], [left + j * cell + 8, top + i * cell + 14], [left + j * cell + 15, top + i * cell + 5]], "tick");
        }
      if (rows) TOKENS.forEach((token, i) => { picture += text(left - 6, top + i * cell + 14, token, { anchor: "end", look: "small" }); });
      TOKENS.forEach((token, j) => { picture += text(left + j * cell + cell / 2, top + 5 * cell + 13, token[0], { look: "small" }); });
    };
    grid(66, 24, "subjects: first, last", made.subjects, true, true);
    grid(202, 24, "objects: first, last", made.objects, true, false);
    grid(66, 168, "first to first", made.heads[0], false, true);
    grid(202, 168, "last to last", made.tails[0], false, false);
    // What comes back: facts solid, what nobody said dashed.
    const spot = { "0,1": [346, 70], "1,1": [346, 150], "3,3": [444, 70], "3,4": [444, 150] };
    for (const [key, [x, y]] of Object.entries(spot)) {
      const [a, b] = key.split(",").map(Number);
      picture += text(x, y + (y < 100 ? -12 : 24), words(a, b), { look: "strong" });
    }
    FACTS.forEach((t) => {
      const [[x1, y1], [x2, y2]] = [spot[`${t[0]},${t[1]}`], spot[`${t[3]},${t[4]}`]];
      if (facts.includes(t)) picture += line(x1, y1, x2, y2, "ink-blue");
      else if (added.includes(t)) picture += line(x1, y1, x2, y2, "ink-vermilion dashed");
    });
    for (const [x, y] of Object.values(spot)) picture += `<circle cx="${x}" cy="${y}" r="4" class="box ink-black"></circle>`;
    picture += text(395, 24, "read back", { look: "small" });
    picture += text(395, 214, `${facts.length} said`, { look: "ink-blue strong" }) + text(395, 236, `${added.length} added`, { look: `${added.length ? "ink-vermilion" : "ink-grey"} strong` });
    return {
      height: 286,
      picture,
      said: `Said: ${list(facts.map(named))}. ${added.length ? `Also read back: ${list(added.map(named))}. The tables cannot tell` : facts.length ? "Read back: the same, and nothing else" : "The tables are empty"}.`,
    };
  };
}

export const explorables = { tables };
