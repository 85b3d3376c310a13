"""The papers' figures, and which of them belongs beside a measured one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

NEMESIS = "NEMESIS, arXiv 2604.01612"
MAESIL = "MAESIL (Masked Autoencoder for Enhanced Self-supervised Medical Image Learning)"

Paper = Mapping[Any, Any]  # a line of a published table


def load_published(paper: Literal["nemesis", "maesil"] = "nemesis") -> dict[str, Any]:
    """The figures that a paper prints, by table."""
    tables: dict[str, Any] = _published()[paper]
    return tables


@cache
def _published() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(files("nemesis.report").joinpath("published.yaml").read_text(encoding="utf-8"))
    return content


def published_figures(place: Sequence[Any]) -> list[float]:
    """The figures that stand at a place of published.yaml: keys, one after the other; a mapping among them chooses the lines of a
    table that have these values, all of them where it is empty.

    Raises:
        KeyError: there is no such place, or no figure there.
    """
    found: list[Any] = [_published()]
    for step in place:
        if isinstance(step, Mapping):
            found = [row for rows in found for row in rows if step.items() <= row.items()]
        else:
            found = [each[step] for each in found]
    if not found or not all(isinstance(figure, (int, float)) for figure in found):
        raise KeyError(f"no published figure at {list(place)}")
    return [float(figure) for figure in found]


def printed_name(spec: Mapping[str, Any], papers: Iterable[Paper], label: str) -> str | None:
    """What the paper calls a label's method; of several labels of one method only one that bears the paper's name is
    the paper's, the others are variants."""
    names = {plain(row["method"]): str(row["method"]) for row in papers}
    if plain(label) in names:
        return names[plain(label)]
    method = next((e["method"] for e in spec["runs"] if e["label"] == label), None)
    if method is None:
        return None
    alone = len({e["label"] for e in spec["runs"] if e["method"] == method}) == 1
    return names.get(plain(method)) if alone else None


def published_row(spec: Mapping[str, Any], papers: Sequence[Paper], label: str, **conditions: str) -> Paper:
    """The line of a published table that belongs to a label, and to ``conditions`` (say the protocol); empty without one."""
    wanted = conditions | {"method": printed_name(spec, papers, label)}
    return next((row for row in papers if all(row[name] == value for name, value in wanted.items())), {})


def unmatched(
    spec: Mapping[str, Any], papers: Sequence[Paper], records: Sequence[Mapping[str, Any]], *conditions: str
) -> list[Paper]:
    """The published lines that nothing here was measured for."""
    done = {(printed_name(spec, papers, r["method"]), *(r[name] for name in conditions)) for r in records}
    return [row for row in papers if (row["method"], *(row[name] for name in conditions)) not in done]


def published_note(spec: Mapping[str, Any], paper: str, on: Sequence[str], condition: str) -> str:
    """Whose figures, on which data, stand beside measured ones under which condition."""
    note = f"Published: {paper}, on {' + '.join(on)}; a figure stands beside a measured one of {condition} only."
    if {plain(d) for d in spec["datasets"]} != {plain(d) for d in on}:
        note += (
            f" These data are not the paper's ({', '.join(spec['datasets'])} instead of {' + '.join(on)}), nor need "
            "sizes and training be: the differences are for orientation and test no reproduction."
        )
    return note


def plain(name: str) -> str:
    """Letters and digits alone, so that spelling does not keep names apart."""
    return "".join(c for c in name.lower() if c.isalnum())
