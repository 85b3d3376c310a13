"""Table IV as dots: every variant beside the method as configured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemesis.report.collect import of_part
from nemesis.report.figures.style import GREY, colour, name_lines, panels, sentence, with_interval
from nemesis.report.tables.pieces import NOT_RUN
from nemesis.runs import AS_CONFIGURED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MEASURES = {"auroc": "AUROC", "psnr_masked": "PSNR of hidden voxels (dB)"}


def ablations_figure(table: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """AUROC and PSNR of every variant with their intervals, by group; lines stand at the method as configured.

    Args:
        table: ablations.csv.
        spec: see :func:`nemesis.report.collect.collect`.
    """
    table = table[table["status"] != NOT_RUN]  # without what the paper alone has
    measures = [name for name in MEASURES if table[name].notna().any()]
    if not measures:
        return sentence("This experiment has no ablations, or none was scored.")
    lines: list[tuple[str, Mapping[Any, Any] | None]] = []  # a group's name, or a variant and what it reached
    for group, rows in table.groupby("group", sort=False, dropna=False):
        if isinstance(group, str) and group:
            lines.append((group, None))
        lines += [(row["variant"], row) for row in rows.to_dict("records")]
    figure, row_of_panels = panels(len(measures), (2.4 + 2.6 * len(measures), 0.8 + 0.23 * len(lines)), sharey=True)
    shade = colour(of_part(spec, "ablations")["runs"][0]["method"])
    for axes, name in zip(row_of_panels, measures, strict=True):
        for y, (variant, row) in enumerate(lines):
            if row is None:
                continue
            own = variant == AS_CONFIGURED
            if own:
                axes.axvline(row[name], color=GREY, linewidth=0.9, linestyle="--", zorder=1)
                axes.axvspan(row[f"{name}_low"], row[f"{name}_high"], color=GREY, alpha=0.12, linewidth=0, zorder=0)
            axes.hlines(y, row[f"{name}_low"], row[f"{name}_high"], color=shade, linewidth=1.4, zorder=2)
            face = shade if own else "white"
            axes.plot(row[name], y, "o", color=shade, markerfacecolor=face, markersize=5, markeredgewidth=1.4, zorder=3)
        name_lines(axes, [name for name, _ in lines])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(with_interval(MEASURES[name], table, name))
    for text, (_, row) in zip(row_of_panels[0].get_yticklabels(), lines, strict=True):
        if row is None:
            text.set_fontweight("bold")
    return figure
