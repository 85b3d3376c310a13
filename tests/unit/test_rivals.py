"""What holds of every rival with a pretext: an interruption leaves no trace, each in its own name."""

import io
import math

import pytest
import torch

from nemesis.contract import small_method
from nemesis.method import Batch, create
from nemesis.models.keyed import Keys


class Training:
    """The loop in small: everything random in a step is a function of the step."""

    def __init__(self, name):
        self.method = small_method(name)
        torch.manual_seed(0)
        self.network = self.method.build().train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.1)

    def steps(self, first, last):
        for step in range(first, last):
            voxels = torch.rand(3, 1, *(self.method.superpatch,) * 3, generator=torch.Generator().manual_seed(step))
            labels = ((3 * voxels).to(torch.uint8), torch.ones(3, 2, dtype=torch.bool)) if self.method.card.uses_labels else ()
            torch.manual_seed(step)
            self.optimizer.zero_grad()
            self.method.pretext_loss(self.network, Batch(voxels, Keys.at(0, step, range(3)), *labels)).total.backward()
            self.optimizer.step()
        return self.network.state_dict()

    def resumed(self, name):
        file, other = io.BytesIO(), Training(name)
        torch.save((self.network.state_dict(), self.optimizer.state_dict()), file)
        file.seek(0)
        network, optimizer = torch.load(file, weights_only=True)
        other.network.load_state_dict(network)
        other.optimizer.load_state_dict(optimizer)
        return other


@pytest.mark.parametrize("name", ["ae", "vae", "vqvae", "plain_mae", "maesil", "suprem", "nnformer_mae"])
def test_a_resumed_training_ends_with_the_same_bits(name):
    straight = Training(name).steps(0, 5)
    interrupted = Training(name)
    interrupted.steps(0, 2)
    resumed = interrupted.resumed(name).steps(2, 5)
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_maesil_is_nemesis_by_its_preset():
    keys = {"patch": 4, "embed_dim": 64, "depth": 1, "decoder_depth": 1, "decoder_dim": 32, "heads": 4, "decoder_heads": 4}
    method, preset = create("maesil", keys, 16), create("nemesis", {**keys, "preset": "maesil"}, 16)
    assert method.settings.model_dump() == preset.settings.model_dump(exclude={"preset"})
    batch, losses = Batch(torch.rand(2, 1, 16, 16, 16), Keys.at(0, 0, range(2))), []
    for each in (method, preset):
        torch.manual_seed(0)
        losses.append(each.pretext_loss(each.build(), batch).total)
    assert torch.equal(*losses)
    assert create("maesil", {}, 128).masking.hidden_share((16, 16, 16)) == 0.75
    assert create("maesil", {"plane_mask_ratio": 0.75}, 128).masking.hidden_share((16, 16, 16)) == 0.875


def test_the_loss_of_the_autoencoder_by_hand():
    method, batch = small_method("ae"), Batch(torch.rand(2, 1, 16, 16, 16), Keys.at(0, 0, [0, 1]))
    half = torch.arange(16) < 8
    loss = method.pretext_loss(lambda voxels: voxels + 0.2 * half, batch)  # right in one half: of squares, not of distances
    assert loss.total.item() == pytest.approx(0.02, rel=1e-4)
    assert loss.monitors["psnr"].item() == pytest.approx(10 * math.log10(50), abs=1e-3)
