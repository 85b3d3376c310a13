"""Lines: quality against labels, and the pretext loss against steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nemesis.report.figures.style import legend, make_logarithmic, panels, sentence, styles, with_interval
from nemesis.report.tables import PROTOCOLS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def label_fractions(table: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """AUROC against the share of labels, a panel for each protocol; bars are the intervals of ``label_fractions.csv``, those of
    one share side by side around it."""
    measured = table[table["auroc"].notna()]
    shares = measured.groupby("protocol")["label_fraction"].nunique()
    if shares.empty:
        return sentence("No probe was scored.")
    # a protocol at a single share has no curve, and a panel only beside others of that kind
    probed = [protocol for protocol in PROTOCOLS if shares.get(protocol, 0) >= min(2, shares.max())]
    figure, row = panels(len(probed), (2.1 + 3.0 * len(probed), 3.4), sharey=True)
    named: dict[str, Any] = {}
    look = styles(spec)
    ticks = sorted(measured["label_fraction"].unique())
    reach = 0.4 * np.diff(np.log(ticks)).min() if len(ticks) > 1 else 0.02
    asides = np.exp(reach * np.linspace(-1, 1, len(look) + 2)[1:-1])  # a method by itself stands at its shares
    for axes, protocol in zip(row, probed, strict=True):
        here = measured[measured["protocol"] == protocol]
        for (label, style), aside in zip(look.items(), asides, strict=True):
            line = here[here["method"] == label].sort_values("label_fraction")
            x = aside * line["label_fraction"]
            axes.vlines(x, line["auroc_low"], line["auroc_high"], color=style.colour, linewidth=0.9)
            (named[label],) = axes.plot(
                x, line["auroc"], color=style.colour, linestyle=style.line, marker=style.marker, linewidth=0.8, markersize=3
            )
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{100 * share:g} %" for share in ticks])
        axes.set_title(PROTOCOLS[protocol], fontsize=9)
        axes.set_xlabel("labelled training patients")
    row[0].set_ylabel(with_interval("AUROC", measured))
    legend(figure, named)
    return figure


def training_curves(curves: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """The pretext loss of every run against steps; ``curves``: run, step, monitor, value."""
    losses = curves[(curves["monitor"] == "loss") & curves["run"].isin([entry["run"] for entry in spec["runs"]])]
    if losses.empty:
        return sentence("Nothing was pretrained.")
    look = styles(spec)
    figure, (axes,) = panels()
    named: dict[str, Any] = {}
    for entry in spec["runs"]:
        line = losses[losses["run"] == entry["run"]].sort_values("step")
        if not line.empty:
            style = look[entry["label"]]
            (named[entry["label"]],) = axes.plot(
                line["step"], line["value"], color=style.colour, linestyle=style.line, linewidth=1.2
            )
    if (losses["value"] > 0).all():
        make_logarithmic(axes, "yaxis", "{x:g}")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("pretext loss (each method's own)")
    legend(figure, named)
    return figure
