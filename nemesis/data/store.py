"""Volumes on disk: a chunked, compressed file each, of which a crop reads only the blocks it touches.

Blosc2 with its bits shuffled, for the noise of CT fills the low ones and the high ones shrink to nothing, and LZ4, which unpacks
fastest: a random crop of 128³ comes some hundred times faster than the whole `.nii.gz` is read (`benchmarks/loading.py`), from a
smaller file. Where much is constant (scans masked to the body, label maps) Zstandard takes far less room, and is taken.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.errors import Fault, NemesisError
from nemesis.files import replacing

AIR = -1024  # HU that padding is filled with
AGAIN = "Delete it, if it is there, and make it again: snakemake <your arguments> --forcerun {} --until {}"
CHUNK = 64  # voxels; edge of what is compressed by itself


@dataclass(frozen=True)
class _Packing:
    """A codec and a filter of Blosc2, by name; ``block``: edge in voxels of what is unpacked together."""

    codec: str
    level: int
    shuffle: str
    block: int


FAST = _Packing("LZ4HC", 9, "BITSHUFFLE", 16)  # small blocks waste least where a crop cuts them
SMALL = _Packing("ZSTD", 5, "SHUFFLE", 32)
WORTH = 0.85  # size, as a share of that of FAST, from which on SMALL's slower crops are worth it
SAMPLED = 12  # chunks, about, that both are tried on


def write_volume(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Store an integer array (D, H, W) as ``<folder>/<name>.b2nd``, atomically; equal arrays give equal bytes.

    Compressed chunk by chunk into the file: memory for one chunk is all it takes.

    Raises:
        OSError: the disk is full, or something else keeps the file from being written.
    """
    array = np.ascontiguousarray(array)
    packing = _packing_for(array)
    with replacing(folder / f"{name}.b2nd") as temporary:
        try:
            _pack(array, packing, urlpath=str(temporary), mode="w")
        except RuntimeError as error:  # all that Blosc2 says of a write that failed
            raise OSError(f"is there room? Blosc2: {error}") from None


def _pack(array: NDArray[Any], packing: _Packing, **where: str) -> Any:
    import blosc2

    chunks = tuple(min(CHUNK, n) for n in array.shape)
    compression = blosc2.CParams(
        codec=blosc2.Codec[packing.codec],
        clevel=packing.level,
        filters=[blosc2.Filter[packing.shuffle]],
        splitmode=blosc2.SplitMode.NEVER_SPLIT,
        nthreads=1,
    )
    blocks = tuple(min(packing.block, n) for n in chunks)
    return blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=compression, **where)


def _packing_for(array: NDArray[Any]) -> _Packing:
    """``SMALL`` where it makes much less of some chunks from all over the array."""
    starts = list(itertools.product(*(range(0, n, CHUNK) for n in array.shape)))
    sizes = dict.fromkeys((FAST, SMALL), 0)
    for start in starts[:: -(-len(starts) // SAMPLED)]:
        chunk = np.ascontiguousarray(array[tuple(slice(first, first + CHUNK) for first in start)])
        for packing in sizes:
            sizes[packing] += _pack(chunk, packing).schunk.cbytes
    return SMALL if sizes[SMALL] < WORTH * sizes[FAST] else FAST


class StoredVolume:
    """A volume of the store, opened when first read. May be pickled, forked and shared between threads.

    Args:
        path: its file.
        shape: voxels (D, H, W) that it is known to have; None: whatever it says.
    """

    def __init__(self, path: Path, shape: Sequence[int] | None = None) -> None:
        self.path, self._expected = path, None if shape is None else tuple(shape)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()  # a Blosc2 handle decompresses for one thread at a time
        self._handle: Any = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shape": self._expected}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _open(self) -> Any:
        if self._handle is None:
            import blosc2

            if not self.path.exists():
                raise self._refusal("is missing from the store")
            try:
                # not mapped into memory: no faster, and a file cut short under a mapping kills the process
                handle = blosc2.open(str(self.path), mode="r", dparams=blosc2.DParams(nthreads=1))
            except (RuntimeError, ValueError) as error:
                raise self._refusal(f"is damaged, or may not be read ({error})") from None
            shape = getattr(handle, "shape", None)
            if shape is None or (self._expected is not None and tuple(shape) != self._expected):
                raise self._refusal(f"is not the volume that was stored there (shape {shape}, not {self._expected})")
            self._handle = handle
        return self._handle

    def _refusal(self, what: str) -> NemesisError:
        of_view = "@" in self.path.name
        rules = ("resample_scans", "check_views") if of_view else ("ingest_scans", "check_cohort")
        return NemesisError(Fault(str(self.path), what, AGAIN.format(*rules), passing=True))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (D, H, W)."""
        return tuple(self._open().shape)

    def read(self, start: tuple[int, int, int], size: tuple[int, int, int], fill: int) -> NDArray[Any]:
        """The box of ``size`` voxels at ``start`` (D, H, W), in the stored type; beyond the far ends it is ``fill``.

        Raises:
            NemesisError: the file is missing, damaged, or another volume's.
            ValueError: the start lies outside the volume.
        """
        if self._process != os.getpid():  # forked: the parent's handle and lock are not ours
            self._forget()
        with self._lock:
            volume = self._open()
            if not all(0 <= s < n for s, n in zip(start, volume.shape, strict=True)):
                raise ValueError(f"start {start} lies outside the volume {volume.shape} of {self.path}")
            stop = [min(s + n, m) for s, n, m in zip(start, size, volume.shape, strict=True)]
            try:
                inside = volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
            except RuntimeError as error:  # all that Blosc2 says of blocks that it cannot unpack
                raise self._refusal(f"is damaged ({error})") from None
        return pad(inside, size, fill)

    def whole(self) -> NDArray[Any]:
        """All voxels (D, H, W)."""
        return self.read((0, 0, 0), self.shape, 0)


def pad(box: NDArray[Any], size: tuple[int, int, int], fill: int) -> NDArray[Any]:
    """``box`` with ``fill`` beyond its far ends, up to ``size``; the box itself where it has that size already."""
    if box.shape == tuple(size):
        return box
    padded = np.full(size, fill, box.dtype)
    padded[tuple(slice(n) for n in box.shape)] = box
    return padded


def normalise(hu: NDArray[Any], window: tuple[float, float]) -> NDArray[np.float32]:
    """HU → float32 in [0, 1]: (hu − low) / (high − low), clipped."""
    low, high = window
    scaled: NDArray[np.float32] = np.clip((hu.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    return scaled
