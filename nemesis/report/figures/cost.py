"""Quality against cost (NEMESIS Figure 5), counted in multiply–accumulates, which no device and no load changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemesis.evaluation.cost import VOLUME, superpatches
from nemesis.report.collect import first_seed, labels_in_order, of_part
from nemesis.report.figures.style import (
    GREY,
    SMALL,
    Style,
    colour,
    legend,
    make_logarithmic,
    name_lines,
    panels,
    sentence,
    styles,
    with_interval,
)
from nemesis.report.render import absent
from nemesis.report.tables import PROTOCOLS
from nemesis.report.tables.pieces import share
from nemesis.runs import AS_CONFIGURED, Part

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONVENTION = "MAC (1 MAC = 2 FLOP)"
PARTS: tuple[Part, ...] = ("methods", "sweep", "ablations")
SMALL_ONES = {"ablations": ("d", "ablation variant"), "sweep": ("s", "sweep cell")}  # their marker and name
HATCHED: dict[str, Any] = {"facecolor": "white", "hatch": "////"}
DIGITS = {"mask_ratio": 6}  # a step of a search and its text in a table differ in the last ones
# Where a name may stand beside its point: offset in points, alignments.
PLACES = ((6, 0, "left", "center"), (-6, 0, "right", "center"), (0, 6, "center", "bottom"), (0, -6, "center", "top"))


def cost_quality(costs: pd.DataFrame, tables: Mapping[str, pd.DataFrame], spec: Mapping[str, Any]) -> Figure:
    """AUROC against the cost of encoding a scan, and what a superpatch costs in encoding and in the pretext.

    Args:
        costs: see :func:`counted`.
        tables: main, ablations and sweep, as their CSV files hold them.
        spec: see :func:`nemesis.report.collect.collect`.
    """
    if costs.empty:
        return sentence("No method's cost was counted.")
    main = tables["main"]
    scored = main[main["auroc"].notna()]
    protocol = next((name for name in PROTOCOLS if (scored["protocol"] == name).any()), "linear")
    look = styles(of_part(spec, "methods"))
    figure, (left, right) = panels(2, (10, max(4.2, 1.6 + 0.32 * len(look))))
    every = points(costs, tables, protocol)
    named = _quality(left, every, look) | _bars(right, costs[costs["part"] == "methods"], look)
    legend(figure, named, "outside lower center", columns=5)
    if not every.empty:
        labels = share(scored["label_fraction"].max())
        left.set_ylabel(with_interval(f"AUROC, {PROTOCOLS[protocol]}, {labels} of the labels", every))
        _write_beside(figure, left, every)
    return figure


def counted(spec: Mapping[str, Any], rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """What every label of every part costs: part, label, method, place in the sweep, ``encode`` and ``pretext`` (MAC per
    superpatch, NaN where there is no pretext) and ``volume`` (MAC to encode a scan, so that superpatch sizes compare).

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        rows: rows.parquet.
        runs: runs.parquet, whose ``identity.superpatch`` is the edge in voxels.
    """
    import pandas as pd

    macs = {(row["run"], row["metric"]): row["value"] for row in rows[rows["unit"] == "MAC"].to_dict("records")}
    edges = dict(zip(runs["run"], runs["identity.superpatch"].astype(int), strict=True))
    records = []
    for part in PARTS:
        of_this = of_part(spec, part)
        for entry in (first_seed(of_this, label) for label in labels_in_order(of_this)):  # every seed costs the same
            run = entry["run"]
            if encode := macs.get((run, "encode_macs")):
                record = {name: entry.get(name) for name in ("part", "label", "method", "embed_dim", "mask_ratio")}
                record |= {"encode": encode, "pretext": macs.get((run, "pretext_macs"))}
                records.append(record | {"volume": encode * superpatches(edges[run])})
    return pd.DataFrame(records)


def points(costs: pd.DataFrame, tables: Mapping[str, pd.DataFrame], protocol: str) -> pd.DataFrame:
    """The costs of what was scored, with its ``auroc``, ``auroc_low`` and ``auroc_high``.

    Of the ablations those that cost another sum than the method as configured, and that one: the others lie on one line.
    """
    import pandas as pd

    main = tables["main"]
    scores = {
        "methods": main[main["protocol"] == protocol].rename(columns={"method": "label"}),
        "ablations": tables["ablations"].rename(columns={"variant": "label"}),
        "sweep": tables["sweep"],
    }
    found = []
    for part, table in scores.items():
        keys = ["embed_dim", "mask_ratio"] if part == "sweep" else ["label"]
        if not table.empty:
            here = table.dropna(subset="auroc")[[*keys, "auroc", "auroc_low", "auroc_high"]]
            found.append(costs[costs["part"] == part].round(DIGITS).merge(here.round(DIGITS), on=keys))
    every = pd.concat(found, ignore_index=True)
    variant = (every["part"] == "ablations") & (every["label"] != AS_CONFIGURED)
    usual = every[(every["part"] == "ablations") & ~variant]["volume"]
    return every[~(variant & every["volume"].isin(usual))]


def _quality(axes: Axes, every: pd.DataFrame, look: Mapping[str, Style]) -> dict[str, Any]:
    from matplotlib.ticker import EngFormatter

    named: dict[str, Any] = {}
    for row in every.to_dict("records"):
        shade, main = colour(row["method"]), row["part"] == "methods"
        axes.vlines(row["volume"], row["auroc_low"], row["auroc_high"], color=shade, linewidth=1, alpha=1 if main else 0.3)
        marker, name = (look[row["label"]].marker, row["label"]) if main else SMALL_ONES[row["part"]]
        shape = {"markersize": 7, "zorder": 4} if main else {"markersize": 4.5, "markerfacecolor": "white", "zorder": 3}
        (named[name],) = axes.plot(row["volume"], row["auroc"], marker, color=shade, **shape)
    if every.empty:
        axes.text(0.5, 0.5, "Nothing was scored.", transform=axes.transAxes, ha="center", va="center")
        return {}
    axes.margins(x=0.12)
    make_logarithmic(axes, "xaxis", EngFormatter())
    axes.set_xlabel(f"{CONVENTION} to encode a scan of {' × '.join(map(str, reversed(VOLUME)))} voxels")
    return named


def _bars(axes: Axes, costs: pd.DataFrame, look: Mapping[str, Style]) -> dict[str, Any]:
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter

    write = EngFormatter(places=1)
    for y, row in enumerate(costs.to_dict("records")):
        shade = look[row["label"]].colour
        for macs, at, fill in ((row["encode"], y - 0.19, {"facecolor": shade}), (row["pretext"], y + 0.19, HATCHED)):
            if not absent(macs):
                axes.barh(at, macs, 0.36, edgecolor=shade, **fill)
                axes.annotate(write(macs), (macs, at), (3, 0), textcoords="offset points", va="center", fontsize=SMALL)
    name_lines(axes, list(costs["label"]))
    axes.margins(x=0.16)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel(f"{CONVENTION} per superpatch")
    pretext = Patch(edgecolor=GREY, **HATCHED)
    return {"encoding": Patch(facecolor=GREY, edgecolor=GREY), "pretext, forward": pretext}


def _write_beside(figure: Figure, axes: Axes, every: pd.DataFrame) -> None:
    """The names of the small points, where they touch neither a point nor another name."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout settles; what is added now leaves it alone
    figure.set_layout_engine("none")
    spots = axes.transData.transform(every[["volume", "auroc"]].to_numpy(float))
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    for row in every[every["part"] != "methods"].to_dict("records"):
        for x, y, across, up in PLACES:
            text = axes.annotate(row["label"], (row["volume"], row["auroc"]), (x, y), textcoords="offset points",
                                 ha=across, va=up, fontsize=6)  # fmt: skip
            box = text.get_window_extent()
            if axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
