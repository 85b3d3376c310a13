"""What a look at a file said, remembered: a file that did not change is not opened again.

Listing 100,000 scans means a fingerprint of each; the first time it reads them, afterwards it asks for their size, times
and inode only. The memory is a small SQLite file that may be shared by workflows, be lost or be damaged: then files are
looked at again. It is never the only place of anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)
BLOCK = 64 * 1024  # bytes of a file that one look of the fingerprint takes in
LOOKS = 6  # blocks taken from a file too large to be read whole
SETTLED = 2.0  # s; a file younger than that may change again within the same tick of its time stamp
BATCH = 1000  # looks between two writes: what an interrupted listing loses at most
WAIT = 30.0  # s for another workflow to finish its write


def fingerprint(path: Path) -> str:
    """A quick sha256 of a file: its size and evenly spread blocks, the first and the last always among them.

    Small files are hashed whole. In a gzip file the last bytes are the checksum of all the rest, so any change shows;
    in a large uncompressed file a change of the same length between the blocks would not.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= LOOKS * BLOCK:
            digest.update(file.read())
        else:
            for look in range(LOOKS):
                file.seek((size - BLOCK) * look // (LOOKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


class Seen:
    """The memory of looks at files, to be used in a ``with``; ``path=None`` remembers nothing.

    A look is remembered for exactly one state of a file: size, modification and change time (which no program can set
    back) and inode.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._new: list[tuple[str, str, str, str]] = []

    def __enter__(self) -> Seen:
        if self._path is not None and self._path.exists():
            self._try(self._open)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._write()
        if self._connection is not None:
            self._connection.close()

    def of(self, file: Path, what: str, look: Callable[[Path], Any]) -> Any:
        """``look(file)``, a JSON value, or what it was when the file was in the same state.

        Args:
            what: name of the look, another one whenever the same file would give another answer.

        Raises:
            OSError: the file cannot be read; whatever ``look`` raises.
        """
        now, state = time.time(), os.stat(file)
        mark = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
        name = os.path.abspath(file)
        known = self._try(lambda: self._known(name, what))
        if known is not None and known[0] == mark:
            return known[1]
        value = look(file)
        if self._path is not None and now - max(state.st_mtime, state.st_ctime) > SETTLED and name.isprintable():
            self._new.append((name, what, mark, json.dumps(value)))
            if len(self._new) >= BATCH:
                self._write()
        return value

    def _known(self, name: str, what: str) -> Any:
        if self._connection is None or not name.isprintable():  # undecodable names do not go into SQLite
            return None
        row = self._connection.execute("SELECT state, value FROM seen WHERE file = ? AND what = ?", (name, what)).fetchone()
        return row and (row[0], json.loads(row[1]))

    def _write(self) -> None:
        new, self._new = self._new, []
        if new:
            self._try(lambda: self._insert(new))

    def _insert(self, new: list[tuple[str, str, str, str]]) -> None:
        if self._connection is None:
            self._open()
        assert self._connection is not None
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", new)

    def _open(self) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self._path, timeout=WAIT)
        columns = "file TEXT, what TEXT, state TEXT, value TEXT, PRIMARY KEY (file, what)"
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS seen ({columns}) WITHOUT ROWID")

    def _try(self, step: Callable[[], Any]) -> Any:
        """A step that may fail: then the listing goes on without its memory."""
        try:
            return step()
        except (sqlite3.Error, OSError, ValueError) as error:
            assert self._path is not None
            damaged = not isinstance(error, (sqlite3.OperationalError, OSError))
            if self._connection is not None:
                self._connection.close()
            self._connection, path = None, self._path
            if damaged:
                path.unlink(missing_ok=True)  # made again by the next write
                log.warning("%s is damaged (%s): made again, all files are looked at", path, error)
            else:
                self._path = None
                log.warning("%s cannot be used (%s): all files are looked at", path, error)
            return None
