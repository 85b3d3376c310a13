"""No scan that an encoder is judged on may have been seen in pretraining, under whatever name, nor lie in two folds.

Pools are split by patient before anything is read, so a patient is in one of them. What that cannot see is a scan that two
datasets share, or that one holds twice: it is looked for among the ingested scans by the patient's name, by equal HU and by
signature (:mod:`nemesis.data.signature`), every pretraining scan against every evaluation scan and these among themselves.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemesis.data.pools import Member, read_pool
from nemesis.data.signature import AGREE, SIGNATURE, matches
from nemesis.data.store import AGAIN
from nemesis.errors import Fault, NemesisError
from nemesis.files import write_text

log = logging.getLogger(__name__)
Why = Literal["patient", "content", "signature"]
COUNTING = {  # words around a counter: `case_00001` and `lung_001` are somebody else in every dataset
    "abdomen", "body", "brain", "case", "chest", "colon", "ct", "head", "heart", "image", "img", "kidney", "liver", "lung",
    "neck", "organ", "pancreas", "pat", "patient", "pelvis", "pt", "s", "scan", "series", "spine", "spleen", "sub", "subj",
    "subject", "test", "thorax", "tr", "train", "training", "ts", "va", "val", "validation", "vol", "volume",
}  # fmt: skip
REMEDY = AGAIN.format("ingest_scans", "check_cohort")
TELLING, COUNTER = 6, 8  # characters of a name that tells a patient from all others; digits, where it has nothing else


@dataclass
class Pair:
    """Two scans (dataset/case) that are one, or of one patient: of either pool, or both of the evaluation pool.

    ``why`` says what they have in common; ``score`` (of the signatures), ``agree`` and ``common`` (key points) are None where
    the signatures do not match.
    """

    first: str
    second: str
    pools: Literal["pretraining, evaluation", "evaluation, evaluation"]
    why: list[Why] = field(default_factory=list)
    score: float | None = None
    agree: int | None = None
    common: int | None = None


def audit(spec: Mapping[str, Any]) -> None:
    """Job: write the audit as JSON, or stop with every pair.

    The JSON says ``transductive``, ``scans`` (pool → number), ``pairs`` (a list of :class:`Pair`), ``accepted`` (those of two
    people, whom no verdict counts) and ``not_compared``: scans of either pool that are too thin for a signature.

    Args:
        spec: ``index``, ``pretraining`` and ``evaluation`` (pools), ``out`` (files); ``transductive`` (whether the pools may
            share scans); ``accept`` (dataset/case: scans of people who only bear the name of others); ``version``.

    Raises:
        NemesisError: with every pair, where the pools share a scan and are not meant to, or where two evaluation patients do.
    """
    index = Path(spec["index"])
    pools = {name: read_pool(Path(spec[name])) for name in ("pretraining", "evaluation")}
    found = find_pairs(pools["pretraining"], pools["evaluation"], _known(index))
    accepted = [pair for pair in found.pairs if pair.why == ["patient"] and {pair.first, pair.second} & set(spec["accept"])]
    pairs = [pair for pair in found.pairs if pair not in accepted]
    wrong = [pair for pair in pairs if pair.pools.startswith("evaluation") or not spec["transductive"]]
    if wrong:
        raise NemesisError(list(_faults(wrong, pools)))
    if found.not_compared:
        told = "%d scans are too thin for a signature, and were compared by name and HU alone: %s"
        log.warning(told, len(found.not_compared), ", ".join(found.not_compared))
    content = {
        "transductive": spec["transductive"],
        "scans": {name: len(members) for name, members in pools.items()},
        "pairs": [asdict(pair) for pair in pairs],
        "accepted": [asdict(pair) for pair in accepted],
        "not_compared": found.not_compared,
    }
    write_text(Path(spec["out"]), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Known:
    """What is known of a stored scan: the hash of its HU and where its signature lies."""

    content_hash: str
    signature: Path


@dataclass(frozen=True)
class Found:
    """The pairs, sorted by name; and the scans (dataset/case) whose signature is too small to be compared."""

    pairs: list[Pair]
    not_compared: list[str]


def find_pairs(pretraining: Sequence[Member], evaluation: Sequence[Member], known: Mapping[str, Known]) -> Found:
    """Every pair of a pretraining and an evaluation scan, and of evaluation scans of two patients, that have something in common.

    Args:
        pretraining: the scans of that pool.
        evaluation: of that one.
        known: dataset/case → what is stored of it.
    """
    pairs: dict[tuple[bool, str, str], Pair] = {}

    def add(first: Member, second: Member, across: bool, why: Why) -> Pair:
        key = across, _name(first), _name(second)
        pools: Any = f"{'pretraining' if across else 'evaluation'}, evaluation"
        pair = pairs.setdefault(key, Pair(*key[1:], pools))
        pair.why.append(why)
        return pair

    thin: set[str] = set()
    judged = [_signature(member, known, thin) for member in evaluation]
    for across, members in ((True, pretraining), (False, evaluation)):
        by: list[tuple[Why, Any]] = [("patient", _person), ("content", lambda member: known[_name(member)].content_hash)]
        for why, told in by:
            others = defaultdict(list)
            for number, member in enumerate(evaluation):
                others[told(member)].append((number, member))
            for number, member in enumerate(members):
                for other_number, other in others.get(told(member), ()):
                    if across or (number < other_number and _patient(member) != _patient(other)):
                        add(member, other, across, why)
        signatures = (_signature(member, known, thin) for member in members) if across else judged
        for match in matches(signatures, judged):
            one, other = members[match.first], evaluation[match.second]
            if match.same and (across or (match.first < match.second and _patient(one) != _patient(other))):
                pair = add(one, other, across, "signature")
                pair.score, pair.agree, pair.common = round(match.score, 1), match.agree, match.common
    return Found([pairs[key] for key in sorted(pairs, key=lambda key: (not key[0], *key[1:]))], sorted(thin))


def _known(index: Path) -> dict[str, Known]:
    from pyarrow import parquet

    rows = parquet.read_table(index, columns=["dataset", "case", "content_hash", "store"]).to_pylist()
    return {
        f"{row['dataset']}/{row['case']}": Known(row["content_hash"], index.parent / f"{row['store']}.signature.npy")
        for row in rows
    }


def _signature(member: Member, known: Mapping[str, Known], thin: set[str]) -> NDArray[np.void]:
    """The signature of a scan, noted in ``thin`` where it is too small to be compared."""
    path = known[_name(member)].signature
    try:
        found: NDArray[np.void] = np.load(path)
        if found.dtype != SIGNATURE:
            raise ValueError("it holds something else")
    except (OSError, EOFError, ValueError) as error:
        raise NemesisError(Fault(str(path), f"cannot be read ({error})", REMEDY)) from None
    if len(found) < AGREE:
        thin.add(_name(member))
    return found


def _name(member: Member) -> str:
    return f"{member.dataset}/{member.case}"


def _patient(member: Member) -> str:
    return f"{member.dataset}/{member.patient}"


def _person(member: Member) -> str:
    """Equal for scans of one patient, in all datasets where the name tells patients of all apart, else in its own."""
    return member.patient if tells_a_patient(member.patient) else _patient(member)


def tells_a_patient(name: str) -> bool:
    """Whether a name is of one patient in all datasets, as ``LIDC-IDRI-0314`` or a UID, and no counter, as ``case_0001``."""
    words = [word for word in re.findall(r"[a-z]+|\d+", name.lower()) if word not in COUNTING]
    text = "".join(words)
    return len(text) >= (COUNTER if text.isdigit() else TELLING)


def _faults(pairs: Sequence[Pair], pools: Mapping[str, Sequence[Member]]) -> Iterator[Fault]:
    """A fault for each pair, and at the end the whole list to leave out."""
    leave: dict[str, None] = {}
    for pair in pairs:
        across = pair.pools.startswith("pretraining")
        # of its patient nothing can stay: other scans of a person are that person's, too
        name, pool = (pair.first, "pretraining") if across else (pair.second, "evaluation")
        patient = next(_patient(member) for member in pools[pool] if _name(member) == name)
        out = [_name(member) for member in pools[pool] if _patient(member) == patient]
        leave |= dict.fromkeys(out)
        role = "is pretrained on and would be evaluated on, as" if across else "would be another evaluation patient's, too, as"
        remedy = f"Go on without: `exclude: [{', '.join(out)}]`"
        remedy += ", or set `pools.transductive: true`, of which every table tells" if across else ", for it leaks across folds"
        remedy += f"; or, if these are two people, `accept: [{name}]`." if pair.why == ["patient"] else "."
        yield Fault(pair.first, f"{role} {pair.second} ({_told(pair)})", remedy)
    if len(pairs) > 1:
        yield Fault("pools", f"{len(pairs)} pairs in all", f"To go on without every one: `exclude: [{', '.join(leave)}]`.")


def _told(pair: Pair) -> str:
    told = {"patient": "the same patient by name", "content": "equal HU"}
    reasons = [told[why] for why in pair.why if why != "signature"]
    if pair.score is not None:
        reasons.append(f"the same acquisition by signature: {pair.agree} of {pair.common} key points agree")
    return "; ".join(reasons)
