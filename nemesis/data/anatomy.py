"""Do a scan and its label map agree with anatomy? What speaks against it, so that a person looks before anything is trained.

A mirrored scan, two exchanged label numbers and a map of another patient pass every check of headers and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.errors import Fault

MARGIN = 20.0  # mm by which an organ lies on the wrong side; the least distance on the right one, of 178 real pairs, was 77
SEEN = 0.1  # ml; less of an organ (stray voxels, the end of one at the scan's edge) has no side
AIR, IN_AIR = -300, 0.5  # HU; share of a solid organ below it. The largest on 177 real maps: 0.19, of a spinal cord
NAMED = 10  # unknown numbers that a note names
RIGHT_OF = (("liver", "spleen"), ("liver", "stomach"))  # the first lies to the right of the second
SOLID = {
    "adrenal", "aorta", "bladder", "brain", "brainstem", "femur", "gallbladder", "heart", "hip", "kidney", "liver", "mandible",
    "pancreas", "parotid", "sacrum", "spleen", "vertebra", "vertebrae",
}  # fmt: skip
SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}


def suspicions(
    where: str,
    labels: NDArray[Any],
    hu: NDArray[np.int16],
    spacing: tuple[float, float, float],
    numbers: Mapping[str, int],
) -> list[Fault]:
    """What speaks against a label map: left and right exchanged, or solid organs in air.

    Args:
        where: the file that a person has to look at.
        labels: whole numbers (D, H, W), house order: H runs from left to right.
        hu: int16 (D, H, W).
        spacing: mm, (D, H, W).
        numbers: organ → its number in the map. ``left``, ``right``, ``l`` and ``r`` in a name tell its side.

    Returns:
        At most one fault for each of the two.
    """
    counts, places, in_air = _measure(labels, hu)
    least = SEEN * 1000 / float(np.prod(spacing))
    seen = {organ: n for organ, n in numbers.items() if n < len(counts) and counts[n] >= least}
    across = {organ: places[n] / counts[n] * spacing[1] for organ, n in seen.items()}
    faults = []
    gaps = {pair: across[pair[0]] - across[pair[1]] for pair in _right_and_left(seen)}
    wrong = [pair for pair, mm in gaps.items() if mm < -MARGIN]
    if wrong:
        told = "; ".join(f"'{right}' lies {-gaps[right, left]:.0f} mm to the left of '{left}'" for right, left in wrong)
        others = [f", though '{right}' lies to the right of '{left}'" for (right, left), mm in gaps.items() if mm > MARGIN]
        kept = others[0] if others else ""
        mend = "the label numbers of the pair" if kept else "the headers of scan and map"
        faults.append(Fault(where, f"left and right look exchanged: {told}{kept}", f"Look at the scan; mend {mend}."))
    shares = {organ: in_air[n] / counts[n] for organ, n in seen.items() if SOLID & set(_words(organ))}
    outside = [organ for organ, share in shares.items() if share > IN_AIR]
    if outside:
        told = ", ".join(f"{shares[organ]:.0%} of '{organ}'" for organ in outside)
        remedy = "Look at both: is the map that of the scan?"
        faults.append(Fault(where, f"the label map lies outside the body: {told} is air (below {AIR} HU)", remedy))
    return faults


def unknown_numbers(counts: NDArray[np.int64], numbers: Mapping[str, int]) -> list[str]:
    """A note where a map holds numbers that no organ has; ``counts``: voxels of each number."""
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - {0, *numbers.values()})
    if not unknown:
        return []
    told = ", ".join(map(str, unknown[:NAMED])) + (", …" if len(unknown) > NAMED else "")
    return [f"its label map holds numbers that no organ of the dataset has: {told}"]


def _measure(labels: NDArray[Any], hu: NDArray[np.int16]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of every number up to the highest: voxels, the sum of their places along H, voxels of air; plane by plane, for memory."""
    top = int(labels.max()) + 1
    counts, places, in_air = (np.zeros(top) for _ in range(3))
    for plane, values in zip(labels, hu, strict=True):
        h, w = np.nonzero(plane)
        found = plane[h, w]
        counts += np.bincount(found, minlength=top)
        places += np.bincount(found, h, minlength=top)
        in_air += np.bincount(found, values[h, w] < AIR, minlength=top)
    return counts, places, in_air


def _right_and_left(organs: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of organs of which the first lies to the patient's right of the second."""
    by_words = {frozenset(SIDES.get(word, word) for word in _words(organ)): organ for organ in organs}
    pairs = [(first, second) for first, second in RIGHT_OF if first in organs and second in organs]
    for words, organ in by_words.items():
        other = by_words.get(words - {"right"} | {"left"}) if "right" in words else None
        if other is not None:
            pairs.append((organ, other))
    return pairs


def _words(organ: str) -> list[str]:
    """``RightParotid``, ``kidney_left`` and ``right kidney`` in lower-case words."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", organ)]
