"""Plain MAE: MONAI's network under keyed masks."""

import math
import warnings

import pytest
import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

from nemesis.errors import NemesisError
from nemesis.method import Batch, create
from nemesis.models.embedding import unpatchify
from nemesis.models.keyed import Keys

SMALL = {"patch": 4, "embed_dim": 48, "depth": 2, "heads": 4, "decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 4}


@pytest.fixture(scope="module")
def method():
    return create("plain_mae", SMALL, 16)


@pytest.fixture(scope="module")
def network(method):
    torch.manual_seed(0)
    return method.build().eval()


def voxels(n=2):
    return torch.rand(n, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_predicts_what_monais_own_forward_pass_does(method, network, monkeypatch):
    keep = method.mask(Keys.at(0, 0, range(2))).keep.flatten(1)
    monkeypatch.setattr(torch, "multinomial", lambda weights, n, replacement: keep[:, :n])
    with torch.no_grad():
        monais, masked = MaskedAutoEncoderViT.forward(network, voxels())
        ours = network(voxels(), keep)
    assert int(masked.sum()) == 2 * 48
    assert torch.allclose(ours, monais, atol=1e-6)


def test_loss_by_hand(method):
    keys = Keys.at(0, 0, range(2))
    hidden = method.mask(keys).hidden
    assert hidden.sum(1).tolist() == [48, 48]  # 75 % of 64 tokens
    per_voxel = unpatchify(hidden[:, :, None].expand(-1, -1, 64), (4, 4, 4), (4, 4, 4))
    # hidden voxels are 0.5, visible ones 1, and the prediction is nothing: 0.25 where it counts, 0.75 · 0.25 + 0.25 · 1 in all
    batch = Batch(torch.where(per_voxel, 0.5, 1.0), keys)
    loss = method.pretext_loss(lambda voxels, keep: torch.zeros(2, 64, 64), batch)
    assert loss.total.item() == pytest.approx(0.25)
    assert loss.monitors["psnr_masked"].item() == pytest.approx(-10 * math.log10(0.25), abs=1e-4)
    assert loss.monitors["psnr"].item() == pytest.approx(-10 * math.log10(0.4375), abs=1e-4)


def test_hidden_voxels_do_not_reach_the_reconstruction(method, network):
    keys = Keys.at(0, 0, range(2))
    with torch.no_grad():
        found = method.reconstruct(network, voxels(), keys)
        other = method.reconstruct(network, torch.where(found.hidden, 1 - voxels(), voxels()), keys)
        seen = method.reconstruct(network, torch.where(found.hidden, voxels(), 1 - voxels()), keys)
    assert found.hidden.float().mean() == 0.75
    assert torch.equal(found.prediction, other.prediction)
    assert not torch.allclose(found.prediction, seen.prediction, atol=1e-3)


def test_predicted_tokens_lie_where_their_voxels_do(method, network):
    with torch.no_grad():
        network.decoder_pred.weight.zero_()
        before = method.reconstruct(network, voxels(1), None).prediction
        network.decoder_pred.bias.view(4, 4, 4)[3, 0, 1] += 1.0
        change = method.reconstruct(network, voxels(1), None).prediction - before
    places = {tuple(place) for place in (change[0, 0] > 0.5).nonzero().tolist()}
    assert places == {(d, h, w) for d in (3, 7, 11, 15) for h in (0, 4, 8, 12) for w in (1, 5, 9, 13)}


def test_trains_in_bfloat16(method):
    torch.manual_seed(0)
    network = method.build().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.pretext_loss(network, Batch(voxels(), Keys.at(0, 0, range(2)))).total
    loss.backward()
    assert all(p.grad.isfinite().all() for name, p in network.named_parameters() if p.grad is not None)
    assert network.mask_tokens.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch": 5}, "not a multiple of patch 5"),
        ({"grid": 6}, "no grid of 6³ tokens"),
        ({"patch": 16}, "nothing to hide"),
        ({"embed_dim": 64, "heads": 4}, "embed_dim 64 is not divisible by 6"),
        ({"decoder_dim": 54, "decoder_heads": 4}, "decoder_dim 54 is not divisible"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(NemesisError, match=words):
        create("plain_mae", settings, 16)


@pytest.mark.parametrize("ratio", [0, 1])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    with pytest.raises(NemesisError, match="mask_ratio"):
        create("plain_mae", {**SMALL, "mask_ratio": ratio}, 16)


def test_the_vector_is_the_mean_over_all_tokens_but_the_class_token(method, network):
    keep = torch.arange(64).expand(2, -1)
    with torch.no_grad():
        tokens = network.tokens(voxels(), keep)
        assert tokens.shape == (2, 65, 48)
        assert torch.allclose(method.encode(network, voxels()), tokens[:, 1:].mean(1), atol=1e-6)


def test_building_silences_no_warning_of_others(method):
    before = list(warnings.filters)
    method.build()
    assert warnings.filters == before
