"""From a configuration to the list of runs: who is pretrained on what, by which settings, under which name.

A run's identity is everything that its weights depend on. Labels, folders and resources are not part of it, so the same run is
computed once, whichever experiment, table or sweep asks for it. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nemesis.data
import nemesis.models
import nemesis.training
from nemesis.config import Config, MethodEntry, Pretraining, validate_section
from nemesis.errors import Fault, NemesisError
from nemesis.files import digest
from nemesis.method import create


@dataclass(frozen=True)
class Run:
    """One trained (or only initialised) network of the comparison.

    ``identity`` says what its bits depend on; ``id`` names its folder ``results/runs/<id>``.
    """

    id: str
    method: str
    label: str
    seed: int
    identity: dict[str, Any]

    @property
    def trains(self) -> bool:
        """False where nothing is learnt from unlabelled scans."""
        return self.identity["pretraining"] is not None

    @property
    def threads(self) -> int:
        """CPU threads that its training uses."""
        return int(self.identity["pretraining"]["threads"]) if self.trains else 1


def plan_runs(config: Config, pool: str) -> list[Run]:
    """Every run that the configuration asks for, in its order.

    Args:
        pool: digest of the pretraining pool: its scans' fingerprints.

    Raises:
        NemesisError: unknown methods, wrong settings, two entries under one label.
    """
    runs: list[Run] = []
    faults: list[Fault] = []
    labels: dict[str, int] = {}
    for place, entry in enumerate(config.methods):
        try:
            of_entry = _runs_of(config, entry, pool, f"methods[{place}]")
        except NemesisError as error:
            faults += error.faults
            continue
        label = of_entry[0].label
        if label in labels:
            what = f"'{label}' is the label of methods[{labels[label]}] too"
            faults.append(Fault(f"methods[{place}]", what, "Give each entry a `label` of its own."))
        labels[label] = place
        runs += of_entry
    if faults:
        raise NemesisError(faults)
    return runs


def _runs_of(config: Config, entry: MethodEntry, pool: str, where: str) -> list[Run]:
    method = create(entry.name, entry.settings, config.superpatch, where)
    recipe = validate_section(Pretraining, {**config.pretraining.model_dump(), **entry.pretraining}, f"{where}.pretraining")
    seeds = entry.seeds if entry.seeds is not None else config.seeds
    if not seeds:
        raise NemesisError(Fault(f"{where}.seeds", "is empty", "Name at least one seed, or leave the key out."))
    card = method.card
    runs = []
    for seed in seeds:
        identity = {
            "method": card.name,
            "method_version": card.version,
            "settings": method.settings.model_dump(mode="json"),
            "seed": seed,
            "superpatch": config.superpatch,
            "pretraining": recipe.model_dump(mode="json") if card.pretext else None,
            "preparation": config.preparation.model_dump(mode="json") if card.pretext else None,
            "pool": pool if card.pretext else None,
            "versions": {
                "models": nemesis.models.VERSION,
                **({"data": nemesis.data.VERSION, "training": nemesis.training.VERSION} if card.pretext else {}),
            },
        }
        runs.append(Run(f"{card.name}-s{seed}-{digest(identity)}", card.name, entry.label or card.title, seed, identity))
    return runs
