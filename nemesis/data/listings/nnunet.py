"""Listing a folder of nnU-Net or of the Medical Segmentation Decathlon.

dataset.json as nnU-Net describes it (https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md): ``labels`` maps
names to numbers (v2) or numbers to names (v1, the Decathlon); ``training`` (v1, the Decathlon) lists pairs of image and label,
whose scans lie there as named (the Decathlon) or with ``_0000`` (v1); without it every imagesTr/<case>_0000 counts.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nemesis.data.cases import Kind
from nemesis.data.formats.raster import check_regular, leads_out
from nemesis.data.listings.listing import Listing
from nemesis.data.listings.patterns import Pattern
from nemesis.datasets import NnunetFolder
from nemesis.errors import Fault, NemesisError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
CHANNEL = "_0000"
LARGEST = 1 << 26  # bytes of dataset.json


@dataclass(frozen=True)
class DatasetJson:
    """What dataset.json says.

    label_numbers: organ → number; ending: of its files; training: (scan, label map) paths, None where it lists none;
    drawn: case → organs that were drawn in it, None: every organ in every case.
    """

    label_numbers: dict[str, int]
    ending: str
    training: list[tuple[str, str]] | None
    drawn: dict[str, list[str]] | None


def list_nnunet(dataset: NnunetFolder, listing: Listing) -> None:
    """Note every training case. Test scans (imagesTs), which have no labels, are passed over.

    Raises:
        NemesisError: see :func:`read_dataset_json`.
    """
    root = listing.root
    info = read_dataset_json(root, dataset.names)
    labels = dict(Pattern(f"labelsTr/{{case}}{info.ending}").found_in(root))
    images = _scans(root, info.ending)
    listing.passed_over["test scans (imagesTs)"] = sum(1 for _ in Pattern(f"imagesTs/{{case}}{info.ending}").found_in(root))
    if info.training is not None:
        named = {}
        for image, label in info.training:
            case = PurePosixPath(image).name.removesuffix(info.ending).removesuffix(CHANNEL)
            named[case] = image if os.path.lexists(root / image) else _with_channel(image, info.ending)
            labels[case] = label
        listing.passed_over["scans in imagesTr that `training` of dataset.json leaves out"] = len(set(images) - set(named))
        labels = {case: label for case, label in labels.items() if case in named}
        images = named
    if not images:
        what = f"holds no scan (imagesTr/<case>_0000{info.ending})"
        listing.faults.append(Fault(str(root), what, "Put scans there, or correct `root`."))
        return
    for case in sorted({*images, *labels, *(info.drawn or {})}):
        _note(listing, info, case, images.get(case), labels.get(case))


def _scans(root: Path, ending: str) -> dict[str, str]:
    """Case → scan, with ``_0000`` or, where no name has it, without."""
    images = dict(Pattern(f"imagesTr/{{case}}{CHANNEL}{ending}").found_in(root))
    return images or dict(Pattern(f"imagesTr/{{case}}{ending}").found_in(root))


def _with_channel(image: str, ending: str) -> str:
    return image.removesuffix(ending) + CHANNEL + ending


def _note(listing: Listing, info: DatasetJson, case: str, image: str | None, label: str | None) -> None:
    root = listing.root
    drawn = list(info.label_numbers) if info.drawn is None else info.drawn.get(case)
    scan_path = root / (image or f"imagesTr/{case}{CHANNEL}{info.ending}")
    label_path = root / (label or f"labelsTr/{case}{info.ending}")
    if image is None or not os.path.lexists(scan_path):
        said = label if label and os.path.lexists(label_path) else "dataset.json"
        what = f"the scan is missing, though {said} names the case"
        listing.fault(case, scan_path, what, "Put the scan there, or remove what is left of the case.")
    elif drawn == []:
        listing.add(case, image)
    elif label is None or not os.path.lexists(label_path):
        remedy = "Put it there, or write an empty list for the case under `labelled_structures` of dataset.json."
        listing.fault(case, label_path, "the label map is missing", remedy)
    elif drawn is None:
        what = "which organs were drawn is not said: `labelled_structures` of dataset.json leaves the case out"
        listing.fault(case, label_path, what, "Add the case to it.")
    else:
        organs = tuple(organ for organ in info.label_numbers if organ in drawn)
        kind: Kind = "exhaustive" if len(organs) == len(info.label_numbers) else "partial"
        listing.add(case, image, [label], kind, organs)


def read_dataset_json(root: Path, names: dict[str, str]) -> DatasetJson:
    """What dataset.json says, with organs called as in ``names`` (theirs → ours, upper or lower case alike).

    Raises:
        NemesisError: it is missing or broken.
    """
    path = root / "dataset.json"
    ours = {theirs.lower(): organ for theirs, organ in names.items()}

    def broken(what: str, remedy: str = "Mend it after nnU-Net's dataset format.") -> NemesisError:
        return NemesisError(Fault(str(path), what, remedy))

    if not os.path.lexists(path):
        raise broken("is missing", "An nnU-Net folder needs it; for a plain folder use `reader: files`.")
    if check_regular(path, root) > LARGEST:
        raise broken("is too large for a description of a dataset")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise broken(f"cannot be read ({str(error)[:200]})") from None
    if not isinstance(content, dict):
        raise broken("is no mapping")
    labels = content.get("labels")
    if not isinstance(labels, dict):
        raise broken("has no mapping `labels` from organ to number")
    if labels and all(key.isdecimal() and isinstance(name, str) for key, name in labels.items()):
        if len(set(labels.values())) < len(labels):
            raise broken("two numbers of its `labels` have one name", "Give every organ a name of its own.")
        labels = {name: int(key) for key, name in labels.items()}  # as written before nnU-Net v2
    for organ, number in labels.items():
        if type(number) is not int:
            what = f"`labels` gives {organ[:40]!r} something else than a whole number"
            raise broken(what, "Give every organ a number of its own (regions of several numbers are not supported).")
    told = {organ: number for organ, number in labels.items() if number != 0}
    numbers = {ours.get(organ.lower(), organ): number for organ, number in told.items()}
    if "ignore" in numbers:
        raise broken("has an ignore label", "Say which organs were drawn in each case under `labelled_structures`.")
    if not numbers:
        raise broken("`labels` names no organ")
    if not all(organ.isprintable() for organ in numbers):
        raise broken("`labels` holds names that cannot be printed")
    if len(numbers) < len(told):
        raise broken("two of its `labels` are one organ by the `names` of the configuration", "Correct `names`.")
    channels = content.get("channel_names", content.get("modality", {"0": "CT"}))
    kinds = list(channels.values()) if isinstance(channels, dict) else [channels]
    if len(kinds) != 1 or not re.search(r"\bct\b", str(kinds[0]).lower()):
        raise broken(f"its channels are {channels}, not one of CT", "This suite reads single-channel CT.")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        raise broken(f"its file_ending is {ending!r}", f"These are read: {', '.join(ENDINGS)}.")
    return DatasetJson(numbers, ending, _training(content, broken), _drawn(content, ours, numbers, broken))


def _training(content: dict[str, Any], broken: Any) -> list[tuple[str, str]] | None:
    listed = content.get("training")
    if not listed:
        return None
    pairs = []
    for entry in listed if isinstance(listed, list) else [listed]:
        paths = [entry.get("image"), entry.get("label")] if isinstance(entry, dict) else []
        texts = [path for path in paths if isinstance(path, str)]
        if len(texts) != 2:
            raise broken("`training` holds something else than pairs of `image` and `label`")
        image, label = (PurePosixPath(text).as_posix() for text in texts)
        for path in (image, label):
            if leads_out(path) or "\0" in path:
                raise broken(f"`training` names {path!r:.80}, which leads out of its folder", "Write paths inside of it.")
        pairs.append((image, label))
    if len({image for image, _ in pairs}) < len(pairs):
        raise broken("`training` names a scan twice")
    return pairs


def _drawn(content: dict[str, Any], ours: dict[str, str], numbers: dict[str, int], broken: Any) -> dict[str, list[str]] | None:
    drawn = content.get("labelled_structures")
    if drawn is None:
        return None
    if not isinstance(drawn, dict) or not all(isinstance(organs, list) for organs in drawn.values()):
        raise broken("`labelled_structures` is not a mapping from case to a list of organs")
    drawn = {case: [ours.get(str(organ).lower(), str(organ)) for organ in organs] for case, organs in drawn.items()}
    if unknown := sorted({organ for organs in drawn.values() for organ in organs} - set(numbers)):
        raise broken(f"`labelled_structures` names organs that `labels` does not: {', '.join(unknown)}")
    return drawn
