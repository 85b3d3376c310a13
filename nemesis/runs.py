"""From a configuration to the list of runs: who is pretrained on what, by which settings, under which name.

A run's identity is everything that its weights depend on. Labels, folders and resources are not part of it, so the same run is
computed once, whichever experiment, table, sweep or ablation asks for it. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import nemesis.data
import nemesis.models
import nemesis.training
from nemesis.config import Config, MethodEntry, Pretraining, Sweep, validate_section
from nemesis.data.views import Spacing
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.files import digest, file_sha256
from nemesis.method import Method, create, methods

Part = Literal["methods", "sweep", "ablations"]
AS_CONFIGURED = "as configured"


def _not_counted(method: Method[Any]) -> int:
    raise ValueError(f"nobody counts what {method.card.name} costs")


@dataclass(frozen=True)
class Material:
    """What runs learn from.

    pool: digest of the pretraining pool: its scans' fingerprints. labelled: the same of those of its scans that have label maps,
    and of these maps. label_numbers: dataset → name → number in the label maps of these. sha256: of a file of published weights.
    macs: multiply–accumulates of a method's pretext, forward, per sample.
    """

    pool: str
    labelled: str | None = None
    label_numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sha256: Callable[[Path], str] = file_sha256
    macs: Callable[[Method[Any]], int] = _not_counted

    @property
    def classes(self) -> list[str]:
        """Everything that some label map names."""
        return sorted({name for numbers in self.label_numbers.values() for name in numbers})


@dataclass(frozen=True)
class Run:
    """One trained (or only initialised) network, as one part of the report asks for it.

    ``identity`` says what its bits depend on; ``id`` names its folder ``results/runs/<id>``. Two parts that ask for the same
    network hold a run each, with one ``id``.
    """

    id: str
    method: str
    label: str
    seed: int
    identity: dict[str, Any]
    part: Part = "methods"
    weights: Path | None = None  # file of published weights
    place: Mapping[str, Any] = field(default_factory=dict)  # sweep: embed_dim, mask_ratio; ablations: group

    @property
    def trains(self) -> bool:
        """False where nothing is learnt from unlabelled scans."""
        return self.identity["pretraining"] is not None

    @property
    def pool(self) -> str | None:
        """Digest of the pool that it is trained on."""
        pool: str | None = self.identity["pool"]
        return pool

    @property
    def spacing(self) -> Spacing | None:
        """Voxel size (D, H, W) in mm of the views that it sees; None: the scans as prepared."""
        spacing = self.identity.get("spacing_mm")
        return None if spacing is None else (spacing[0], spacing[1], spacing[2])

    @property
    def threads(self) -> int:
        """CPU threads that its training uses."""
        return int(self.identity["pretraining"]["threads"]) if self.trains else 1


@dataclass(frozen=True)
class _Asked:
    """An entry as one part of the report asks for it; ``where`` it stands in the configuration."""

    entry: MethodEntry
    where: str
    part: Part = "methods"
    place: Mapping[str, Any] = field(default_factory=dict)
    superpatch: int | None = None


def plan_runs(config: Config, material: Material) -> list[Run]:
    """Every run that the configuration asks for, in its order: methods, then the sweep's cells, then the ablations.

    Raises:
        NemesisError: unknown methods, wrong settings, two entries or two variants under one label, several seeds of a search,
            published weights that are not there or that a method cannot load, labels to learn from that no scan has.
    """
    runs: list[Run] = []
    faults: list[Fault] = []
    labels: dict[tuple[Part, str], str] = {}
    for part in (_methods, _sweep, _ablations):
        try:
            for asked in part(config):
                try:
                    of_entry = _runs(config, asked, material)
                except NemesisError as error:
                    told = [(fault.what, fault.remedy) for fault in faults]
                    # a cell or variant has the faults of what it varies, and shares its own with the next: told once is enough
                    new = [f for f in error.faults if asked.part == "methods" or (f.what, f.remedy) not in told]
                    faults += new
                    continue
                label = of_entry[0].label
                if known := labels.get((asked.part, label)):
                    faults.append(Fault(asked.where, f"'{label}' is the label of {known} too", "Give each a `label` of its own."))
                labels[asked.part, label] = asked.where
                runs += of_entry
        except NemesisError as error:
            faults += error.faults
    if faults:
        raise NemesisError(list({str(fault): fault for fault in faults}.values()))
    if config.search is None:
        return runs
    if len(seeds := sorted({run.seed for run in runs if run.part == "sweep"})) > 1:
        what = f"an adaptive sweep trains each point once, but {len(seeds)} seeds are asked for ({', '.join(map(str, seeds))})"
        raise NemesisError(Fault("sweep.seeds", what, f"Name one, say `seeds: [{seeds[0]}]` in `sweep`, or leave `search` out."))
    return [run for run in runs if run.part != "sweep"]  # a search asks for its runs itself


def search_template(config: Config, material: Material) -> Run:
    """The run whose width and mask ratio an adaptive sweep varies: its first cell."""
    assert config.sweep is not None
    return _runs(config, next(_sweep(config)), material)[0]


def search_run(template: Mapping[str, Any], embed_dim: int, mask_ratio: float) -> Run:
    """The run of one point of an adaptive sweep; ``template`` is the identity of :func:`search_template`.

    Raises:
        NemesisError: settings that do not fit.
    """
    settings = template["settings"] | _settings_at(embed_dim, mask_ratio)
    method = create(template["method"], settings, template["superpatch"], "sweep.search")
    identity = {**template, "settings": method.settings.model_dump(mode="json")}
    label, place = _label_at(embed_dim, mask_ratio), {"embed_dim": embed_dim, "mask_ratio": mask_ratio}
    return Run(_run_id(identity), method.card.name, label, identity["seed"], identity, "sweep", place=place)


def is_searched(template: Mapping[str, Any], sweep: Sweep, run: Run) -> bool:
    """Whether an adaptive sweep may come upon a run that another part asks for; ``template`` as in :func:`search_run`."""
    embed_dim, ratio = (run.identity["settings"].get(name) for name in ("embed_dim", "plane_mask_ratio"))
    there = {**template, "settings": {**template["settings"], **_settings_at(embed_dim, ratio)}}
    return run.identity == there and embed_dim in sweep.embed_dims and min(sweep.mask_ratios) <= ratio <= max(sweep.mask_ratios)


def _methods(config: Config) -> Iterator[_Asked]:
    for place, entry in enumerate(config.methods):
        yield _Asked(entry, f"methods[{place}]")


def _sweep(config: Config) -> Iterator[_Asked]:
    if config.sweep is not None:
        base = _varied(config, config.sweep.method, "sweep")
        for embed_dim, mask_ratio in product(config.sweep.embed_dims, config.sweep.mask_ratios):
            yield _cell(base, config.sweep, embed_dim, mask_ratio, config.sweep.seeds)


def _cell(base: MethodEntry, sweep: Sweep, embed_dim: int, mask_ratio: float, seeds: Sequence[int] | None) -> _Asked:
    label = _label_at(embed_dim, mask_ratio)
    entry = _variant(base, label, _settings_at(embed_dim, mask_ratio), seeds, sweep.pretraining)
    return _Asked(entry, f"sweep: {label}", "sweep", {"embed_dim": embed_dim, "mask_ratio": mask_ratio})


def _settings_at(embed_dim: int, mask_ratio: float) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "plane_mask_ratio": mask_ratio, "axis_mask_ratio": mask_ratio}


def _label_at(embed_dim: int, mask_ratio: float) -> str:
    return f"E {embed_dim}, r {mask_ratio:g}"


def _ablations(config: Config) -> Iterator[_Asked]:
    if config.ablations is not None:
        seeds, shared = config.ablations.seeds, config.ablations.pretraining
        base = _varied(config, config.ablations.method, "ablations")
        yield _Asked(_variant(base, AS_CONFIGURED, {}, seeds, shared), "ablations", "ablations", {"group": ""})
        for number, variant in enumerate(config.ablations.variants):
            entry = _variant(base, variant.label, variant.settings, seeds, {**shared, **variant.pretraining})
            where, place = f"ablations.variants[{number}]", {"group": variant.group}
            yield _Asked(entry, where, "ablations", place, variant.superpatch)


def _varied(config: Config, name: str, where: str) -> MethodEntry:
    """The entry of ``methods`` of that label or name."""
    known: dict[str, MethodEntry] = {}
    registered = methods()
    for entry in reversed(config.methods):  # the first of a name wins
        title = registered[entry.name].card.title if entry.name in registered else entry.name
        known |= {entry.name: entry, entry.label or title: entry}
    if name not in known:
        remedy = did_you_mean(name, known, "Name the label of an entry of `methods`.")
        raise NemesisError(Fault(f"{where}.method", f"no entry of `methods` is called '{name}'", remedy))
    return known[name]


def _variant(
    base: MethodEntry, label: str, settings: Mapping[str, Any], seeds: Sequence[int] | None, pretraining: Mapping[str, Any]
) -> MethodEntry:
    changes = {
        "label": label,
        "settings": {**base.settings, **settings},
        "seeds": base.seeds if seeds is None else list(seeds),
        "pretraining": {**base.pretraining, **pretraining},
    }
    return base.model_copy(update=changes)


def _runs(config: Config, asked: _Asked, material: Material) -> list[Run]:
    entry, where = asked.entry, asked.where
    method = create(entry.name, entry.settings, asked.superpatch or config.superpatch, where)
    if entry.weights is not None and entry.pretraining:
        what = "changes the pretraining of a run that is not pretrained here, but judged with published weights"
        raise NemesisError(Fault(f"{where}.pretraining", what, "Leave it or `weights` out."))
    trains = method.card.pretext and entry.weights is None
    learns = trains and method.card.uses_labels
    if learns:
        method = create(entry.name, {**entry.settings, **_classes(method, material, where)}, method.superpatch, where)
    recipe = validate_section(Pretraining, {**config.pretraining.model_dump(), **entry.pretraining}, f"{where}.pretraining")
    if trains and "steps" not in entry.pretraining:
        recipe = recipe.model_copy(update={"steps": _steps(config, method, recipe, material)})
    seeds = entry.seeds if entry.seeds is not None else config.seeds
    if not seeds:
        raise NemesisError(Fault(f"{where}.seeds", "is empty", "Name at least one seed, or leave the key out."))
    card = method.card
    weights = _weights(method, entry.weights, material, where) if entry.weights is not None else None
    own_spacing = entry.spacing_mm is not None and entry.spacing_mm != config.preparation.spacing_mm
    runs = []
    for seed in seeds:
        identity = {
            "method": card.name,
            "method_version": card.version,
            "settings": method.settings.model_dump(mode="json"),
            "seed": seed,
            "superpatch": method.superpatch,
            "pretraining": _told(recipe) if trains else None,
            "preparation": config.preparation.model_dump(mode="json") if trains else None,
            **({"spacing_mm": list(entry.spacing_mm or ())} if own_spacing else {}),
            **({"label_numbers": {name: dict(numbers) for name, numbers in material.label_numbers.items()}} if learns else {}),
            **({"weights": weights} if weights else {}),
            "pool": (material.labelled if learns else material.pool) if trains else None,
            "versions": {
                "models": nemesis.models.VERSION,
                **({"data": nemesis.data.VERSION, "training": nemesis.training.VERSION} if trains else {}),
            },
        }
        file = Path(entry.weights) if entry.weights is not None else None
        label = entry.label or card.title
        runs.append(Run(_run_id(identity), card.name, label, seed, identity, asked.part, file, asked.place))
    return runs


def _classes(method: Method[Any], material: Material, where: str) -> dict[str, tuple[str, ...]]:
    """The classes that a method learns from label maps: those that its settings name, or all there are."""
    if material.labelled is None:
        what = f"{method.card.title} learns from label maps, but no scan of the pretraining pool has one"
        raise NemesisError(Fault(where, what, "Add scans with labels to it, name published `weights`, or leave the method out."))
    wanted, known = method.settings.classes or material.classes, material.classes
    if unknown := [name for name in wanted if name not in known]:
        remedy = did_you_mean(unknown[0], known, f"They name: {', '.join(known)}.")
        raise NemesisError(Fault(where, f"no label map of the pretraining pool names '{unknown[0]}'", remedy))
    return {"classes": tuple(wanted)}


def _steps(config: Config, method: Method[Any], recipe: Pretraining, material: Material) -> int:
    """Steps of a method's recipe that make the same budget as the shared recipe's."""
    shared = config.pretraining
    samples, own = shared.steps * shared.batch_size, recipe.batch_size
    if config.budget == "voxels":
        return math.ceil(samples * config.superpatch**3 / (own * method.draw().voxels))
    if config.budget == "flop":
        return math.ceil(samples * material.macs(_reference(config)) / (own * material.macs(method)))
    return shared.steps


def _reference(config: Config) -> Method[Any]:
    """The method whose FLOP all get: NEMESIS, or the first that is pretrained."""
    entries = [(f"methods[{place}]", entry) for place, entry in enumerate(config.methods) if entry.weights is None]
    created = [create(entry.name, entry.settings, config.superpatch, where) for where, entry in entries]
    trained = [method for method in created if method.card.pretext]
    return next((method for method in trained if method.card.name == "nemesis"), trained[0])


def _weights(method: Method[Any], name: str, material: Material, where: str) -> dict[str, str]:
    """Name and content of a file of published weights."""
    path, published = Path(name), method.card.published
    where = f"{where}.weights"
    if not published:
        raise NemesisError(Fault(where, f"{method.card.title} has no published weights", "Leave the key out."))
    if not path.is_file():
        offered = "; ".join(f"{one.file}: {one.source}" for one in published)
        raise NemesisError(
            Fault(where, f"{path} does not exist", f"Get the file from its authors ({offered}) and say where it lies.")
        )
    return {"file": path.name, "sha256": material.sha256(path)}


def _told(recipe: Pretraining) -> dict[str, Any]:
    """A recipe as identities tell it: keys that came later are left out at their defaults, which is what older runs did."""
    later = {name for name in ("sampling", "augmentation") if getattr(recipe, name) == getattr(Pretraining(), name)}
    return recipe.model_dump(mode="json", exclude=later)


def _run_id(identity: Mapping[str, Any]) -> str:
    return f"{identity['method']}-s{identity['seed']}-{digest(identity)}"
