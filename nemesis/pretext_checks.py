"""What a pretext promises: the part of :mod:`nemesis.contract` that is about :meth:`nemesis.method.Method.pretext_loss`."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import replace
from typing import Any

from nemesis.method import Batch, Method, PretextLoss, WholeVolume
from nemesis.promises import batch_of, built, check, promise

SAMPLES, STEPS, LEARNING_RATE = 4, 12, 1e-3  # of a training on one batch
LOWER = 0.97  # of the first loss, which it is to reach: a head that starts at rare organs has far to go
VOLUMES, VOLUME_STEPS = 2, 4  # the same of a method that draws whole volumes, each of which is many crops
ORDER = 1e-5  # relative: how far a loss may change when the samples of its batch change places


def _loss(method: Method[Any], network: Any, batch: Batch) -> PretextLoss:
    """What pretext_loss() gives, if it is what the contract says."""
    import torch

    calls: list[object] = []
    hook = network.register_forward_pre_hook(lambda *_: calls.append(None))
    loss: Any = method.pretext_loss(network, batch)
    hook.remove()
    promise(isinstance(loss, PretextLoss), f"pretext_loss() gives a {type(loss).__name__}, not a PretextLoss")
    for name, value in {"total": loss.total, **loss.monitors}.items():
        what = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        promise(what == (), f"pretext_loss() gives '{name}' as {what}, not as a tensor without dimensions")
    promise(
        len(calls) == 1,
        f"pretext_loss() calls network(...) {len(calls)} times: call it once, and its parts from its own forward(), or "
        "training on several devices sees no gradient",
    )
    return loss


@check
def the_pretext_is_finite_and_reaches_every_parameter(method: Method[Any]) -> None:
    """A finite loss; monitors without gradient; a gradient for every parameter that learns."""
    import torch

    if not method.card.pretext:
        return
    network = built(method).train()
    torch.manual_seed(0)
    loss = _loss(method, network, batch_of(method))
    promise(loss.total.requires_grad, "pretext_loss() gives a total without gradient: is something detached?")
    loss.total.backward()  # type: ignore[no-untyped-call]
    promise(torch.isfinite(loss.total), "pretext_loss() is not finite on random voxels")
    for name, value in loss.monitors.items():
        promise(torch.isfinite(value), f"the monitor '{name}' is not finite on random voxels")
        promise(not value.requires_grad, f"the monitor '{name}' carries a gradient: detach it")
    learning = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    without = [name for name, p in learning if p.grad is None or not p.grad.abs().sum() > 0]
    lost = [name for name in without if not any(fnmatch.fnmatch(name, pattern) for pattern in method.card.no_gradient)]
    promise(
        not lost,
        f"{len(lost)} parameters get no gradient from the pretext ({', '.join(lost[:4])}): use them, set requires_grad to False, "
        "or name them in the card's no_gradient",
    )


@check
def the_pretext_draws_from_the_keys(method: Method[Any]) -> None:
    """Nothing random comes from elsewhere but dropout, and what a sample draws comes from its own key, wherever it stands."""
    import torch

    if not method.card.pretext:
        return
    batch = batch_of(method)
    classes, known = (part if part is None else part.flip(0) for part in (batch.classes, batch.known))
    turned = Batch(batch.voxels.flip(0), replace(batch.keys, index=batch.keys.index.flip(0)), classes, known)

    def total(given: Batch, seed: int, training: bool) -> float:
        network = built(method).train(training)
        torch.manual_seed(seed)
        with torch.no_grad():
            return _loss(method, network, given).total.item()

    first, again, training = total(batch, 0, True), total(batch, 0, True), True
    if not math.isfinite(first):
        return  # another check says so
    promise(
        first == again,
        "pretext_loss() gives another value for the same weights, batch and keys: draw every random number from batch.keys",
    )
    if total(batch, 1, True) != first and _drops(built(method)):
        training, first = False, total(batch, 0, False)
    promise(
        total(batch, 1, training) == first,
        "pretext_loss() draws from torch's own generator: draw every random number from batch.keys (dropout may use it, as a "
        "module: nn.Dropout)",
    )
    promise(
        abs(total(turned, 0, training) - first) <= ORDER * abs(first),
        "pretext_loss() gives another value when the samples of a batch, and their keys, change places: what is drawn for a "
        "sample must be a function of its own key (is a mask drawn for the batch as a whole, or from one seed for all?)",
    )


def _drops(network: Any) -> bool:
    return any(
        "drop" in type(module).__name__.lower() and (getattr(module, "p", 0) or getattr(module, "drop_prob", 0))
        for module in network.modules()
    )


@check
def a_few_steps_lower_the_loss(method: Method[Any]) -> None:
    """Trained on one batch, the loss falls."""
    import torch

    if not method.card.pretext:
        return
    network = built(method).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses = []
    samples, steps = (VOLUMES, VOLUME_STEPS) if isinstance(method.draw(), WholeVolume) else (SAMPLES, STEPS)
    for step in range(steps):
        torch.manual_seed(step)
        loss = _loss(method, network, batch_of(method, samples)).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    promise(
        losses[-1] < LOWER * losses[0],
        f"{steps} steps of AdamW at {LEARNING_RATE:g} on one batch bring the loss from {losses[0]:.4g} to {losses[-1]:.4g} only",
    )


@check
def its_draw_fits(method: Method[Any]) -> None:
    """What it learns from is something, and a budget can be made of it."""
    if not method.card.pretext:
        return
    draw = method.draw()
    promise(draw.voxels > 0, "draw() shows the network no voxel: no budget can be made of that")
    if isinstance(draw, WholeVolume):
        promise(not method.card.uses_labels, "whole volumes are drawn without labels: draw superpatches, or learn without")
    elif draw.centred:
        promise(method.card.uses_labels, "draw() asks for superpatches about labelled voxels, but the card has uses_labels=False")
