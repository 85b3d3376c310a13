"""The NEMESIS network: what its parts promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.method import Batch, create
from nemesis.models.autoencoder import squared_error
from nemesis.models.blocks import Attention, Block, Dropout, dropout
from nemesis.models.embedding import patchify, sincos_positions, unpatchify
from nemesis.models.keyed import Keys
from nemesis.models.mae import MAEgic3DMAE
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


def test_the_loss_is_computed_in_float32_under_autocast(network):
    torch.manual_seed(2)
    volume = torch.rand(2, 1, 16, 16, 16)
    mask = draw_mask((8, 8, 8), Masking(), Keys.at(0, 0, [0, 1]).uniform("mask", 512))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(volume, mask)
    error = (out.prediction.float() - patchify(volume, (2, 2, 2)).flatten(2)).square().mean(2)
    assert out.prediction.dtype == torch.bfloat16 and out.loss.dtype == out.full_mse.dtype == torch.float32
    assert out.loss.item() == pytest.approx(error[mask.hidden].mean().item(), rel=1e-6)
    assert out.full_mse.item() == pytest.approx(error.mean().item(), rel=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_mask_of_another_batch_is_refused(samples, network):
    mask, volume = nothing_masked((8, 8, 8), samples, torch.device("cpu")), torch.rand(2, 1, 16, 16, 16)
    model = MAEgic3DMAE.of(network.architecture).eval()
    for given_mask in (mask, mask.hidden):
        for call in (model.encoder, model):
            with pytest.raises(ValueError, match=f"the mask is of {samples} superpatches, the batch holds 2"):
                call(volume, mask=given_mask)


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


@pytest.mark.parametrize("gate", ["linear", "tokens"])
def test_the_gate_weighs_the_path_it_names(gate):
    torch.manual_seed(0)
    e = create("nemesis", {**SMALL, "gate": gate, "gate_start": 1.0}, 16).build().encoder.adaptive_agg
    patches = torch.rand(2, 5, 2, 4)
    linear = e.linear(patches.flatten(2))
    rows = torch.cat([e.embed(patches.flatten(0, 1)) + e.pos_embed, e.mt.expand(10, -1, -1)], dim=1)
    tokens = e.proj(e.attn(e.norm_qkv(rows)))[:, 2:].reshape(2, 5, 64)
    share = 1 / (1 + math.exp(-1.0))
    expected = share * linear + (1 - share) * tokens if gate == "linear" else (1 - share) * linear + share * tokens
    assert torch.allclose(e(patches), expected, atol=1e-6)


def test_a_copied_position_scale_is_the_encoder_s_before_every_forward():
    torch.manual_seed(0)
    network = create("nemesis", {**SMALL, "preset": "official", "patch": 4}, 16).build().eval()
    volume, mask = torch.rand(1, 1, 16, 16, 16), nothing_masked((4, 4, 4), 1, torch.device("cpu"))
    network.encoder.pe_scale.data.fill_(0.7)
    with torch.no_grad():
        prediction = network(volume, mask).prediction
        assert network.decoder.pe_scale.item() == network.encoder.pe_scale.item()
        assert torch.equal(network(volume, mask).prediction, prediction)


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


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "official"},
        {"preset": "maesil"},
        {"streams": "plane"},
        {"streams": "axis"},
        {"merge": "mean"},
        {"tokens": 0},
        {"plane_masking": "uniform"},
        {"decoder_dim": None},
        {"plane_mask_ratio": 0.0, "axis_mask_ratio": 0.0},
    ],
)
def test_every_variant_trains_every_parameter(settings):
    method = create("nemesis", {**SMALL, "patch": 4, **settings}, 16)
    torch.manual_seed(0)
    network = method.build().train()
    loss = method.pretext_loss(network, Batch(torch.rand(2, 1, 16, 16, 16), Keys.at(0, 0, [0, 1]))).total
    loss.backward()
    assert torch.isfinite(loss)
    hidden = method.masking.hidden_share(method.architecture.grid) > 0
    for name, parameter in network.named_parameters():
        if name != "decoder.mask_token" or hidden:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert method.encode(network.eval(), torch.rand(2, 1, 16, 16, 16)).shape == (2, 64)


def test_a_preset_sets_what_is_not_set():
    official = create("nemesis", {"preset": "official", "dropout": 0.2, "decoder_dim": 128}, 128)
    assert official.architecture.patch == (8, 8, 8) and official.architecture.grid == (16, 16, 16)
    assert official.settings.merge == "mean" and official.settings.plane_masking == "thinned"
    assert official.settings.dropout == 0.2 and official.settings.decoder_dim == 128  # said, so not the preset's
    assert create("nemesis", official.settings.model_dump(mode="json"), 128).settings == official.settings
    assert create("random_vit", {"preset": "maesil"}, 128).settings.tokens == 0
    assert create("nemesis", {"preset": "maesil"}, 128).masking.hidden_share((16, 16, 16)) == 0.75
    assert create("nemesis", {}, 32).architecture.patch == (4, 4, 4)


def test_recomputing_activations_runs_blocks_twice_and_changes_no_number(monkeypatch):
    gradients, ran, forward = [], [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda block, x: (ran.append(block), forward(block, x))[1])
    for recompute in (False, True):
        method = create("nemesis", {**SMALL, "dropout": 0.1, "recompute": recompute}, 16)
        torch.manual_seed(0)
        network = method.build().train()
        method.pretext_loss(network, Batch(torch.rand(2, 1, 16, 16, 16), Keys.at(0, 0, [0, 1]))).total.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        assert len(ran) == (6 if recompute else 2)  # one block of the encoder, one of the decoder
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(300, 1000, requires_grad=True)
    y = dropout(x, 0.1)
    y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert y.max().item() == pytest.approx(1 / 0.9)
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout(x, 0.0), x) and torch.equal(Dropout(0.5).eval()(x), x)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1), y)


@pytest.mark.parametrize("rough", [False, True])
def test_attention_drops_in_training_only_in_any_precision(rough):
    torch.manual_seed(0)
    attention, x = Attention(64, 4, 0.5), torch.randn(5, 12, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rough):
        assert not torch.equal(attention.train()(x), attention(x))
        assert torch.equal(attention.eval()(x), attention(x))


def test_training_compiles_to_one_graph():
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_maegic_tokens": 2, "decoder_depth": 1, "decoder_num_heads": 2}
    model = MAEgic3DMAE(superpatch_size=16, patch_size=8, dropout=0.5, **sizes).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # which refuses what it cannot trace
    for rough in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            assert torch.isfinite(compiled(torch.rand(2, 1, 16, 16, 16))[0]["total_loss"])


def test_attention_in_bf16_stays_close_to_fp32():
    torch.manual_seed(0)
    attention = Attention(64, 4, 0.0)
    x = torch.randn(5, 12, 64)
    with torch.no_grad():
        exact = attention(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = attention(x).float()
    assert (exact - rough).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_squared_error_and_its_gradient(kind, autocast):
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 3, 50).to(kind).requires_grad_(), torch.randn(2, 3, 50)
    plain = prediction.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = squared_error(prediction, target)
    expected = (plain - target).square().mean(2)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=1e-6)
    weights = torch.rand(2, 3)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert prediction.grad.dtype == kind
    assert torch.allclose(prediction.grad.float(), plain.grad.to(kind).float(), rtol=1e-6 if kind == torch.float32 else 2**-7)
