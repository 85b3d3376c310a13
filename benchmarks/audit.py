"""How often the audit's signature errs: scans of different patients taken for one, altered copies of a scan not found.

    python -m benchmarks.audit <folder with scans> --out benchmarks/results/audit.json

Every scan (``image.nii.gz`` in a folder of the patient's name, or nnU-Net's ``imagesTr/<patient>_0000.nii.gz``, anywhere in the
folder) is altered as scans are that come back under another name: resampled to voxels of 1.5 to 5 mm, another along every axis;
clipped in HU; cropped to each half and to a random box of half the volume; and all of these, in both orders of resampling and
clipping. An altered scan that does not match its own is a false negative, one that matches another patient's a false positive,
as two scans of different patients are. Patients are cut in halves: a rule finds a threshold on one, and the errors are counted
on the other, at that threshold and at the one that the suite uses. The other numbers of the signature were found by trial on
scans of both halves, so the errors are not those of scans that nobody has looked at. Intervals are exact ones (Clopper and
Pearson), at 95 %; the copies of one scan are not independent, so that the intervals of many together are too narrow.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.readers import Volume, read_volume, resample
from nemesis.data.signature import SAME, matches, signature
from nemesis.files import write_text
from nemesis.markdown import pipe_table

NARROW, WIDE = (-175, 250), (-1024, 3071)  # HU that scans are clipped to
HALVES = ("lower", "upper", "left", "right", "posterior", "anterior", "box")
UNALTERED = "unaltered"
AT_SCALE = 100_000, 60  # pretraining and evaluation scans whose pairs are to give less than one false alarm


@dataclass(frozen=True)
class Scan:
    """A scan of a patient as it is compared: how it was altered, and its signature."""

    patient: str
    altered: str
    signature: NDArray[np.void]


def main() -> None:
    """Parse, measure, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scans", type=int, help="only so many, evenly spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    found = measure(a.folder, a.scans, a.seed)
    print_tables(found)
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def files(folder: Path) -> list[tuple[str, Path]]:
    """Patient and file of every scan."""
    named = [(path.parent.name, path) for path in folder.rglob("image.nii.gz")]
    named += [(path.name.removesuffix("_0000.nii.gz"), path) for path in folder.glob("**/imagesTr/*_0000.nii.gz")]
    return sorted(named)


def measure(folder: Path, limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Every figure: of either half of the patients the errors by threshold, and what it all takes."""
    chosen = files(folder)
    chosen = chosen[:: max(1, math.ceil(len(chosen) / limit))] if limit else chosen
    originals, altered, took = [], [], 0.0
    for number, (patient, path) in enumerate(chosen):
        volume = read_volume(path)
        start = time.perf_counter()
        originals.append(Scan(patient, UNALTERED, signature(volume.hu, volume.spacing)))
        took += time.perf_counter() - start
        random = np.random.default_rng([seed, number])
        for name, copy in alterations(volume, random):
            altered.append(Scan(patient, name, signature(copy.hu, copy.spacing)))
    start = time.perf_counter()
    own, others, again = _scores([*originals, *altered], originals)
    matching = time.perf_counter() - start
    scans = Counter(scan.patient for scan in originals)
    tuning, testing = (_of_half(own, others, scans, half) for half in (0, 1))
    pairs = AT_SCALE[0] * AT_SCALE[1]
    highest, seen = max(tuning["others"], default=0.0), max(1, tuning["pairs"])
    each = matching / ((len(originals) + len(altered)) * len(originals))
    # scores are logs of odds, so that e times as many pairs reach about 1 higher
    tuned = highest + math.log(max(1.0, pairs / seen))
    return {
        "scans": len(chosen),
        "patients": len({patient for patient, _ in chosen}),
        "threshold": SAME,
        "threshold_by_tuning": tuned,
        "tuning": _errors(tuning, SAME),
        "testing": _errors(testing, SAME),
        "testing_at_threshold_by_tuning": _errors(testing, tuned)[-1],
        "missed": [
            {"patient": patient, "altered": name, "score": score, "key_points": points}
            for name, found in own.items()
            for patient, score, points in found
            if score < SAME
        ],
        "unaltered_scans_of_one_patient": again,
        "seconds_per_signature": took / len(chosen),
        "bytes_per_signature": float(np.mean([scan.signature.nbytes for scan in originals])),
        "seconds_per_pair": each,
        "hours_at_scale": each * pairs / 3600,
        "likest_patients": sorted(others[UNALTERED], key=lambda found: -found[0])[:5],
    }


def alterations(volume: Volume, random: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    """The altered copies of a scan, by name."""

    def resampled(scan: Volume) -> Volume:
        d, h, w = random.uniform(1.5, 5.0, 3).tolist()
        return resample(scan, None, (d, h, w))[0]

    def clipped(scan: Volume, window: tuple[int, int]) -> Volume:
        return Volume(np.clip(scan.hu, *np.array(window, np.int16)), scan.spacing, scan.affine)

    yield "resampled", resampled(volume)
    yield "clipped to −175…250", clipped(volume, NARROW)
    yield "clipped to −1024…3071", clipped(volume, WIDE)
    for name in HALVES:
        half = _half(volume, name, random)
        yield f"{name} half", half
        yield f"{name} half, resampled, clipped", clipped(resampled(half), NARROW)
        yield f"{name} half, clipped, resampled", resampled(clipped(half, NARROW))


def _half(volume: Volume, name: str, random: np.random.Generator) -> Volume:
    shape = np.array(volume.hu.shape)
    if name == "box":  # of half the volume, longer along some axes than along others
        size = np.maximum(1, np.rint(shape * 0.5 ** random.dirichlet([3, 3, 3]))).astype(int)
        start = random.integers(0, shape - size + 1)
    else:
        axis, far = divmod(HALVES.index(name), 2)
        start, size = np.zeros(3, int), shape.copy()
        size[axis] = shape[axis] // 2
        start[axis] = far * (shape[axis] - size[axis])
    box = tuple(slice(a, a + n) for a, n in zip(start.tolist(), size.tolist(), strict=True))
    return Volume(np.ascontiguousarray(volume.hu[box]), volume.spacing, volume.affine)


Own = dict[str, list[tuple[str, float, int]]]  # alteration → patient, score with that patient's unaltered scan, key points
Others = dict[str, list[tuple[float, str, str]]]  # alteration → score, patient, another patient


def _scores(scans: list[Scan], originals: list[Scan]) -> tuple[Own, Others, list[tuple[str, float]]]:
    """Scores with the own patient's unaltered scans, with others', and of patients with several: of these with each other."""
    best: dict[int, float] = {}
    pairs = [(i, j) for j in range(len(originals)) for i in range(j) if originals[i].patient == originals[j].patient]
    again = dict.fromkeys(pairs, 0.0)
    others: Others = {scan.altered: [] for scan in scans}
    for match in matches((scan.signature for scan in scans), [scan.signature for scan in originals]):
        one, other = scans[match.first], originals[match.second]
        if one.patient == other.patient:
            best[match.first] = max(match.score, best.get(match.first, 0.0))
            if (match.first, match.second) in again:
                again[match.first, match.second] = match.score
        elif one.altered != UNALTERED or match.first < match.second:
            others[one.altered].append((match.score, one.patient, other.patient))
    own: Own = {}
    for number, scan in enumerate(scans):
        if scan.altered != UNALTERED:
            own.setdefault(scan.altered, []).append((scan.patient, best.get(number, 0.0), len(scan.signature)))
    return own, others, [(originals[i].patient, score) for (i, _), score in again.items()]


def _half_of(patient: str) -> int:
    return hashlib.sha256(patient.encode()).digest()[0] % 2


def _of_half(own: Own, others: Others, scans: Mapping[str, int], half: int) -> dict[str, Any]:
    """The scores of the patients of a half: with their own, with others of the half; and how many pairs there were."""
    kept = {name: [score for patient, score, _ in found if _half_of(patient) == half] for name, found in own.items()}
    within = {
        name: [score for score, one, other in found if _half_of(one) == half == _half_of(other)] for name, found in others.items()
    }
    here = {patient: n for patient, n in scans.items() if _half_of(patient) == half}
    both_ways = sum(n * (sum(here.values()) - n) for n in here.values())  # a scan with every scan of another patient
    pairs = dict.fromkeys(kept, both_ways) | {UNALTERED: both_ways // 2}
    together = list(itertools.chain.from_iterable(within.values()))
    return {"own": kept, "within": within, "others": together, "pairs": sum(pairs.values()), "by_name": pairs}


def _errors(half: dict[str, Any], threshold: float) -> list[dict[str, Any]]:
    """A row per alteration: how many copies, how many of them are missed; pairs of different patients, and how many alarm."""
    rows = []
    for name, pairs in half["by_name"].items():
        scores, alarms = half["own"].get(name, []), sum(score >= threshold for score in half["within"][name])
        missed = sum(score < threshold for score in scores)
        row = {"altered": name, "copies": len(scores), "missed": missed, "missed_interval": exact_interval(missed, len(scores))}
        row |= {"pairs": pairs, "false_alarms": alarms, "false_alarms_interval": exact_interval(alarms, pairs)}
        row["highest_of_others"] = max(half["within"][name], default=0.0)
        rows.append(row | {"lowest_of_own": min(scores, default=None)})
    total: dict[str, Any] = {"altered": "all"}
    for part, count in (("copies", "missed"), ("pairs", "false_alarms")):
        total |= {part: sum(row[part] for row in rows), count: sum(row[count] for row in rows)}
        total[f"{count}_interval"] = exact_interval(total[count], total[part])
    total["highest_of_others"] = max((row["highest_of_others"] for row in rows), default=0.0)
    total["lowest_of_own"] = min((row["lowest_of_own"] for row in rows if row["lowest_of_own"] is not None), default=None)
    return [*rows, total]


def exact_interval(count: int, total: int) -> list[float]:
    """Clopper and Pearson's 95 % interval of a share (Biometrika 26, 1934)."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return [low, high]


def print_tables(found: dict[str, Any]) -> None:
    """The errors of the half that the threshold was not chosen on, and what it all takes."""
    print(f"{found['scans']} scans of {found['patients']} patients. The errors in one half of them, at the suite's threshold of "
          f"{found['threshold']:g} (the other half's would be {found['threshold_by_tuning']:.1f}):\n")  # fmt: skip
    columns = ("altered", "copies", "missed [95 %]", "lowest score", "pairs", "false alarms [95 %]", "highest score")
    rows = []
    for row in found["testing"]:
        low, high = (f"{100 * end:.3g}" for end in row["missed_interval"])
        fewest, most = (f"{100 * end:.2g}" for end in row["false_alarms_interval"])
        lowest = "–" if row["lowest_of_own"] is None else f"{row['lowest_of_own']:.1f}"
        missed = f"{row['missed']} [{low}, {high}] %" if row["copies"] else "–"
        alarms = f"{row['false_alarms']} [{fewest}, {most}] %"
        rows.append([row["altered"], str(row["copies"]), missed, lowest, str(row["pairs"]), alarms,
                     f"{row['highest_of_others']:.1f}"])  # fmt: skip
    print("\n".join(pipe_table(columns, rows, 1)))
    tuned = found["testing_at_threshold_by_tuning"]
    print(f"\nAt the other half's threshold: {tuned['missed']} of {tuned['copies']} missed, {tuned['false_alarms']} of "
          f"{tuned['pairs']} pairs alarm.")  # fmt: skip
    for patient, score in found["unaltered_scans_of_one_patient"]:
        print(f"Two scans of {patient} as they are: score {score:.1f}.")
    first, second = AT_SCALE
    print(f"\nA signature: {1000 * found['seconds_per_signature']:.0f} ms, {found['bytes_per_signature'] / 1000:.0f} kB. A pair: "
          f"{1e6 * found['seconds_per_pair']:.0f} µs; {first:,} × {second} scans: {found['hours_at_scale']:.1f} hours of these "
          "cores.")  # fmt: skip


if __name__ == "__main__":
    main()
