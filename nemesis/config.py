"""The configuration: one pydantic model, from which the JSON schema and the key table are generated.

A file is complete or says ``extends: other.yaml`` (a path relative to the file); mappings are merged key by key, anything
else is replaced. Unknown keys are refused. Nothing here imports torch: the workflow is planned from this module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from nemesis.datasets import CardDataset, DicomTree, Entry, NnunetFolder, PhantomCohort, ScanFiles
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.evaluation.backbones import Network
from nemesis.finetuning import Finetuning
from nemesis.section import Different, Positive, Section
from nemesis.section import key as key

SHARED_FOLDERS = ("data", "finetuned", "mlartifacts", "pools", "runs")  # of results/
PROBE_ORGANS = ["aorta", "gallbladder", "spleen", "left kidney", "right kidney", "liver", "stomach", "pancreas"]
MIN_EVALUATION_PATIENTS = 3  # with fewer, no fold leaves two patients to train on
MIN_PATIENTS_FOR_SELECTION = 5  # training patients; with fewer there is no inner validation

Momentum = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Sampling = Literal["scan", "dataset", "size"]


class Preparation(Section):
    """How a scan becomes numbers in [0, 1]; part of every run's identity."""

    hu_window: tuple[float, float] = key((-175.0, 250.0), "Window that is mapped linearly to [0, 1] and clipped", "HU")
    spacing_mm: tuple[Positive, Positive, Positive] | None = key(
        None, "Voxel size to resample to, in (D, H, W) order; null keeps the native grid", "mm"
    )
    foreground_floor: float = key(
        0.05,
        "A superpatch whose mean (after windowing) is below this is empty: redrawn in training, an easy negative in evaluation",
        "[0, 1]",
        ge=0,
        lt=1,
    )
    max_draws: int = key(32, "Tries to find a crop above the foreground floor; a scan that never yields one is refused",
                         "tries", ge=1)  # fmt: skip

    @model_validator(mode="after")
    def _window_is_ordered(self) -> Preparation:
        if self.hu_window[0] >= self.hu_window[1]:
            raise ValueError("hu_window must be [low, high] with low < high")
        return self


PerDataset = dict[str, Annotated[int, Field(ge=0)] | Literal["all"]]  # dataset → patients


class Pools(Section):
    """Patients are split once, into a pretraining pool and an evaluation pool."""

    seed: int = key(0, "Seed of the split", ge=0)
    evaluation: int | list[str] | PerDataset = key(
        ...,
        "Evaluation patients: how many (drawn by seed among patients with exhaustive or partial labels), how many or `all` of "
        "each dataset that is named, or a list of names",
        "patients",
    )
    pretraining: int | list[str] | PerDataset | None = key(
        None,
        "Pretraining patients among the rest: how many, how many or `all` of each dataset that is named, a list of names, or "
        "null for all",
        "patients",
    )
    transductive: bool | Literal["if_needed"] = key(
        False,
        "Let the pretraining pool hold the evaluation patients too; every table says so. if_needed: only where no other "
        "patient is left to pretrain on",
    )


class Augmentation(Section):
    """Random changes of every crop, made on the training device; none as it stands."""

    flip: float = key(0.0, "Probability of a mirror image, along each axis by itself", "[0, 1]", ge=0, le=1)
    rotate: float = key(0.0, "Probability of a turn by 90°, 180° or 270° within the axial plane", "[0, 1]", ge=0, le=1)
    shift: float = key(0.0, "Probability that all values of a crop are raised or lowered alike", "[0, 1]", ge=0, le=1)
    shift_size: float = key(0.1, "By how much at most, either way; the result is clipped to [0, 1]", "[0, 1] units", ge=0, le=1)


class Pretraining(Section):
    """The recipe shared by all methods; part of a run's identity."""

    steps: int = key(400, "Optimiser steps", "steps", ge=1)
    batch_size: int = key(16, "Superpatches per step, over all devices", "superpatches", ge=1)
    learning_rate: float = key(1e-4, "Peak learning rate of AdamW", gt=0)
    min_learning_rate: float = key(1e-6, "Learning rate at the end of the cosine", ge=0)
    warmup_fraction: float = key(0.1, "Share of the steps with linear warm-up (released: 5 of 50 epochs)", "[0, 1]", ge=0, le=1)
    weight_decay: float = key(0.05, "Weight decay of AdamW", ge=0)
    betas: tuple[Momentum, Momentum] = key((0.9, 0.95), "Momentum coefficients of AdamW")
    clip_norm: float = key(1.0, "Gradient norm is clipped to this", gt=0)
    precision: Literal["auto", "32-true", "bf16-mixed"] = key(
        "auto", "Arithmetic; auto is bf16-mixed where the device computes it, else 32-true"
    )
    compile: bool = key(False, "torch.compile the network; slower to start, other last bits")
    threads: int = key(1, "CPU threads of a training process, whatever --cores says (the count changes bits)", "threads", ge=1)
    sampling: Sampling = key(
        "scan",
        "Whose turn is equally likely with every crop: each scan's, each dataset's (then any of its scans') or each voxel's",
    )
    augmentation: Augmentation = key(Augmentation(), "Random changes of every crop")


class MethodEntry(Section):
    """One method of the comparison; ``- ae`` is short for ``- name: ae``."""

    name: str = key(..., "Registered name of the method")
    label: str | None = key(None, "Name to print; null takes the card's title")
    seeds: Annotated[list[Seed], Different] | None = key(None, "Seeds of this method; null takes the common list")
    settings: dict[str, Any] = key({}, "The method's own keys (tables below)")
    pretraining: dict[str, Any] = key({}, "Keys of `pretraining` that differ for this method")
    weights: str | None = key(
        None,
        "File of weights that the method's authors publish (`nemesis methods <name>`): judged with them, not pretrained here",
        "path",
    )
    spacing_mm: tuple[Positive, Positive, Positive] | None = key(
        None,
        "Voxel size, in (D, H, W) order, of the scans that this method learns from, where it is not the preparation's; it is "
        "judged by the same superpatches as all, each seen at this voxel size, but not by its reconstructions",
        "mm",
    )


class Probe(Section):
    """How frozen encoders are judged."""

    folds: int = key(5, "Folds by patient inside the evaluation pool", "folds", ge=2)
    split_seed: int = key(0, "Seed of folds and label-fraction draws", ge=0)
    label_fractions: Annotated[list[float], Different] = key(
        [0.1, 0.25, 0.5, 1.0],
        "Shares of the training patients whose labels are used; nested, at least 2 patients",
        "(0, 1]",
        min_length=1,
    )
    draws: int = key(5, "Repetitions of each label fraction below 1", "draws", ge=1)
    protocols: Annotated[list[Literal["linear", "knn", "linear_official"]], Different] = key(
        ["linear", "knn"],
        "Frozen protocols; `linear_official` is the head of the released code, which shows in a table of its own what choosing "
        "its epoch on test patients is worth, and nowhere else",
        min_length=1,
    )
    positive_voxels: int = key(
        100,
        "A superpatch is positive for an organ with more voxels of it than this; of a variant's size, than the same share",
        "voxels",
        ge=0,
    )
    regularisation: list[Positive] = key(
        [0.01, 0.1, 1.0, 10.0],
        "Inverse L2 strengths C tried by inner cross-validation over training patients",
        "1/L2",
        min_length=1,
    )
    fixed_regularisation: float = key(
        0.1, "C where there are fewer than 5 training patients; such cells are marked", "1/L2", gt=0
    )
    neighbours: int = key(15, "Neighbours of the k-NN protocol (cosine similarity)", "superpatches", ge=1)
    precision: Literal["auto", "32-true", "bf16-mixed"] = key(
        "auto", "Arithmetic of the frozen networks; auto is bf16-mixed where the device computes it, else 32-true"
    )
    threads: int = key(1, "CPU threads of an evaluation process (the count changes last bits)", "threads", ge=1)
    bootstrap: int = key(10_000, "Bootstrap resamples of patients behind each interval", "resamples", ge=100)

    @model_validator(mode="after")
    def _something_is_probed(self) -> Probe:
        if self.protocols == ["linear_official"]:
            raise ValueError("protocols must name linear or knn: linear_official enters no comparison")
        return self

    @model_validator(mode="after")
    def _fractions_are_shares(self) -> Probe:
        if any(not 0 < f <= 1 for f in self.label_fractions):
            raise ValueError("label_fractions must lie in (0, 1]")
        return self


class Lpips(Section):
    """Perceptual distance of slices, by the features of a network that was trained on photographs."""

    network: Network = key("alex", "Network whose features are compared: AlexNet, VGG16 or SqueezeNet 1.1")
    weights: str | None = key(
        None,
        "File of its weights as torchvision publishes them (alexnet-owt-7be5be79.pth, vgg16-397923af.pth or "
        "squeezenet1_1-b8a52dc0.pth); null takes it from torch.hub's cache folder and, where it is not there, leaves LPIPS out",
        "path",
    )


class Reconstruction(Section):
    """How reconstructions are judged and drawn."""

    mask_seed: int = key(0, "Seed of the fixed evaluation masks", ge=0)
    unmasked: bool = key(True, "Reconstruct from the whole input, too, for half of the time; sweep and ablations never do")
    stitched: Literal["all"] | list[str] = key(
        "all",
        "Evaluation cases (dataset/case) to judge as whole stitched volumes, too; the first also gives the figure. An empty list "
        "takes the first evaluation case, which is all that sweep and ablations do",
        "cases",
    )
    lpips: Lpips = key(Lpips(), "Perceptual distance of reconstructions")

    def volumes(self, pool: Sequence[str]) -> list[str]:
        """The cases (dataset/case) of the evaluation pool to reconstruct as whole volumes; the first gives the figure.

        Raises:
            NemesisError: cases that the pool does not hold.
        """
        if self.stitched == "all":
            return list(pool)
        faults = []
        for name in self.stitched:
            if name not in pool:
                remedy = did_you_mean(name, pool, f"Its cases: {', '.join(pool)}.")
                faults.append(Fault("reconstruction.stitched", f"'{name}' is no case of the evaluation pool", remedy))
        if faults:
            raise NemesisError(faults)
        return self.stitched or list(pool[:1])


class Search(Section):
    """An adaptive sweep: TPE proposes the next point, median pruning gives up what falls behind."""

    trials: int = key(
        20,
        "Trials in all: complete, pruned or failed for good. A larger number goes on with the same search; one below those that "
        "have ended begins none, and all that have ended count",
        "trials",
        ge=1,
    )
    workers: int = key(
        2, "Trials at the same time, each a process with the training's threads; fewer where --cores does not suffice",
        "processes", ge=1,
    )  # fmt: skip
    startup: int = key(5, "Trials at random points before TPE proposes and before anything is pruned", "trials", ge=0)
    rungs: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Different] = key(
        [0.25, 0.5], "Shares of the steps at which a trial's inner validation score is told to the pruner", "(0, 1)"
    )
    seed: int = key(0, "Seed of the proposals", ge=0)


class Sweep(Section):
    """Embedding width × mask ratio of one method on the NEMESIS network (NEMESIS Table V)."""

    method: str = key("NEMESIS", "Label (or name) of the entry of `methods` that is varied")
    embed_dims: Annotated[list[Annotated[int, Field(ge=1)]], Different] = key(
        [384, 576, 768], "Widths E of a token", "numbers", min_length=1
    )
    mask_ratios: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Different] = key(
        [0.25, 0.5, 0.75],
        "Shares r that are hidden within planes and along the axis alike, in all 1 − (1 − r)² of the tokens; a search takes "
        "steps of 0.05 from the smallest to the largest",
        "(0, 1)",
        min_length=1,
    )
    seeds: Annotated[list[Seed], Different] | None = key(
        None, "Seeds of every cell; null takes the common list. A search trains each point once: it takes one seed"
    )
    pretraining: dict[str, Any] = key({}, "Keys of `pretraining` that differ in the sweep, say its steps")
    search: Search | None = key(None, "An adaptive search in place of the grid; null computes every cell")


class Variant(Section):
    """One row of the ablation table: what differs from the method as configured."""

    label: str = key(..., "Name to print")
    group: str = key(..., "What is varied: rows of one group stand together, say `masking`")
    settings: dict[str, Any] = key({}, "The method's keys that differ")
    superpatch: int | None = key(None, "Edge of the superpatch, where it differs", "voxels", ge=8)
    pretraining: dict[str, Any] = key({}, "Keys of `pretraining` that differ")


class Ablations(Section):
    """Variants of one method, each trained and judged alike (NEMESIS Table IV and Figure 5)."""

    method: str = key("NEMESIS", "Label (or name) of the entry of `methods` that is varied; as configured it is the first row")
    seeds: Annotated[list[Seed], Different] | None = key(None, "Seeds of every variant; null takes the common list")
    pretraining: dict[str, Any] = key({}, "Keys of `pretraining` that differ in all ablations, say their steps")
    variants: list[Variant] = key(..., "What is varied", min_length=1)


class Config(Section):
    """The whole experiment."""

    experiment: str = key(..., "Name of the experiment: its results lie in results/<experiment>/", pattern=r"^[A-Za-z0-9_-]+$")
    data_root: str | None = key(None, "Folder of the raw scans, in which the datasets' own roots lie", "path")
    exclude: list[str] = key([], "Cases (dataset/case) to go on without", "cases")
    accept: list[str] = key(
        [],
        "Cases (dataset/case) that were looked at and are right as they are, though their labels contradict anatomy or their "
        "patient bears the name of another dataset's",
        "cases",
    )
    datasets: list[Entry] = key(..., "Where the scans come from", min_length=1)
    preparation: Preparation = key(Preparation(), "How a scan becomes numbers in [0, 1]")
    pools: Pools = key(..., "Who is pretrained on and who is evaluated on")
    superpatch: int = key(128, "Edge of a superpatch, the cube that a method sees", "voxels", ge=8)
    organs: Annotated[list[str], Different] = key(
        PROBE_ORGANS, "Organs whose presence is probed, as named by the dataset's labels", min_length=1
    )
    seeds: Annotated[list[Seed], Different] = key([0], "Pretraining seeds", min_length=1)
    methods: list[Annotated[MethodEntry, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]] = key(
        ..., "The methods to compare", min_length=1
    )
    pretraining: Pretraining = key(Pretraining(), "The recipe shared by all methods")
    budget: Literal["voxels", "flop", "steps"] = key(
        "voxels",
        "What every pretraining gets alike: voxels seen, FLOP (of NEMESIS, or of the first method that is pretrained) or steps. "
        "The shared recipe says how much; a method's own `batch_size` is taken, its own `steps` is another budget",
    )
    probe: Probe = key(Probe(), "How frozen encoders are judged")
    reconstruction: Reconstruction = key(Reconstruction(), "How reconstructions are judged and drawn")
    finetune: Finetuning | None = key(None, "How encoders are fine-tuned on labels; null leaves it out")
    sweep: Sweep | None = key(None, "Embedding width × mask ratio; null leaves it out")
    ablations: Ablations | None = key(None, "Variants of one method; null leaves them out")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "Where networks run; auto takes a GPU where there is one")
    ingest_shard: int = key(500, "Scans that a job of ingestion deals with, about; never changes results", "scans", ge=1)
    quality_every: int | None = key(
        None, "The data's quality page shows slices of every n-th scan of a dataset; null shows about a dozen", "scans", ge=1
    )
    loader_workers: int = key(0, "Processes that cut crops beside a training process; never changes results", "processes", ge=0)
    state_every: int = key(
        100, "Steps between two saved states that an interrupted training resumes from, rounded up to a multiple of 10", "steps",
        ge=1,
    )  # fmt: skip

    @property
    def largest_superpatch(self) -> int:
        """The largest edge that anything is trained on: a scan that yields no crop of it is refused."""
        variants = self.ablations.variants if self.ablations else []
        return max([self.superpatch, *(variant.superpatch for variant in variants if variant.superpatch)])

    @property
    def search(self) -> Search | None:
        """The adaptive search, where the sweep is one."""
        return self.sweep.search if self.sweep else None

    @model_validator(mode="after")
    def _experiment_takes_no_shared_folder(self) -> Config:
        if self.experiment in SHARED_FOLDERS:
            raise ValueError(f"experiment must not be called '{self.experiment}': results/{self.experiment}/ is shared by all")
        return self

    @model_validator(mode="after")
    def _cells_can_be_probed(self) -> Config:
        if (self.sweep or self.ablations) and "linear" not in self.probe.protocols:
            raise ValueError("sweep and ablations are compared by the linear probe: probe.protocols must name it")
        return self

    @model_validator(mode="after")
    def _held_out_folds_are_folds(self) -> Config:
        if self.finetune and (self.finetune.folds_held_out or 1) > self.probe.folds:
            raise ValueError(f"finetune.folds_held_out must be at most the {self.probe.folds} of probe.folds")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        names = [d.name for d in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f"datasets must have different names, not {names}")
        return self


def merged(paths: list[Path], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One or more YAML files (later ones win) with ``extends`` resolved and flat overrides applied, not yet validated.

    Raises:
        NemesisError: a file is missing, not YAML, or extends itself.
    """
    raw: dict[str, Any] = {}
    for path in paths:
        raw = _merge(raw, _read(path, ()))
    return _merge(raw, dict(overrides or {}))


T = TypeVar("T", bound=Section)


def validate_section(section: type[T], raw: Mapping[str, Any], where: str) -> T:
    """A section of a mapping.

    Raises:
        NemesisError: with every unknown key and wrong value at once.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise NemesisError([fault_of(where, e) for e in error.errors()]) from None


def without_unknown_keys(raw: Mapping[str, Any], where: str) -> tuple[Config | None, list[Fault]]:
    """The configuration of a merged mapping, with its faults.

    Where unknown keys are the only faults, what is left is understood, so that faults of the data are told in the same breath.
    """
    try:
        return Config.model_validate(raw), []
    except ValidationError as error:
        errors = error.errors()
    faults = [fault_of(where, e) for e in errors]
    pruned = copy.deepcopy(dict(raw))
    for e in errors:
        if e["type"] == "extra_forbidden":
            _drop(pruned, e["loc"])
    try:
        return Config.model_validate(pruned), faults
    except ValidationError:
        return None, faults


def _drop(node: Any, location: tuple[int | str, ...]) -> None:
    for part in location[:-1]:
        try:
            node = node[part]
        except (KeyError, TypeError, IndexError):  # pydantic puts the chosen reader into the location: not a key
            continue
    if isinstance(node, dict):
        node.pop(location[-1], None)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise NemesisError(Fault(str(path), "extends itself", "Remove the circle of `extends:`"))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise NemesisError(Fault(str(path), f"cannot be read ({error.strerror})", "Check the path")) from None
    except yaml.YAMLError as error:
        raise NemesisError(Fault(str(path), f"is not valid YAML ({error})", "Mend the file")) from None
    if not isinstance(content, dict):
        raise NemesisError(Fault(str(path), "is not a mapping of keys", "See config/README.md"))
    base = content.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise NemesisError(Fault(str(path), f"`extends: {base!r}` is not the name of a file", "Write `extends: other.yaml`."))
    return content if base is None else _merge(_read(path.parent / base, (*seen, path)), content)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in top.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), dict)
        result[name] = _merge(result[name], value) if both else value
    return result


def fault_of(where: str, error: Mapping[str, Any]) -> Fault:
    """One error of pydantic as a sentence."""
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(str(error["loc"][-1]), _all_keys(), "See config/README.md for the keys that exist.")
        return Fault(where, f"unknown key '{location}'", hint)
    if error["type"] == "missing":
        return Fault(where, f"key '{location}' is missing", "Add it; config/README.md says what it means.")
    message = error["msg"].removeprefix("Value error, ")
    return Fault(where, f"{location or 'configuration'}: {message} (got {error['input']!r:.80})", "See config/README.md.")


SECTIONS: tuple[type[Section], ...] = (
    Config, PhantomCohort, ScanFiles, NnunetFolder, DicomTree, CardDataset, Preparation, Pools, MethodEntry, Pretraining,
    Augmentation, Probe, Reconstruction, Finetuning, Sweep, Search, Ablations, Variant,
)  # fmt: skip


def _all_keys() -> list[str]:
    return sorted({name for section in SECTIONS for name in section.model_fields})


def key_rows(section: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """(key, default, unit, description) of a section, for the generated table."""
    for name, info in section.model_fields.items():
        extra = info.json_schema_extra
        unit = str(extra.get("unit", "–")) if isinstance(extra, dict) else "–"
        default = info.get_default(call_default_factory=True) if not info.is_required() else "required"
        shown = "see its table" if isinstance(default, BaseModel) else f"`{default}`"
        yield name, shown, unit, info.description or ""
