"""One look for every figure of the book: SVG, readable on a phone, equal bytes on every run.

Decisions, and why:

- **SVG with text as paths.** The picture is sharp at every size and needs no font on the reader's
  machine. What a screen reader needs stands in the alternative text of the cell.
- **Fixed hash salt, no date, no version.** Matplotlib names clip paths by a hash; with a fixed
  salt and without the time stamp two runs write the same bytes, so outputs can be compared.
- **Opaque white ground.** No ink has enough contrast on white and on a dark page at once. In the
  built book the figure becomes part of the page, which gives inks and ground their colours, light
  or dark (``book/_ext/pictures_ext.py``); a notebook shows it on white.
- **One column.** A figure is 4.8 inches wide, panels are stacked, text is 10 points: on a screen of
  390 pixels it is still larger than 9 pixels.
- **Colour is never the only sign.** Lines are labelled where they end; styles differ too.

>>> from lib import figures
>>> figures.use_house_style()
>>> figure, axes = figures.panels(2)
>>> [round(float(side), 1) for side in figure.get_size_inches()]
[4.8, 5.6]
>>> figures.COLOURS["blue"]
'#0072b2'
"""

from collections.abc import Iterable, Sequence
from typing import Final

from lib._extras import needs

with needs("book"):
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import numpy as np
    from cycler import cycler
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "SVG_OPTIONS", "label_line", "panels", "token_table", "use_house_style"]

WIDTH_INCHES: Final = 4.8
PANEL_HEIGHT_INCHES: Final = 2.8

#: Ink by name. Each has a contrast of three to one or more on white, and any two stay apart for
#: readers who do not see red or green (tests/test_figures.py measures both).
COLOURS: Final[dict[str, str]] = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#00664a",
    "purple": "#9c3d7f",
    "black": "#222222",
    "grey": "#8a8a8a",
}

#: Options for ``Figure.savefig`` that make the bytes of an SVG depend on the picture alone.
SVG_OPTIONS: Final[dict[str, object]] = {
    "metadata": {"Date": None, "Creator": None},
    "bbox_inches": "tight",
}


def use_house_style() -> None:
    """Set Matplotlib to the look of the book; inside a notebook, also show figures as SVG.

    Call it once, in the first cell. It changes Matplotlib's global settings and nothing else, and
    calling it twice is the same as calling it once.

    Examples
    --------
    >>> use_house_style()
    >>> import matplotlib
    >>> matplotlib.rcParams["svg.fonttype"], matplotlib.rcParams["axes.spines.top"]
    ('path', False)
    """
    lines = [COLOURS[name] for name in ("blue", "vermilion", "green", "purple", "black", "grey")]
    styles = ["-", "--", "-.", ":", "-", "--"]
    mpl.rcParams.update(
        {
            "svg.hashsalt": "from-softmax-to-gplinker",
            "svg.fonttype": "path",
            "font.family": "DejaVu Sans",  # ships with Matplotlib: the same outlines everywhere
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "text.color": COLOURS["black"],
            "axes.labelcolor": COLOURS["black"],
            "axes.edgecolor": COLOURS["grey"],
            "xtick.color": COLOURS["black"],
            "ytick.color": COLOURS["black"],
            "axes.prop_cycle": cycler(color=lines) + cycler(linestyle=styles),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "figure.figsize": (WIDTH_INCHES, PANEL_HEIGHT_INCHES),
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.transparent": False,
            "legend.frameon": False,
        }
    )
    _show_svg_in_notebooks()


def _show_svg_in_notebooks() -> None:
    with needs("book"):
        from IPython.core.getipython import get_ipython

    # Outside a notebook there is nothing to tell: scripts call savefig with SVG_OPTIONS.
    if get_ipython() is not None:
        with needs("book"):
            from matplotlib_inline.backend_inline import set_matplotlib_formats

        # The package is marked as typed but leaves this function without annotations.
        set_matplotlib_formats("svg", **SVG_OPTIONS)  # type: ignore[no-untyped-call]


def panels(count: int = 1, *, height: float = PANEL_HEIGHT_INCHES) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels, one below the other, in the width of the text.

    Parameters
    ----------
    count
        Number of panels, at least 1.
    height
        Height of one panel in inches, greater than 0.

    Returns
    -------
    tuple
        The figure and the list of its `count` axes, from top to bottom.

    Raises
    ------
    ValueError
        If `count` is below 1 or `height` is not positive.

    Examples
    --------
    >>> figure, (top, bottom) = panels(2, height=2.0)
    >>> len(figure.axes)
    2
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1 panel, got {count}")
    if not height > 0:
        raise ValueError(f"height: expected a positive number of inches, got {height}")
    figure, axes = plt.subplots(
        count, 1, figsize=(WIDTH_INCHES, count * height), squeeze=False, layout="constrained"
    )
    return figure, list(axes[:, 0])


def label_line(
    axes: Axes,
    text: str,
    *,
    line: int = -1,
    at: float = 1.0,
    shift: float = 0,
    left: bool = False,
) -> None:
    """Write `text` beside a line, in the line's colour, in place of a legend.

    Parameters
    ----------
    axes
        Axes that hold the line.
    text
        The label.
    line
        Which line of `axes`, as an index; the last one drawn if not given.
    at
        Where along the line's points, from 0 (first) to 1 (last).
    shift
        Vertical shift in points, to keep neighbours apart.
    left
        Write to the left of the point, not to the right.

    Raises
    ------
    ValueError
        If `axes` has no such line, or `at` is outside [0, 1].

    Examples
    --------
    >>> figure, (axes,) = panels()
    >>> _ = axes.plot([0, 1, 2], [0, 1, 4])
    >>> label_line(axes, "squares")
    >>> axes.texts[0].get_text(), tuple(float(v) for v in axes.texts[0].xy)
    ('squares', (2.0, 4.0))
    """
    lines = axes.get_lines()
    if not -len(lines) <= line < len(lines):
        raise ValueError(f"line: expected an index into {len(lines)} lines, got {line}")
    if not 0 <= at <= 1:
        raise ValueError(f"at: expected a share in [0, 1], got {at}")
    drawn = lines[line]
    xs, ys = np.asarray(drawn.get_xdata()), np.asarray(drawn.get_ydata())
    point = round(at * (len(xs) - 1))
    axes.annotate(
        text,
        (xs[point], ys[point]),
        xytext=(-5 if left else 5, shift),
        textcoords="offset points",
        color=drawn.get_color(),
        horizontalalignment="right" if left else "left",
        verticalalignment="center",
        annotation_clip=False,
    )


def token_table(
    axes: Axes,
    tokens: Sequence[str],
    cells: Iterable[tuple[int, int]],
    *,
    texts: Sequence[str] = (),
    title: str = "",
    triangle: bool = False,
    rows: bool = True,
    columns: bool = True,
) -> None:
    """Draw the table of all pairs of tokens, with some of its cells filled.

    Rows are the first token of a pair, columns the second.

    Parameters
    ----------
    axes
        Empty axes.
    tokens
        The tokens, at least one.
    cells
        The filled cells, as pairs of positions in `tokens`.
    texts
        What to write beside each cell, to its right, or to its left where the right has no room;
        one for each cell, or none.
    title
        Written above.
    triangle
        Shade what lies below the diagonal: a span does not end before it begins.
    rows, columns
        Write the tokens beside the rows and below the columns.

    Raises
    ------
    ValueError
        If there is no token, a cell lies outside the table, or there are texts and not one for
        each cell.

    Examples
    --------
    >>> figure, (axes,) = panels()
    >>> token_table(axes, ["Ada", "Lin", "wrote"], [(0, 1)], texts=["2.5"], triangle=True)
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['Ada', 'Lin', 'wrote']
    >>> axes.texts[0].get_text()
    '2.5'
    """
    cells, n = list(cells), len(tokens)
    if not n:
        raise ValueError("tokens: expected at least one token, got none")
    if outside := [cell for cell in cells if not (0 <= cell[0] < n and 0 <= cell[1] < n)]:
        raise ValueError(f"cells: expected positions from 0 to {n - 1}, got {outside[0]}")
    if texts and len(texts) != len(cells):
        raise ValueError(f"texts: expected one for each of {len(cells)} cells, got {len(texts)}")
    if triangle:
        for i in range(1, n):
            axes.add_patch(mpl.patches.Rectangle((0, i), i, 1, color="#dddddd", linewidth=0))
    for i, j in cells:
        axes.add_patch(mpl.patches.Rectangle((j, i), 1, 1, color=COLOURS["blue"], linewidth=0))
    for (i, j), text in zip(cells, texts, strict=False):
        left = j > n / 2
        axes.text(
            j - 0.2 if left else j + 1.2,
            i + 0.55,
            text,
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal", title=title)
    places = [k + 0.5 for k in range(n)]
    axes.set_xticks(places, tokens if columns else [""] * n, rotation=90, fontsize=8)
    axes.set_yticks(places, tokens if rows else [""] * n, fontsize=8)
    axes.tick_params(length=0)
    axes.hlines(range(n + 1), 0, n, color="#cccccc", linewidth=0.5)
    axes.vlines(range(n + 1), 0, n, color="#cccccc", linewidth=0.5)
    for side in axes.spines.values():
        side.set_visible(False)
