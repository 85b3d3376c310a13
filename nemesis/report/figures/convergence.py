"""The inner validation against steps of fine-tuning: pretrained, and from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemesis.finetuning import ARMS
from nemesis.report.figures.segmentation import CONTROLS, STARTED
from nemesis.report.figures.style import GREY, LINES, SMALL, TEXT, legend, panels, sentence, styles
from nemesis.report.tables.pieces import share

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # panels side by side
SCORES = {"presence": "AUROC", "segmentation": "mean Dice"}


def convergence_figure(table: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """A panel for each task, method and share of labels, a line for each arm; panels of one task have one scale.

    Args:
        table: convergence.csv.
        spec: of the methods; see :func:`nemesis.report.collect.collect`.
    """
    import pandas as pd

    if table.empty:
        return sentence("No fine-tuning of this experiment looked at an inner validation.")
    shown = table[["task", "method", "label_fraction"]].drop_duplicates().to_dict("records")
    columns, look = min(COLUMNS, len(shown)), styles(spec)
    rows = -(-len(shown) // columns)
    figure, every = panels(columns, (1.2 + 2.4 * columns, 0.8 + 1.9 * rows), rows)
    scales: dict[str, Axes] = {}
    for axes, place in zip(every, shown, strict=False):
        if (scale := scales.setdefault(place["task"], axes)) is not axes:
            axes.sharey(scale)  # or a wiggle in one panel would look like the gain in another
        here, method = table[(table[list(place)] == pd.Series(place)).all(axis=1)], place["method"]
        for (arm, name), line in zip(ARMS.items(), LINES, strict=False):
            curve = here[here["arm"] == arm].sort_values("step")
            face = "white" if name in CONTROLS else look[method].colour
            axes.plot(
                curve["step"], curve["validation"], color=look[method].colour, linestyle=line,
                marker=CONTROLS.get(name, "o"), markersize=4, markerfacecolor=face, linewidth=1.2,
            )  # fmt: skip
        axes.set_title(f"{method}, {share(place['label_fraction'])} of the labels", fontsize=SMALL)
        axes.set_ylabel(SCORES[place["task"]], fontsize=TEXT)
        axes.set_xlabel("steps of fine-tuning", fontsize=TEXT)
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    named: dict[str, Any] = {}
    for (arm, name), line in zip(ARMS.items(), LINES, strict=False):
        if (table["arm"] == arm).any():
            started, face = (name, "white") if name in CONTROLS else (STARTED, GREY)
            (named[started],) = every[0].plot(
                [], [], color=GREY, linestyle=line, marker=CONTROLS.get(name, "o"), markerfacecolor=face
            )  # fmt: skip
    legend(figure, named, "outside lower center", columns=3)
    return figure
