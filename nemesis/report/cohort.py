"""What the cohort of an experiment holds: its cases, intensities, slices and organs. Scans are read from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Preparation
from nemesis.data.cases import SCORED_KINDS
from nemesis.data.scans import Scans
from nemesis.data.store import StoredVolume
from nemesis.report.figures.reconstructions import view
from nemesis.report.figures.style import COLOURS, GREY, SMALL, TEXT, defaults, panels
from nemesis.report.results import Results, picture

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image

POOLS: dict[str, dict[str, Any]] = {  # and how they are drawn: in no method's colour
    "pretraining": {"color": "black"},
    "evaluation": {"color": GREY, "linestyle": "--"},
}
AXES = "DHW"
MEASURED_SCANS, MEASURED_PLANES = 24, 8  # of a pool, of a scan: a histogram needs no more
HU_BINS = np.arange(-1050, 1051, 25)


def scans(results: Results, pool: str) -> Scans:
    """The scans of a pool (``pretraining`` or ``evaluation``), in the store."""
    preparation = Preparation.model_validate(results.spec["config"]["preparation"])
    index = results.folder / "data" / "index.parquet"
    return Scans(results.path(results.spec["pools"][pool]), index, preparation)


def cases(results: Results) -> pd.DataFrame:
    """A row per case and pool: dataset, case, patient, pool, kind of its labels, voxels and spacing (mm) along D, H, W, mean
    and standard deviation of its HU, and foreground: the share of its grid superpatches that are not empty.
    """
    import pandas as pd

    rows = []
    for pool in POOLS:
        of_pool = scans(results, pool)
        for row in map(of_pool.row, range(len(of_pool))):
            kept = {name: row[name] for name in ("dataset", "case", "patient", "kind", "hu_mean", "hu_std", "foreground")}
            kept |= {f"voxels {axis}": n for axis, n in zip(AXES, row["shape"], strict=True)}
            kept |= {f"spacing {axis}": mm for axis, mm in zip(AXES, row["spacing"], strict=True)}
            rows.append({"pool": pool} | kept)
    return pd.DataFrame(rows)


def organs(results: Results) -> pd.DataFrame:
    """A row per labelled organ: scans it was drawn in, scans of these that show it, their median volume (ml) and, where it
    is probed, the share of the evaluation superpatches (empty ones left out) that are positive for it.
    """
    import pandas as pd

    of_pools = [scans(results, pool) for pool in POOLS]
    known = {(row["dataset"], row["case"]): row for pool in of_pools for row in map(pool.row, range(len(pool)))}
    volumes: dict[str, list[float]] = {}
    for _, row in sorted(known.items()):
        if row["kind"] in SCORED_KINDS:
            voxel, counted = float(np.prod(row["spacing"])) / 1000, dict(row["voxels"])  # ml
            for organ in row["annotated"]:
                volumes.setdefault(organ, []).append(counted[organ] * voxel)
    rows = results.collected("rows")
    methods = {entry["run"] for entry in results.spec["runs"] if entry["part"] == "methods"}
    shares = rows[(rows["metric"] == "prevalence") & (rows["easy_negatives"] == "out") & rows["run"].isin(methods)]
    table = pd.DataFrame(
        {
            "scans drawn in": {organ: len(ml) for organ, ml in volumes.items()},
            "scans that show it": {organ: int(np.count_nonzero(ml)) for organ, ml in volumes.items()},
            "median volume, ml": {organ: float(np.median([v for v in ml if v] or [np.nan])) for organ, ml in volumes.items()},
            "positive superpatches": shares.groupby("organ")["value"].mean(),
        }
    )
    return table.rename_axis("organ").sort_values(["positive superpatches", "median volume, ml"], ascending=False)


def hu_histogram(results: Results) -> Image:
    """Share of the voxels of either pool by HU, with the window that the networks see; from evenly spaced scans and planes."""
    with defaults():
        figure, (axes,) = panels(size=(7, 3.2))
        for pool, look in POOLS.items():
            counts = np.zeros(len(HU_BINS) - 1)
            of_pool = scans(results, pool)
            for number in evenly(len(of_pool), MEASURED_SCANS):
                volume = of_pool.hu(number)
                for plane in evenly(volume.shape[0], MEASURED_PLANES):
                    hu = np.clip(_plane(volume, plane), HU_BINS[0], HU_BINS[-1])
                    counts += np.histogram(hu, HU_BINS)[0]
            axes.stairs(100 * counts / counts.sum(), HU_BINS, linewidth=1.2, label=f"{pool} pool", **look)
        low, high = results.spec["config"]["preparation"]["hu_window"]
        axes.axvspan(low, high, color="#e3eaf2", zorder=0, label="window")
        axes.set_yscale("log")
        axes.set_xlabel("HU (what lies beyond the ends is counted at the ends)")
        axes.set_ylabel("share of the voxels, %")
        axes.legend(fontsize=SMALL, frameon=False)
        return picture(figure, "Histogram of the HU of either pool")


def axial_slices(results: Results, pool: str = "evaluation", count: int = 4) -> Image:
    """An axial plane of ``count`` evenly spaced scans of a pool, in the window, with the outlines of the drawn organs: the
    plane that holds most of them, or the middle one where nothing was drawn. The patient's right is at the left.
    """
    of_pool = scans(results, pool)
    chosen = evenly(len(of_pool), count)
    low, high = results.spec["config"]["preparation"]["hu_window"]
    with defaults():
        figure, row_of_axes = panels(len(chosen), (2.5 * len(chosen), 2.9))
        for axes, number in zip(row_of_axes, chosen, strict=True):
            volume, labels, row = of_pool.hu(number), of_pool.labels(number), of_pool.row(number)
            drawn = None if labels is None else labels.whole()
            plane = volume.shape[0] // 2
            if drawn is not None and drawn.any():
                plane = int((drawn > 0).sum(axis=(1, 2)).argmax())
            _, along_h, along_w = row["spacing"]
            hu = view(_plane(volume, plane), "axial", (0, 0, 0))
            axes.imshow(hu, cmap="gray", vmin=low, vmax=high, aspect=along_w / along_h, interpolation="nearest")
            if drawn is not None:
                _outline(axes, view(drawn, "axial", (plane, 0, 0)))
            axes.set_title(f"{row['dataset']}/{row['case']}, plane {plane + 1} of {volume.shape[0]}", fontsize=TEXT)
            axes.set_axis_off()
        return picture(figure, f"Axial slices of scans of the {pool} pool")


def _plane(volume: StoredVolume, plane: int) -> NDArray[Any]:
    """One plane (1, H, W)."""
    return volume.read((plane, 0, 0), (1, *volume.shape[1:]), 0)


def _outline(axes: Any, labels: NDArray[Any]) -> None:
    for label in np.unique(labels[labels > 0]):
        axes.contour(labels == label, levels=[0.5], colors=COLOURS[int(label) % len(COLOURS)], linewidths=0.9)


def evenly(total: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``total``, evenly spaced, each in the middle of its share."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
