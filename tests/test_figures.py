"""The house style: equal bytes, enough contrast, colours that stay apart."""

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from lib import figures

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    with matplotlib.rc_context():
        figures.use_house_style()
        yield
        plt.close("all")


def drawing() -> bytes:
    figure, (axes,) = figures.panels()
    axes.plot([0, 1, 2], [1, 3, 2])
    axes.fill_between([0, 1, 2], [0, 0, 0], [1, 3, 2], alpha=0.2)
    axes.set_ylim(0, 2.5)  # cuts the line, so that a clip path with a hashed name is written
    figures.label_line(axes, "a line")
    target = io.BytesIO()
    figure.savefig(target, format="svg", **figures.SVG_OPTIONS)
    plt.close(figure)
    return target.getvalue()


def test_two_runs_write_the_same_bytes():
    assert drawing() == drawing()


def test_another_process_writes_the_same_bytes():
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.test_figures import drawing; "
        "from lib import figures; figures.use_house_style(); "
        "sys.stdout.buffer.write(drawing())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert other.stdout == drawing()


def test_the_bytes_depend_on_the_salt_and_hold_no_date():
    ours = drawing()
    assert b"<dc:date>" not in ours
    assert b"Matplotlib v" not in ours
    matplotlib.rcParams["svg.hashsalt"] = "another"
    assert drawing() != ours


def test_text_is_drawn_as_paths():
    assert b"<text" not in drawing()
    matplotlib.rcParams["svg.fonttype"] = "none"
    assert b"<text" in drawing()


def test_the_ground_is_opaque_white():
    assert b"fill: #ffffff" in drawing()


def linear(hex_colour: str) -> np.ndarray:
    channels = np.array([int(hex_colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ) @ np.clip(rgb, 0, 1)
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.0088))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes 2009, severity 1, applied to linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
}  # fmt: skip


STYLE = (Path(__file__).resolve().parents[1] / "book/_static/book.css").read_text("utf-8")
# What a light and a dark page make of the colours: the two rules that set the variables.
LIGHT, DARK = (
    dict(re.findall(r"--ink-(\w+): (#[0-9a-f]{6})", rule))
    for rule in re.findall(r"\{ (--ink-blue:[^}]*)\}", STYLE)
)


def luminance(colour: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


def test_a_light_page_has_the_colours_themselves():
    assert LIGHT == figures.COLOURS | {"ground": "#ffffff"}
    assert set(DARK) == set(LIGHT)


@pytest.mark.parametrize("inks", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", figures.COLOURS)
def test_contrast_on_the_ground(inks, name):
    low, high = sorted((luminance(inks[name]), luminance(inks["ground"])))
    assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize("inks", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("pair", list(itertools.combinations(figures.COLOURS, 2)))
def test_colours_stay_apart(inks, sight, pair):
    one, other = (lab(SIGHT[sight] @ linear(inks[name])) for name in pair)
    assert np.linalg.norm(one - other) >= 12


def test_panels_are_stacked_in_one_column():
    figure, axes = figures.panels(3, height=2)
    assert [a.get_subplotspec().rowspan.start for a in axes] == [0, 1, 2]
    assert figure.get_size_inches().tolist() == [4.8, 6.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected at least 1 panel, got 0"),
        ({"height": 0}, "height: expected a positive number of inches, got 0"),
        ({"height": float("nan")}, "height: expected a positive number of inches, got nan"),
    ],
)
def test_panels_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        figures.panels(**options)


def test_label_takes_the_colour_and_place_of_its_line():
    _, (axes,) = figures.panels()
    axes.plot([0, 1, 2], [5, 6, 7], color="#123456")
    axes.plot([0, 1, 2], [1, 1, 1])
    figures.label_line(axes, "first", line=0, at=0.5, shift=3)
    note = axes.texts[0]
    assert (note.get_color(), note.xy, note.get_position()) == ("#123456", (1, 6), (5, 3))


def test_label_on_the_left():
    _, (axes,) = figures.panels()
    axes.plot([0, 1], [5, 6])
    figures.label_line(axes, "here", left=True)
    note = axes.texts[0]
    assert (note.get_position(), note.get_horizontalalignment()) == ((-5, 0), "right")


def test_label_refuses():
    _, (axes,) = figures.panels()
    with pytest.raises(ValueError, match="line: expected an index into 0 lines, got -1"):
        figures.label_line(axes, "none")
    axes.plot([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"at: expected a share in \[0, 1\], got 2"):
        figures.label_line(axes, "far", at=2)


def test_a_table_of_tokens_fills_its_cells_and_writes_beside_them():
    _, (axes,) = figures.panels()
    figures.token_table(axes, ["a", "b", "c"], [(0, 0), (1, 2)], texts=["1", "2"], triangle=True)
    drawn = [(patch.get_xy(), patch.get_width(), patch.get_facecolor()) for patch in axes.patches]
    grey, blue = (matplotlib.colors.to_rgba(c) for c in ("#dddddd", figures.COLOURS["blue"]))
    # Below the diagonal one row after the other; then the cells, column first.
    assert drawn == [((0, 1), 1, grey), ((0, 2), 2, grey), ((0, 0), 1, blue), ((2, 1), 1, blue)]
    sides = [(text.get_text(), text.get_ha(), text.get_position()[0]) for text in axes.texts]
    assert sides == [("1", "left", 1.2), ("2", "right", 1.8)]
    assert axes.yaxis_inverted()


def test_a_table_without_names_keeps_its_places():
    _, (axes,) = figures.panels()
    figures.token_table(axes, ["a", "b"], [], rows=False, columns=False)
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "tokens: expected at least one token, got none"),
        ((["a"], [(0, 1)]), r"cells: expected positions from 0 to 0, got \(0, 1\)"),
        ((["a"], [(-1, 0)]), r"cells: expected positions from 0 to 0, got \(-1, 0\)"),
        ((["a"], [(0, 0)], ["x", "y"]), "texts: expected one for each of 1 cells, got 2"),
    ],
)
def test_a_table_refuses(arguments, message):
    _, (axes,) = figures.panels()
    tokens, cells, *texts = arguments
    with pytest.raises(ValueError, match=message):
        figures.token_table(axes, tokens, cells, **({"texts": texts[0]} if texts else {}))


def test_notebooks_show_svg_with_the_same_options(monkeypatch):
    calls = []
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: object())
    monkeypatch.setattr(
        "matplotlib_inline.backend_inline.set_matplotlib_formats",
        lambda *formats, **options: calls.append((formats, options)),
    )
    figures.use_house_style()
    assert calls == [(("svg",), figures.SVG_OPTIONS)]
