"""The loop of fine-tuning, whatever for: learning rates tried one after the other, the best look at the inner validation taken.

Everything random of step n is a function of (seed, n), and what was reached is saved now and then: a job that was killed goes on
and, on a CPU, ends with the same bits.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from nemesis.errors import Fault, TrainingError
from nemesis.finetuning import Finetuning
from nemesis.models.keyed import seed_at
from nemesis.training.device import Precision, arithmetic
from nemesis.training.schedule import learning_rate
from nemesis.training.state import load_state, save_state

AHEAD = 2  # samples that are cut while the device computes
SAVE_EVERY_S = 30.0  # a killed job loses about as much
Weights = dict[str, Tensor]
S = TypeVar("S")


class Task(Protocol[S]):
    """What a network is trained for, on which patients; it keeps no state."""

    def module(self) -> nn.Module:
        """The network as training begins, the same at every call, on the device."""

    def sample(self, step: int) -> S:
        """What step ``step`` learns from; called in another thread."""

    def loss(self, module: nn.Module, sample: S) -> Tensor:
        """A scalar with gradient."""

    def validate(self, module: nn.Module) -> float:
        """How good the module, in evaluation mode, is on the inner validation's patients: the higher the better, NaN where what
        it says is not finite."""


@dataclass(frozen=True)
class Look:
    """What the inner validation said of a training after some of its steps; NaN: nothing that is finite."""

    learning_rate: float
    step: int
    validation: float


@dataclass(frozen=True)
class Tuned:
    """The weights that were taken, and how they came about."""

    weights: Weights
    learning_rate: float
    step: int  # steps after which they were looked at
    validation: float  # NaN: nothing was selected
    looks: tuple[Look, ...] = ()  # of all trainings, in turn; none where nothing was selected


@dataclass
class _State:
    """What is saved: the trial that is under way, and the best look so far."""

    trial: int = 0
    step: int = 0  # steps done of it
    network: Weights | None = None
    optimizer: dict[str, Any] | None = None
    best: dict[str, Any] | None = None  # the fields of Tuned
    looks: list[tuple[float, int, float]] = field(default_factory=list)  # the fields of each Look


class Tuning(Generic[S]):
    """One training after another, resumable from ``path``.

    Args:
        task: what for.
        recipe: section ``finetune`` of the configuration.
        steps: of each training; the recipe's, or more of a control.
        selects: try every learning rate and take the best look; else the fixed learning rate and the last step.
        seed: of dropout.
        path: where the state is saved; whoever asked removes it when all is done.
        device: of the module.
        precision: of the arithmetic.
    """

    def __init__(
        self, task: Task[S], recipe: Finetuning, steps: int, selects: bool, seed: int, path: Path, device: torch.device,
        precision: Precision,
    ) -> None:  # fmt: skip
        self.task, self.recipe, self.steps, self.seed, self.path = task, recipe, steps, seed, path
        self.device, self.precision = device, precision
        self.rates: Sequence[float] = recipe.learning_rates if selects else [recipe.fixed_learning_rate]
        self.looks = {round(steps * (k + 1) / recipe.checks) for k in range(recipe.checks)} if selects else {steps}
        self.selects = selects

    def run(self, until: int | None = None) -> Tuned | None:
        """Train, and return what is best.

        Args:
            until: stop after so many steps of this call, with the state saved, as if killed there; for tests.

        Raises:
            TrainingError: no learning rate gave finite weights and predictions.
        """
        state = _State(**(load_state(self.path, torch.device("cpu")) or {}))
        if state.trial or state.step:
            print(f"{self.path.stem}: resumed at trial {state.trial + 1}, step {state.step}", file=sys.stderr, flush=True)
        left = math.inf if until is None else until
        for trial in range(state.trial, len(self.rates)):
            left = self._train(trial, state, left)
            if left <= 0 and (state.trial, state.step) != (len(self.rates), 0):
                return None
        if state.best is None:
            what = f"no learning rate of {', '.join(f'{rate:g}' for rate in self.rates)} gives finite figures"
            remedy = "Lower finetune.learning_rates (fixed_learning_rate), or use precision: 32-true"
            raise TrainingError(Fault(self.path.stem, what, remedy))
        return Tuned(**state.best, looks=tuple(Look(*look) for look in state.looks))

    def _train(self, trial: int, state: _State, left: float) -> float:
        module, recipe, rate = self.task.module(), self.recipe, self.rates[trial]
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=recipe.weight_decay)
        if state.network is not None and state.optimizer is not None:
            module.load_state_dict(state.network)
            optimizer.load_state_dict(state.optimizer)
        warmup, saved, failed = round(recipe.warmup_fraction * self.steps), time.monotonic(), False
        module.train()
        for step, sample in ahead(self.task.sample, state.step, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.steps, warmup, rate, 0.0)
            torch.manual_seed(seed_at(self.seed, step, 0))  # dropout must not depend on what was drawn before an interruption
            with arithmetic(self.device, self.precision):
                loss = self.task.loss(module, sample)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            left -= 1
            if step + 1 in self.looks:
                failed = not self._look(module, state, rate, step + 1, float(loss.detach()))
            over = failed or step + 1 == self.steps
            if not over and (left <= 0 or time.monotonic() - saved > SAVE_EVERY_S):
                state.step, state.network, state.optimizer = step + 1, module.state_dict(), optimizer.state_dict()
                self._save(state)
                saved = time.monotonic()
            if over or left <= 0:
                break
        if failed or step + 1 == self.steps:
            state.trial, state.step, state.network, state.optimizer = trial + 1, 0, None, None
            self._save(state)
        return left

    def _look(self, module: nn.Module, state: _State, rate: float, step: int, loss: float) -> bool:
        """Whether the training may go on: False where it has diverged, which leaves it without a say, as does a network whose
        predictions are not finite though its weights are."""
        score = math.nan
        finite = math.isfinite(loss) and all(bool(p.isfinite().all()) for p in module.parameters())
        if finite and self.selects:
            module.eval()
            with torch.no_grad():
                score = self.task.validate(module)
            module.train()
        if self.selects:
            state.looks.append((rate, step, score))
        what = f"validation {score:.4f}" if self.selects and finite else "" if finite else "diverged"
        print(f"{self.path.stem}: rate {rate:g}, step {step}/{self.steps}, loss {loss:.4f} {what}".rstrip(), flush=True)
        best = state.best
        tells = finite and not (self.selects and math.isnan(score))
        if tells and (best is None or not self.selects or score >= best["validation"]):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
            state.best = {"weights": weights, "learning_rate": rate, "step": step, "validation": score}
        return finite

    def _save(self, state: _State) -> None:
        # not asdict() of all, which would copy every tensor
        save_state(self.path, {name: getattr(state, name) for name in _State.__dataclass_fields__})


def ahead(make: Callable[[int], S], first: int, last: int) -> Iterator[tuple[int, S]]:
    """(n, make(n)) for n from ``first`` to before ``last``, made by a thread some in advance."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(make, n) for n in range(first, min(first + AHEAD, last)))
        try:
            for n in range(first, last):
                made = waiting.popleft().result()
                if n + AHEAD < last:
                    waiting.append(thread.submit(make, n + AHEAD))
                yield n, made
        finally:
            thread.shutdown(cancel_futures=True)
