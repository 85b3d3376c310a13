"""What every format gives: where the voxels lie, and the voxels slab by slab, so that no second copy of them ever exists."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.errors import Fault, NemesisError

AGAIN = "Copy or download it again."
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS mm (DICOM, MetaImage, most NRRD) → RAS mm


@dataclass(frozen=True)
class Raster:
    """A volume on its file's own axes (i, j, k), i the fastest; only the header has been read.

    shape: voxels (i, j, k); affine: 4×4, index → RAS mm; slabs: called once, yields values (n, j, i), n consecutive planes
    each, rescaled, native integers or floats, and raises NemesisError where they cannot be read to the end; packed: the files
    are compressed; bytes_claimed and bytes_on_disk: what the header says the voxels take unpacked, and what the files take;
    notes: what was done that a person should know, complete once all slabs were read.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    slabs: Callable[[], Iterator[NDArray[Any]]]
    packed: bool
    bytes_claimed: int
    bytes_on_disk: int
    notes: list[str] = field(default_factory=list)


def refusal(path: Path, what: str, remedy: str, passing: bool = False) -> NemesisError:
    """The one fault of a file."""
    return NemesisError(Fault(str(path), what, remedy, passing))


def by(shape: Any) -> str:
    """Sizes as people write them: 512×512×300."""
    return "×".join(str(n) for n in shape)


def check_regular(path: Path, root: Path | None) -> int:
    """Bytes of a file that may be opened: a regular one (a pipe or device would be read for ever), inside ``root``.

    Raises:
        NemesisError: it is missing, no regular file, or a link that leads out of ``root``.
    """
    try:
        real = path.resolve(strict=True)
        found = real.stat()
        inside = root is None or real.is_relative_to(root.resolve())
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", AGAIN, passing=True) from None
    except (RuntimeError, ValueError) as error:  # links in a circle; a name with a zero byte
        raise refusal(path, f"cannot be read ({error})", AGAIN) from None
    if not inside:
        raise refusal(path, "is a link that leads out of its folder", "Put the file itself there.")
    if not stat.S_ISREG(found.st_mode):
        raise refusal(path, "is no regular file", "Give a file.")
    return found.st_size


def leads_out(name: str) -> bool:
    """Whether a path that a file or a configuration names may lie outside of the folder that it is relative to."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def beside(header: Path, name: str, root: Path | None) -> Path:
    """The data file that a header names, which must lie in the header's folder or beneath it.

    Raises:
        NemesisError: the name leads elsewhere, or nothing is there.
    """
    if not PurePosixPath(name).parts or leads_out(name):
        what = f"says that its voxels are in {name!r}, outside of its folder"
        raise refusal(header, what, "Put the data file beside it, and its bare name into the header.")
    path = header.parent / name
    try:
        check_regular(path, root or header.parent)
    except NemesisError as error:
        what = f"says that its voxels are in {name!r}, which {error.faults[0].what}"
        raise refusal(header, what, "Put the data file beside it.", error.faults[0].passing) from None
    return path


def one_volume(path: Path, sizes: tuple[int, ...]) -> tuple[int, int, int]:
    """Voxels (i, j, k) of sizes of which a fourth and further ones are 1.

    Raises:
        NemesisError: it is a picture, a time series or empty.
    """
    if len(sizes) < 3 or any(n != 1 for n in sizes[3:]):
        raise refusal(path, f"is not a volume: its shape is {by(sizes)}", "Give one 3D scan per file.")
    if min(sizes) < 1:
        raise refusal(path, f"holds no voxel (its shape is {by(sizes)})", AGAIN)
    return sizes[0], sizes[1], sizes[2]
