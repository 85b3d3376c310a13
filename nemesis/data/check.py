"""What a folder holds against what its set should hold: `nemesis data check`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from nemesis.config import validate_section
from nemesis.data.cards import Card, find_card, reader_section, resolve
from nemesis.data.cases import Case, Kind
from nemesis.data.listings import survey
from nemesis.data.listings.listing import Listing
from nemesis.datasets import CardDataset, FolderDataset
from nemesis.errors import Fault, NemesisError
from nemesis.workers import each

log = logging.getLogger(__name__)
READERS = ("files", "nnunet", "dicom")


@dataclass(frozen=True)
class _Task:
    dataset: FolderDataset
    case: Case
    root: Path
    numbers: dict[str, int]


def check(
    name: str, root: Path, told: Mapping[str, Any], keep: Path, workers: int | None = None
) -> tuple[list[str], list[Fault]]:
    """What the folder holds, as lines of text, and every fault.

    Args:
        name: a card, or the reader of a folder of one's own: files, nnunet, dicom.
        told: keys of the reader's section.
        keep: see :func:`nemesis.data.listings.list_cases`.
        workers: read every scan, too, in so many processes; None lists them only.

    Raises:
        NemesisError: nothing can be listed: no such card, missing folder, no layout of the card, wrong keys.
    """
    if not root.is_dir():
        raise NemesisError(Fault(str(root), "is no folder", "Name the folder of the scans."))
    card: Card | None = None
    dataset: FolderDataset
    if name in READERS:
        dataset = reader_section({"reader": name, "name": name, **told}, "--config of `nemesis data check`")
        layout: str | None = None
    else:
        card = find_card(name, "nemesis data check")
        entry = {"reader": "card", "name": card.name, **told}
        dataset, layout = resolve(validate_section(CardDataset, entry, "--config of `nemesis data check`"), root)
    listing = survey(dataset, root, keep=keep)
    faults = list(listing.faults)
    if workers is not None:
        tasks = [_Task(dataset, case, root, listing.numbers) for case in listing.cases]
        faults += _refusals(tasks, workers)
    return [*_told_of(dataset, card, layout, listing)], faults


def describe(card: Card) -> Iterator[str]:
    """A card as lines of text."""
    yield f"{card.name}: {card.title}"
    expected = {what: number for what, number in card.expected.model_dump().items() if number is not None}
    yield f"  published  {', '.join(f'{number} {what}' for what, number in expected.items())}"
    yield f"  licence    {card.licence}"
    yield f"  citation   {card.citation}"
    yield f"  get        {card.get}"
    yield from (f"  layout     {layout}" for layout in card.layouts)
    yield from (f"  note       {note}" for note in card.notes)


def _told_of(dataset: FolderDataset, card: Card | None, layout: str | None, listing: Listing) -> Iterator[str]:
    kinds = Counter(case.kind for case in listing.cases if case.kind != "none")
    found = {
        "scans": len(listing.cases),
        "patients": len({case.patient for case in listing.cases}),
        "labelled": sum(kinds.values()),
    }
    published = {} if card is None else card.expected.model_dump()
    yield f"{listing.root}: {card.title if card else 'a folder of your own'} (reader {dataset.reader})"
    if layout:
        yield f"  layout     {layout}"
    for what, number in found.items():
        of = published.get(what)
        against = "" if of is None else f" of {of} as published"
        if of is not None and number != of:
            against += f": {of - number} are missing" if number < of else f": {number - of} too many"
        by_kind = ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(Kind) if kinds[kind])
        yield f"  {what:10} {number}{against}{f' ({by_kind})' if what == 'labelled' and by_kind else ''}"
    organs = ", ".join(f"{organ} {number}" for organ, number in listing.numbers.items()) if kinds else "none"
    yield f"  organs     {organs}"
    if said := listing.said():
        yield f"  {said}"
    if card:
        yield from (f"  note       {note}" for note in card.notes)


def _refusals(tasks: list[_Task], workers: int) -> list[Fault]:
    """The faults of every scan that ingestion would refuse; what it says of the others is logged."""
    found: dict[str, list[Fault]] = {}
    for n, (task, told) in enumerate(each(_read, tasks, workers), 1):
        path = str(task.root / task.case.image)
        dead = Fault(path, "reading it killed its process", "Make more memory free; if that does not help, take it out.")
        faults, notes = ([dead], []) if told is None else told
        found[task.case.case] = faults
        log.info("%d/%d %s: %s", n, len(tasks), task.case.case, "; ".join(["refused" if faults else "ok", *notes]))
    return [fault for case in sorted(found) for fault in found[case]]


def _read(task: _Task) -> tuple[list[Fault], list[str]]:
    from nemesis.data.labels import read_case

    try:
        volume, _, _ = read_case(task.dataset, task.case, task.root, task.numbers)
    except NemesisError as error:
        return error.faults, []
    return [], list(volume.notes)
