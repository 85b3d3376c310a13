"""Where the two streams of NEMESIS look, in one superpatch of an evaluation scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.report.figures.reconstructions import PLANES, centre, materials, view
from nemesis.report.figures.style import SMALL, TEXT, sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAMS = {"plane": "plane stream", "axis": "axis stream", "joint": "one stream"}
AXES = {"axial": (2, 1), "coronal": (0, 1), "sagittal": (0, 2)}  # of a volume: down and across a picture of it
PANEL, TALLEST = 1.7, 7.0  # inches across, and of all panels down: thick slices get narrower ones instead of a poster


def attention_of_reference(spec: Mapping[str, Any]) -> Figure:
    """The reference's first seed; where its attention was not kept, the first label whose was."""
    for title, material in materials(spec):
        if any(f"attention_{stream}" in material for stream in STREAMS):
            return attention_figure(material, title)
    return sentence("No method of this experiment shows where it attends.")


def attention_figure(material: Mapping[str, NDArray[Any]], title: str) -> Figure:
    """Planes through the middle of the body in a superpatch: what is there, and the attention that each token receives.

    Args:
        material: ``attention_input`` (D, H, W) as bytes; ``attention_plane`` and ``attention_axis``, or ``attention_joint``
            (T, h, w), 1 where all tokens receive alike; ``spacing`` (3,) in mm.
    """
    from matplotlib.figure import Figure

    volume, spacing = material["attention_input"], np.asarray(material["spacing"], float)
    maps = {name: material[f"attention_{stream}"] for stream, name in STREAMS.items() if f"attention_{stream}" in material}
    where = centre(volume / 255)
    ends = (min(float(m.min()) for m in maps.values()), max(float(m.max()) for m in maps.values()))
    heights = [volume.shape[down] * spacing[down] / (volume.shape[across] * spacing[across]) for down, across in AXES.values()]
    width = min(PANEL, TALLEST / sum(heights))
    size = (1.6 + width * (1 + len(maps)), 0.75 + width * sum(heights))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    grid = figure.subplots(len(PLANES), 1 + len(maps), squeeze=False, height_ratios=heights)
    for row, plane in zip(grid, PLANES, strict=True):
        down, across = AXES[plane]
        for axes, (name, shown) in zip(row, {"superpatch": volume, **maps}.items(), strict=True):
            place = [at * tokens // voxels for at, tokens, voxels in zip(where, shown.shape, volume.shape, strict=True)]
            look = {"cmap": "gray", "vmin": 0, "vmax": 255} if name == "superpatch" else {"cmap": "viridis", "clim": ends}
            picture = axes.imshow(view(shown, plane, place), interpolation="nearest", **look)
            axes.set_aspect(_aspect(shown.shape, volume.shape, spacing, down, across))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if plane == PLANES[0]:
                axes.set_title(name, fontsize=TEXT)
            if name == "superpatch":
                axes.set_ylabel(plane, fontsize=TEXT)
    bar = figure.colorbar(picture, ax=list(grid[:, -1]), fraction=0.08)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("attention received (1: as every other token)", fontsize=SMALL)
    return figure


def _aspect(shape: tuple[int, ...], voxels: tuple[int, ...], spacing: NDArray[Any], down: int, across: int) -> float:
    """Height of a picture's element over its width, in mm."""
    return float(voxels[down] * spacing[down] / shape[down]) / float(voxels[across] * spacing[across] / shape[across])
