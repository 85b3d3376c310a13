"""Organ presence by fine-tuning: encoder and linear head, trained on the superpatches of the evaluation grid.

The head is that of the released linear evaluation: LayerNorm and a linear layer on the encoder's vector. The loss is binary
cross-entropy, in which organs that were not drawn in a patient have no part. Superpatches under the foreground floor are
predicted, but never trained on, as by the probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nemesis.data.foreground import Position
from nemesis.data.store import AIR, normalise, pad
from nemesis.data.views import windows
from nemesis.evaluation.features import batch_size
from nemesis.evaluation.problems import CHANCE, Answer, Data, Problem, auroc, belongs, best_threshold, both_classes, mean_auroc
from nemesis.evaluation.tuning import Tuned
from nemesis.method import Method
from nemesis.training.device import Precision, arithmetic

if TYPE_CHECKING:
    import pandas as pd

    from nemesis.data.scans import Scans

Places = NDArray[np.intp]


class Presence(nn.Module):
    """A method's network with a head that tells which organs a superpatch holds."""

    def __init__(self, method: Method[Any], network: nn.Module, organs: int) -> None:
        super().__init__()
        self.method, self.network = method, network
        edge, device = method.superpatch, next(network.parameters()).device
        network.eval()
        with torch.no_grad():
            width = method.encode(network, torch.zeros(1, 1, edge, edge, edge, device=device)).shape[1]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, organs)).to(device)

    def forward(self, voxels: Tensor, owner: Tensor) -> Tensor:
        """Logits (n, organs) of n superpatches from windows (W, 1, D, H, W) in [0, 1]; ``owner`` (W,): whose window each is, of
        0 … n − 1, in order. A superpatch's vector is the mean over its windows'."""
        vectors = self.method.encode(self.network, voxels).float()
        count = torch.bincount(owner)
        pooled = torch.zeros(len(count), vectors.shape[1], device=vectors.device).index_add(0, owner, vectors)
        logits: Tensor = self.head(pooled / count[:, None])
        return logits.float()


class Windows:
    """The superpatches of the evaluation grid as a network sees them: each a window of its scan or, where the method has a voxel
    size of its own, the windows that cover its place in the view (:func:`nemesis.data.views.windows`)."""

    def __init__(self, scans: Scans, view: Scans | None, table: pd.DataFrame, edge: int) -> None:
        self.scans, self.view, self.edge = scans, view, edge
        self.scan = table["scan"].to_numpy()
        self.start, self.valid = (table[[f"{what}_{axis}" for axis in "dhw"]].to_numpy() for what in ("start", "valid"))

    def of(self, place: int) -> list[tuple[Position, Position]]:
        """First voxels and sizes of the windows of the superpatch at this place of the table."""
        start, scan = self.start[place].tolist(), int(self.scan[place])
        if self.view is None:
            return [(start, (self.edge,) * 3)]
        return windows(start, self.valid[place].tolist(), self.scans.shape(scan), self.view.shape(scan), self.edge)

    def read(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Voxels (W, 1, D, H, W) in [0, 1] of all windows of these superpatches, and whose each is (W,)."""
        source, hu, owner = self.view or self.scans, [], []
        for number, place in enumerate(places):
            volume = source.hu(int(self.scan[place]))
            for start, size in self.of(place):
                hu.append(pad(volume.read(tuple(start), size, AIR), (self.edge,) * 3, AIR))  # type: ignore[arg-type]
                owner.append(number)
        voxels = torch.from_numpy(normalise(np.stack(hu), source.preparation.hu_window))[:, None]
        return voxels, torch.tensor(owner)

    def mean_number(self, places: Places) -> float:
        """How many windows a superpatch has on average."""
        return float(np.mean([len(self.of(place)) for place in places.tolist()])) if self.view is not None else 1.0


def masked_bce(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross-entropy over what is known: logits (…), truth and known bool of the same shape; 0 where nothing is."""
    each = functional.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class PresenceTask:
    """One problem's training (:class:`nemesis.evaluation.tuning.Task`): ``train`` and ``validation`` are places in the table."""

    make: Callable[[], nn.Module]  # a Presence as training begins
    windows: Windows
    data: Data
    train: Places
    validation: Places
    batch: int
    seed: int
    device: torch.device
    precision: Precision

    @classmethod
    def of(cls, problem: Problem, validators: frozenset[str], data: Data, **rest: Any) -> PresenceTask:
        """Trained on the problem's training patients but those who validate."""
        useful = ~data.easy & data.known.any(1)
        train = np.flatnonzero(useful & belongs(data.patient, problem.train - validators))
        return cls(data=data, train=train, validation=np.flatnonzero(useful & belongs(data.patient, validators)), **rest)

    @property
    def validates(self) -> bool:
        """Whether the validation tells anything: it holds both classes of an organ."""
        rows = self.validation
        return bool(both_classes(self.data.truth[rows], self.data.known[rows]).any())

    def module(self) -> nn.Module:
        """See :class:`nemesis.evaluation.tuning.Task`."""
        return self.make()

    def places(self, step: int) -> list[int]:
        """Whose turn it is: every superpatch once in each passage, in an order of its own."""
        found = []
        for number in range(step * self.batch, (step + 1) * self.batch):
            passage, turn = divmod(number, len(self.train))
            order = np.random.Generator(np.random.Philox(key=[self.seed, passage])).permutation(len(self.train))
            found.append(int(self.train[order[turn]]))
        return found

    def sample(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Voxels and owners of :meth:`Windows.read`, and what is true and known (n, organs)."""
        places = self.places(step)
        truth, known = (torch.from_numpy(what[places]) for what in (self.data.truth, self.data.known))
        return (*self.windows.read(places), truth, known)

    def loss(self, module: nn.Module, sample: tuple[Tensor, ...]) -> Tensor:
        """See :func:`masked_bce`."""
        voxels, owner, truth, known = (part.to(self.device) for part in sample)
        return masked_bce(module(voxels, owner), truth, known)

    def validate(self, module: nn.Module) -> float:
        """Mean AUROC over the organs that have both classes among the validation's superpatches."""
        rows = self.validation
        score = self.predict(module, rows)
        return mean_auroc(score, self.data.truth[rows], self.data.known[rows]) if np.isfinite(score).all() else float("nan")

    @torch.no_grad()
    def predict(self, module: nn.Module, places: Places) -> NDArray[np.float32]:
        """Scores (n, organs) in [0, 1] by a module in evaluation mode."""
        found = [np.zeros((0, self.data.truth.shape[1]), np.float32)]
        size = batch_size(self.windows.edge**3)
        for first in range(0, len(places), size):
            voxels, owner = (part.to(self.device) for part in self.windows.read(places[first : first + size].tolist()))
            with arithmetic(self.device, self.precision):
                logits = module(voxels, owner)
            found.append(torch.sigmoid(logits).cpu().numpy())
        return np.concatenate(found)

    def answer(self, module: nn.Module, tuned: Tuned, problem: Problem, selected: bool) -> Answer:
        """What the weights that were taken say of the problem's test superpatches, looked at here and nowhere else.

        An organ whose training patients lack a class is scored 0.5, as by the probes.
        """
        data, organs = self.data, self.data.truth.shape[1]
        module.load_state_dict(tuned.weights)
        module.eval()
        score = self.predict(module, np.flatnonzero(belongs(data.patient, problem.test)))
        learnt = np.flatnonzero(belongs(data.patient, problem.train) & ~data.easy)
        chance = ~both_classes(data.truth[learnt], data.known[learnt])
        score[:, chance] = CHANCE
        threshold, tuned_at = np.full(organs, CHANCE, np.float32), np.zeros(organs, bool)
        validation = np.full(organs, np.nan)
        if selected:
            rows = self.validation
            seen = self.predict(module, rows)
            tuned_at = both_classes(data.truth[rows], data.known[rows]) & ~chance
            for organ in np.flatnonzero(tuned_at):
                known = data.known[rows, organ]
                truth = data.truth[rows[known], organ]
                threshold[organ] = best_threshold(truth, seen[known, organ])
                validation[organ] = auroc(truth, seen[known, organ].astype(np.float64))
        nothing = np.full(organs, np.nan)
        return Answer(score, threshold, np.full(organs, selected) & ~chance, tuned_at, chance, nothing, validation)
