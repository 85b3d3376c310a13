"""Who is compared by a claim: the runs of a method, of an ablation or of a cell of the sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from nemesis.finetuning import ARMS
from nemesis.report.claims import Cell, Side, Variant
from nemesis.report.collect import REFERENCE_METHOD
from nemesis.report.published import plain
from nemesis.report.tables.measured import PROTOCOLS, Entries, Measured
from nemesis.report.tables.pieces import share


class NotMeasured(LookupError):
    """A side that this experiment did not measure: what is missing, and which key of the configuration would measure it."""


class Found(NamedTuple):
    """A side and its runs."""

    name: str  # as printed
    side: Side
    entries: Entries


def find(measured: Measured, side: Side, other: Found | None = None) -> list[Found]:
    """The side; of every cell but that of the ``other`` side, all of them.

    Raises:
        NotMeasured: it is not in the experiment.
    """
    if side.cell is not None:
        return _cells(measured, side, side.cell, other)
    if side.variant is not None:
        return [_variant(measured, side, side.variant)]
    for label, entries in measured.labels("methods").items():
        if entries[0]["method"] == side.method:
            return [Found(name_of(side, label), side, entries)]
    raise NotMeasured(f"{side.method} is not among the methods (`methods`)")


def name_of(side: Side, label: str | None = None) -> str:
    """As printed; ``label``: what the experiment calls the method."""
    if side.cell is not None:
        ratio = f"mask ratio {side.cell.mask_ratio:g}" if side.cell.mask_ratio is not None else None
        told = [side.cell.embed_dim, ratio, "every other cell" if side.cell.others else None]
    elif side.variant is not None:
        told = [f"{name} {value}" for name, value in side.variant.settings.items()]
        told += [f"{name} × {times:g}" for name in ("patch", "superpatch") if (times := getattr(side.variant, name)) != 1]
        told = told or ["as configured"]
    else:
        told = [label or side.method, PROTOCOLS[side.protocol] if side.protocol else None]
        told += [ARMS[side.arm] if side.arm != "pretrained" else None, side.dataset]
    told.append(f"{share(side.fraction)} of the labels" if side.fraction != 1 else None)
    return ", ".join(text for text in told if text)


def dataset_of(measured: Measured, side: Side) -> str | None:
    """The experiment's name of the dataset that a side is about; None: all.

    Raises:
        NotMeasured: none of its scans are evaluated.
    """
    if side.dataset is None:
        return None
    named = {plain(name): str(name) for name in measured.spec["datasets"]}
    if plain(side.dataset) not in named:
        raise NotMeasured(f"no scans of {side.dataset} (`pools.evaluation`)")
    return named[plain(side.dataset)]


# ---------------------------------------------------------------------------------------------------------- ablations


def _variant(measured: Measured, side: Side, wanted: Variant) -> Found:
    """The variant that differs from the method as configured in this alone, and hides as much."""
    variants = _of_nemesis(measured.labels("ablations"))
    if variants:
        base = _plan(measured, next(iter(variants.values())))
        asked = base | wanted.settings | {"patch": base["patch"] * wanted.patch}
        asked["superpatch"] = base["superpatch"] * wanted.superpatch
        for label, entries in variants.items():
            plan = _plan(measured, entries)
            if wanted.superpatch != 1:  # batches of another size hold as many voxels
                plan["pretraining"] = base["pretraining"]
            if plan == asked:
                if not math.isclose(_hidden(plan), _hidden(base), abs_tol=0.01):
                    raise NotMeasured(f"{label} hides {_hidden(plan):g} of a superpatch, as configured {_hidden(base):g}")
                return Found(label, side, entries)
    raise NotMeasured(f"no ablation {name_of(side)} (`ablations.variants`)")


def _of_nemesis(labels: Mapping[str, Entries]) -> dict[str, Entries]:
    """Ablations and sweep may be of any method; the claims are about those of NEMESIS."""
    return {label: entries for label, entries in labels.items() if entries[0]["method"] == REFERENCE_METHOD}


def _plan(measured: Measured, entries: Entries) -> dict[str, Any]:
    """The settings of these runs, with the patch's edge in voxels in place of the grid's."""
    identity = measured.identities[entries[0]["run"]]
    settings = {name: value for name, value in identity["settings"].items() if name != "grid"}
    edge = settings.get("patch") or identity["superpatch"] / identity["settings"].get("grid", 1)
    return settings | {"patch": float(edge), "superpatch": identity["superpatch"], "pretraining": identity["pretraining"]}


def _hidden(plan: Mapping[str, Any]) -> float:
    """Share of a superpatch under the mask."""
    return 1.0 - (1.0 - plan["plane_mask_ratio"]) * (1.0 - plan["axis_mask_ratio"])


# -------------------------------------------------------------------------------------------------------------- sweep


def _cells(measured: Measured, side: Side, wanted: Cell, other: Found | None) -> list[Found]:
    cells = list(_of_nemesis(measured.labels("sweep")).values())
    if measured.spec["config"].get("sweep") and measured.spec["config"]["sweep"]["search"] is not None:
        raise NotMeasured("a search evaluates its best trial alone (`sweep.search: null` evaluates every cell)")
    widths = [entries[0]["embed_dim"] for entries in cells]
    if wanted.embed_dim is not None and len(set(widths)) == 1:
        raise NotMeasured("the sweep has one width alone (`sweep.embed_dims`)")
    ends = {"narrowest": min(widths, default=0), "widest": max(widths, default=0), None: None}
    found = []
    for entries in cells:
        width, ratio = entries[0]["embed_dim"], entries[0]["mask_ratio"]
        if wanted.others:
            chosen = other is None or entries[0]["run"] != other.entries[0]["run"]
        else:
            chosen = width == ends[wanted.embed_dim] and math.isclose(ratio, wanted.mask_ratio or 0.0)
        if chosen:
            found.append(Found(f"{width} / {ratio:g}", side, entries))
    if not found:
        raise NotMeasured(f"no cell {name_of(side)} (`sweep`)")
    return found
