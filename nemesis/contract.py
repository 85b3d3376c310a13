"""What every method promises, as checks that say in its author's words what is broken: `nemesis check-method <name>`.

The checks run a method at the ``small`` settings of its card on random voxels, on the CPU. The suite's own tests run them for
every method that is registered.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nemesis.pretext_checks  # noqa: F401  # whose checks count too
from nemesis.method import Method
from nemesis.promises import CHECKS, BrokenPromiseError, built, check, promise, small_method, superpatches_of

__all__ = ["CHECKS", "BrokenPromiseError", "run_checks", "small_method"]

PARTS = {"pretext": "pretext_loss", "reconstructs": "reconstruct", "segments": "segmenter", "published": "load_published"}


def run_checks(method: Method[Any]) -> Iterator[tuple[str, str | None]]:
    """Every check's name, and what is broken; None where nothing is."""
    for name, function in CHECKS.items():
        try:
            function(method)
        except BrokenPromiseError as error:
            yield name, str(error)
        except Exception as error:
            frames, own = traceback.extract_tb(error.__traceback__), inspect.getfile(type(method))
            at = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
            yield name, f"{type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno}: {at.line})"
        else:
            yield name, None


@check
def its_card_says_what_it_does(method: Method[Any]) -> None:
    """Every function has its word in the card, and every word its function."""
    for word, function in PARTS.items():
        said, done = getattr(method.card, word), getattr(type(method), function) is not getattr(Method, function)
        promise(done or not said, f"the card says '{word}', but the class has no {function}()")
        promise(said or not done, f"the class has {function}(), which nobody will call: the card does not say '{word}'")


@check
def its_file_imports_no_network_library(method: Method[Any]) -> None:
    """The workflow is planned from cards and settings, for which nobody waits for torch."""
    code = f"import sys, {type(method).__module__}; print(*sorted({{'torch', 'monai'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    promise(not done.returncode, f"{type(method).__module__} cannot be imported by itself: {done.stderr.strip()[-200:]}")
    heavy = done.stdout.split()
    promise(not heavy, f"{type(method).__module__} imports {' and '.join(heavy)} at its top: import them within the functions")


@check
def the_seed_makes_the_network(method: Method[Any]) -> None:
    """Same seed, same network; another seed, another one."""
    import torch

    one, same, other = (torch.nn.utils.parameters_to_vector(built(method, seed).parameters()) for seed in (0, 0, 1))
    promise(torch.equal(one, same), "build() gives other weights at the same seed: draw them from torch's global generator alone")
    promise(not torch.equal(one, other), "build() gives the same weights at every seed: draw them from torch's global generator")


@check
def encodes_each_superpatch_by_itself(method: Method[Any]) -> None:
    """(B, 1, D, H, W) → (B, F), finite, whatever else is in the batch."""
    import torch

    network = built(method).eval()
    voxels = superpatches_of(method, 3)
    with torch.no_grad():
        vectors, alone = method.encode(network, voxels), method.encode(network, voxels[1:2])
    promise(vectors.ndim == 2 and len(vectors) == 3, f"encode() of 3 superpatches gives {tuple(vectors.shape)}, not (3, F)")
    promise(torch.isfinite(vectors).all(), "encode() gives numbers that are not finite")
    promise(
        torch.allclose(vectors[1:2], alone, atol=1e-5),
        "encode() says something else of a superpatch when others are in the batch: does something normalise over the batch in "
        "evaluation mode, or draw random numbers?",
    )
    promise(not torch.allclose(vectors[0], vectors[1], atol=1e-6), "encode() says the same of every superpatch")


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
        other = method.reconstruct(network, torch.where(masked.hidden, 1 - voxels, voxels), Keys.at(0, 0, [5, 6]))
    for name, tensor in (("prediction", masked.prediction), ("hidden", masked.hidden)):
        promise(tensor.shape == voxels.shape, f"reconstruct() of {tuple(voxels.shape)} gives {name} of {tuple(tensor.shape)}")
    promise(masked.hidden.dtype == torch.bool, f"reconstruct() gives hidden as {masked.hidden.dtype}, not bool")
    promise(
        torch.equal(masked.hidden[1:], alone.hidden),
        "reconstruct() hides something else of a superpatch when others are in the batch: make the mask from its key alone",
    )
    promise(
        torch.allclose(masked.prediction[1:], alone.prediction, atol=1e-5),
        "reconstruct() predicts something else of a superpatch when others are in the batch",
    )
    promise(
        torch.allclose(masked.prediction, other.prediction, atol=1e-5),
        "reconstruct() predicts something else when voxels change that it says are hidden: they reach the network",
    )
    promise(not whole.hidden.any(), "reconstruct() without keys hides voxels: None asks for the whole input")


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
        promise(first.shape == (2, 3, *voxels.shape[2:]), f"the segmenter of 3 classes gives {tuple(first.shape)} in training")
        with torch.no_grad():
            outputs.append(segmenter.eval()(voxels))
    shape = tuple(outputs[0].shape) if isinstance(outputs[0], torch.Tensor) else type(outputs[0]).__name__
    promise(shape == (2, 3, *voxels.shape[2:]), f"the segmenter of 3 classes gives {shape} in evaluation mode")
    promise(torch.isfinite(outputs[0]).all(), "the segmenter gives numbers that are not finite")
    promise(not torch.allclose(*outputs), "the segmenter says the same whatever the pretrained weights: does it use them?")


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
    promise(same, "after saving and loading the network encodes something else: keep everything it needs in its state_dict")


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
    promise(away < 0.1, f"under bf16 encode() is {100 * away:.0f} % away from fp32: keep what needs the precision in fp32")


@check
def its_cost_can_be_counted(method: Method[Any]) -> None:
    """PyTorch's counter and fvcore agree on the multiply–accumulates of encoder and pretext."""
    from nemesis.evaluation.cost import counted, method_cost
    from nemesis.evaluation.counters import by_fvcore

    one, other = counted(method), method_cost(method, by_fvcore, "cpu")
    for name, first, second in (("encode()", one.encode, other.encode), ("pretext_loss()", one.pretext, other.pretext)):
        if first is None or second is None:
            continue
        promise(first > 0, f"{name} costs no multiply–accumulate")
        promise(abs(first - second) <= 0.02 * first, f"{name} costs {first} multiply–accumulates by PyTorch, {second} by fvcore")
