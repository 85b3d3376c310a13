"""Pretrain one run: from its specification to a checkpoint, resumable at any step with the same bits (on a CPU)."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.fabric import Fabric
from torch import nn

from nemesis.config import Augmentation, Preparation, Pretraining
from nemesis.data.samples import Labelling
from nemesis.data.scans import Scans
from nemesis.errors import Fault, NemesisError, TrainingError
from nemesis.files import file_sha256, write_text
from nemesis.method import Batch, Method, create
from nemesis.models.checkpoint import save_weights
from nemesis.models.keyed import Keys, seed_at
from nemesis.training.augmentation import draw_moves, shifted
from nemesis.training.crops import Crops, Cut, RankBatches, crop_loader
from nemesis.training.device import device_for, peak_memory_mib, resolve_precision, set_threads
from nemesis.training.live import LiveCurve
from nemesis.training.progress import TrainingProgress
from nemesis.training.schedule import learning_rate
from nemesis.training.state import load_state, save_state

NONE = Augmentation()
LOG_EVERY = 10  # steps whose mean makes one point of the curve; the host waits for the device only then


def pretrain(
    identity: dict[str, Any], folder: Path, pool: Path, index: Path, device: str, workers: int, state_every: int,
    until: int | None = None, track: str | None = None, label: str | None = None, weights: Path | None = None,
) -> None:  # fmt: skip
    """Write ``checkpoint.safetensors``, ``curve.jsonl``, ``timing.json`` and ``run.json`` into the run's folder.

    Whoever comes second waits for the first and finds the checkpoint there.

    Args:
        identity: what the weights depend on (:mod:`nemesis.runs`).
        folder: ``results/runs/<run>``.
        pool: the pretraining pool.
        index: the checked scans.
        device: auto, cpu or cuda.
        workers: loader processes.
        state_every: steps between saved states.
        until: stop after this step, rounded up by :func:`at_point`, and leave ``state.pt`` there instead of the four files;
            whoever goes on ends with the same bits, as the schedule is that of the whole run. A run that is already beyond it
            is left as it is.
        track: the MLflow experiment in which the curve is shown while it grows; None: in none.
        label: what the run is called there; None: by its folder's name.
        weights: of a run that starts from published weights, their file.

    Raises:
        TrainingError: loss or weights are not finite any more.
        NemesisError: no GPU is there although asked for, the saved state cannot be gone on with, or the published weights are
            not those that the identity names or do not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: another process is computing this run, waiting for it", file=sys.stderr, flush=True)
        held = lock.acquire()
    with held:  # not `with lock`, which would acquire it a second time and release it once
        if _computed(folder, identity):
            print(f"{folder.name}: already computed", file=sys.stderr, flush=True)
            return
        with device_for(device) as chosen, LiveCurve(track, label or folder.name, folder.name, identity) as live:
            _pretrain(identity, folder, pool, index, chosen, workers, state_every, until, live, weights)


def at_point(step: int) -> int:
    """``step`` rounded up to a point of the curve: a state is saved at such steps alone, where the loss was looked at."""
    return -(-step // LOG_EVERY) * LOG_EVERY


def _computed(folder: Path, identity: dict[str, Any]) -> bool:
    outputs = [folder / name for name in ("checkpoint.safetensors", "curve.jsonl", "timing.json", "run.json")]
    return all(path.exists() for path in outputs) and json.loads(outputs[-1].read_text(encoding="utf-8")) == identity


def _pretrain(
    identity: dict[str, Any],
    folder: Path,
    pool: Path,
    index: Path,
    device: torch.device,
    workers: int,
    state_every: int,
    until: int | None,
    live: LiveCurve,
    weights: Path | None,
) -> None:
    recipe = Pretraining.model_validate(identity["pretraining"]) if identity["pretraining"] else None
    set_threads(recipe.threads if recipe else 1)
    method = create(identity["method"], identity["settings"], identity["superpatch"])
    torch.manual_seed(identity["seed"])
    network = method.build()
    timing: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    curve: list[dict[str, float]] = []
    if recipe:
        scans = Scans(pool, index, Preparation.model_validate(identity["preparation"]))
        labelling = (
            Labelling(scans, identity["settings"]["classes"], identity["label_numbers"]) if method.card.uses_labels else None
        )
        crops = Crops(scans, method.draw(), identity["seed"], recipe.sampling, labelling)
        training = _Training(method, network, recipe, crops, folder, device, workers, state_every, until)
        timing |= training.run(live)
        if training.last < recipe.steps:
            return
        curve = training.curve
    elif "weights" in identity:
        timing |= _load_published(method, network, identity["weights"], weights)
    write_text(folder / "curve.jsonl", "".join(json.dumps(point) + "\n" for point in curve))
    write_text(folder / "timing.json", json.dumps(timing, indent=1) + "\n")
    save_weights(network, folder / "checkpoint.safetensors", {"run": folder.name, "method": identity["method"]})
    write_text(folder / "run.json", json.dumps(identity, indent=1, sort_keys=True) + "\n")
    (folder / "state.pt").unlink(missing_ok=True)


def _load_published(method: Method[Any], network: nn.Module, told: dict[str, str], path: Path | None) -> dict[str, Any]:
    """Load published weights; returns the share of the encoder's parameters that they hold."""
    if path is None or not path.is_file():
        raise NemesisError(Fault(str(path or told["file"]), "is not there", "Say where: `weights` of its entry in `methods`."))
    if (found := file_sha256(path)) != told["sha256"]:
        what = f"is not the file that this run was planned with (sha256 {found[:12]}…, not {told['sha256'][:12]}…)"
        raise NemesisError(Fault(str(path), what, "Run the workflow again: it plans another run for it."))
    matched = method.load_published(network, path)
    return {"weights_matched": matched.parameters}


class _Training:
    """The loop. Everything random in step n is a function of (seed, n, place in the global batch)."""

    def __init__(
        self, method: Method[Any], network: nn.Module, recipe: Pretraining, crops: Crops, folder: Path,
        device: torch.device, workers: int, state_every: int, until: int | None,
    ) -> None:  # fmt: skip
        self.method, self.recipe, self.seed, self.folder = method, recipe, crops.seed, folder
        self.state_every = state_every
        self.precision = resolve_precision(recipe.precision, device)
        self.fabric = Fabric(
            accelerator=device.type, devices=1 if device.type == "cpu" else [device.index], precision=self.precision
        )
        self.fabric.launch()
        self.network = network
        optimizer = torch.optim.AdamW(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        if recipe.compile:
            torch.compiler.reset()  # of another network of this process, which would be generalised to both
            network.compile()
        self.wrapped, self.optimizer = self.fabric.setup(network, optimizer)
        window = crops.scans.preparation.hu_window
        self.low, self.width = window[0], window[1] - window[0]
        self.curve: list[dict[str, float]] = []
        self.started, self.seconds = time.monotonic(), 0.0  # of this process; of those before it
        self.first = self._resume()
        self.last = recipe.steps if until is None else max(self.first, min(at_point(until), recipe.steps))
        self.batches = RankBatches(self.first, self.last, recipe.batch_size, self.fabric.global_rank, self.fabric.world_size)
        self.loader = crop_loader(crops, self.batches, workers, pin=device.type == "cuda")

    def _resume(self) -> int:
        for unfinished in self.folder.glob(".state.pt.*"):  # by a process that was killed while it wrote
            unfinished.unlink()
        state = load_state(self.folder / "state.pt", self.fabric.device)
        if state is None:
            return 0
        if state["precision"] != self.precision:
            what = f"was computed in {state['precision']}, this device would go on in {self.precision}"
            raise NemesisError(Fault(str(self.folder / "state.pt"), what, "Go on on such a device, or delete the file"))
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            what = f"belongs to another network ({str(error).splitlines()[0]})"
            remedy = "Delete it: the training starts again from its first step"
            raise NemesisError(Fault(str(self.folder / "state.pt"), what, remedy)) from None
        self.curve, self.seconds = state["curve"], state["seconds"]
        print(f"{self.folder.name}: resumed at step {state['step']}", file=sys.stderr, flush=True)
        return int(state["step"])

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "precision": self.precision,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": self.curve,
            "seconds": self.seconds + time.monotonic() - self.started,
        }
        save_state(self.folder / "state.pt", state)

    def _batch(self, step: int, cut: Cut) -> Batch:
        """A step's samples on the device, as values in [0, 1], augmented, with the keys of their places."""
        to_device, settings = self.fabric.to_device, self.recipe.augmentation
        voxels = ((to_device(cut.hu).float() - self.low) / self.width).clamp_(0.0, 1.0)
        classes, known = (None if part is None else to_device(part) for part in (cut.classes, cut.known))
        place = cut.numbers - step * self.recipe.batch_size
        keys = Keys(self.seed, step, to_device(place))
        if settings != NONE:
            moves = draw_moves(Keys(self.seed, step, place), settings)
            voxels = shifted(moves(voxels), keys, settings)
            classes = None if classes is None else moves(classes)
        return Batch(voxels, keys, classes, known)

    def run(self, live: LiveCurve) -> dict[str, Any]:
        """Train to the last step, or to where it is to stop; returns how fast it went."""
        recipe, fabric = self.recipe, self.fabric
        warmup = round(recipe.warmup_fraction * recipe.steps)
        self.wrapped.train()
        totals: dict[str, torch.Tensor] = {}
        self.started, saved_at = time.monotonic(), self.first
        with TrainingProgress(self.folder.name, recipe.steps, self.first, recipe.batch_size) as progress:
            for step, cut in enumerate(self.loader, start=self.first):
                rate = learning_rate(step, recipe.steps, warmup, recipe.learning_rate, recipe.min_learning_rate)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                batch = self._batch(step, cut)
                # what a library's dropout draws must not depend on what was drawn before an interruption
                torch.manual_seed(seed_at(self.seed, step, fabric.global_rank))
                loss = self.method.pretext_loss(self.wrapped, batch)
                self.optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss.total)
                fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
                self.optimizer.step()
                for name, value in {"loss": loss.total.detach(), **loss.monitors}.items():
                    totals[name] = totals.get(name, 0.0) + value
                done = step + 1
                if done % LOG_EVERY == 0 or done == recipe.steps:
                    count = (done - 1) % LOG_EVERY + 1
                    point = {name: float(total) / count for name, total in totals.items()}
                    if not math.isfinite(point["loss"]):
                        what = f"the loss is not finite at step {done} (learning rate {rate:.2g}, {self.precision})"
                        raise TrainingError(
                            Fault(self.folder.name, what, "Lower pretraining.learning_rate or use precision: 32-true")
                        )
                    totals = {}
                    self.curve.append({"step": done, "learning_rate": rate, **point})
                    progress.advance(done, point)
                    live.show(self.curve)
                    if done < recipe.steps and (done == self.last or done - saved_at >= self.state_every):
                        self._save(done)
                        saved_at = done
        seconds = self.seconds + time.monotonic() - self.started
        if not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            what = "the last steps left weights that are not finite"
            raise TrainingError(Fault(self.folder.name, what, "Lower pretraining.learning_rate or use precision: 32-true"))
        return {
            "seconds": round(seconds, 3),
            "superpatches_per_second": round(recipe.steps * recipe.batch_size / max(seconds, 1e-9), 3),
            "peak_memory_mib": round(peak_memory_mib(fabric.device), 1),
            "precision": self.precision,
        }
