"""What the size of the superpatch is worth and costs (NEMESIS Figure 5): the ablations that vary it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemesis.evaluation.cost import VOLUME
from nemesis.report.collect import of_part
from nemesis.report.figures.style import colour, make_logarithmic, panels, sentence, with_interval
from nemesis.report.tables.pieces import NOT_RUN
from nemesis.runs import AS_CONFIGURED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MEASURES = {"auroc": "AUROC", "psnr_masked": "PSNR of hidden voxels (dB)"}


def superpatch_sizes(costs: pd.DataFrame, table: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """AUROC, PSNR of hidden voxels and the cost of encoding a scan against the edge of the superpatch.

    Args:
        costs: see :func:`nemesis.report.figures.cost.counted`.
        table: ablations.csv.
        spec: see :func:`nemesis.report.collect.collect`.
    """
    from matplotlib.ticker import EngFormatter

    table = table[table["status"] != NOT_RUN]
    usual = table.loc[table["variant"] == AS_CONFIGURED, "superpatch"]
    sizes = table[(table["variant"] == AS_CONFIGURED) | ~table["superpatch"].isin(usual)]
    if sizes["superpatch"].nunique() < 2 or costs.empty:
        return sentence("No ablation of this experiment varies the size of the superpatch.")
    of_ablations = costs[costs["part"] == "ablations"][["label", "volume"]]
    sizes = sizes.merge(of_ablations, left_on="variant", right_on="label").sort_values("superpatch")
    measures = [name for name in MEASURES if sizes[name].notna().any()]
    figure, grid = panels(len(measures) + 1, (2.9 * (len(measures) + 1), 2.9))
    shade = colour(of_part(spec, "ablations")["runs"][0]["method"])
    for axes, name in zip(grid, [*measures, "volume"], strict=True):
        if name in MEASURES:
            axes.vlines(sizes["superpatch"], sizes[f"{name}_low"], sizes[f"{name}_high"], color=shade, linewidth=1.4)
        for row in sizes.to_dict("records"):
            face = shade if row["variant"] == AS_CONFIGURED else "white"
            axes.plot(row["superpatch"], row[name], "o", color=shade, markerfacecolor=face, markersize=5.5, markeredgewidth=1.4)
        axes.set_xscale("log")
        axes.minorticks_off()
        edges = sorted(sizes["superpatch"].astype(int).unique())
        axes.set_xticks(edges, [f"{edge}³" for edge in edges])
        axes.margins(x=0.25, y=0.12)
        axes.set_xlabel("superpatch (voxels)")
        axes.set_ylabel(with_interval(MEASURES[name], sizes, name) if name in MEASURES else "")
    make_logarithmic(grid[-1], "yaxis", EngFormatter())
    grid[-1].set_ylabel(f"MAC to encode a scan of {'×'.join(map(str, reversed(VOLUME)))}")
    return figure
