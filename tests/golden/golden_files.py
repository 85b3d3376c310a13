"""What golden tests share: golden files beside the version they belong to.

Workflows compute again when a stage's version is raised and only then, so changed figures need a raised version.
``NEMESIS_UPDATE_GOLDEN=1`` takes what is computed now as golden: new words and new figures at any time, changed figures with a
raised version.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
DIGITS = 7  # of a number in a golden file
Value = float | int | str
Values = Mapping[str, Value | Sequence[Value]]


def takes_new(version: str, raised: bool, changed: Sequence[str], other: Sequence[str]) -> bool:
    """Whether what was computed now is to be written as golden; the test fails where it differs and may not.

    Args:
        version: name of the version that belongs to the golden files, for the message.
        raised: it is another than theirs.
        changed: figures that differ from the golden ones.
        other: differences that need no new version: words, figures that are new.
    """
    if changed and not raised:
        pytest.fail(f"figures changed: {', '.join(changed)}: bump {version}, then NEMESIS_UPDATE_GOLDEN=1")
    if os.environ.get("NEMESIS_UPDATE_GOLDEN") == "1":
        return True
    if raised:
        pytest.fail(f"{version} is not that of the golden files: if it was raised, NEMESIS_UPDATE_GOLDEN=1")
    if other:
        pytest.fail(f"changed, or new: {', '.join(other)}: if that is meant, NEMESIS_UPDATE_GOLDEN=1")
    return False


def check_figures(path: Path, name: str, version: object, values: Values, rel: float = 0.0, abs: float = 0.0) -> None:
    """Compare figures with a golden file, ``{"version": ..., "values": {name: number or list}}``.

    Args:
        path: the golden file.
        name: of the version, for the message.
        version: the stage's version now; with several stages a mapping.
        values: floats are compared within the tolerances (whichever is wider), whole numbers and text exactly.
        rel: relative tolerance, of the golden value.
        abs: absolute tolerance.
    """
    golden = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"version": None, "values": {}}
    was, now = golden["values"], {key: _short(value) for key, value in values.items()}
    changed = [key for key in was if key not in now or not _same(was[key], now[key], rel, abs)]
    added = [key for key in now if key not in was]
    if takes_new(name, golden["version"] != version, changed, added) and (changed or added or golden["version"] != version):
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in now.items())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"version": {json.dumps(version)}, "values": {{\n{lines}\n}}}}\n', encoding="utf-8")


def _short(value: Value | Sequence[Value]) -> Value | list[Value]:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return value if isinstance(value, int | str) else [_short(part) for part in value]


def _same(was: object, now: object, rel: float, abs: float) -> bool:
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(_same(a, b, rel, abs) for a, b in zip(was, now, strict=True))
    if isinstance(was, float) and isinstance(now, float):
        near = math.isclose(was, now, rel_tol=0.0, abs_tol=max(abs, rel * math.fabs(was)))
        return near or (math.isnan(was) and math.isnan(now))
    return type(was) is type(now) and was == now
