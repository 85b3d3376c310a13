"""What is known of a dataset's scans and their labels before any pixel is read, and the manifest that keeps it.

A *case* is one scan with at most one source of labels; a case is its own patient unless a reader knows better. The list is
kept in a small manifest, which stands for the raw scans in the workflow: it names every case with a fingerprint of its
files, and is rewritten only when its content changes. Who finds the cases: :mod:`nemesis.data.listings`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from nemesis.datasets import Dataset
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.files import digest, write_text_if_changed

Kind = Literal["exhaustive", "partial", "pseudo", "none"]
SCORED_KINDS = ("exhaustive", "partial")  # pseudo labels are never truth
UNTOLD = {"root", "expected", "salt"}  # keys of a dataset that no result depends on, or that are nobody's business


@dataclass(frozen=True)
class Case:
    """One scan.

    ``image`` and ``label`` are paths relative to the dataset's root (a phantom's ``image`` is the subject's number). Of a
    DICOM series ``image`` is the folder and ``series`` the SeriesInstanceUID; ``label`` is a label map, a folder of masks or
    LIDC's XML. ``annotated`` names the organs that were drawn, where the listing knows; None leaves it to ingestion: all of
    the dataset's organs where the map is exhaustive, the organs that occur in it where it is partial. The fingerprints
    change when the scan, or its labels and what is said of them, changes; without labels the latter is empty.
    """

    dataset: str
    case: str
    patient: str
    image: str
    label: str | None
    kind: Kind
    annotated: tuple[str, ...] | None
    fingerprint: str
    label_fingerprint: str
    series: str | None = None

    @property
    def name(self) -> str:
        """The case as ``exclude:`` and the tables write it."""
        return f"{self.dataset}/{self.case}"

    @property
    def stem(self) -> str:
        """Name of its files in the store: other content under the same name never takes their place."""
        return f"{self.case}-{digest([self.fingerprint, self.label_fingerprint])[:8]}"


@dataclass(frozen=True)
class Manifest:
    """A dataset's section of the configuration, its label numbers and its cases."""

    dataset: Dataset
    label_numbers: dict[str, int]
    cases: list[Case]


def check_organs(organs: Iterable[str], numbers: Mapping[str, Mapping[str, int]]) -> None:
    """Make sure that every organ to be probed has a number in at least one dataset.

    ``numbers``: dataset → organ → number in its label maps.

    Raises:
        NemesisError: naming every organ that no dataset knows.
    """
    known = sorted({organ for of_dataset in numbers.values() for organ in of_dataset})
    faults = []
    for organ in organs:
        if organ not in known:
            remedy = did_you_mean(organ, known, f"Known organs: {', '.join(known) or 'none'}.")
            faults.append(Fault("organs", f"no dataset labels '{organ}'", remedy))
    if faults:
        raise NemesisError(faults)


def write_manifest(path: Path, dataset: Dataset, cases: list[Case], numbers: Mapping[str, int]) -> None:
    """Write the manifest; a file that already says the same is left untouched, so that nothing downstream reruns."""
    content = {
        "dataset": dataset.model_dump(mode="json", exclude=UNTOLD),
        "label_numbers": dict(numbers),
        "cases": [asdict(case) for case in cases],
    }
    write_text_if_changed(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_manifest(path: Path) -> Manifest:
    """The manifest written by :func:`write_manifest`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    dataset: Dataset = TypeAdapter(Dataset).validate_python(content["dataset"])
    cases = [
        Case(**{**case, "annotated": None if case["annotated"] is None else tuple(case["annotated"])})
        for case in content["cases"]
    ]
    return Manifest(dataset, content["label_numbers"], cases)
