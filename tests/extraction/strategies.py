"""Random texts and examples, with everything that makes offsets hard."""

from hypothesis import strategies as st

from lib.extraction.triples import Example, Span, Triple

PIECES = [
    "a", "B", "word", "Ünïcode", "e\u0301", "o\u0308\u0323", "\u200b", "\u200d", "\ufeff", "\u00ad",
    "👩‍👩‍👧", "🇩🇪", "👍🏽", "中文", "字", "カ\u3099", "ﬁ", "ß", "İ", "²", "\u0000", "\u2028",
    " ", "  ", "\u3000", "\u00a0", "\t", "\n", ".", ",", "'s", "-", "12", "[CLS]", "##x",
]  # fmt: skip
"""Letters, combining marks, zero-width and control characters, emoji, CJK, white space."""

TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.text(max_size=25),
)


@st.composite
def examples(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> Example:
    """Draw a text and up to six triples with any spans."""
    text = draw(texts)
    if not text:
        return Example("0", text)
    bounds = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))
    spans = bounds.filter(lambda b: b[0] != b[1]).map(lambda b: Span(min(b), max(b)))
    triples = st.builds(Triple, spans, st.sampled_from(["p", "q"]), spans)
    return Example("0", text, tuple(draw(st.lists(triples, max_size=6, unique=True))))
