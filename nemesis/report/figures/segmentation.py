"""Dice of fine-tuned networks: pretrained, beside their controls where an experiment has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemesis.finetuning import ARMS
from nemesis.report.figures.style import GREY, legend, name_lines, panels, sentence, styles, with_interval
from nemesis.report.tables.pieces import share

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CONTROLS = {ARMS["scratch"]: "o", ARMS["scratch_matched"]: "D"}  # hollow; whatever else a network starts from is filled
STARTED = "as its method starts it"


def segmentation_figure(table: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """Mean Dice of every method at the largest share of labels, with its interval, a mark for each start.

    Args:
        table: segmentation.csv.
        spec: of the methods; see :func:`nemesis.report.collect.collect`.
    """
    from matplotlib.lines import Line2D

    table = table[table["dice"].notna()]
    if table.empty:
        return sentence("No network of this experiment was fine-tuned to segment.")
    table = table[table["label_fraction"] == table["label_fraction"].max()]
    names = list(dict.fromkeys(table["method"]))
    look = styles(spec)
    figure, (axes,) = panels(size=(6.4, 1.1 + 0.5 * len(names)))
    shown: dict[str, Any] = {}
    for y, name in enumerate(names):
        rows = table[table["method"] == name].to_dict("records")
        for place, row in enumerate(rows):
            at = y + 0.2 * (place - (len(rows) - 1) / 2)
            shade, control = look[name].colour, row["arm"] in CONTROLS
            marker, face = CONTROLS.get(row["arm"], "o"), "white" if control else shade
            axes.hlines(at, row["dice_low"], row["dice_high"], color=shade, linewidth=1.2, zorder=2)
            axes.plot(row["dice"], at, marker, color=shade, markerfacecolor=face, markersize=5, zorder=3)
            shown[row["arm"] if control else STARTED] = Line2D(
                [], [], linestyle="none", marker=marker, color=GREY, markerfacecolor=face if control else GREY
            )
    name_lines(axes, names)
    labels = share(table["label_fraction"].max())
    axes.set_xlabel(with_interval(f"mean Dice over organs, {labels} of the labels", table, "dice"))
    legend(figure, shown, "outside lower center", columns=3)
    return figure
