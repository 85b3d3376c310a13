"""The quality page: what was read of every dataset, what was refused and why, and how its scans look.

Made of the verdicts, so that it is there when the gate stops. It names cases, never files: their paths may tell who somebody is.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.measure import HISTOGRAM
from nemesis.data.store import StoredVolume
from nemesis.files import write_text
from nemesis.report.figures.reconstructions import LETTERS_AT, PLANES, SIDES, view
from nemesis.report.figures.style import BLUE, COLOURS, DPI, SMALL, defaults, panels
from nemesis.report.page import environment, shown_width
from nemesis.report.render import MISSING, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 12  # scans of a dataset, where the configuration does not say which
LOOKED_AT = 24  # suspicious scans of which slices are shown
NAMED, ORGANS = 20, 13  # cases that a note names; organs that a scan's caption names
SLICES_DPI = 110
CUTS = {"axial": 0, "coronal": 2, "sagittal": 1}  # the axis of (D, H, W) that a plane lies across

Case = dict[str, Any]


def write_quality(spec: Mapping[str, Any], verdicts: Sequence[Path], out: Path) -> None:
    """Job: the page.

    Args:
        spec: ``experiment`` (name), ``hu_window``, ``every`` (slices of every n-th scan of a dataset are shown; None: of about a
            dozen), ``accept`` (dataset/case: suspicions that were accepted), ``version``.
        verdicts: files that :func:`nemesis.data.ingest.ingest` wrote.
        out: HTML file.
    """
    cases = sorted(_cases(verdicts), key=lambda case: (case["dataset"], case["case"]))
    by_dataset = defaultdict(list)
    for case in cases:
        by_dataset[case["dataset"]].append(case)
    good = [case for case in cases if case["ok"]]
    suspicious = [case for case in good if case.get("suspicions")]
    window = spec["hu_window"]
    template = environment().get_template("quality.html")
    page = template.render(
        experiment=spec["experiment"],
        findings=_findings(cases, suspicious, spec["accept"]),
        refused=[
            {"case": _name(case), "what": fault["what"], "remedy": fault["remedy"]} for case in cases for fault in case["faults"]
        ],
        suspicions=[
            {"case": _name(case), "what": fault["what"], "remedy": fault["remedy"], "accepted": _name(case) in spec["accept"]}
            for case in suspicious
            for fault in case["suspicions"]
        ],
        suspicious=[_shown(case, window) for case in suspicious[:LOOKED_AT]],
        equal=_equal(good),
        notes=_notes(good),
        datasets=[_dataset(name, own, window, spec["every"]) for name, own in by_dataset.items()],
        overview=[_overview(name, own) for name, own in by_dataset.items()],
    )
    write_text(out, page)


def _cases(verdicts: Sequence[Path]) -> Iterator[Case]:
    for path in verdicts:
        content = json.loads(path.read_text(encoding="utf-8"))
        for verdict in content["cases"]:
            yield verdict | {"store": path.parent / content["volumes"] / verdict["stem"]}


def _name(case: Case) -> str:
    return f"{case['dataset']}/{case['case']}"


# ---------------------------------------------------------------------------------------------------------- in words


def _findings(cases: Sequence[Case], suspicious: Sequence[Case], accepted: Sequence[str]) -> Iterator[str]:
    """What a reader has to know first."""
    bad = sum(not case["ok"] for case in cases)
    yield f"{len(cases) - bad} of {len(cases)} scans are good."
    if bad:
        yield f"{bad} {'is' if bad == 1 else 'are'} refused: nothing is trained before that is mended or left out."
    if pending := sum(_name(case) not in accepted for case in suspicious):
        yield f"{pending} {'is' if pending == 1 else 'are'} to be looked at before training: labels contradict anatomy."
    if groups := len(_equal([case for case in cases if case["ok"]])):
        yield f"{groups} group{'s' * (groups > 1)} of scans with equal HU."


def _overview(name: str, cases: Sequence[Case]) -> dict[str, str]:
    """A row of the first table: counts and ranges of a dataset."""
    good = [case for case in cases if case["ok"]]
    kinds = Counter(case["kind"] for case in good)
    return {
        "dataset": name,
        "scans": str(len(cases)),
        "refused": str(len(cases) - len(good)),
        "suspicious": str(sum(bool(case.get("suspicions")) for case in good)),
        "patients": str(len({case["patient"] for case in cases})),
        "labels": ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()) if kind != "none") or "none",
        "voxels": " × ".join(_range([case["shape"][axis] for case in good], 0) for axis in range(3)),
        "spacing": " × ".join(_range([_own(case)[axis] for case in good], 2) for axis in range(3)),
        "hu": _range([hu for case in good for hu in (case["hu_min"], case["hu_max"])], 0, " to "),
    }


def _own(case: Case) -> list[float]:
    """Voxel size that the scan came with, mm (D, H, W); of a record that does not say it, as stored."""
    own: list[float] = case["own_spacing"] if "own_spacing" in case else case["spacing"]
    return own


def _range(values: Sequence[float], digits: int, between: str = "–") -> str:
    if not values:
        return MISSING
    low, high = (number(end, digits) for end in (min(values), max(values)))
    return low if low == high else f"{low}{between}{high}"


def _equal(good: Sequence[Case]) -> list[str]:
    """Scans of equal HU, a text for each group."""
    groups = defaultdict(list)
    for case in good:
        groups[case["content_hash"]].append(_name(case))
    return [" = ".join(names) for names in groups.values() if len(names) > 1]


def _notes(good: Sequence[Case]) -> list[dict[str, str]]:
    """What was done to scans or found in their maps: each note with the cases that it is said of."""
    told = defaultdict(list)
    for case in good:
        for note in case["notes"]:
            told[note].append(_name(case))
    return [
        {"note": note, "scans": str(len(names)), "cases": ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")}
        for note, names in sorted(told.items(), key=lambda item: -len(item[1]))
    ]


def _dataset(name: str, cases: Sequence[Case], window: Sequence[float], every: int | None) -> dict[str, Any]:
    """The part of the page that shows a dataset's scans."""
    good = [case for case in cases if case["ok"]]
    step = every or max(1, math.ceil(len(good) / SHOWN))
    shown = [_shown(case, window) for case in good[::step]]
    which = "Every scan" if step == 1 else f"One scan in {step}"
    histograms = _inline(_histograms(good, window)) if good else None
    return {"name": name, "histograms": histograms, "which": f"{which} of {len(good)}", "shown": shown}


def _shown(case: Case, window: Sequence[float]) -> dict[str, Any]:
    """The picture of a scan, and what is told beside it."""
    told = [" × ".join(str(n) for n in case["shape"]) + " voxels", _millimetres(case["spacing"])]
    if (own := _millimetres(_own(case))) != told[-1]:
        told.append(f"resampled from {own}")
    organs = case["annotated"]
    drawn = ", ".join(organs) if len(organs) <= ORGANS else f"{len(organs)} organs"
    told.append(f"{case['kind']} labels: {drawn or 'no organ'}" if case["kind"] != "none" else "no labels")
    return {"case": _name(case), "told": "; ".join(told), **_inline(_slices(case, window), SLICES_DPI)}


def _millimetres(spacing: Sequence[float]) -> str:
    return " × ".join(f"{mm:.2f}" for mm in spacing) + " mm"


# ------------------------------------------------------------------------------------------------------- in pictures


def _histograms(good: Sequence[Case], window: Sequence[float]) -> Figure:
    """HU (each scan counting alike), voxel size along the body and across it, as the scans came with it."""
    figure, (intensity, along, across) = panels(3, (9.0, 2.3))
    counts = np.array([case["hu_histogram"] for case in good], float)
    share = 100 * (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    step = HISTOGRAM[1] - HISTOGRAM[0]
    edges = np.concatenate([[HISTOGRAM[0] - step], HISTOGRAM, [HISTOGRAM[-1] + step]])
    intensity.axvspan(*window, color="#e3eaf2", zorder=0)
    intensity.stairs(share, edges[: len(share) + 1], color=BLUE, linewidth=1.2)
    intensity.set_yscale("log")
    intensity.set_xlabel("HU; shaded: the window")
    intensity.set_ylabel("voxels, %")
    _bars(along, [_own(case)[0] for case in good], "mm between planes")
    _bars(across, [mm for case in good for mm in _own(case)[1:]], "mm in plane")
    along.set_ylabel("scans")
    across.set_ylabel("scans × 2")
    return figure


def _bars(axes: Axes, values: Sequence[float], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    width = max((high - low) / 20, 0.05)
    axes.hist(values, np.arange(low - width / 2, high + width, width).tolist(), color=BLUE)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(max(0.0, low - 0.5), high + 0.5)
    axes.set_xlabel(label)


def _slices(case: Case, window: Sequence[float]) -> Figure:
    """Axial, coronal and sagittal planes through the body's middle, in millimetres, drawn organs outlined."""
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    d, h, w = case["shape"]
    hu = StoredVolume(case["store"].with_name(f"{case['store'].name}.hu.b2nd"))
    middle = hu.read((d // 2, 0, 0), (1, h, w), 0)[0] > window[0]
    where = (d // 2, *(_centre(middle.sum(axis=1 - axis), n) for axis, n in enumerate((h, w))))
    labels = None
    if case["kind"] != "none":
        labels = StoredVolume(case["store"].with_name(f"{case['store'].name}.labels.b2nd"))
    millimetres = np.multiply(case["shape"], case["spacing"])
    figure = Figure(figsize=(7.2, 2.4), facecolor="black")
    row = figure.subplots(1, 3, gridspec_kw={"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.02})
    edge = [withStroke(linewidth=1.5, foreground="black")]
    for axes, plane in zip(row, PLANES, strict=True):
        extent = (0, millimetres[2 if plane == "sagittal" else 1], 0, millimetres[2 if plane == "axial" else 0])
        axes.imshow(_plane(hu, plane, where), cmap="gray", vmin=window[0], vmax=window[1], extent=extent)
        if labels is not None:
            axes.imshow(_outlines(_plane(labels, plane, where)), extent=extent, interpolation="nearest")
        for letter, (u, v) in zip(SIDES[plane], LETTERS_AT, strict=True):
            place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            axes.text(u, v, letter, fontsize=SMALL, color="white", path_effects=edge, **place)
        axes.set_axis_off()
    return figure


def _centre(bright: NDArray[Any], n: int) -> int:
    """The middle of what is bright along an axis; of the axis where nothing is."""
    return int(np.average(np.arange(n), weights=bright)) if bright.any() else n // 2


def _plane(volume: StoredVolume, plane: str, where: Sequence[int]) -> NDArray[Any]:
    """One plane of a stored volume as a picture; no more is read."""
    start, size = [0, 0, 0], list(volume.shape)
    start[CUTS[plane]], size[CUTS[plane]] = where[CUTS[plane]], 1
    box: tuple[Any, Any] = tuple(start), tuple(size)
    return view(volume.read(box[0], box[1], 0), plane, (0, 0, 0))


def _outlines(labels: NDArray[Any]) -> NDArray[np.float32]:
    """RGBA: the pixels of each label that touch another one, in its colour."""
    from matplotlib.colors import to_rgba

    padded = np.pad(labels, 1, mode="edge")
    inside = np.ones(labels.shape, bool)
    before, here, after = slice(-2), slice(1, -1), slice(2, None)
    for rows, columns in ((before, here), (after, here), (here, before), (here, after)):
        inside &= padded[rows, columns] == labels
    colours = np.array([to_rgba(colour) for colour in COLOURS], np.float32)
    drawn = colours[labels.astype(np.int64) % len(COLOURS)]
    drawn[inside | (labels == 0)] = 0
    return drawn


def _inline(figure: Figure, dpi: int = DPI) -> dict[str, Any]:
    """A figure as the page embeds it."""
    buffer = io.BytesIO()
    with defaults():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    picture = buffer.getvalue()
    return {"picture": f"data:image/png;base64,{base64.b64encode(picture).decode()}", "width": shown_width(picture)}
