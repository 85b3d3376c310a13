"""What a reader of folders finds: cases, faults, and what it passed over."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nemesis.data import VERSION
from nemesis.data.cases import Case, Kind
from nemesis.data.formats.raster import check_regular
from nemesis.data.listings.beside import files_beside
from nemesis.data.seen import Seen, fingerprint
from nemesis.errors import Fault, NemesisError, did_you_mean

LONGEST_NAME = 120  # bytes of a case's name, which becomes part of file names
LOOK = f"fingerprint {VERSION}"


class Listing:
    """Cases, faults of single cases (an excluded case has none), faults of the whole dataset, what was passed over.

    ``numbers``: organ → its number in the label maps.
    """

    def __init__(self, dataset: str, root: Path, excluded: Collection[str] = (), seen: Seen | None = None) -> None:
        self.dataset = dataset
        self.root = root
        self.excluded = set(excluded)
        self.seen = seen or Seen(None)
        self.cases: list[Case] = []
        self.faults: list[Fault] = []
        self.passed_over: Counter[str] = Counter()  # what → how many
        self.notes: Counter[str] = Counter()  # what is so of how many cases
        self.numbers: dict[str, int] = {}
        self._known: set[str] = set()
        self._plain_folders: set[str] = set()

    def skips(self, case: str) -> bool:
        """Note that a case exists; True where the user goes on without it, or its name cannot be used."""
        if case not in self._known:
            self._known.add(case)
            if not case.isprintable() or len(case.encode("utf-8", "replace")) > LONGEST_NAME:
                what = f"holds a case whose name cannot be used: {case!r:.80}"
                remedy = f"Rename it: printable characters, at most {LONGEST_NAME} bytes."
                self.faults.append(Fault(str(self.root), what, remedy))
        return case in self.excluded or not case.isprintable() or len(case.encode("utf-8", "replace")) > LONGEST_NAME

    def fault(self, case: str, path: Path | str, what: str, remedy: str) -> None:
        """Something is wrong with a case; without effect where the user goes on without it."""
        if not self.skips(case):
            remedy = f"{remedy} Or go on without it: `exclude: [{self.dataset}/{case}]`."
            self.faults.append(Fault(str(path), what, remedy))

    def add(
        self,
        case: str,
        image: str,
        labels: Sequence[str] = (),
        kind: Kind = "none",
        annotated: tuple[str, ...] | None = None,
        label: str | None = None,
        patient: str | None = None,
        series: tuple[str, Sequence[str]] | None = None,
        marks: Sequence[Any] = (),
    ) -> None:
        """Note a case, with fingerprints of its files (paths relative to the root).

        Args:
            labels: the files that its labels are read from.
            label: what :class:`Case` calls its label; the only one of ``labels`` where it is not given.
            series: SeriesInstanceUID of a DICOM series, and the fingerprints of its files.
            marks: what else its labels depend on.
        """
        if self.skips(case):
            return
        try:
            scan = self.mark([image]) if series is None else digest_of(*series[1])
            drawn = digest_of(self.mark(labels), kind, annotated, *marks) if labels else ""
        except OSError as error:
            path = Path(error.filename or self.root / image)
            self.fault(case, path, f"cannot be read ({error.strerror})", "Check the file and its permissions.")
            return
        except NemesisError as error:
            for fault in error.faults:
                self.fault(case, fault.where, fault.what, fault.remedy)
            return
        told = label or (labels[0] if labels else None)
        uid = None if series is None else series[0]
        self.cases.append(Case(self.dataset, case, patient or case, image, told, kind, annotated, scan, drawn, uid))

    def mark(self, files: Sequence[str]) -> str:
        """Fingerprint of files, data files that their headers name included; of one file that has none, the file's own.

        Raises:
            OSError: one cannot be read.
            NemesisError: one is no regular file, or a link that leads out of the root.
        """
        marks = []
        for file in files:
            self.check(file)
            path = self.root / file
            mark, beside = self.seen.of(path, LOOK, lambda path: [fingerprint(path), files_beside(path)])
            marks.append(mark)
            for name in beside:
                other = Path(file).parent / name
                self.check(other.as_posix())
                marks.append(self.seen.of(self.root / other, LOOK, lambda path: [fingerprint(path), []])[0])
        return marks[0] if len(marks) == 1 else digest_of(*marks)

    def check(self, file: str) -> None:
        """Make sure that a file may be opened: a pipe would be read for ever, a link may lead anywhere.

        Raises:
            OSError: it is not there.
            NemesisError: it is no regular file, or a link that leads out of the root.
        """
        folder = os.path.dirname(file)
        plain = stat.S_ISREG(os.lstat(self.root / file).st_mode)
        if not plain or not self._is_plain(folder):
            check_regular(self.root / file, self.root)

    def _is_plain(self, folder: str) -> bool:
        """No part of the path under the root is a link."""
        if folder in ("", ".") or folder in self._plain_folders:
            return True
        if os.path.islink(self.root / folder) or not self._is_plain(os.path.dirname(folder)):
            return False
        self._plain_folders.add(folder)
        return True

    def said(self) -> str:
        """What was passed over, and what is to be known, as one line; empty where there is nothing."""
        passed = [f"{count} × {what}" for what, count in sorted(self.passed_over.items()) if count]
        known = [f"{count} × {what}" for what, count in sorted(self.notes.items())]
        return "; ".join([f"passed over: {', '.join(passed)}"] * bool(passed) + known)

    def finish(self) -> None:
        """Sort the cases, and add the faults that show at the end: excluded cases that do not exist, none left."""
        for case in sorted(self.excluded - self._known):
            remedy = did_you_mean(case, self._known, "Take it off the list.", prefix=f"{self.dataset}/")
            self.faults.append(Fault("exclude", f"there is no case '{self.dataset}/{case}'", remedy))
        if not self.cases and not self.faults:
            self.faults.append(Fault("exclude", f"leaves no case of '{self.dataset}'", "Take the dataset out instead."))
        self.cases.sort(key=lambda case: case.case)


def digest_of(*parts: Any) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
