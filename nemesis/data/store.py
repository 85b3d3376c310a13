"""Volumes on disk: a chunked, compressed file each (Blosc2, LZ4), of which a crop reads only the blocks it touches."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes

AIR = -1024  # HU that padding is filled with
CHUNK, BLOCK = 64, 16  # edges in voxels; small blocks waste least where a crop cuts them


def write_volume(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Store an integer array (D, H, W) as ``<folder>/<name>.b2nd``, atomically; equal arrays give equal bytes."""
    import blosc2

    chunks = tuple(min(CHUNK, n) for n in array.shape)
    stored = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=tuple(min(BLOCK, n) for n in chunks),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, nthreads=1),
    )
    write_bytes(folder / f"{name}.b2nd", stored.to_cframe())


class StoredVolume:
    """A volume of the store, opened when first read. May be pickled, forked and shared between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()  # a Blosc2 handle decompresses for one thread at a time
        self._handle: Any = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _open(self) -> Any:
        if self._handle is None:
            import blosc2

            if not self.path.exists():
                what = "is missing from the store"
                remedy = "Make it again: snakemake <your arguments> --forcerun ingest_scans --until check_cohort"
                raise NemesisError(Fault(str(self.path), what, remedy))
            # Not mapped into memory: a mapping holds a file descriptor, and cohorts have thousands of volumes.
            self._handle = blosc2.open(str(self.path), mode="r", dparams=blosc2.DParams(nthreads=1))
        return self._handle

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (D, H, W)."""
        return tuple(self._open().shape)

    def read(self, start: tuple[int, int, int], size: tuple[int, int, int], fill: int) -> NDArray[Any]:
        """The box of ``size`` voxels at ``start`` (D, H, W), in the stored type; beyond the far ends it is ``fill``.

        Raises:
            ValueError: the start lies outside the volume.
        """
        if self._process != os.getpid():  # forked: the parent's handle and lock are not ours
            self._forget()
        with self._lock:
            volume = self._open()
            if not all(0 <= s < n for s, n in zip(start, volume.shape, strict=True)):
                raise ValueError(f"start {start} lies outside the volume {volume.shape} of {self.path}")
            stop = [min(s + n, m) for s, n, m in zip(start, size, volume.shape, strict=True)]
            inside = volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
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
