"""Files that are either whole or absent."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.errors import Fault, NemesisError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, to be filled: it takes that name once it is whole and on disk, or vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:  # opened again: who fills it may have put another file in its place
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock collaborators out of shared results
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Before the work for it starts.

    Raises:
        NemesisError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise NemesisError(Fault(str(path), "is a folder", "Name a file."))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise NemesisError(Fault(str(path), f"cannot be written ({error.strerror or error})", "Name another place.")) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write text atomically as UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_text_if_changed(path: Path, content: str) -> None:
    """Write text atomically unless the file already says exactly that, so that its time stamp tells of real changes."""
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_text(path, content)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table atomically, without pandas' metadata, which carries library versions: equal content, equal bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays atomically as a compressed .npz."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """12 hex digits that name a JSON value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
