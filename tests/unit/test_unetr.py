"""The decoder by which NEMESIS segments: its levels, its skips, and that all of the encoder learns."""

import pytest
import torch

from nemesis.method import create
from nemesis.models.unetr import skips, strides

SMALL = {"embed_dim": 48, "heads": 4, "tokens": 4, "depth": 4}


def segmenter(name, edge, classes=3, **settings):
    method = create(name, SMALL | settings, edge)
    torch.manual_seed(0)
    return method, method.segmenter(method.build(), classes)


def test_levels_and_skips_are_those_of_the_paper_and_of_any_other_token():
    assert strides(16) == [2, 2, 2, 2] and skips(12, 4) == [9, 6, 3]
    assert strides(12) == [3, 2, 2] and strides(1) == [1] and skips(6, 4) == [4, 3, 2]
    assert skips(1, 4) == [1, 1, 1], "an encoder with fewer blocks than levels gives its first to several"


@pytest.mark.parametrize(
    ("name", "edge", "patch"),
    [("nemesis", 32, 4), ("nemesis", 32, 8), ("nemesis", 32, 16), ("nemesis", 24, 6), ("maesil", 32, 8), ("random_vit", 32, 16)],
)
def test_every_voxel_has_logits_and_every_weight_a_gradient(name, edge, patch):
    tokens = {"tokens": 0} if name == "maesil" else {}
    _, network = segmenter(name, edge, patch=patch, **tokens)
    logits = network.train()(torch.rand(2, 1, edge, edge, edge))
    assert logits.shape == (2, 3, edge, edge, edge)
    logits.square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # the key's bias shifts all scores of a query alike, so that attention does not depend on it; it shares a vector with others
    assert idle == []


def test_organs_start_as_rare_as_they_are():
    """From one half Dice's gradient is flat until cross-entropy has said that most voxels are none."""
    _, network = segmenter("nemesis", 32, patch=8)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 1, 32, 32, 32)).sigmoid().mean() < 0.03


def test_the_full_size_is_built_and_counted():
    from nemesis.evaluation.downstream import segmenter_macs

    method = create("nemesis", {}, 128)
    assert segmenter_macs(method, 8) > 1e10  # on the meta device: nothing is computed


def test_the_bottleneck_is_what_the_frozen_probe_reads():
    method = create("nemesis", SMALL | {"patch": 8, "dropout": 0.0}, 32)
    torch.manual_seed(0)
    network, voxels = method.build().eval(), torch.rand(2, 1, 32, 32, 32)
    first, final = network.encoder.grids(voxels, [1])
    assert first.shape == final.shape == (2, 48, 4, 4, 4)
    assert torch.allclose(final.mean(dim=(2, 3, 4)), method.encode(network, voxels), atol=1e-6)


def test_tokens_stand_where_their_voxels_are():
    """Of a decoder with local reach, a voxel that changes far away changes little where it is not."""
    method = create("nemesis", SMALL | {"patch": 8, "depth": 1}, 32)
    torch.manual_seed(0)
    encoder = method.build().eval().encoder
    voxels = torch.rand(1, 1, 32, 32, 32)
    changed = voxels.clone()
    changed[..., 8:16, 24:32, 0:8] = 0.0  # token (1, 3, 0)
    embedded = [encoder._embedded(encoder.patches(v), torch.arange(64).view(1, 4, 16)) for v in (voxels, changed)]
    apart = (embedded[0] - embedded[1]).abs().sum(-1).view(4, 4, 4)
    assert torch.nonzero(apart).tolist() == [[1, 3, 0]]
    one, other = (encoder.grids(v, [])[0] for v in (voxels, changed))
    assert (one - other).abs().sum(1)[0].argmax().item() == 1 * 16 + 3 * 4 + 0


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        _, network = segmenter("nemesis", 32, patch=8, dropout=0.0, recompute=recompute)
        network.train()(torch.linspace(0, 1, 32**3).view(1, 1, 32, 32, 32)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.allclose(*gradients, atol=1e-6)
