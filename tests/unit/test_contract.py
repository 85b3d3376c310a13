"""What the author of a broken method is told: each fault is found, in words that say what to do."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from nemesis.contract import CHECKS, run_checks
from nemesis.method import Method, MethodCard, PretextLoss, Reconstruction, Settings
from nemesis.promises import built

CARD = {
    "name": "broken",
    "title": "Broken",
    "paper": "none",
    "licence": "MIT",
    "version": 1,
    "smallest_input": 16,
    "native_input": "any",
}


class Whole(Method[Settings]):
    """A denoiser that keeps every promise, in steps that the broken ones below do wrong."""

    card = MethodCard(**CARD, pretext=True, reconstructs=True)
    settings_type = Settings

    def build(self):
        encoder = nn.Sequential(nn.Conv3d(1, 64, 4, stride=4), nn.GELU())
        return nn.Sequential(OrderedDict(encoder=encoder, decoder=nn.ConvTranspose3d(64, 1, 4, stride=4)))

    def noise(self, batch):
        return batch.keys.normal("noise", batch.voxels[0].numel()).view_as(batch.voxels)

    def said(self, network, voxels):
        return network(voxels)

    def loss(self, errors):
        return PretextLoss(errors.square().mean(), {"mse": errors.square().mean().detach()})

    def pretext_loss(self, network, batch):
        return self.loss(self.said(network, batch.voxels + 0.1 * self.noise(batch)) - batch.voxels)

    def encode(self, network, voxels):
        return network.encoder(voxels).mean(dim=(2, 3, 4))

    def hidden(self, voxels, keys):
        hidden = torch.zeros_like(voxels, dtype=torch.bool)
        if keys is not None:
            hidden[:, :, :4] = keys.uniform("mask", 16).view(-1, 1, 1, 1, 16) < 0.5
        return hidden

    def reconstruct(self, network, voxels, keys):
        hidden = self.hidden(voxels, keys)
        return Reconstruction(network(voxels.masked_fill(hidden, 0)), hidden)


class NoiseOfTorch(Whole):
    def noise(self, batch):
        return torch.randn_like(batch.voxels)


class NoiseOfTorchInTraining(Whole):
    def pretext_loss(self, network, batch):
        noise = torch.randn_like(batch.voxels) if network.training else 0
        return self.loss(network(batch.voxels + noise) - batch.voxels)


class NoiseOfTorchBesideDropout(NoiseOfTorch):
    def build(self):
        network = super().build()
        network.encoder.append(nn.Dropout(0.1))
        return network


class OneNoiseForAll(Whole):
    def noise(self, batch):
        return super().noise(batch)[:1]


class NoiseOfOneSeed(Whole):
    def noise(self, batch):
        return torch.randn(batch.voxels.shape, generator=torch.Generator().manual_seed(0))


class NoisePerPlace(Whole):
    def noise(self, batch):
        return torch.rand(1) if len(batch.voxels) > 9 else self.count()

    def count(self):
        self.calls = getattr(self, "calls", 0) + 1
        return float(self.calls)


class BesideTheWrapper(Whole):
    def said(self, network, voxels):
        return network.decoder(network.encoder(voxels))


class Twice(Whole):
    def said(self, network, voxels):
        return network(voxels) + network(voxels)


class BareTensor(Whole):
    def loss(self, errors):
        return errors.square().mean()


class ErrorPerVoxel(Whole):
    def loss(self, errors):
        return PretextLoss(errors.square(), {})


class NumberAsMonitor(Whole):
    def loss(self, errors):
        return PretextLoss(errors.square().mean(), {"mse": errors.square().mean().item()})


class WithoutGradient(Whole):
    def loss(self, errors):
        return super().loss(errors.detach())


class NotANumber(Whole):
    def loss(self, errors):
        return PretextLoss(errors.square().mean() * math.nan, {})


class OverTheBatch(Whole):
    def encode(self, network, voxels):
        vectors = super().encode(network, voxels)
        return vectors - vectors.mean(dim=0)


class MapOfFeatures(Whole):
    def encode(self, network, voxels):
        return network.encoder(voxels)


class Leaking(Whole):
    def reconstruct(self, network, voxels, keys):
        return Reconstruction(network(voxels), self.hidden(voxels, keys))


class Unsaid(Whole):
    card = MethodCard(**CARD, pretext=True, reconstructs=False)


class Undone(Whole):
    card = MethodCard(**CARD, pretext=True, reconstructs=True, segments=True)


class Raising(Whole):
    def encode(self, network, voxels):
        return {}["features"]


FILE = "its_file_imports_no_network_library"  # this one does, as a test may
DRAWS, REACHES, ENCODES, CARD_SAYS = (
    "the_pretext_draws_from_the_keys",
    "the_pretext_is_finite_and_reaches_every_parameter",
    "encodes_each_superpatch_by_itself",
    "its_card_says_what_it_does",
)


def broken(method):
    return {name: words for name, words in run_checks(method(Settings(), 16)) if words is not None and name != FILE}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_method_that_keeps_its_promises_breaks_none(dropout):
    class Dropping(Whole):
        def build(self):
            network = super().build()
            network.encoder.append(nn.Dropout(dropout))
            return network

    assert broken(Dropping) == {}


@pytest.mark.parametrize(
    ("method", "check", "words"),
    [
        (NoiseOfTorch, DRAWS, "from torch's own generator"),
        (NoiseOfTorchInTraining, DRAWS, "from torch's own generator"),
        (NoiseOfTorchBesideDropout, DRAWS, "from torch's own generator"),
        (OneNoiseForAll, DRAWS, "change places"),
        (NoiseOfOneSeed, DRAWS, "change places"),
        (NoisePerPlace, DRAWS, "another value for the same weights, batch and keys"),
        (BesideTheWrapper, REACHES, r"calls network\(...\) 0 times"),
        (Twice, REACHES, r"calls network\(...\) 2 times"),
        (BareTensor, REACHES, "gives a Tensor, not a PretextLoss"),
        (ErrorPerVoxel, REACHES, r"'total' as \(2, 1, 16, 16, 16\)"),
        (NumberAsMonitor, REACHES, "'mse' as float"),
        (WithoutGradient, REACHES, "is something detached"),
        (NotANumber, REACHES, "is not finite"),
        (OverTheBatch, ENCODES, "when others are in the batch"),
        (MapOfFeatures, ENCODES, r"gives \(3, 64, 4, 4, 4\), not \(3, F\)"),
        (Leaking, "reconstructs_under_a_keyed_mask", "they reach the network"),
        (Unsaid, CARD_SAYS, r"has reconstruct\(\), which nobody will call: the card does not say 'reconstructs'"),
        (Undone, CARD_SAYS, r"says 'segments', but the class has no segmenter\(\)"),
        (Raising, ENCODES, r"KeyError: 'features' \(test_contract.py, line \d+: return \{\}\[.features.\]\)"),
    ],
)
def test_a_fault_is_told(method, check, words):
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(broken(method)[check])


@pytest.mark.parametrize(
    ("top", "words"), [("import torch", "imports torch at its top"), ("import nemisis", "No module named 'nemisis'")]
)
def test_what_a_file_imports_at_its_top_is_told(top, words, tmp_path, monkeypatch):
    (tmp_path / "heavy.py").write_text(top)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Heavy = type("Heavy", (Whole,), {"__module__": "heavy"})
    with pytest.raises(AssertionError, match=words):
        CHECKS[FILE](Heavy(Settings(), 16))


def test_the_network_is_built_from_the_seed():
    one, other = (built(Whole(Settings(), 16), seed).encoder[0].weight for seed in (0, 1))
    assert not torch.equal(one, other)
