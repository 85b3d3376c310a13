"""What is known of a scan's organs, from whichever source: a label map, a folder of masks, LIDC's XML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.cases import Case
from nemesis.data.lidc import read_nodules
from nemesis.data.listings.files import mask_files
from nemesis.data.measure import label_voxels
from nemesis.data.readers import Volume, read_labels, read_volume
from nemesis.datasets import Dataset, DicomTree, ScanFiles
from nemesis.errors import Fault, NemesisError


def read_case(
    dataset: Dataset, case: Case, root: Path, numbers: Mapping[str, int]
) -> tuple[Volume, NDArray[Any] | None, list[str]]:
    """Scan, label map and organs drawn, as :func:`read_case_labels` tells them.

    Raises:
        NemesisError: with the faults of both scan and labels.
    """
    faults: list[Fault] = []
    volume: Volume | None = None
    labels: NDArray[Any] | None = None
    try:
        volume = read_volume(root / case.image, case.series, root)
    except NemesisError as error:
        faults += error.faults
    try:
        labels, annotated = read_case_labels(dataset, case, root, volume, numbers)
    except NemesisError as error:
        faults += error.faults
    if faults or volume is None:
        raise NemesisError(faults)
    return volume, labels, annotated


def read_case_labels(
    dataset: Dataset, case: Case, root: Path, volume: Volume | None, numbers: Mapping[str, int]
) -> tuple[NDArray[Any] | None, list[str]]:
    """The label map of a case, uint8 or uint16 (D, H, W) on the grid of its scan, and the organs that were drawn in it.

    Without labels: (None, []). Where ``volume`` is None, because the scan is faulty itself, the labels are checked alone, so
    that the faults of both are told together.

    Args:
        numbers: organ → its number in the map.

    Raises:
        NemesisError: see :func:`nemesis.data.readers.read_labels` and :func:`nemesis.data.lidc.read_nodules`; masks that
            overlap or are not binary; a map with none of the numbers, where it is not said that it may be empty.
    """
    if case.label is None:
        return None, []
    masks = mask_files(dataset, case.kind) if isinstance(dataset, ScanFiles) else None
    labels: NDArray[Any] | None
    if isinstance(dataset, DicomTree):
        labels = read_nodules(root / case.label, volume)
    elif masks is not None:
        labels = _merged(root, case, masks, volume, numbers)
    else:
        labels = read_labels(root / case.label, volume, root)
    if labels is None:
        return None, []
    found = {int(n) for n in np.flatnonzero(label_voxels(labels)[1:]) + 1}
    declared = case.kind == "exhaustive" or bool(case.annotated)  # then an empty map says: none of them is here
    if not found & set(numbers.values()) and (found or not declared):
        only = ", ".join(str(n) for n in sorted(found)) or "background"
        what = f"holds none of the label numbers {', '.join(map(str, numbers.values()))}, only {only}"
        remedy = "Correct the numbers (`label_numbers`, dataset.json), or remove the map if nothing is drawn."
        raise NemesisError(Fault(str(root / case.label), what, remedy))
    if case.annotated is not None:
        return labels, list(case.annotated)
    return labels, [organ for organ, number in numbers.items() if case.kind == "exhaustive" or number in found]


def _merged(
    root: Path, case: Case, masks: Mapping[str, str], volume: Volume | None, numbers: Mapping[str, int]
) -> NDArray[np.uint16]:
    """One map of the binary masks that are there, one organ's after the other."""
    assert case.label is not None
    merged: NDArray[np.uint16] | None = None
    for organ, name in masks.items():
        path = root / case.label / name
        if case.annotated is not None and organ not in case.annotated:
            continue
        mask = read_labels(path, volume, root)
        if merged is None:
            merged = np.zeros(mask.shape, np.uint16 if max(numbers.values()) > 255 else np.uint8)
        if mask.shape != merged.shape:
            raise NemesisError(Fault(str(path), "has another shape than the masks beside it", "Put all on the scan's grid."))
        drawn = mask != 0
        if (mask[drawn] != mask.max()).any():
            what = "is no mask: it holds more than one number"
            raise NemesisError(Fault(str(path), what, "Give one binary mask per organ, or one map (without {organ})."))
        if twice := int(np.count_nonzero(merged[drawn])):
            other = next(o for o, n in numbers.items() if n == int(merged[drawn].max()))
            what = f"shares {twice} voxels with the mask of {other}"
            raise NemesisError(Fault(str(path), what, "Correct the masks, or take one organ out of `label_numbers`."))
        merged[drawn] = numbers[organ]
    if merged is None:
        raise NemesisError(Fault(str(root / case.label), "holds no mask", "Put the masks back."))
    return merged
