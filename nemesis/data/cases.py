"""Which scans a dataset holds, and what is known of their labels. No pixel is read here.

A *case* is one scan with at most one label map; a case is its own patient unless a reader knows better. The list is
kept in a small manifest, which stands for the raw scans in the workflow: it names every case with a fingerprint of its
files, and is rewritten only when its content changes.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from nemesis.config import BTCV_LABELS, Dataset, NiftiFolder, NnunetFolder, PhantomCohort
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.files import digest, write_text_if_changed

Kind = Literal["exhaustive", "partial", "pseudo", "none"]
SCORED_KINDS = ("exhaustive", "partial")  # pseudo labels are never truth
BLOCK = 64 * 1024  # bytes of a file that one look of the fingerprint takes in
LOOKS = 6  # blocks taken from a file too large to be read whole


@dataclass(frozen=True)
class Case:
    """One scan.

    ``image`` and ``label`` are paths relative to the dataset's root (a phantom's ``image`` is the subject's number).
    ``annotated`` names the organs that were drawn, where the listing knows; None leaves it to ingestion: all of the
    dataset's organs where the map is exhaustive, the organs that occur in it where it is partial. The fingerprints
    change when the scan, or its label map and what is said of it, changes; without a label map the latter is empty.
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


def list_cases(dataset: Dataset, root: Path | None, exclude: Collection[str] = ()) -> list[Case]:
    """Every case of a dataset, sorted by name, without those that ``exclude`` names as ``dataset/case``.

    Raises:
        NemesisError: with every fault at once: missing or empty folder, broken dataset.json, label map without a scan,
            case with two label maps, excluded case that does not exist...; faults of excluded cases are not counted.
    """
    prefix = f"{dataset.name}/"
    listing = _Listing(dataset.name, {name.removeprefix(prefix) for name in exclude if name.startswith(prefix)})
    if isinstance(dataset, PhantomCohort):
        _list_phantoms(dataset, listing)
    else:
        folder = _folder(dataset, root)
        label_numbers(dataset, root)
        if isinstance(dataset, NiftiFolder):
            _list_nifti(dataset, folder, listing)
        else:
            _list_nnunet(folder, listing)
    return listing.result()


def stand_ins(dataset: NiftiFolder | NnunetFolder, named: Iterable[str], exclude: Collection[str] = ()) -> list[Case]:
    """What :func:`list_cases` may say once the dataset's folder is there: as many cases as are ``expected``, to plan with.

    All have the first kind of labels that the dataset can have.

    Args:
        named: cases that the configuration calls by name; the others are called ``expected-0001`` and so on.
        exclude: cases (dataset/case) to go on without.
    """
    number = max(1, (dataset.expected or 0) - sum(name.startswith(f"{dataset.name}/") for name in exclude))
    kinds = dataset.labels if isinstance(dataset, NiftiFolder) else {"exhaustive": ""}
    kind: Kind = next((kind for kind in get_args(Kind) if kind in kinds), "none")
    label = None if kind == "none" else ""
    cases = []
    for case in [*sorted(set(named)), *(f"expected-{n:04d}" for n in range(1, number + 1))][:number]:
        mark = _digest("expected", dataset.name, case)
        cases.append(Case(dataset.name, case, case, "", label, kind, None, mark, "" if label is None else mark))
    return cases


def expected_numbers(dataset: NiftiFolder | NnunetFolder, organs: Sequence[str]) -> dict[str, int]:
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
    if isinstance(dataset, NiftiFolder):
        where, numbers = f"datasets.{dataset.name}.label_numbers", dict(dataset.label_numbers)
    else:
        folder = _folder(dataset, root)
        where, numbers = str(folder / "dataset.json"), _read_dataset_json(folder).label_numbers
    if any(not 0 < n <= 65535 for n in numbers.values()) or len(set(numbers.values())) < len(numbers):
        what = f"label numbers {numbers} must be different whole numbers from 1 to 65535"
        raise NemesisError(Fault(where, what, "Give every organ a number of its own; 0 is the background."))
    return numbers


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
        "dataset": dataset.model_dump(mode="json", exclude={"root", "expected"}),
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


def _folder(dataset: NiftiFolder | NnunetFolder, root: Path | None) -> Path:
    where = f"datasets.{dataset.name}"
    if root is None:
        raise NemesisError(Fault(where, "it is not said where its scans lie", "Set its `root`, or `data_root`."))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise NemesisError(Fault(str(root), f"{what} (root of {where})", "Correct its `root`, or `data_root`."))
    return root


class _Listing:
    """What a reader finds: cases, faults of single cases (an excluded case has none), faults of the whole dataset."""

    def __init__(self, dataset: str, excluded: set[str]) -> None:
        self.dataset = dataset
        self.excluded = excluded
        self.seen: set[str] = set()
        self.cases: list[Case] = []
        self.faults: list[Fault] = []

    def skips(self, case: str) -> bool:
        """Note that a case exists; True where the user goes on without it."""
        self.seen.add(case)
        return case in self.excluded

    def fault(self, case: str, path: Path, what: str, remedy: str) -> None:
        if not self.skips(case):
            remedy = f"{remedy} Or go on without it: `exclude: [{self.dataset}/{case}]`."
            self.faults.append(Fault(str(path), what, remedy))

    def add(
        self,
        root: Path,
        case: str,
        image: str,
        label: str | None = None,
        kind: Kind = "none",
        annotated: tuple[str, ...] | None = None,
    ) -> None:
        if self.skips(case):
            return
        try:
            scan = fingerprint(root / image)
            drawn = "" if label is None else _digest(fingerprint(root / label), kind, annotated)
        except OSError as error:
            path = Path(error.filename or root / image)
            self.fault(case, path, f"cannot be read ({error.strerror})", "Check the file and its permissions.")
            return
        self.cases.append(Case(self.dataset, case, case, image, label, kind, annotated, scan, drawn))

    def result(self) -> list[Case]:
        for case in sorted(self.excluded - self.seen):
            remedy = did_you_mean(case, self.seen, "Take it off the list.", prefix=f"{self.dataset}/")
            self.faults.append(Fault("exclude", f"there is no case '{self.dataset}/{case}'", remedy))
        if not self.cases and not self.faults:
            self.faults.append(Fault("exclude", f"leaves no case of '{self.dataset}'", "Take the dataset out instead."))
        if self.faults:
            raise NemesisError(self.faults)
        return sorted(self.cases, key=lambda case: case.case)


def fingerprint(path: Path) -> str:
    """A quick sha256 of a file: its size and evenly spread blocks, the first and the last always among them.

    Small files are hashed whole. In a gzip file the last bytes are the checksum of all the rest, so any change shows;
    in a large uncompressed file a change of the same length between the blocks would not.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= LOOKS * BLOCK:
            digest.update(file.read())
        else:
            for look in range(LOOKS):
                file.seek((size - BLOCK) * look // (LOOKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _list_phantoms(cohort: PhantomCohort, listing: _Listing) -> None:
    from nemesis.data.phantom import VERSION

    for index in range(cohort.subjects):
        case = f"{index:04d}"
        if not listing.skips(case):
            # The number of subjects is left out: a larger cohort begins with the same ones.
            mark = _digest(cohort.seed, cohort.base_spacing_mm, VERSION, index)
            listing.cases.append(Case(cohort.name, case, case, str(index), None, "exhaustive", None, mark, mark))


def _list_nifti(dataset: NiftiFolder, root: Path, listing: _Listing) -> None:
    patterns = {"image": _clean(dataset.image)} | {kind: _clean(pattern) for kind, pattern in dataset.labels.items()}
    where = f"datasets.{dataset.name}"
    for name, pattern in patterns.items():
        if pattern.startswith("/") or ".." in pattern.split("/"):
            what = f"pattern '{pattern}' of {name} leaves the root"
            listing.faults.append(Fault(where, what, "Write it relative to `root`."))
    if len(set(patterns.values())) < len(patterns):
        remedy = "Give the scans and every kind of label map a pattern of their own."
        listing.faults.append(Fault(where, "two patterns are the same", remedy))
    if listing.faults:
        return

    # A file that several patterns fit ("{case}.nii.gz" also fits "a_label.nii.gz") belongs to the most specific one.
    owner: dict[str, str] = {}
    for name in sorted(patterns, key=lambda name: len(patterns[name])):
        owner |= dict.fromkeys(_glob(root, patterns[name]), name)
    found: dict[str, dict[str, str]] = {}
    for file, name in owner.items():
        found.setdefault(_case_of(file, patterns[name]), {})[name] = file

    for folder in _case_folders(root, patterns["image"]):
        found.setdefault(folder, {})  # a folder without its scan is not passed over in silence

    for case, files in sorted(found.items()):
        path = root / patterns["image"].replace("{case}", case)
        kinds = sorted(set(files) - {"image"})
        if "image" not in files:
            what = f"the scan is missing, though {', '.join(files[kind] for kind in kinds) or 'its folder'} is there"
            listing.fault(case, path, what, "Put the scan there, or remove what is left of the case.")
        elif len(kinds) > 1:
            what = f"has several label maps ({', '.join(files[kind] for kind in kinds)})"
            listing.fault(case, path, what, "Keep one, or take the other kind out of `labels:`.")
        elif kinds:
            kind: Kind = kinds[0]  # type: ignore[assignment]
            listing.add(root, case, files["image"], files[kind], kind)
        else:
            listing.add(root, case, files["image"])
    for name, pattern in patterns.items():
        if found and name not in owner.values():
            what = f"no file fits the pattern '{pattern}' of {name}"
            listing.faults.append(Fault(str(root), what, f"Correct it, or take it out of {where}."))
    if not found:
        what = f"no scan fits the pattern '{patterns['image']}'"
        listing.faults.append(Fault(str(root), what, f"Put scans there, or correct `image` of {where}."))


def _clean(pattern: str) -> str:
    return PurePosixPath(pattern).as_posix()  # drops "./" and double slashes


def _glob(root: Path, pattern: str) -> list[str]:
    """Paths (relative, hidden ones left out) that fit a pattern with one {case} and nothing else special in it."""
    before, after = (glob.escape(part) for part in pattern.split("{case}"))
    paths = (path.relative_to(root) for path in root.glob(f"{before}*{after}"))
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _case_of(path: str, pattern: str) -> str:
    before, after = pattern.split("{case}")
    return path[len(before) : len(path) - len(after)]


def _case_folders(root: Path, pattern: str) -> list[str]:
    """Cases that have a folder of their own, where the pattern gives them one."""
    parts = pattern.split("/")
    level = next(i for i, part in enumerate(parts) if "{case}" in part)
    if level == len(parts) - 1:
        return []
    folder = "/".join(parts[: level + 1])
    return [_case_of(path, folder) for path in _glob(root, folder) if (root / path).is_dir()]


@dataclass(frozen=True)
class _DatasetJson:
    label_numbers: dict[str, int]
    ending: str
    drawn: dict[str, list[str]] | None  # case → organs that were drawn; None: every organ in every case


def _read_dataset_json(root: Path) -> _DatasetJson:
    """What dataset.json says: nnU-Net's keys (https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md), and
    ``labelled_structures``: case → names of the organs that were drawn in it."""
    path = root / "dataset.json"

    def broken(what: str, remedy: str = "Mend it after nnU-Net's dataset format.") -> NemesisError:
        return NemesisError(Fault(str(path), what, remedy))

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise broken("is missing", "An nnU-Net folder needs it; for a plain folder use `reader: nifti`.") from None
    except (OSError, ValueError) as error:
        raise broken(f"cannot be read ({error})") from None
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise broken("has no mapping `labels` from organ to number")
    if labels and all(isinstance(key, str) and key.isdigit() and isinstance(name, str) for key, name in labels.items()):
        labels = {name: int(key) for key, name in labels.items()}  # as written before nnU-Net v2
    if not all(type(number) is int for number in labels.values()):
        raise broken("`labels` holds something else than whole numbers (regions are not supported)")
    numbers = {organ: number for organ, number in labels.items() if number != 0}
    if "ignore" in numbers:
        raise broken("has an ignore label", "Say which organs were drawn in each case under `labelled_structures`.")
    if not numbers:
        raise broken("`labels` names no organ")
    channels = content.get("channel_names", content.get("modality", {"0": "CT"}))
    names = list(channels.values()) if isinstance(channels, dict) else [channels]
    if len(names) != 1 or not re.search(r"\bct\b", str(names[0]).lower()):
        raise broken(f"its channels are {channels}, not one of CT", "This suite reads single-channel CT.")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        raise broken(f"its file_ending is '{ending}'", "Convert the dataset to .nii.gz.")
    drawn = content.get("labelled_structures")
    if drawn is not None:
        if not isinstance(drawn, dict) or not all(isinstance(organs, list) for organs in drawn.values()):
            raise broken("`labelled_structures` is not a mapping from case to a list of organs")
        unknown = sorted({str(organ) for organs in drawn.values() for organ in organs} - set(numbers))
        if unknown:
            raise broken(f"`labelled_structures` names organs that `labels` does not: {', '.join(unknown)}")
    return _DatasetJson(numbers, ending, drawn)


def _list_nnunet(root: Path, listing: _Listing) -> None:
    info = _read_dataset_json(root)
    scan_pattern, label_pattern = f"imagesTr/{{case}}_0000{info.ending}", f"labelsTr/{{case}}{info.ending}"
    images = {_case_of(path, scan_pattern): path for path in _glob(root, scan_pattern)}
    labels = {_case_of(path, label_pattern): path for path in _glob(root, label_pattern)}
    if not images:
        what = f"holds no scan (imagesTr/<case>_0000{info.ending})"
        listing.faults.append(Fault(str(root), what, "Put scans there, or correct `root`."))
        return
    for case in sorted({*images, *labels, *(info.drawn or {})}):
        drawn = list(info.label_numbers) if info.drawn is None else info.drawn.get(case)
        scan, label = (root / pattern.replace("{case}", case) for pattern in (scan_pattern, label_pattern))
        if case not in images:
            named = labels.get(case, "dataset.json (labelled_structures)")
            what = f"the scan is missing, though {named} names the case"
            listing.fault(case, scan, what, "Put the scan there, or remove what is left of the case.")
        elif drawn == []:
            listing.add(root, case, images[case])
        elif case not in labels:
            remedy = "Put it there, or write an empty list for the case under `labelled_structures` of dataset.json."
            listing.fault(case, label, "the label map is missing", remedy)
        elif drawn is None:
            what = "which organs were drawn is not said: `labelled_structures` of dataset.json leaves the case out"
            listing.fault(case, label, what, "Add the case to it.")
        else:
            organs = tuple(organ for organ in info.label_numbers if organ in drawn)
            kind: Kind = "exhaustive" if len(organs) == len(info.label_numbers) else "partial"
            listing.add(root, case, images[case], labels[case], kind, organs)
