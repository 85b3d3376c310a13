"""The scans of a pool, as the store holds them: opened as they are needed, and few at a time, however many there are.

The index is a Parquet file of one row per case, and beside it, under the same name ending in `.maps`, lie the coarse foreground
maps of all scans, one after another, mapped into memory where they are asked for: a hundred thousand scans open within a second,
and sampling them touches no file but those that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Preparation, Sampling
from nemesis.data.foreground import MAP_EDGE, BlockSums, Position, bounds, map_shape
from nemesis.data.pools import Member, read_pool, read_pool_table
from nemesis.data.store import StoredVolume
from nemesis.errors import Fault, NemesisError

if TYPE_CHECKING:
    import pyarrow as pa

OPEN = 128  # volumes held open by a process: each holds a file descriptor, of which some systems give 256
OPENED = ("dataset", "case", "kind", "store", "shape", "fingerprint", "label_fingerprint", "hu_window", "map_offset")


class Scans:
    """The scans of a pool. May be pickled, forked and shared between threads.

    Raises:
        NemesisError: the index lacks a member of the pool, was made from other files than the pool or for another window, or
            cannot be read.
    """

    def __init__(self, pool: Path, index: Path, preparation: Preparation) -> None:
        from pyarrow import parquet

        self.preparation, self.pool, self.index = preparation, pool, index
        try:
            members, table = read_pool_table(pool), parquet.read_table(index, columns=list(OPENED))
        except (OSError, ValueError) as error:  # Arrow's are ValueErrors
            what = f"cannot be read, or {pool} cannot ({error})"
            raise NemesisError(Fault(str(index), what, "Run it again with --forcerun check_cohort check_views.")) from None
        rows = _of_members(members, table, pool, index)
        self._store, self._kind = rows["store"].combine_chunks(), rows["kind"].combine_chunks()
        self._shape = rows["shape"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
        self._offset = rows["map_offset"].to_numpy()
        windows = rows["hu_window"].combine_chunks().flatten().to_numpy().reshape(-1, 2)
        if (other := (windows != preparation.hu_window).any(axis=1)).any():
            what = f"was made for the window {windows[other][0].tolist()}, not {list(preparation.hu_window)} HU"
            raise NemesisError(Fault(str(index), what, "Run the workflow again from its data rules."))
        dataset = rows["dataset"].combine_chunks().dictionary_encode()
        self._dataset = dataset.indices.to_numpy()
        self._start()

    def _start(self) -> None:
        self._brightest: dict[tuple[int, int], Position] = {}
        self._volume = lru_cache(maxsize=OPEN)(self._stored)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("preparation", "pool", "index", "_store", "_kind", "_shape", "_offset", "_dataset")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return len(self._shape)

    @cached_property
    def cases(self) -> list[Member]:
        """The members of the pool, in its order."""
        return read_pool(self.pool)

    @cached_property
    def _rows(self) -> pa.Table:
        from pyarrow import parquet

        return _of_members(read_pool_table(self.pool), parquet.read_table(self.index), self.pool, self.index)

    def row(self, i: int) -> dict[str, Any]:
        """All that the index says of scan ``i`` (:func:`nemesis.data.gate.write_index`)."""
        (row,) = self._rows.slice(i, 1).to_pylist()
        return dict(row)

    def draw(self, random: np.random.Generator, sampling: Sampling) -> int:
        """A scan: each equally likely, or each dataset and then each of its scans, or each by its voxels."""
        if sampling == "scan":
            return int(random.integers(len(self)))
        if sampling == "size":
            return int(np.searchsorted(self._voxels, random.integers(self._voxels[-1]), side="right"))
        of_dataset = self._of_datasets[int(random.integers(len(self._of_datasets)))]
        return int(of_dataset[int(random.integers(len(of_dataset)))])

    @cached_property
    def _voxels(self) -> NDArray[np.int64]:
        """Voxels of all scans up to each."""
        return np.cumsum(self._shape.prod(axis=1), dtype=np.int64)

    @cached_property
    def _of_datasets(self) -> list[NDArray[np.int64]]:
        order = np.argsort(self._dataset, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self._dataset[order])) + 1)

    def shape(self, i: int) -> Position:
        """Voxels (D, H, W) of scan ``i``."""
        d, h, w = self._shape[i].tolist()
        return d, h, w

    def hu(self, i: int) -> StoredVolume:
        """HU of scan ``i``, int16 (D, H, W)."""
        return self._volume(i, "hu")

    def labels(self, i: int) -> StoredVolume | None:
        """Label map of scan ``i``, uint8 or uint16 (D, H, W); None where it has none."""
        return None if self._kind[i].as_py() == "none" else self._volume(i, "labels")

    def _stored(self, i: int, what: str) -> StoredVolume:
        return StoredVolume(self.index.parent / f"{self._store[i].as_py()}.{what}.b2nd", self.shape(i))

    @cached_property
    def _maps(self) -> NDArray[np.uint8]:
        path = self.index.with_suffix(".maps")
        sizes = np.prod(-(-self._shape // MAP_EDGE), axis=1)
        try:
            maps = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            what = f"cannot be read ({error})"
            raise NemesisError(Fault(str(path), what, "Run the workflow again from its data rules.")) from None
        if len(maps) < int((self._offset + sizes).max()):
            raise NemesisError(Fault(str(path), "is cut short", "Delete it and run the workflow again from its data rules."))
        return maps

    def foreground_bounds(self, i: int, start: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
        """:func:`nemesis.data.foreground.bounds` of a box of scan ``i``, of which no voxel is read."""
        shape, offset = self.shape(i), int(self._offset[i])
        cubes = map_shape(shape)
        coarse = self._maps[offset : offset + int(np.prod(cubes))].reshape(cubes)
        return bounds(coarse, shape, start, size, self.preparation.hu_window)

    def brightest(self, i: int, edge: int) -> Position:
        """Start of the crop of scan ``i`` that holds most foreground; reads the whole scan once.

        Raises:
            NemesisError: even this crop is empty.
        """
        if (i, edge) not in self._brightest:
            start, share = BlockSums(self.hu(i).whole(), self.preparation.hu_window).brightest(edge)
            if share < self.preparation.foreground_floor:
                case = f"{self.cases[i].dataset}/{self.cases[i].case}"
                what = f"holds no superpatch of {edge} voxels above the foreground floor"
                raise NemesisError(Fault(case, what, f"Go on without it: `exclude: [{case}]`."))
            self._brightest[i, edge] = start
        return self._brightest[i, edge]


def _of_members(members: pa.Table, table: pa.Table, pool: Path, index: Path) -> pa.Table:
    """The rows of an index that belong to the members of a pool, in the pool's order.

    Raises:
        NemesisError: for every member that the index lacks, or of which it holds other files.
    """
    import pyarrow.compute as pc

    def names(of: pa.Table) -> Any:
        return pc.binary_join_element_wise(of["dataset"], of["case"], "/")

    rows = table.take(pc.index_in(names(members), names(table)))
    lacking = pc.is_null(rows["dataset"])
    other = pc.not_equal(members["fingerprint"], rows["fingerprint"])
    # a pool whose labels are not used says nothing of them: its null compares to null
    other = pc.or_(other, pc.fill_null(pc.not_equal(members["label_fingerprint"], rows["label_fingerprint"]), False))
    wrong = np.flatnonzero(pc.or_(lacking, pc.fill_null(other, False)).to_numpy())
    faults = []
    for name, lacks in zip(names(members).take(wrong).to_pylist(), lacking.take(wrong).to_pylist(), strict=True):
        what = f"{'lacks' if lacks else 'holds other files of'} {name}, a member of {pool}"
        faults.append(Fault(str(index), what, "Run the workflow again from its data rules."))
    if faults:
        raise NemesisError(faults)
    return rows
