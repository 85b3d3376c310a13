"""What a method costs: multiply–accumulates (MAC) of a superpatch, parameters, and the same for a whole scan.

Both counters run any network, by default on the meta device, where nothing is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemesis.evaluation.counters import Counter, by_torch
from nemesis.method import Batch, Method
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

    def encode_volume(self, edge: int, volume: Size = VOLUME) -> int:
        """MAC of encoding all superpatches of a volume."""
        return self.encode * superpatches(edge, volume)


def superpatches(edge: int, volume: Size = VOLUME) -> int:
    """How many superpatches of this edge cover a volume, both in voxels: 64 of 128³ for the default one."""
    return math.prod(math.ceil(n / edge) for n in volume)


def method_cost(method: Method[Any], count: Counter = by_torch, device: str = "meta") -> MethodCost:
    """What a method costs per superpatch, counted on its own network.

    Args:
        count: :func:`by_torch` or :func:`by_fvcore`.
        device: ``cpu`` or ``cuda`` for a network that reads numbers on its way, which the meta device does not have, and for
            convolutions under fvcore; the forward pass is then computed.
    """
    import torch

    from nemesis.models.keyed import Keys

    def voxels(size: tuple[int, int, int]) -> Tensor:
        return torch.zeros(BATCH, 1, *size, device=device)

    features = 0

    def encoded(network: nn.Module, voxels: Tensor) -> Tensor:
        nonlocal features
        vectors = method.encode(network, voxels)
        features = int(vectors.shape[1])
        return vectors

    def pretext(network: nn.Module, voxels: Tensor) -> Tensor:
        classes = known = None
        if method.card.uses_labels:
            classes = torch.zeros_like(voxels, dtype=torch.uint8)
            known = torch.ones(BATCH, len(method.settings.classes), dtype=torch.bool, device=device)
        return method.pretext_loss(network, Batch(voxels, Keys.at(0, 0, range(BATCH), device), classes, known)).total

    network = _built(method, device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    pretrain = None
    with torch.no_grad():
        encode = count(encoded, network.eval(), voxels((method.superpatch,) * 3)) // BATCH
        # of published weights nobody names the organs that they were pretrained on: their pretext is not to be had here
        if method.card.pretext and not (method.card.uses_labels and not method.settings.classes):
            pretrain = count(pretext, network.train(), voxels(method.draw().size)) // BATCH
    return MethodCost(encode, pretrain, parameters, features)


def counted(method: Method[Any]) -> MethodCost:
    """:func:`method_cost` on the meta device where the method allows it, else computed."""
    try:
        return method_cost(method)
    except (RuntimeError, TypeError, NotImplementedError):  # it reads numbers on its way, which the meta device does not have
        return method_cost(method, device="cpu")


def _built(method: Method[Any], device: str) -> nn.Module:
    import torch

    try:
        with torch.device(device):
            return method.build()
    except RuntimeError:  # some constructors read a tensor's value, say a schedule of drop rates
        return method.build().to(device)
