"""What a method costs: multiply–accumulates (MAC) of a superpatch, parameters, and the same for a whole scan.

Both counters run any network, by default on the meta device, where nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemesis.evaluation.counters import Counter, by_fvcore, by_torch
from nemesis.evaluation.formula import by_formula
from nemesis.method import Batch, Method
from nemesis.methods.nemesis import NemesisEncoderMethod
from nemesis.models.architecture import Size

if TYPE_CHECKING:
    from torch import Tensor, nn

VOLUME: Size = (400, 512, 512)  # voxels (D, H, W) of the scan that costs per volume are given for
FLOP_PER_MAC = 2
PASSES_PER_STEP = 3  # forward, and backward to the inputs and to the weights; one more where activations are recomputed
BATCH = 2  # superpatches that are counted together: a contrastive pretext needs a second one


@dataclass(frozen=True)
class MethodCost:
    """MAC of any method, per superpatch, and the sizes of its network."""

    encode: int  # from a superpatch to its vector, nothing masked
    pretext: int | None  # the pretext's forward pass on what the method draws; None: it has no pretext
    parameters: int
    features: int  # numbers in a vector
    reconstruct: int | None = None  # from a superpatch to its voxels, nothing masked: the whole network; None: it does not
    encoder_parameters: int = 0  # those that a vector is computed from

    def encode_volume(self, edge: int, volume: Size = VOLUME) -> int:
        """MAC of encoding all superpatches of a volume."""
        return self.encode * superpatches(edge, volume)


def superpatches(edge: int, volume: Size = VOLUME) -> int:
    """How many superpatches of this edge cover a volume, both in voxels: 64 of 128³ for the default one."""
    return math.prod(math.ceil(n / edge) for n in volume)


def method_cost(method: Method[Any], count: Counter = by_torch, device: str = "meta", with_pretext: bool = True) -> MethodCost:
    """What a method costs per superpatch, counted on its own network.

    Args:
        count: :func:`by_torch` or :func:`by_fvcore`.
        device: ``cpu`` or ``cuda`` for a network that reads numbers on its way, which the meta device does not have, and for
            convolutions under fvcore; the forward pass is then computed.
        with_pretext: count its pass, too, which of crops of a whole scan is much longer than the others.
    """
    import torch

    from nemesis.models.keyed import Keys

    def pretext(network: nn.Module, voxels: Tensor) -> Tensor:
        classes = known = None
        if method.card.uses_labels:
            classes = torch.zeros_like(voxels, dtype=torch.uint8)
            known = torch.ones(BATCH, len(method.settings.classes), dtype=torch.bool, device=device)
        return method.pretext_loss(network, Batch(voxels, Keys.at(0, 0, range(BATCH), device), classes, known)).total

    network = _built(method, device)
    superpatch = torch.zeros(BATCH, 1, *(method.superpatch,) * 3, device=device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    reconstructed = pretrain = None
    with torch.no_grad():
        vectors, encoder_parameters = _read_by(lambda: method.encode(network, superpatch[:1]), network.eval())
        encode = count(method.encode, network, superpatch) // BATCH
        if method.card.reconstructs:
            reconstructed = count(lambda net, x: method.reconstruct(net, x, None).prediction, network, superpatch) // BATCH
        # of published weights nobody names the organs that they were pretrained on: their pretext is not to be had here
        if with_pretext and method.card.pretext and not (method.card.uses_labels and not method.settings.classes):
            drawn = torch.zeros(BATCH, 1, *method.draw().size, device=device)
            pretrain = count(pretext, network.train(), drawn) // BATCH
    return MethodCost(encode, pretrain, parameters, int(vectors.shape[1]), reconstructed, encoder_parameters)


def counted(method: Method[Any]) -> MethodCost:
    """:func:`method_cost` on the meta device where the method allows it, else computed."""
    try:
        return method_cost(method)
    except (RuntimeError, TypeError, NotImplementedError):  # it reads numbers on its way, which the meta device does not have
        return method_cost(method, device="cpu")


def cost_rows(method: Method[Any]) -> list[dict[str, Any]]:
    """Parameters of the whole network and of its encoder; multiply–accumulates of one superpatch to its vector, of one through
    the whole network and of one sample through the pretext; the voxels of a scan that a sample shows.

    The first two are counted by PyTorch (the figures that tables print) and again by fvcore and, of the NEMESIS network, by
    formula: ``…_fvcore`` and ``…_formula``.
    """
    cost, again = counted(method), method_cost(method, by_fvcore, "cpu", with_pretext=False)
    macs = {"encode_macs": cost.encode, "reconstruct_macs": cost.reconstruct, "pretext_macs": cost.pretext}
    macs |= {"encode_macs_fvcore": again.encode, "reconstruct_macs_fvcore": again.reconstruct}
    if isinstance(method, NemesisEncoderMethod):
        formula = by_formula(method.architecture, reference=False)
        macs["encode_macs_formula"] = formula.encoder.total
        macs["reconstruct_macs_formula"] = formula.total if cost.reconstruct is not None else None
    figures = {metric: ("MAC", value) for metric, value in macs.items()}
    figures |= {"parameters": ("parameters", cost.parameters), "encoder_parameters": ("parameters", cost.encoder_parameters)}
    if method.card.pretext:
        figures["sample_voxels"] = ("voxels", method.draw().voxels)
    return [
        {"metric": metric, "unit": unit, "value": float(value)} for metric, (unit, value) in figures.items() if value is not None
    ]


def _read_by(call: Callable[[], Tensor], network: nn.Module) -> tuple[Tensor, int]:
    """What a call returns, and how many of a network's parameters the operators that it runs read."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes = {id(parameter): parameter.numel() for parameter in network.parameters()}
    read: set[int] = set()

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            read.update(id(value) for value in tree_leaves((args, kwargs)) if id(value) in sizes)
            return function(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        returned = call()
    return returned, sum(sizes[parameter] for parameter in read)


def _built(method: Method[Any], device: str) -> nn.Module:
    import torch

    try:
        with torch.device(device):
            return method.build()
    except RuntimeError:  # some constructors read a tensor's value, say a schedule of drop rates
        return method.build().to(device)
