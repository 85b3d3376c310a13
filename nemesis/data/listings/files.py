"""Listing a folder of scans that are one file each."""

from __future__ import annotations

import os
from pathlib import Path

from nemesis.data.cases import Kind
from nemesis.data.listings.listing import Listing
from nemesis.data.listings.patterns import Pattern
from nemesis.datasets import ScanFiles
from nemesis.errors import Fault


def list_files(dataset: ScanFiles, listing: Listing) -> None:
    """Note every case: its scan, and the label map or the folder of masks of whichever kind it has."""
    root, where = listing.root, f"datasets.{dataset.name}"
    patterns = {"image": Pattern(dataset.image)}
    patterns |= {kind: Pattern(_without_organ(text)) for kind, text in dataset.labels.items()}
    for name, pattern in patterns.items():
        if pattern.leaves:
            what = f"pattern '{pattern.text}' of {name} leaves the root"
            listing.faults.append(Fault(where, what, "Write it relative to `root`."))
    if len({pattern.text for pattern in patterns.values()}) < len(patterns):
        remedy = "Give the scans and every kind of label map a pattern of their own."
        listing.faults.append(Fault(where, "two patterns are the same", remedy))
    if listing.faults:
        return

    try:
        found, folders = _assigned(root, patterns), dict(patterns["image"].folders_in(root))
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        listing.faults.append(Fault(str(error.filename or root), what, "Check the folder and its permissions."))
        return
    if not any("image" in files for files in found.values()):
        what = f"no scan fits the pattern '{patterns['image'].text}'"
        listing.faults.append(Fault(str(root), what, f"Put scans there, or correct `image` of {where}."))
        return
    for folder in folders:
        found.setdefault(folder, {})  # a folder without its scan is not passed over in silence
    for case, files in sorted(found.items()):
        _note(dataset, listing, patterns, case, files)
    for name, pattern in patterns.items():
        if not any(name in files for files in found.values()):
            what = f"no file fits the pattern '{pattern.text}' of {name}"
            listing.faults.append(Fault(str(root), what, f"Correct it, or take it out of {where}."))


def mask_files(dataset: ScanFiles, kind: Kind) -> dict[str, str] | None:
    """Organ → name of its mask in the folder of a case, or None where labels of this kind are single maps."""
    name = dataset.labels[kind].rpartition("/")[2] if kind != "none" else ""
    if "{organ}" not in name:
        return None
    return {organ: name.replace("{organ}", dataset.masks.get(organ, organ)) for organ in dataset.label_numbers}


def _without_organ(pattern: str) -> str:
    """The folder of masks, where the pattern says one."""
    folder, _, name = pattern.rpartition("/")
    return folder if "{organ}" in name else pattern


def _assigned(root: Path, patterns: dict[str, Pattern]) -> dict[str, dict[str, list[str]]]:
    """Case → name of the pattern → files. A file that several patterns fit ("{case}.nii.gz" also fits "a_label.nii.gz")
    belongs to the most specific one."""
    owner: dict[str, tuple[str, str]] = {}
    for name in sorted(patterns, key=lambda name: patterns[name].weight):
        owner |= {path: (name, case) for case, path in patterns[name].found_in(root)}
    found: dict[str, dict[str, list[str]]] = {}
    for path, (name, case) in owner.items():
        found.setdefault(case, {}).setdefault(name, []).append(path)
    return found


def _note(dataset: ScanFiles, listing: Listing, patterns: dict[str, Pattern], case: str, files: dict[str, list[str]]) -> None:
    path = listing.root / patterns["image"].example(case)
    kinds = sorted(set(files) - {"image"})
    maps = [file for kind in kinds for file in files[kind]]
    if "image" not in files:
        what = f"the scan is missing, though {', '.join(maps) or 'its folder'} is there"
        listing.fault(case, path, what, "Put the scan there, or remove what is left of the case.")
    elif len(files["image"]) > 1:
        what = f"has several scans ({', '.join(files['image'])})"
        listing.fault(case, path, what, "Keep one, or give each a name of its own.")
    elif len(maps) > 1:
        what = f"has several label maps ({', '.join(maps)})"
        listing.fault(case, path, what, "Keep one, or take the other kind out of `labels:`.")
    elif not kinds:
        listing.add(case, files["image"][0])
    else:
        kind: Kind = kinds[0]  # type: ignore[assignment]
        masks = mask_files(dataset, kind)
        if masks is None:
            listing.add(case, files["image"][0], maps, kind)
        else:
            _note_masks(listing, case, files["image"][0], maps[0], kind, masks)


def _note_masks(listing: Listing, case: str, image: str, folder: str, kind: Kind, masks: dict[str, str]) -> None:
    there = {organ: name for organ, name in masks.items() if os.path.lexists(listing.root / folder / name)}
    missing = [name for organ, name in masks.items() if organ not in there]
    if missing and (kind == "exhaustive" or not there):
        what = f"masks are missing: {', '.join(missing)}"
        remedy = "Put them there, call the labels `partial`, or take the organs out of `label_numbers`."
        listing.fault(case, listing.root / folder, what, remedy)
        return
    files = [f"{folder}/{name}" for name in there.values()]
    listing.add(case, image, files, kind, tuple(there), label=folder, marks=[there])
