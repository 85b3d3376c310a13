"""Who is pretrained on and who is evaluated on, and the folds and label fractions inside the evaluation pool.

Every choice ranks patients by a hash of their names and the seed, never by their place in a list: one patient more or
less hardly moves the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.config import PerDataset, Pools
from nemesis.data.cases import SCORED_KINDS, Case
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.files import write_text_if_changed

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
Wish = int | list[str] | PerDataset | None


@dataclass(frozen=True)
class Member:
    """A scan of a pool; ``label_fingerprint`` is None in a pool whose labels are not used."""

    dataset: str
    case: str
    patient: str
    fingerprint: str
    label_fingerprint: str | None


def split(cases: list[Case], pools: Pools) -> tuple[list[Case], list[Case]]:
    """The pretraining and the evaluation pool, by patient; both sorted by dataset and case.

    Evaluation patients have at least one exhaustive or partial label map. A name in a list is ``patient`` or
    ``dataset/patient``. A mapping asks for so many, or all, of each dataset it names and for nobody else.

    Raises:
        NemesisError: with every fault at once: names that do not exist, are ambiguous or stand twice, more patients
            asked for than there are, evaluation patients without labels, a patient in both lists without
            ``transductive``, an empty pool.
    """
    everyone = {f"{case.dataset}/{case.patient}" for case in cases}
    labelled = {f"{case.dataset}/{case.patient}" for case in cases if case.kind in SCORED_KINDS}
    faults: list[Fault] = []

    evaluation = _choose("evaluation", pools.evaluation, labelled, everyone, pools.seed, faults)
    for patient in sorted(evaluation - labelled):
        what = f"'{patient}' has no exhaustive or partial label map, so nothing can be scored on it"
        faults.append(Fault("pools.evaluation", what, "Take it off the list, or add its labels."))
    rest = everyone if pools.transductive is True else everyone - evaluation
    if not rest and pools.transductive == "if_needed":
        rest = everyone
        log.warning("pools: nobody but the evaluation patients is there, so it is they who are pretrained on (transductive)")
    pretraining = _choose("pretraining", pools.pretraining, rest, everyone, pools.seed, faults)
    for patient in sorted(pretraining - rest):
        what = f"'{patient}' is in the evaluation pool, too"
        faults.append(Fault("pools.pretraining", what, "Take it off either list, or set `transductive: true`."))
    if not pretraining and not faults:
        faults.append(Fault("pools", "no patient is left to pretrain on", "Ask for fewer evaluation patients."))
    if faults:
        raise NemesisError(faults)

    ordered = sorted(cases, key=lambda case: (case.dataset, case.case))
    first, second = ([c for c in ordered if f"{c.dataset}/{c.patient}" in pool] for pool in (pretraining, evaluation))
    return first, second


def _choose(pool: str, wish: Wish, eligible: set[str], everyone: set[str], seed: int, faults: list[Fault]) -> set[str]:
    where = f"pools.{pool}"
    if wish is None:
        return set(eligible)
    if isinstance(wish, int):
        if not 1 <= wish <= len(eligible):
            what = f"asks for {wish} patients, but there are {len(eligible)} {_eligible(pool)}"
            faults.append(Fault(where, what, "Ask for fewer, but at least one." if eligible else "Add scans."))
        return set(_ranked(eligible, pool, seed)[: max(0, wish)])
    if isinstance(wish, dict):
        return _choose_per_dataset(pool, wish, eligible, everyone, seed, faults)
    chosen: set[str] = set()
    for name in wish:
        fits = [name] if name in everyone else sorted(p for p in everyone if p.partition("/")[2] == name)
        if not fits:
            known = [*everyone, *(p.partition("/")[2] for p in everyone)]
            remedy = did_you_mean(name, known, "Take it off the list.")
            faults.append(Fault(where, f"there is no patient '{name}'", remedy))
        elif len(fits) > 1:
            faults.append(Fault(where, f"'{name}' may be {' or '.join(fits)}", "Write the dataset before the name."))
        elif fits[0] in chosen:
            faults.append(Fault(where, f"'{name}' stands twice", "Name every patient once."))
        chosen.update(fits)
    if not wish:
        faults.append(Fault(where, "the list is empty", "Name at least one patient, or say how many."))
    return chosen


def _choose_per_dataset(
    pool: str, wish: PerDataset, eligible: set[str], everyone: set[str], seed: int, faults: list[Fault]
) -> set[str]:
    datasets = sorted({patient.partition("/")[0] for patient in everyone})
    chosen: set[str] = set()
    for dataset, number in wish.items():
        patients = {patient for patient in eligible if patient.partition("/")[0] == dataset}
        count = max(1, len(patients)) if number == "all" else number
        if count and dataset not in datasets:
            remedy = did_you_mean(dataset, datasets, f"Known datasets: {', '.join(datasets)}.")
            faults.append(Fault(f"pools.{pool}", f"there is no dataset '{dataset}'", remedy))
        elif count > len(patients):
            what = f"asks for {number} patients of '{dataset}', but there are {len(patients)} {_eligible(pool)}"
            faults.append(Fault(f"pools.{pool}", what, "Ask for fewer; 0 leaves the dataset out."))
        chosen.update(_ranked(patients, pool, seed)[:count])
    return chosen


def _eligible(pool: str) -> str:
    return "with exhaustive or partial labels" if pool == "evaluation" else "left"


def write_pool(path: Path, cases: list[Case], labels: bool) -> None:
    """Write a pool; ``labels`` says whether label maps matter to its users.

    A pretraining pool is written without, so that its file (and the identity of what is trained on it) does not change
    when somebody draws another organ. A file that already says the same is not touched.
    """
    members = [
        {
            "dataset": case.dataset,
            "case": case.case,
            "patient": case.patient,
            "fingerprint": case.fingerprint,
            "label_fingerprint": case.label_fingerprint if labels else None,
        }
        for case in cases
    ]
    write_text_if_changed(path, json.dumps({"cases": members}, indent=1, ensure_ascii=False) + "\n")


def read_pool(path: Path) -> list[Member]:
    """The pool written by :func:`write_pool`."""
    return [Member(**member) for member in _members(path)]


def read_pool_table(path: Path) -> pa.Table:
    """The same as a table with a column for each attribute of :class:`Member`; of 100,000 cases in a third of a second."""
    import pyarrow as pa

    return pa.Table.from_pylist(_members(path), pa.schema([(field.name, pa.string()) for field in fields(Member)]))


def _members(path: Path) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return members


def folds(patients: Iterable[str], k: int, seed: int) -> list[list[str]]:
    """Test patients (sorted) of each of ``k`` folds, whose sizes differ by at most one.

    The order of ``patients`` does not matter.

    Raises:
        NemesisError: fewer patients than folds.
    """
    ranked = _ranked(patients, "folds", seed)
    if len(ranked) < k:
        what = f"{k} folds need at least {k} evaluation patients, but there are {len(ranked)}"
        raise NemesisError(Fault("probe.folds", what, "Lower `probe.folds`, or evaluate on more patients."))
    return [sorted(ranked[i::k]) for i in range(k)]


def label_subsets(train_patients: Iterable[str], fractions: Sequence[float], draw: int, seed: int) -> dict[float, list[str]]:
    """Patients (sorted) whose labels a draw uses, per fraction f: max(2, round(f·n)) of n, never more than there are.

    Within a draw a smaller fraction's patients are among a larger one's.
    """
    ranked = _ranked(train_patients, f"labels/{draw}", seed)
    return {f: sorted(ranked[: max(2, round(f * len(ranked)))]) for f in fractions}


def _ranked(patients: Iterable[str], purpose: str, seed: int) -> list[str]:
    return sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}/{purpose}/{patient}".encode()).digest())
