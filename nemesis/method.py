"""The contract between the suite and a method, its card, and the registry.

A method is one class in one file: ``nemesis/methods/``, ``baselines/`` or any installed package that names itself under the
entry point group ``nemesis.methods``. Card and settings are read to plan the workflow, so a method's file imports neither
torch nor MONAI at its top; networks are imported inside :meth:`Method.build`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemesis.errors import Fault, NemesisError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from nemesis.models.keyed import Keys

ENTRY_POINTS = "nemesis.methods"
CURVE_COLUMNS = {"step", "learning_rate", "loss", "status"}  # what a curve, and whoever shows it live, calls its own


class Published(BaseModel):
    """A file of weights that a method's authors publish."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str  # its name, as published
    source: str  # address of the page that offers it
    trained_on: tuple[str, ...] = ()  # data sets whose scans it saw, by the names in nemesis.report.leakage; () where nobody says


class MethodCard(BaseModel):
    """What a reader must know of a method before trusting its row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9_]+$")  # as written in the configuration; names folders
    title: str  # as printed in tables
    paper: str
    licence: str  # of the method's code here
    version: int  # raised whenever the method's numbers change: part of the run's identity
    pretext: bool  # False: nothing is learnt from unlabelled scans, the network stays as built
    reconstructs: bool
    smallest_input: int  # edge in voxels
    native_input: str  # spacing, window, size and axis order the authors used
    no_gradient: tuple[str, ...] = ()  # parameters (glob patterns) that legitimately get no gradient from the pretext
    uses_labels: bool = False  # its pretext learns from label maps: only scans that have one are drawn
    segments: bool = False  # its network can be made into one that segments
    published: tuple[Published, ...] = ()  # weights of its authors that it can load
    small: dict[str, Any] = {}  # settings of a network of seconds, for the checks of nemesis.contract


class Settings(BaseModel):
    """Base of a method's own keys in the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Draw:
    """What a method learns from: superpatches of this edge (voxels), placed uniformly; ``centred``: the share of them that lie
    about a labelled voxel, as near as the scan's borders allow (of methods that use labels)."""

    edge: int
    centred: float = 0.0

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels (D, H, W) of a sample."""
        return (self.edge, self.edge, self.edge)

    @property
    def voxels(self) -> int:
        """Voxels of a scan that the network sees of a sample."""
        return self.edge**3


@dataclass(frozen=True)
class WholeVolume:
    """What a method learns from: a scan's body (the box of all voxels above the window's low end), resized (trilinear) to
    ``size`` voxels (D, H, W). ``shown``: how many of these the network sees of a sample; overlapping crops count twice."""

    size: tuple[int, int, int]
    shown: int

    @property
    def voxels(self) -> int:
        """Voxels of a scan that the network sees of a sample."""
        return self.shown


@dataclass(frozen=True)
class Batch:
    """What a step learns from, on the training device.

    voxels: (B, 1, D, H, W) in [0, 1]. keys: make every random number of the step. Of a method that uses labels, ``classes``:
    (B, 1, D, H, W) uint8, k where the k-th class of its settings is (from 1), 0 where none; ``known``: (B, K) bool, whether a
    class was drawn in the sample's scan at all: where it was not, a 0 says nothing about it.
    """

    voxels: Tensor
    keys: Keys
    classes: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class Matched:
    """How a file of published weights fits: the share, by count, of the encoder's parameters that it holds, and the names in it
    that were left out on purpose."""

    parameters: float
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PretextLoss:
    """total: scalar with gradient; monitors: detached scalars for the curve (``psnr`` in dB where there is one).

    Raises:
        ValueError: a monitor has the name of a column of every curve.
    """

    total: Tensor
    monitors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if taken := CURVE_COLUMNS & set(self.monitors):
            raise ValueError(f"a monitor must not be called {', '.join(sorted(taken))}: every curve has that already")


@dataclass(frozen=True)
class Reconstruction:
    """prediction (B, 1, D, H, W) in [0, 1] units, unclipped, as the network says it everywhere; hidden (B, 1, D, H, W) bool,
    True where the input was masked."""

    prediction: Tensor
    hidden: Tensor


S = TypeVar("S", bound=Settings)


class Method(ABC, Generic[S]):
    """One way of learning an encoder from scans. Stateless: networks are built, passed in, and never kept.

    ``network`` is what :meth:`build` returned (in training inside Fabric's wrapper, which hands attributes through)."""

    card: ClassVar[MethodCard]
    settings_type: ClassVar[type[Settings]]

    def __init__(self, settings: S, superpatch: int) -> None:
        self.settings = settings
        self.superpatch = superpatch

    def check(self) -> None:
        """Raise ValueError with a sentence if the settings do not fit the superpatch."""

    def draw(self) -> Draw | WholeVolume:
        """What the pretext is trained on."""
        return Draw(edge=self.superpatch)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights, from torch's global generator."""

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """The pretext's loss; calls ``network(...)`` itself once, so that data-parallel wrappers see it."""
        raise TypeError(f"{self.card.name} has no pretext")

    @abstractmethod
    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """Superpatches (B, 1, D, H, W) in [0, 1] → vectors (B, F); nothing is masked."""

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """Reconstruct superpatches; with ``keys`` under the pretext's mask where it has one, with None from the whole input."""
        raise TypeError(f"{self.card.name} does not reconstruct")

    def attention(self, network: Any, voxels: Tensor) -> Mapping[str, Tensor]:
        """Of superpatches (B, 1, D, H, W), by stream: the attention that each token receives, (B, T, h, w), 1 where all receive
        alike; nothing of a network that has none, or none to show."""
        return {}

    def segmenter(self, network: Any, classes: int) -> nn.Module:
        """A network that segments and starts from this one's weights, which it takes over.

        It maps voxels (B, 1, D, H, W) in [0, 1] to logits (B, classes, D, H, W); in training it may give a list of them at
        falling resolutions, the full one first. New layers have random weights, from torch's global generator.
        """
        raise TypeError(f"{self.card.name} does not segment")

    def load_published(self, network: Any, path: Path) -> Matched:
        """Load a file of ``card.published`` into a network that :meth:`build` returned.

        Raises:
            NemesisError: the file is something else, or holds less than 95 % of the encoder.
        """
        raise TypeError(f"{self.card.name} has no published weights")


_registry: dict[str, type[Method[Any]]] = {}
M = TypeVar("M", bound=type[Method[Any]])


def register(method: M) -> M:
    """Class decorator: make a method known by its card's name.

    Raises:
        ValueError: another class has that name.
    """
    known = _registry.get(method.card.name)
    if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"two methods are called '{method.card.name}': {known} and {method}")
    _registry[method.card.name] = method
    return method


def methods() -> dict[str, type[Method[Any]]]:
    """Every method that can be found, by name: the house's own, and those of packages that name the entry point group."""
    _import_all("nemesis.methods")
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        _import_all(point.module)
    return dict(sorted(_registry.items()))


def _import_all(name: str) -> None:
    module = importlib.import_module(name)
    for info in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
        if not info.ispkg:
            importlib.import_module(info.name)


def find(name: str, where: str = "methods") -> type[Method[Any]]:
    """The method class of that name.

    Raises:
        NemesisError: there is none.
    """
    known = methods()
    if name not in known:
        remedy = did_you_mean(name, known, f"Known methods: {', '.join(known)}.")
        raise NemesisError(Fault(where, f"no method is called '{name}'", remedy))
    return known[name]


def create(name: str, settings: Mapping[str, Any], superpatch: int, where: str = "methods") -> Method[Any]:
    """The method of that name with its settings validated and its defaults filled in.

    Raises:
        NemesisError: unknown name, unknown or wrong keys, or settings that do not fit the superpatch.
    """
    cls = find(name, where)
    try:
        method = cls(cls.settings_type.model_validate(settings), superpatch)
    except ValidationError as error:
        raise NemesisError(
            Fault(where, f"{name}: {'.'.join(map(str, e['loc']))}: {e['msg']}", _remedy(e, cls.settings_type))
            for e in error.errors()
        ) from None
    if superpatch < cls.card.smallest_input:
        what = f"{name}: superpatch {superpatch} is smaller than its smallest input {cls.card.smallest_input}"
        raise NemesisError(Fault(where, what, "Raise `superpatch` or leave the method out."))
    try:
        method.check()
    except ValueError as error:
        raise NemesisError(Fault(where, f"{name}: {error}", "Change its settings or `superpatch`.")) from None
    return method


def _remedy(error: Any, settings_type: type[Settings]) -> str:
    keys = settings_type.model_fields
    listing = f"Its keys are: {', '.join(keys) or 'none'}."
    return did_you_mean(str(error["loc"][-1]), keys, listing) if error["type"] == "extra_forbidden" else listing
