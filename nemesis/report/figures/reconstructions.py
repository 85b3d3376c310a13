"""Planes of one evaluation scan: what the network saw, what it made of it, where it is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.report.collect import first_seed, labels_in_order, reference_label
from nemesis.report.figures.style import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN_COLOUR = "#4a6a8a"  # masked voxels: no grey of the CT window looks like it
PLANES = ("axial", "coronal", "sagittal")
# Radiological convention: which side of the patient lies at the left, right, top and bottom of each picture.
SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
LETTERS_AT = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05))  # in the order of SIDES, shares of a panel

Volume = NDArray[Any]


def of_reference(spec: Mapping[str, Any]) -> Figure:
    """The reference's first seed; where it does not reconstruct, the first label that does."""
    for title, material in materials(spec):
        return reconstructions(material, title)
    return sentence("No method of this experiment reconstructs its input.")


def materials(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Volume]]]:
    """Title and material of the first seed of every label that reconstructs, the reference's before all others."""
    reference = reference_label(spec)
    for label in sorted(labels_in_order(spec), key=lambda name: name != reference):
        entry = first_seed(spec, label)
        path = Path(entry["evaluation"]) / "reconstruction.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as material:
                if material.files:  # empty where the method does not reconstruct
                    yield f"{label}, seed {entry['seed']}", dict(material)


def reconstructions(material: Mapping[str, NDArray[Any]], title: str) -> Figure:
    """Axial, coronal and sagittal planes of one volume: input, masked input, reconstruction, absolute error.

    Args:
        material: ``input`` and ``reconstruction`` (D, H, W), the window mapped to [0, 1] (as bytes: to [0, 255]);
            ``hidden`` (D, H, W) bool, True where the network did not see the input; ``spacing`` (3,) in mm.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    original = _unit(material["input"])
    predicted = np.clip(_unit(material["reconstruction"]), 0, 1)
    hidden = np.asarray(material["hidden"], bool)
    error = np.abs(predicted - original)
    top = float(np.ceil(np.percentile(error[hidden] if hidden.any() else error, 99.5) * 20) / 20) or 0.05
    spacing = np.asarray(material["spacing"], float)
    where = centre(original)
    millimetres = np.array(original.shape) * spacing
    tall = np.array([millimetres[2] / millimetres[1], millimetres[0] / millimetres[1], millimetres[0] / millimetres[2]])
    width = min(1.9, 10 / tall.sum())  # inches of one panel; a long scan gets narrower ones instead of a poster

    left, right, above, gap = 0.45, 0.85, 0.55, 0.06
    size = (left + 4 * width + 3 * gap + right, above + width * tall.sum() + 2 * gap + 0.3)
    figure = Figure(figsize=size, facecolor="white")
    figure.text(0.02, 1 - 0.2 / size[1], title, va="center", fontsize=9, weight="bold")
    bottom = size[1] - above
    for plane, ratio in zip(PLANES, tall, strict=True):
        bottom -= width * ratio
        for column, name in enumerate(("input", "masked input", "reconstruction", "absolute error")):
            x = left + column * (width + gap)
            axes = figure.add_axes((x / size[0], bottom / size[1], width / size[0], width * ratio / size[1]))
            volume = {"reconstruction": predicted, "absolute error": error}.get(name, original)
            picture = view(volume, plane, where)
            if name == "absolute error":
                coloured = axes.imshow(picture, cmap="inferno", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
            else:
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            if name == "masked input":
                veil = np.ma.masked_equal(view(hidden, plane, where), False)
                axes.imshow(veil, cmap=ListedColormap([HIDDEN_COLOUR]), aspect="auto", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if plane == "axial":
                axes.set_title(name, fontsize=8, pad=3)
            if column == 0:
                axes.set_ylabel(plane, fontsize=8)
                edge = [withStroke(linewidth=1.5, foreground="black")]
                for letter, (u, v) in zip(SIDES[plane], LETTERS_AT, strict=True):
                    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
                    axes.text(u, v, letter, fontsize=7, color="white", path_effects=edge, **place)
        bottom -= gap
    bar = figure.add_axes(((size[0] - right + 0.12) / size[0], 0.3 / size[1], 0.1 / size[0], 1 - (above + 0.3) / size[1]))
    figure.colorbar(coloured, cax=bar)
    bar.tick_params(labelsize=6)
    bar.set_ylabel("absolute error (HU window = 1)", fontsize=7)
    return figure


def centre(volume: Volume) -> tuple[int, int, int]:
    """The voxel (d, h, w) amid the patient: the centre of mass of what is brighter than the window's floor."""
    bright = volume > 0.02
    if not bright.any():
        bright = np.ones(volume.shape, bool)
    counts = [bright.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    d, h, w = (int(np.round(np.average(np.arange(len(n)), weights=n))) for n in counts)
    return d, h, w


def view(volume: Volume, plane: str, where: Sequence[int]) -> Volume:
    """One plane of a (D, H, W) volume as a picture (first row at the top, first column at the left).

    D runs inferior to superior, H left to right, W posterior to anterior. Axial: anterior at the top, the patient's
    right at the left; coronal: head at the top, the patient's right at the left; sagittal: head at the top, anterior
    at the left.
    """
    d, h, w = where
    picture: Volume = {"axial": volume[d].T, "coronal": volume[:, :, w], "sagittal": volume[:, h, :]}[plane]
    return picture[::-1, ::-1]


def _unit(volume: NDArray[Any]) -> NDArray[np.float32]:
    """[0, 1] as float32; bytes hold 255ths."""
    return volume.astype(np.float32) / np.float32(255 if volume.dtype == np.uint8 else 1)
