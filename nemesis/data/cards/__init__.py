"""Dataset cards: what a published set is, how to get it, and in which layouts it lies on people's disks; one YAML file each.

A layout is a section of a reader without name and root. Of those of a card the first that fits the folder is read.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from nemesis.config import fault_of
from nemesis.data.listings.dicom import is_dicom_tree
from nemesis.data.listings.patterns import Pattern
from nemesis.datasets import CardDataset, FolderDataset, NnunetFolder, ScanFiles
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.section import Section


class Expected(Section):
    """What the set holds as published; None where that is not sure."""

    scans: int | None = None
    patients: int | None = None
    labelled: int | None = None


class Card(Section):
    """A published dataset.

    get: how to get it; notes: what its user must know; layouts: what each looks like → its reader's section.
    """

    name: str
    title: str
    licence: str
    citation: str
    get: str
    expected: Expected = Expected()
    notes: tuple[str, ...] = ()
    layouts: dict[str, dict[str, Any]]

    def section(self, layout: str, told: dict[str, Any], where: str) -> FolderDataset:
        """The reader's section of a layout, with what is ``told`` in place of the card's own values.

        Raises:
            NemesisError: with every key that the reader does not know, and every wrong value.
        """
        return reader_section({"expected": self.expected.scans or self.expected.patients, **self.layouts[layout], **told}, where)


def reader_section(told: dict[str, Any], where: str) -> FolderDataset:
    """The section of a reader of folders.

    Raises:
        NemesisError: with every unknown key and wrong value.
    """
    try:
        section: FolderDataset = TypeAdapter(FolderDataset).validate_python(told)
    except ValidationError as error:
        raise NemesisError([fault_of(where, e) for e in error.errors()]) from None
    return section


@cache
def cards() -> dict[str, Card]:
    """Every card by its name."""
    paths = sorted(Path(__file__).parent.glob("*.yaml"))
    return {path.stem: Card(name=path.stem, **yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths}


def find_card(name: str, where: str) -> Card:
    """The card of that name, in upper or lower case, with "-" for "_".

    Raises:
        NemesisError: there is none.
    """
    card = cards().get(name.lower().replace("-", "_"))
    if card is None:
        remedy = did_you_mean(name.lower(), cards(), f"There are: {', '.join(cards())}.")
        raise NemesisError(Fault(where, f"there is no card '{name}'", remedy))
    return card


def resolve(entry: CardDataset, root: Path | None) -> tuple[FolderDataset, str | None]:
    """What a card in a configuration stands for: its reader's section, and the layout that the folder has.

    While the folder is not there, the first layout's section and None.

    Raises:
        NemesisError: there is no such card, no layout of it fits, or its reader does not know a key that is given.
    """
    where = f"datasets.{entry.name}"
    card = find_card(entry.card or entry.name, where)
    own = {"name": entry.name, "root": entry.root}
    found = None
    if root is not None and root.is_dir():
        found = next((layout for layout in card.layouts if fits(card.section(layout, own, where), root)), None)
        if found is None:
            what = f"has no layout of {card.title}: {'; '.join(card.layouts)}"
            remedy = f"Correct the root of {where}, or describe your own layout with `reader: files`, `nnunet` or `dicom`."
            raise NemesisError(Fault(str(root), what, remedy))
    layout = found or next(iter(card.layouts))
    told = {**own, **({} if entry.expected is None else {"expected": entry.expected}), **(entry.model_extra or {})}
    return card.section(layout, told, f"{where} (card {card.name}, {layout})"), found


def fits(section: FolderDataset, root: Path) -> bool:
    """The folder has that layout."""
    if isinstance(section, ScanFiles):
        try:
            return next(Pattern(section.image).found_in(root), None) is not None
        except OSError:
            return False
    return (root / "dataset.json").is_file() if isinstance(section, NnunetFolder) else is_dicom_tree(root)
