"""Data files that the header of a MetaImage or NRRD file names: a scan has not changed only if they have not, either."""

from __future__ import annotations

import re
from pathlib import Path

from nemesis.data.formats.nrrd import MAGIC
from nemesis.data.formats.raster import leads_out
from nemesis.data.formats.text import LONGEST

NAMED = re.compile(rb"(?:^|\n)(?:ElementDataFile *=|data ?file:)[ \t]*([^\r\n]*)(.*)", re.S | re.I)


def files_beside(path: Path) -> list[str]:
    """Names, relative to the file's folder; none that leads out of it, for nothing would read that.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(LONGEST)
    if not head.startswith(MAGIC) and b"ObjectType" not in head[:1024] and b"NDims" not in head[:1024]:
        return []
    if head.startswith(MAGIC):
        head = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    found = NAMED.search(head)
    if not found or found[1].strip().upper() == b"LOCAL":
        return []
    lines = found[2].splitlines() if found[1].split()[:1] == [b"LIST"] else [found[1]]
    names = [line.strip().decode("utf-8", "replace") for line in lines if line.strip()]
    return [name for name in names if not leads_out(name) and name.isprintable()]
