"""What the pretexts reach on held-out patients, untrained and trained: a panel for each kind of number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemesis.report.figures.style import GREY, legend, name_lines, panels, sentence, styles
from nemesis.report.tables.pretraining import MONITORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PER_ROW = 3


def pretexts_figure(table: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """From what an untrained network gets (hollow) to what the trained one gets (filled); a broken objective goes nowhere.

    Args:
        table: pretraining.csv.
        spec: of the methods; see :func:`nemesis.report.collect.collect`.
    """
    from matplotlib.lines import Line2D

    measured = table[table["trained"].notna()]
    monitors = [name for name in MONITORS if (measured["monitor"] == name).any()]
    if not monitors:
        return sentence("No pretext of this experiment was measured on held-out patients.")
    look = styles(spec)
    counts = measured["monitor"].value_counts()
    across = min(len(monitors), PER_ROW)
    tallest = [max(2, *counts[monitors[at : at + across]]) for at in range(0, len(monitors), across)]
    heights = [0.9 + 0.24 * n for n in tallest]
    size = (0.6 + 3.3 * across, 0.4 + sum(heights))
    figure, grid = panels(across, size, rows=len(heights), height_ratios=heights)
    for place, (axes, monitor) in enumerate(zip(grid, monitors, strict=False)):
        here = measured[measured["monitor"] == monitor].to_dict("records")
        for y, row in enumerate(here):
            style = look[row["method"]]
            axes.annotate(
                "", (row["trained"], y), (row["untrained"], y),
                arrowprops={"arrowstyle": "-|>", "color": style.colour, "linewidth": 1.2, "shrinkA": 3, "shrinkB": 3},
            )  # fmt: skip
            axes.plot(row["untrained"], y, "o", color=style.colour, markerfacecolor="white", markersize=5, zorder=3)
            axes.plot(row["trained"], y, "o", color=style.colour, markersize=5, zorder=3)
        name_lines(axes, [row["method"] for row in here], tallest[place // across])
        axes.margins(x=0.12)
        axes.set_xlabel(MONITORS[monitor])
    for axes in grid[len(monitors) :]:
        axes.set_visible(False)
    look_of: dict[str, Any] = {"marker": "o", "color": GREY, "linestyle": "none"}
    shown = {"untrained": Line2D([], [], markerfacecolor="white", **look_of), "trained": Line2D([], [], **look_of)}
    legend(figure, shown, "outside lower center", columns=2)
    return figure
