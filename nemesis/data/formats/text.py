"""Headers that are text before the voxels (NRRD, MetaImage): bounded, and every value is looked at before it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nemesis.data.formats.raster import AGAIN, beside, refusal
from nemesis.errors import NemesisError

LONGEST = 1 << 16  # bytes of a header
MOST_NUMBERS = 64  # in one value


class Header:
    """Key → value; what is asked for and missing, or wrong, is a refusal of the file."""

    def __init__(self, path: Path, values: dict[str, str]) -> None:
        self.path = path
        self.values = values

    def text(self, key: str, otherwise: str | None = None) -> str:
        """The value; ``otherwise`` where the key is missing."""
        found = self.values.get(key, otherwise)
        if found is None:
            raise refusal(self.path, f"its header has no '{key}'", AGAIN)
        return found

    def whole(self, key: str, otherwise: str | None = None) -> tuple[int, ...]:
        """Whole numbers."""
        words = self.text(key, otherwise).split()
        try:
            found = tuple(int(word) for word in words[: MOST_NUMBERS + 1])
        except ValueError:
            raise self.bad(key) from None
        if not 0 < len(found) <= MOST_NUMBERS:
            raise self.bad(key)
        return found

    def real(self, key: str, words: Sequence[str]) -> tuple[float, ...]:
        """Finite numbers, of words in a key's value."""
        try:
            found = tuple(float(word) for word in words[: MOST_NUMBERS + 1])
        except ValueError:
            raise self.bad(key) from None
        if not 0 < len(found) <= MOST_NUMBERS or not all(math.isfinite(x) for x in found):
            raise self.bad(key)
        return found

    def files(self, names: Sequence[str], root: Path | None) -> tuple[list[Path], int]:
        """The data files that the header names, and their bytes; see :func:`nemesis.data.formats.raster.beside`."""
        if not names:
            raise refusal(self.path, "its list of data files is empty", AGAIN)
        paths = [beside(self.path, name, root) for name in names]
        return paths, sum(path.stat().st_size for path in paths)

    def bad(self, key: str) -> NemesisError:
        """The refusal of a value."""
        return refusal(self.path, f"its header says '{key}' is {self.values.get(key, '')[:80]!r}, which makes no sense", AGAIN)


def header_lines(path: Path, text: bytes) -> list[str]:
    """The lines of a header."""
    try:
        return [line.strip() for line in text.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        raise refusal(path, "its header is no text", AGAIN) from None
