"""Bytes of scan files in bounded memory: inflated where they are packed, and accounted for to the last one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib  # the same streams as zlib, in half the time
from numpy.typing import NDArray

from nemesis.data.formats.raster import AGAIN, refusal

CHUNK = 1 << 18  # bytes read at once
INFLATED = 1 << 20  # most bytes that come out at once
SLAB = 1 << 22  # bytes of voxels handed on at once, or one plane
GZIP_OR_ZLIB = 47  # zlib's wbits that tell the two by their first bytes
GZIP = b"\x1f\x8b"
MEMBERS = 1000  # of a gzip file, and one more per MEMBER bytes: finer ones are there to keep a reader busy
MEMBER = 1024


class Bytes:
    """Files one after another, each from byte ``start`` on."""

    def __init__(self, paths: Sequence[Path], start: int = 0, packed: bool = False) -> None:
        read = _inflated if packed else _plain
        self._chunks = chain.from_iterable(read(path, start) for path in paths)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer where the files end.

        Raises:
            NemesisError: truncated or corrupt compression (its checksum is looked at at the end), an unreadable file.
        """
        parts = []
        while size > 0:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
            parts.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        while size > 0 and (passed := len(self.read(min(size, INFLATED)))):
            size -= passed


def voxels(path: Path, source: Bytes, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Slabs (n, j, i) of voxels (i, j, k) stored i fastest, which the source must hold, and nothing after them.

    Raises:
        NemesisError: there is less or more, or see :meth:`Bytes.read`.
    """
    i, j, k = shape
    plane = i * j * dtype.itemsize
    step = max(1, SLAB // plane)
    for first in range(0, k, step):
        n = min(step, k - first)
        data = source.read(n * plane)
        if len(data) < n * plane:
            raise refusal(path, f"is truncated (it ends in plane {first + len(data) // plane + 1} of {k})", AGAIN)
        slab = np.frombuffer(data, dtype).reshape(n, j, i)
        yield slab if dtype.isnative else slab.astype(dtype.newbyteorder("="))
    if source.read(1):
        raise refusal(path, "holds more bytes than its header says", "Its header and its voxels do not belong together.")


def rescaled(values: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """values · slope + intercept; whole numbers stay so where all three are."""
    if slope == 1 and intercept == 0:
        return values
    whole = values.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer()
    if whole and values.dtype.itemsize <= 2 and abs(slope) * 65536 + abs(intercept) < 2**31:
        return values.astype(np.int32) * int(slope) + int(intercept)
    return values * np.float64(slope) + np.float64(intercept)


def _plain(path: Path, start: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(CHUNK):
                yield block
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", AGAIN, passing=True) from None


def _inflated(path: Path, start: int) -> Iterator[bytes]:
    """gzip (of any number of members, zeros after them as tapes leave them) or zlib."""
    blocks = _plain(path, start)
    block = next(blocks, b"")
    members = total = 0
    while block:
        stream = isal_zlib.decompressobj(GZIP_OR_ZLIB)
        while not stream.eof:
            if not block:
                raise refusal(path, "is truncated (the compressed stream ends early)", AGAIN)
            try:
                found = stream.decompress(block, INFLATED)
            except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls it a value
                raise refusal(path, f"is corrupt ({error})", AGAIN) from None
            block = stream.unconsumed_tail or (b"" if stream.eof else next(blocks, b""))
            total += len(found)
            if found:
                yield found
        members += 1
        if members > MEMBERS + total // MEMBER:
            raise refusal(path, "is corrupt (its gzip stream is cut into crumbs)", AGAIN)
        block = stream.unused_data
        if len(block) < len(GZIP):
            block += next(blocks, b"")
        if block and not block.startswith(GZIP):
            if (block + next(blocks, b"")).strip(b"\0") or next(blocks, b""):
                raise refusal(path, "holds something else behind its compressed voxels", AGAIN)
            return
