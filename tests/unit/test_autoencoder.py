"""The NEMESIS network: what its parts promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.method import Batch, create
from nemesis.models.embedding import patchify, sincos_positions, unpatchify
from nemesis.models.keyed import Keys
from nemesis.models.masking import Masking, draw_mask, nothing_masked

SMALL = {
    "embed_dim": 64,
    "depth": 1,
    "decoder_depth": 1,
    "decoder_dim": 32,
    "heads": 4,
    "decoder_heads": 4,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create("nemesis", SMALL, 16).build().eval()


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.sampled_from([1, 2, 4])] * 3), st.integers(1, 2))
def test_unpatchify_inverts_patchify(grid, patch, channels):
    volume = torch.rand(2, channels, *(g * p for g, p in zip(grid, patch, strict=True)))
    patches = patchify(volume, patch)
    assert patches.shape == (2, math.prod(grid), patch[0], patch[1] * patch[2] * channels)
    assert torch.equal(unpatchify(patches, patch, grid, channels), volume)


def test_tokens_run_along_depth_then_height_then_width():
    volume = torch.zeros(1, 1, 4, 6, 8)
    volume[0, 0, 2:, 2:4, 6:] = 1  # slice 1, row 1, column 3 of a 2 × 3 × 4 grid
    filled = patchify(volume, (2, 2, 2)).flatten(2).sum(2)[0]
    assert filled.nonzero().item() == 1 * 12 + 1 * 4 + 3


@pytest.mark.parametrize("width", [48, 64, 65])
def test_positions_are_distinct_and_bounded(width):
    table = sincos_positions((3, 4, 5), width)
    assert table.shape == (60, width)
    assert len({tuple(row.tolist()) for row in table}) == 60
    assert table.abs().max() <= 1


def test_hidden_voxels_do_not_reach_the_reconstruction(network):
    torch.manual_seed(1)
    volume = torch.rand(1, 1, 16, 16, 16)
    mask = draw_mask((8, 8, 8), Masking(), Keys.at(0, 0, [0]).uniform("mask", 512))
    with torch.no_grad():
        prediction, hidden = network.reconstruct(volume, mask)
        other, _ = network.reconstruct(torch.where(hidden, torch.rand_like(volume), volume), mask)
        changed, _ = network.reconstruct(torch.where(hidden, volume, 1 - volume), mask)
    assert hidden.float().mean() == 0.75
    assert torch.equal(prediction, other)
    assert not torch.allclose(prediction, changed, atol=1e-4)


def test_loss_covers_the_masked_voxels_only(network):
    torch.manual_seed(2)
    volume = torch.rand(2, 1, 16, 16, 16)
    mask = draw_mask((8, 8, 8), Masking(), Keys.at(0, 0, [0, 1]).uniform("mask", 512))
    with torch.no_grad():
        out = network(volume, mask)
        prediction, hidden = network.reconstruct(volume, mask)
        whole = network(volume, nothing_masked((8, 8, 8), 2, volume.device))
    assert out.loss.item() == pytest.approx((prediction - volume)[hidden].square().mean().item(), rel=1e-4)
    assert out.full_mse.item() == pytest.approx((prediction - volume).square().mean().item(), rel=1e-4)
    assert whole.loss.item() == whole.full_mse.item()


def test_the_axis_stream_connects_slices_and_the_plane_stream_connects_columns(network):
    block = network.encoder.blocks[0]
    x = torch.randn(1, 4, 6, 64)
    with torch.no_grad():
        base = block(x)
        moved = x.clone()
        moved[0, 0, 0] = torch.randn(64)
        reached = (block(moved) - base).abs().amax(-1)[0] > 1e-6
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[0, :] = True
    expected[:, 0] = True
    assert torch.equal(reached, expected)


def test_the_gate_starts_half_open(network):
    assert torch.sigmoid(network.encoder.adaptive_agg.alpha).item() == 0.5


def test_noise_is_on_the_input_and_the_target_stays_clean():
    method = create("nemesis", {**SMALL, "noise": (0.5,)}, 16)
    torch.manual_seed(0)
    network = method.build().eval()
    batch = Batch(torch.full((2, 1, 16, 16, 16), 0.5), Keys.at(0, 0, [0, 1]))
    clean = create("nemesis", {**SMALL, "noise": (0.0,)}, 16)
    with torch.no_grad():
        noisy_loss, clean_loss = method.pretext_loss(network, batch).total, clean.pretext_loss(network, batch).total
        again = method.pretext_loss(network, batch).total
    assert noisy_loss == again
    assert noisy_loss != clean_loss
    assert (noisy_loss - clean_loss).abs() < 0.2  # a noisy target would add its variance, 0.25


def test_random_vit_is_where_nemesis_starts_from():
    encoder = {name: SMALL[name] for name in ("embed_dim", "depth", "heads", "dropout")}
    torch.manual_seed(3)
    nemesis = create("nemesis", SMALL, 16).build().encoder.state_dict()
    torch.manual_seed(3)
    random_vit = create("random_vit", encoder, 16).build().state_dict()
    assert nemesis.keys() == random_vit.keys()
    assert all(torch.equal(nemesis[name], random_vit[name]) for name in nemesis)
