"""Had an encoder seen the scans that it is judged on? The verdict that stands beside every result.

    clean          none of them: by patient, equal HU and signature where it was pretrained here, by the data sets that are named
                   where its weights were published
    transductive   some, without their labels, because the experiment asks for it
    overlap        its published weights were trained on data that hold them, or it was pretrained on some with their labels
    unknown        whoever published its weights does not say on what, or names data of which nobody here knows what they hold

A pure function of what was collected: the audit of the pools, and the data sets that the methods' cards name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from nemesis.report.published import plain

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["clean", "unknown", "transductive", "overlap"]
WORSE: tuple[Verdict, ...] = ("clean", "unknown", "transductive", "overlap")
NOTE = (
    "Leakage: whether an encoder had seen the scans that it is judged on. clean: none of them, by patient, equal HU and "
    "signature (published weights: by the data sets they name); transductive: some, without labels; overlap: its published "
    "weights were trained on data that hold them, or it learnt from their labels; unknown: nobody says on what."
)

# Data sets that hold scans of others, beside their own; of collections that grew, of the largest. What stands nowhere is unknown.
HOLDS: dict[str, tuple[str, ...]] = {
    "AbdomenAtlas": (
        "AbdomenCT-1K", "AMOS22", "BTCV", "CHAOS", "CT-ORG", "FLARE23", "KiTS23", "LiTS", "MSD Colon", "MSD Hepatic Vessel",
        "MSD Liver", "MSD Lung", "MSD Pancreas", "MSD Spleen", "Pancreas-CT", "TotalSegmentator", "WORD",
    ),
    "AbdomenCT-1K": ("KiTS23", "LiTS", "MSD Pancreas", "MSD Spleen", "Pancreas-CT"),
    "AMOS22": (),
    "BTCV": ("Synapse",),
    "CHAOS": (),
    "CT-ORG": ("LiTS",),
    "FLARE23": (
        "AbdomenCT-1K", "AMOS22", "MSD Colon", "MSD Hepatic Vessel", "MSD Lung", "TCIA-COVID19", "TotalSegmentator",
    ),
    "HNSCC": ("OpenKBP",),
    "KiTS23": (),
    "LIDC-IDRI": ("LUNA16",),
    "LiTS": ("MSD Liver",),
    "LUNA16": ("LIDC-IDRI",),
    "MSD Colon": (),
    "MSD Hepatic Vessel": (),
    "MSD Liver": ("LiTS",),
    "MSD Lung": (),
    "MSD Pancreas": (),
    "MSD Spleen": (),
    "OpenKBP": ("HNSCC",),
    "Pancreas-CT": (),
    "STOIC": (),
    "Synapse": ("BTCV",),
    "TCIA Colon": (),
    "TCIA-COVID19": (),
    "TotalSegmentator": (),
    "WORD": (),
}  # fmt: skip
_HOLDS = {plain(name): {plain(other) for other in others} for name, others in HOLDS.items()}


def of_weights(trained_on: Sequence[str], evaluated_on: Collection[str]) -> Verdict:
    """The verdict of published weights that were ``trained_on`` these data sets, where they are judged on one of these names."""
    seen, judged = _all_in(trained_on), _all_in(evaluated_on)  # of both, for the one may be a part of the other
    if seen & judged:
        return "overlap"
    return "clean" if seen and seen <= set(_HOLDS) and judged & set(_HOLDS) else "unknown"


def _all_in(names: Collection[str]) -> set[str]:
    """The data sets of these names, and all whose scans they hold."""
    found: set[str] = set()
    waiting = [plain(name) for name in names]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += _HOLDS.get(name, ())
    return found


def verdicts(spec: Mapping[str, Any], audit: pd.DataFrame, entry: Mapping[str, Any], trains: bool) -> dict[str, Verdict]:
    """Evaluation set → verdict of a run.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        audit: its pairs, as ``collect`` gathers them.
        entry: the run, of ``spec``; ``trained_on`` says what its published weights saw, and is None where it has none;
            ``learns_labels`` whether it was pretrained on label maps.
        trains: it was pretrained on the pretraining pool.
    """
    sections = {dataset["name"]: dataset for dataset in spec["config"]["datasets"]}
    pairs = zip(audit["pools"], audit["second"], strict=True)
    shared = {second.partition("/")[0] for pools, second in pairs if trains and pools.startswith("pretraining")}
    found: dict[str, Verdict] = {}
    for name in spec["datasets"]:
        told: list[Verdict] = ["clean" if name not in shared else "overlap" if entry["learns_labels"] else "transductive"]
        if entry["trained_on"] is not None and sections[name]["reader"] != "phantom":  # nobody else has these
            told.append(of_weights(entry["trained_on"], [name, sections[name].get("card") or name]))
        found[name] = max(told, key=WORSE.index)
    return found


def in_words(found: Mapping[str, Verdict]) -> str:
    """One word where all sets agree, else each verdict with its sets, the worst first."""
    by_verdict = {verdict: [name for name, told in found.items() if told == verdict] for verdict in reversed(WORSE)}
    told = {verdict: names for verdict, names in by_verdict.items() if names}
    if len(told) == 1:
        return next(iter(told))
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in told.items())
