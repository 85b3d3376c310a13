"""What every method promises, as checks that say in its author's words what is broken: `nemesis check-method <name>`.

The checks run a method at the ``small`` settings of its card on random voxels, on the CPU. The suite's own tests run them for
every method that is registered.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.method import Batch, Method, WholeVolume, create, find

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_EDGE = 16  # voxels; of a superpatch that is checked, where the method accepts it
SAMPLES, STEPS, LEARNING_RATE, LOWER = 4, 12, 1e-3, 0.97  # of a training on one batch, and what it is to reach of the first loss
VOLUMES, VOLUME_STEPS = 2, 4  # the same of a method that draws whole volumes, each of which is many crops
CLASSES = ("first", "second")  # that a method learns which uses labels and names none


class BrokenPromiseError(AssertionError):
    """A method does not do what the contract says; the text says what, and what to do."""


Check = Callable[[Method[Any]], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Decorator: a check, known by its name."""
    CHECKS[function.__name__] = function
    return function


def small_method(name: str) -> Method[Any]:
    """A method as it is checked: its card's ``small`` settings, at the smallest superpatch from 16 that it accepts.

    Raises:
        NemesisError: there is no such method, or its small settings do not fit that superpatch.
    """
    cls = find(name, "check-method")
    settings = dict(cls.card.small)
    if cls.card.uses_labels:
        settings.setdefault("classes", CLASSES)
    return create(name, settings, max(SMALLEST_EDGE, cls.card.smallest_input), f"{cls.__module__}: `small` of its card")


def run_checks(method: Method[Any]) -> Iterator[tuple[str, str | None]]:
    """Every check's name, and what is broken; None where nothing is."""
    for name, function in CHECKS.items():
        try:
            function(method)
        except BrokenPromiseError as error:
            yield name, str(error)
        except Exception as error:
            yield name, f"{type(error).__name__}: {error}"
        else:
            yield name, None


def _promise(kept: object, otherwise: str) -> None:
    if not kept:
        raise BrokenPromiseError(otherwise)


def built(method: Method[Any], seed: int = 0) -> nn.Module:
    """The method's network from this seed."""
    import torch

    torch.manual_seed(seed)
    return method.build()


def superpatches_of(method: Method[Any], n: int) -> Tensor:
    """Random superpatches (n, 1, D, H, W) in [0, 1], always the same."""
    import torch

    return torch.rand(n, 1, *(method.superpatch,) * 3, generator=torch.Generator().manual_seed(7))


def batch_of(method: Method[Any], n: int = 2, step: int = 0) -> Batch:
    """What a step of the pretext gets, of random voxels; labels can be seen in these."""
    import torch

    from nemesis.models.keyed import Keys

    voxels = torch.rand(n, 1, *method.draw().size, generator=torch.Generator().manual_seed(7))
    keys = Keys.at(0, step, range(n))
    if not method.card.uses_labels:
        return Batch(voxels, keys)
    count = len(method.settings.classes)
    classes = (voxels * (count + 1)).clamp_max(count).to(torch.uint8)
    return Batch(voxels, keys, classes, torch.ones(n, count, dtype=torch.bool))


@check
def the_seed_makes_the_network(method: Method[Any]) -> None:
    """Same seed, same network; another seed, another one."""
    import torch

    one, same, other = (torch.nn.utils.parameters_to_vector(built(method, seed).parameters()) for seed in (0, 0, 1))
    _promise(
        torch.equal(one, same), "build() gives other weights at the same seed: draw them from torch's global generator alone"
    )
    _promise(not torch.equal(one, other), "build() gives the same weights at every seed: draw them from torch's global generator")


@check
def encodes_each_superpatch_by_itself(method: Method[Any]) -> None:
    """(B, 1, D, H, W) → (B, F), finite, whatever else is in the batch."""
    import torch

    network = built(method).eval()
    voxels = superpatches_of(method, 3)
    with torch.no_grad():
        vectors, alone = method.encode(network, voxels), method.encode(network, voxels[1:2])
    _promise(vectors.ndim == 2 and len(vectors) == 3, f"encode() of 3 superpatches gives {tuple(vectors.shape)}, not (3, F)")
    _promise(torch.isfinite(vectors).all(), "encode() gives numbers that are not finite")
    _promise(
        torch.allclose(vectors[1:2], alone, atol=1e-5),
        "encode() says something else of a superpatch when others are in the batch: does something normalise over the batch in "
        "evaluation mode, or draw random numbers?",
    )
    _promise(not torch.allclose(vectors[0], vectors[1], atol=1e-6), "encode() says the same of every superpatch")


@check
def the_pretext_is_finite_and_repeatable(method: Method[Any]) -> None:
    """A finite loss, the same again; monitors without gradient; a gradient for every parameter that learns."""
    import torch

    if not method.card.pretext:
        return
    network = built(method).train()
    torch.manual_seed(0)
    loss = method.pretext_loss(network, batch_of(method))
    loss.total.backward()  # type: ignore[no-untyped-call]
    _promise(torch.isfinite(loss.total), "pretext_loss() is not finite on random voxels")
    for name, value in loss.monitors.items():
        _promise(torch.isfinite(value), f"the monitor '{name}' is not finite on random voxels")
        _promise(not value.requires_grad, f"the monitor '{name}' carries a gradient: detach it")
    learning = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    without = [name for name, p in learning if p.grad is None or not p.grad.abs().sum() > 0]
    lost = [name for name in without if not any(fnmatch.fnmatch(name, pattern) for pattern in method.card.no_gradient)]
    _promise(
        not lost,
        f"{len(lost)} parameters get no gradient from the pretext ({', '.join(lost[:4])}): use them, set requires_grad to False, "
        "or name them in the card's no_gradient",
    )
    again = built(method).train()
    torch.manual_seed(0)
    repeated = method.pretext_loss(again, batch_of(method)).total
    _promise(
        torch.equal(loss.total, repeated),
        "pretext_loss() gives another value for the same weights, batch and keys: draw every random number from batch.keys",
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
        loss = method.pretext_loss(network, batch_of(method, samples)).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    _promise(
        losses[-1] < LOWER * losses[0],
        f"{steps} steps of AdamW at {LEARNING_RATE:g} on one batch bring the loss from {losses[0]:.4g} to {losses[-1]:.4g} only",
    )


@check
def reconstructs_under_a_keyed_mask(method: Method[Any]) -> None:
    """A prediction of every voxel, and what was hidden: by the sample's key alone."""
    import torch

    from nemesis.models.keyed import Keys

    if not method.card.reconstructs:
        return
    network = built(method).eval()
    voxels = superpatches_of(method, 2)
    with torch.no_grad():
        masked = method.reconstruct(network, voxels, Keys.at(0, 0, [5, 6]))
        alone = method.reconstruct(network, voxels[1:], Keys.at(0, 0, [6]))
        whole = method.reconstruct(network, voxels, None)
    for name, tensor in (("prediction", masked.prediction), ("hidden", masked.hidden)):
        _promise(tensor.shape == voxels.shape, f"reconstruct() of {tuple(voxels.shape)} gives {name} of {tuple(tensor.shape)}")
    _promise(masked.hidden.dtype == torch.bool, f"reconstruct() gives hidden as {masked.hidden.dtype}, not bool")
    _promise(
        torch.equal(masked.hidden[1:], alone.hidden),
        "reconstruct() hides something else of a superpatch when others are in the batch: make the mask from its key alone",
    )
    _promise(
        torch.allclose(masked.prediction[1:], alone.prediction, atol=1e-5),
        "reconstruct() predicts something else of a superpatch when others are in the batch",
    )
    _promise(not whole.hidden.any(), "reconstruct() without keys hides voxels: None asks for the whole input")


@check
def segments_from_its_own_weights(method: Method[Any]) -> None:
    """Logits of every voxel, of as many classes as are asked for, from the pretrained weights."""
    import torch

    if not method.card.segments:
        return
    voxels = superpatches_of(method, 2)
    outputs = []
    for seed in (0, 1):
        network = built(method, seed)
        torch.manual_seed(0)  # of what is new in the segmenter
        segmenter = method.segmenter(network, 3)
        trained = segmenter.train()(voxels)
        first = trained[0] if isinstance(trained, (list, tuple)) else trained
        _promise(first.shape == (2, 3, *voxels.shape[2:]), f"the segmenter of 3 classes gives {tuple(first.shape)} in training")
        with torch.no_grad():
            outputs.append(segmenter.eval()(voxels))
    shape = tuple(outputs[0].shape) if isinstance(outputs[0], torch.Tensor) else type(outputs[0]).__name__
    _promise(shape == (2, 3, *voxels.shape[2:]), f"the segmenter of 3 classes gives {shape} in evaluation mode")
    _promise(torch.isfinite(outputs[0]).all(), "the segmenter gives numbers that are not finite")
    _promise(not torch.allclose(*outputs), "the segmenter says the same whatever the pretrained weights: does it use them?")


@check
def weights_survive_saving(method: Method[Any]) -> None:
    """What is saved and loaded encodes alike."""
    import torch

    from nemesis.models.checkpoint import load_weights, save_weights

    network, fresh = built(method, 0).eval(), built(method, 1).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_weights(network, Path(folder) / "weights.safetensors", {})
        load_weights(fresh, Path(folder) / "weights.safetensors")
    voxels = superpatches_of(method, 2)
    with torch.no_grad():
        same = torch.equal(method.encode(network, voxels), method.encode(fresh, voxels))
    _promise(same, "after saving and loading the network encodes something else: keep everything it needs in its state_dict")


@check
def bf16_stays_close_to_fp32(method: Method[Any]) -> None:
    """Under autocast to bf16 the vectors are those of fp32, within a tenth."""
    import torch

    network = built(method).eval()
    voxels = superpatches_of(method, 2)
    with torch.no_grad():
        exact = method.encode(network, voxels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = method.encode(network, voxels).float()
    away = float((exact - rough).norm() / exact.norm())
    _promise(away < 0.1, f"under bf16 encode() is {100 * away:.0f} % away from fp32: keep what needs the precision in fp32")


@check
def its_cost_can_be_counted(method: Method[Any]) -> None:
    """PyTorch's counter and fvcore agree on the multiply–accumulates of encoder and pretext."""
    from nemesis.evaluation.cost import by_fvcore, counted, method_cost

    one, other = counted(method), method_cost(method, by_fvcore, "cpu")
    for name, first, second in (("encode()", one.encode, other.encode), ("pretext_loss()", one.pretext, other.pretext)):
        if first is None or second is None:
            continue
        _promise(first > 0, f"{name} costs no multiply–accumulate")
        _promise(abs(first - second) <= 0.02 * first, f"{name} costs {first} multiply–accumulates by PyTorch, {second} by fvcore")


@check
def its_draw_fits(method: Method[Any]) -> None:
    """What it learns from is something, and a budget can be made of it."""
    if not method.card.pretext:
        return
    draw = method.draw()
    _promise(draw.voxels > 0, "draw() shows the network no voxel: no budget can be made of that")
    if isinstance(draw, WholeVolume):
        _promise(not method.card.uses_labels, "whole volumes are drawn without labels: draw superpatches, or learn without")
    elif draw.centred:
        _promise(
            method.card.uses_labels, "draw() asks for superpatches about labelled voxels, but the card has uses_labels=False"
        )
