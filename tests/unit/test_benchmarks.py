"""The plain network that speed is measured against computes the same thing."""

import pytest
import torch

from benchmarks.reference import PlainMAE, masks_by_loop
from nemesis.models.architecture import OFFICIAL, Architecture
from nemesis.models.autoencoder import MaskedAutoencoder
from nemesis.models.masking import Masking, mask_of


def test_the_plain_network_and_the_suite_s_agree():
    torch.manual_seed(0)
    architecture = Architecture((32, 32, 32), (8, 8, 8), embed_dim=64, depth=2, decoder_depth=1, dropout=0.0, **OFFICIAL)
    plain, suite = PlainMAE(architecture), MaskedAutoencoder(architecture)
    suite.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 32, 32, 32)
    keep = masks_by_loop(architecture.grid, Masking("thinned"), 2)
    hidden = torch.ones(2, 64, dtype=torch.bool).scatter(1, keep.flatten(1), False)
    losses = plain(x, keep), suite(x, mask_of(hidden, architecture.grid)).loss
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for (name, p), q in zip(plain.named_parameters(), suite.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6), name
    with torch.no_grad():
        assert torch.allclose(plain.embed(x), suite.encoder.embed(x), atol=1e-5)


def test_masks_by_loop_hide_what_the_suite_s_hide():
    masking = Masking("thinned", "random", 0.5, 0.25)
    keep = masks_by_loop((4, 4, 4), masking, 3)
    assert keep.shape == (3, *masking.visible((4, 4, 4)))
    assert ((keep // 16) == torch.arange(4)[:, None]).all()
