"""Embedding width × mask ratio: the grid as a heat map, an adaptive search as its trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nemesis.report.figures.style import FRAME, SMALL, TEXT, legend, panels, sentence, with_interval
from nemesis.report.render import interval
from nemesis.report.tables.pieces import NOT_RUN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = "cividis"  # grows lighter for every kind of colour vision
CELL = (1.35, 0.75)  # inches
CHOSEN = "chosen by inner validation"


def sweep_figure(table: pd.DataFrame) -> Figure:
    """``table`` is sweep.csv: a row for each cell of a grid or, with its ``state``, for each trial of a search."""
    if table.empty:
        return sentence("This experiment has no sweep, or none of its trials is known.")
    searched = "state" in table
    own = table[table["state"].notna() if searched else table["status"] != NOT_RUN]  # without what the paper alone has
    own = own[own["validation_auroc" if searched else "auroc"].notna()].astype({"chosen_by_validation": bool})
    if own.empty:
        return sentence("Nothing of the sweep was scored.")
    return trials(own) if searched else heat_map(own)


def heat_map(cells: pd.DataFrame) -> Figure:
    """AUROC of every cell as its colour and in figures, with its interval."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    widths, ratios = (sorted(cells[name].unique()) for name in ("embed_dim", "mask_ratio"))
    figure, (axes,) = panels(size=(2.2 + CELL[0] * len(ratios), 1.1 + CELL[1] * len(widths)))
    scale = Normalize(*_ends(cells["auroc"]))
    grid = cells.pivot(index="embed_dim", columns="mask_ratio", values="auroc")  # sorted along both
    picture = axes.imshow(grid.to_numpy(float), cmap=SHADES, norm=scale, aspect="auto")
    for _, cell in cells.iterrows():
        x, y = ratios.index(cell["mask_ratio"]), widths.index(cell["embed_dim"])
        dark = _lightness(picture.to_rgba(cell["auroc"])) < 0.46  # where both stand out alike
        words = interval(dict(cell), "auroc", 3).replace(" [", "\n[")
        axes.text(x, y, words, color="white" if dark else "black", ha="center", va="center", fontsize=TEXT, linespacing=1.4)
        if cell["chosen_by_validation"]:
            frame = Rectangle((x - 0.46, y - 0.45), 0.92, 0.9, fill=False, edgecolor=FRAME, linewidth=2.5)
            axes.add_patch(frame)
            legend(figure, {CHOSEN: frame}, "outside lower right")
    hidden = cells.groupby("mask_ratio")["effective_mask_ratio"].mean()
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}\n{100 * hidden[ratio]:.0f} % hidden" for ratio in ratios])
    axes.set_yticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _name(axes)
    _bar(figure, picture, axes, with_interval("AUROC", cells))
    return figure


def trials(scored: pd.DataFrame) -> Figure:
    """Every trial of a search where it lies, coloured by its score on inner validation; pruned ones are hollow."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    widths = sorted(scored["embed_dim"].unique())
    figure, (axes,) = panels(size=(6.4, 1.7 + 0.45 * len(widths)))
    shades = ScalarMappable(Normalize(*_ends(scored["validation_auroc"])), SHADES)
    named: dict[str, Any] = {}

    def draw(name: str, here: pd.DataFrame, **look: Any) -> None:
        if not here.empty:
            y = [widths.index(width) for width in here["embed_dim"]]
            named[name] = axes.scatter(here["mask_ratio"], y, clip_on=False, **look)

    of = {state: scored[scored["state"] == state] for state in ("complete", "pruned", "failed")}
    shade = {state: shades.to_rgba(rows["validation_auroc"].to_numpy()) for state, rows in of.items()}
    draw("complete", of["complete"], s=55, color=shade["complete"])
    draw("pruned", of["pruned"], s=55, facecolor="none", edgecolor=shade["pruned"], linewidth=1.8)
    draw("failed", of["failed"], s=40, color=shade["failed"], marker="x")
    draw(CHOSEN, scored[scored["chosen_by_validation"]], s=190, marker="s", facecolor="none", edgecolor=FRAME, linewidth=2)
    axes.set_yticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.set_ylim(-0.6, len(widths) - 0.4)
    axes.margins(x=0.08)
    _name(axes)
    _bar(figure, shades, axes, "AUROC on inner validation")
    legend(figure, named, "outside lower center", columns=len(named))
    return figure


def _name(axes: Axes) -> None:
    axes.set_xlabel("mask ratio r, within planes and along the axis")
    axes.set_ylabel("embedding width E")


def _bar(figure: Figure, picture: Any, axes: Axes, name: str) -> None:
    bar = figure.colorbar(picture, ax=axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(name, fontsize=TEXT)


def _ends(values: pd.Series[float]) -> tuple[float, float]:
    """Lowest and highest, apart even where all are one."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.005, high + 0.005)


def _lightness(colour: Any) -> float:
    """Rec. 709 luma of (red, green, blue, alpha) in [0, 1]."""
    return float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))
