"""What all figures share: a method's colour, empty panels, and files that are the same bytes when drawn again."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemesis.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

# Okabe's and Ito's colours, which stay apart for colour-blind readers.
COLOURS = BLUE, ORANGE, GREEN, PINK, VERMILLION, SKY = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
METHOD_COLOURS = {
    "nemesis": BLUE,
    "random_vit": "#555555",
    "maesil": SKY,
    "ae": ORANGE,
    "vae": VERMILLION,
    "vqvae": PINK,
    "plain_mae": GREEN,
    "resnet3d": "#000000",
    "suprem": "#332288",
    "voco": "#8400CD",
    "nnformer_mae": "#661100",
}
OTHER_COLOURS = ("#882255", "#999933", "#44AA99", "#117733")  # of methods from outside, by their name
Place = Literal["outside right center", "outside lower center", "outside lower right"]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", ":", "-.")
GREY = "#888888"  # of what stands for no method
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}
FRAME = VERMILLION  # around what was chosen
SMALL, TEXT = 7, 8  # points
DPI = 160


@dataclass(frozen=True)
class Style:
    """How every figure shows a label: the colour is its method's, marker and line tell labels of one colour apart."""

    colour: str
    marker: str
    line: str


def colour(method: str) -> str:
    """The colour of a method, by its registered name, whatever else an experiment compares."""
    place = hashlib.sha256(method.encode()).digest()[0] % len(OTHER_COLOURS)
    return METHOD_COLOURS.get(method, OTHER_COLOURS[place])


def styles(spec: Mapping[str, Any]) -> dict[str, Style]:
    """Label → style, in the order of the configuration; ``spec`` holds the runs of one part."""
    found: dict[str, Style] = {}
    seen: Counter[str] = Counter()
    for entry in spec["runs"]:
        if entry["label"] not in found:
            shade = colour(entry["method"])
            number = seen[shade]
            found[entry["label"]] = Style(shade, MARKERS[number % len(MARKERS)], LINES[number % len(LINES)])
            seen[shade] += 1
    return found


def panels(columns: int = 1, size: tuple[float, float] = (7.0, 3.4), rows: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Empty panels, row by row, with a light grid along y; ``options`` are those of ``Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    found: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in found:
        axes.grid(axis="y", **GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=TEXT)
        axes.xaxis.label.set_fontsize(TEXT)
        axes.yaxis.label.set_fontsize(TEXT)
    return figure, found


def name_lines(axes: Axes, names: Sequence[str], lines: int | None = None) -> None:
    """A panel that is read downwards: names at the lines 0, 1, 2, … from the top, the light grid along x.

    Args:
        lines: how many lines there is room for, where panels side by side have different numbers of them.
    """
    axes.set_yticks(range(len(names)), names, fontsize=TEXT)
    axes.set_ylim((lines or len(names)) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", **GRID)


def make_logarithmic(axes: Axes, axis: Literal["xaxis", "yaxis"], write: str | Formatter) -> None:
    """A logarithmic axis with a few round numbers; to be called when everything is drawn."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(**{axis.replace("axis", "scale"): "log"})
    chosen: Axis = getattr(axes, axis)
    low, high = chosen.get_view_interval()
    steps = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 300 * low else (1,)
    chosen.set_major_locator(LogLocator(subs=steps))
    chosen.set_minor_locator(NullLocator())
    chosen.set_major_formatter(write)


def with_interval(name: str, drawn: pd.DataFrame, score: str = "auroc") -> str:
    """The name of an axis; it speaks of intervals where ``drawn``, a part of a printed table, has any of this score."""
    return f"{name}, 95 % interval" if drawn[f"{score}_low"].notna().any() else name


def sentence(text: str) -> Figure:
    """In place of a figure that cannot be drawn: why."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1), facecolor="white")
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    return figure


def legend(figure: Figure, handles: Mapping[str, Any], place: Place = "outside right center", columns: int = 1) -> None:
    """Name → handle, outside the panels."""
    figure.legend(list(handles.values()), list(handles), loc=place, ncols=columns, fontsize=SMALL, frameon=False)


@contextmanager
def defaults() -> Iterator[None]:
    """Matplotlib's own defaults, whatever the reader's settings are, with the ids of SVG files pinned."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "nemesis"
        yield


def save(figure: Figure, stem: Path) -> None:
    """``<stem>.png`` and ``.svg``, without date and version: the same figure is the same file."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=DPI, metadata=metadata)
        write_bytes(stem.with_name(stem.name + suffix), buffer.getvalue())
