"""Patterns of paths: ``{case}`` stands for a case's name, ``*`` for anything, neither beyond a ``/``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nemesis.data.formats.raster import leads_out

HIDDEN = re.compile(r"\.|__MACOSX$")  # the folder holds what archives of macOS say of their files


class Pattern:
    """A path relative to a folder, with one ``{case}`` in it.

    ``text``: without "./" and double slashes; ``leaves``: it leads out of the folder.
    """

    def __init__(self, text: str) -> None:
        self.text = PurePosixPath(text).as_posix()
        self._parts = [(part, _compiled(part)) for part in self.text.split("/")]

    @property
    def leaves(self) -> bool:
        return leads_out(self.text)

    @property
    def weight(self) -> int:
        """How specific it is: characters that stand for themselves."""
        return len(self.text.replace("{case}", "").replace("*", ""))

    def found_in(self, root: Path) -> Iterator[tuple[str, str]]:
        """(case, path relative to ``root``) of everything that fits, except what is hidden.

        Raises:
            OSError: a folder cannot be read.
        """
        return _found(str(root), "", self._parts, "")

    def folders_in(self, root: Path) -> Iterator[tuple[str, str]]:
        """The same of the folders that cases have to themselves, where the pattern gives them one.

        Raises:
            OSError: a folder cannot be read.
        """
        level = next(n for n, (part, _) in enumerate(self._parts) if "{case}" in part)
        if level < len(self._parts) - 1:
            for case, path in _found(str(root), "", self._parts[: level + 1], ""):
                if os.path.isdir(root / path):
                    yield case, path

    def example(self, case: str) -> str:
        """Where a case would lie."""
        return self.text.replace("{case}", case)


def _compiled(part: str) -> re.Pattern[str] | None:
    """None for a part that stands for itself."""
    if "{case}" not in part and "*" not in part:
        return None
    text = re.escape(part).replace(re.escape("{case}"), "(?P<case>.+)").replace(re.escape("*"), ".*?")
    return re.compile(text, re.S)


def _found(root: str, folder: str, parts: list[tuple[str, re.Pattern[str] | None]], case: str) -> Iterator[tuple[str, str]]:
    (part, pattern), rest = parts[0], parts[1:]
    if pattern is None:
        path = f"{folder}{part}"
        if rest:
            if os.path.isdir(f"{root}/{path}"):
                yield from _found(root, f"{path}/", rest, case)
        elif os.path.lexists(f"{root}/{path}"):
            yield case, path
        return
    with os.scandir(f"{root}/{folder}") as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries if not HIDDEN.match(entry.name))
    for name, is_folder in names:
        fits = pattern.fullmatch(name)
        if not fits or (rest and not is_folder):
            continue
        named = fits["case"] if "case" in pattern.groupindex else case
        if rest:
            yield from _found(root, f"{folder}{name}/", rest, named)
        else:
            yield named, f"{folder}{name}"
