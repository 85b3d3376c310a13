"""Which scans a dataset holds, and what is known of their labels. No pixel is read here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import get_args

from nemesis.data.cases import Case, Kind
from nemesis.data.lidc import NODULE
from nemesis.data.listings.dicom import kept_salt, list_dicom
from nemesis.data.listings.files import list_files
from nemesis.data.listings.listing import Listing, digest_of
from nemesis.data.listings.nnunet import list_nnunet, read_dataset_json
from nemesis.data.seen import Seen
from nemesis.datasets import BTCV_LABELS, SAMPLE, Dataset, DicomTree, FolderDataset, NnunetFolder, PhantomCohort, ScanFiles
from nemesis.errors import Fault, NemesisError

log = logging.getLogger(__name__)


def list_cases(dataset: Dataset, root: Path | None, exclude: Collection[str] = (), keep: Path | None = None) -> list[Case]:
    """Every case of a dataset, sorted by name, without those that ``exclude`` names as ``dataset/case``.

    What was passed over is said aloud.

    Args:
        keep: folder that remembers the files that were looked at, and the salt of patients' names (results/data).

    Raises:
        NemesisError: with every fault at once, see :func:`survey`.
    """
    listing = survey(dataset, root, exclude, keep)
    if listing.faults:
        raise NemesisError(listing.faults)
    if said := listing.said():
        log.warning("%s: %s", dataset.name, said)
    return listing.cases


def survey(dataset: Dataset, root: Path | None, exclude: Collection[str] = (), keep: Path | None = None) -> Listing:
    """What a dataset's folder holds: cases, label numbers, what was passed over, and every fault of single cases and of the
    whole: label map without a scan, case with two label maps, damaged DICOM, excluded case that does not exist...

    Raises:
        NemesisError: nothing can be listed: missing folder, broken dataset.json, label numbers that make no sense.
    """
    prefix = f"{dataset.name}/"
    excluded = {name.removeprefix(prefix) for name in exclude if name.startswith(prefix)}
    if isinstance(dataset, PhantomCohort):
        listing = Listing(dataset.name, Path(), excluded)
        _list_phantoms(dataset, listing)
    else:
        folder, numbers = _folder(dataset, root), label_numbers(dataset, root)
        with Seen(None if keep is None else keep / "seen.db") as seen:
            listing = Listing(dataset.name, folder, excluded, seen)
            listing.numbers = numbers
            if isinstance(dataset, ScanFiles):
                list_files(dataset, listing)
            elif isinstance(dataset, NnunetFolder):
                list_nnunet(dataset, listing)
            else:
                list_dicom(dataset, listing, kept_salt(dataset, keep))
    listing.finish()
    return listing


def stand_ins(dataset: FolderDataset, named: Iterable[str], exclude: Collection[str] = ()) -> list[Case]:
    """What :func:`list_cases` may say once the dataset's folder is there: as many cases as are ``expected``, to plan with.

    All have the first kind of labels that the dataset can have.

    Args:
        named: cases that the configuration calls by name; the others are called ``expected-0001`` and so on.
        exclude: cases (dataset/case) to go on without.
    """
    number = max(1, (dataset.expected or 0) - sum(name.startswith(f"{dataset.name}/") for name in exclude))
    kind = _best_kind(dataset)
    label = None if kind == "none" else ""
    cases = []
    for case in [*sorted(set(named)), *(f"expected-{n:04d}" for n in range(1, number + 1))][:number]:
        mark = digest_of("expected", dataset.name, case)
        cases.append(Case(dataset.name, case, case, "", label, kind, None, mark, "" if label is None else mark))
    return cases


def _best_kind(dataset: FolderDataset) -> Kind:
    if isinstance(dataset, ScanFiles):
        return next((kind for kind in get_args(Kind) if kind in dataset.labels), "none")
    return "none" if isinstance(dataset, DicomTree) and dataset.annotations is None else "exhaustive"


def expected_numbers(dataset: FolderDataset, organs: Sequence[str]) -> dict[str, int]:
    """What :func:`label_numbers` may say once the folder is there; of nnU-Net's dataset.json, that it names these organs."""
    if isinstance(dataset, NnunetFolder):
        return {organ: number for number, organ in enumerate(organs, 1)}
    return label_numbers(dataset, None)


def label_numbers(dataset: Dataset, root: Path | None) -> dict[str, int]:
    """Organ name → its number in this dataset's label maps.

    Raises:
        NemesisError: the numbers cannot be told (broken dataset.json), or two organs share one, or one is not positive.
    """
    if isinstance(dataset, PhantomCohort):
        from nemesis.data.phantom import LABELLED

        return {organ: number for organ, number in BTCV_LABELS.items() if number in LABELLED}
    if isinstance(dataset, DicomTree):
        return {} if dataset.annotations is None else {NODULE: 1}
    if isinstance(dataset, ScanFiles):
        where, numbers = f"datasets.{dataset.name}.label_numbers", dict(dataset.label_numbers)
    else:
        folder = _folder(dataset, root)
        where, numbers = str(folder / "dataset.json"), read_dataset_json(folder, dataset.names).label_numbers
    if any(not 0 < n <= 65535 for n in numbers.values()) or len(set(numbers.values())) < len(numbers):
        what = f"label numbers {numbers} must be different whole numbers from 1 to 65535"
        raise NemesisError(Fault(where, what, "Give every organ a number of its own; 0 is the background."))
    return numbers


def _folder(dataset: FolderDataset, root: Path | None) -> Path:
    where = f"datasets.{dataset.name}"
    if root is None:
        raise NemesisError(Fault(where, "it is not said where its scans lie", "Set its `root`, or `data_root`."))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        remedy = "Run `nemesis data fetch sample`, or set" if root == SAMPLE else "Correct its `root`, or"
        raise NemesisError(Fault(str(root), f"{what} (root of {where})", f"{remedy} `data_root`."))
    return root


def _list_phantoms(cohort: PhantomCohort, listing: Listing) -> None:
    from nemesis.data.phantom import VERSION

    listing.numbers = label_numbers(cohort, None)
    for index in range(cohort.subjects):
        case = f"{index:04d}"
        if not listing.skips(case):
            # The number of subjects is left out: a larger cohort begins with the same ones.
            mark = digest_of(cohort.seed, cohort.base_spacing_mm, VERSION, index)
            listing.cases.append(Case(cohort.name, case, case, str(index), None, "exhaustive", None, mark, mark))
