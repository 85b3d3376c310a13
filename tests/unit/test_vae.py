"""VAE: its divergence, its noise, what it decodes when it is evaluated."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from baselines.networks.variational import divergence
from nemesis.errors import NemesisError
from nemesis.evaluation.counters import by_torch
from nemesis.method import Batch, create
from nemesis.models.keyed import Keys

SMALL = {"channels": (4, 8), "latent": 6}


@pytest.fixture(scope="module")
def method():
    return create("vae", SMALL, 16)


@pytest.fixture
def network(method):
    torch.manual_seed(0)
    return method.build()


def voxels(n=3):
    return torch.rand(n, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_divergence_by_hand():
    mean, variance = torch.tensor([[1.0, -2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [1.0, 1.0]])
    first = 0.5 * ((1 + 1 - 1 - 0) + (4 + 4 - 1 - math.log(4)))  # the second sample is the standard normal itself
    assert divergence(mean, variance.log()).item() == pytest.approx(first / 2, rel=1e-6)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-6, 4)), min_size=4, max_size=4))
def test_divergence_is_torchs(numbers):
    mean, log_variance = torch.tensor(numbers, dtype=torch.float64).T.reshape(2, 2, 2)
    torchs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(()).double(), 1.0)).sum(1).mean()
    assert divergence(mean, log_variance).item() == pytest.approx(torchs.item(), rel=1e-9, abs=1e-12)


def test_loss_is_error_and_weighted_divergence_per_voxel(method, network):
    batch = Batch(voxels(), Keys.at(0, 3, range(3)))
    out = network(batch.voxels, batch.keys.normal("latent", 6))
    kl = divergence(out.mean, out.log_variance)
    mse = (out.reconstruction - batch.voxels).square().mean()
    loss = method.pretext_loss(network, batch)
    assert loss.total.item() == pytest.approx((mse + 0.02 / 16**3 * kl).item(), rel=1e-6)
    assert loss.monitors["kl"].item() == pytest.approx(kl.item(), rel=1e-6)
    assert loss.monitors["psnr"].item() == pytest.approx(-10 * math.log10(mse.item()), abs=1e-4)


def test_noise_comes_from_the_keys_alone(method, network):
    def latent_seen(keys, sample):
        torch.manual_seed(torch.seed() % 1000)  # torch's generator has no say
        seen = []
        hook = network.decodeL.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][-1]))
        method.pretext_loss(network, Batch(voxels()[sample], keys))
        hook.remove()
        return seen[0]

    alone, together = latent_seen(Keys.at(0, 3, [2]), [2]), latent_seen(Keys.at(0, 3, range(3)), [0, 1, 2])
    assert torch.allclose(alone, together, atol=1e-6)
    assert (alone - latent_seen(Keys.at(0, 4, [2]), [2])).abs().min() > 1e-4


def test_the_latent_vector_is_drawn_in_training_and_the_mean_in_evaluation(method, network):
    noise = torch.full((3, 6), 2.0)
    with torch.no_grad():
        trained, quiet = network.train()(voxels(), noise), network(voxels(), 0 * noise)
        evaluated = network.eval()(voxels(), noise)
        drawn = network.decode_forward(trained.mean + 2.0 * (0.5 * trained.log_variance).exp(), use_sigmoid=False)
    assert torch.allclose(trained.reconstruction, drawn, atol=1e-6)
    assert not torch.allclose(trained.reconstruction, quiet.reconstruction, atol=1e-4)
    assert torch.allclose(evaluated.reconstruction, quiet.reconstruction, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(method.reconstruct(network, voxels(), None).prediction, evaluated.reconstruction)
        assert torch.equal(method.encode(network, voxels()), evaluated.mean)


def test_a_collapsed_bottleneck_has_no_divergence(method, network):
    with torch.no_grad():
        for layer in (network.mu, network.logvar):
            layer.weight.zero_(), layer.bias.zero_()
        loss = method.pretext_loss(network.eval(), Batch(voxels(), Keys.at(0, 0, range(3))))
        first, second = method.reconstruct(network, voxels(2), None).prediction
    assert loss.monitors["kl"] == 0
    assert torch.equal(first, second)


def test_reconstructs_volumes_of_other_proportions(method):
    with torch.device("meta"):
        network, volume = method.build_at((48, 16, 32)).eval(), torch.zeros(1, 1, 48, 16, 32)
        cube, superpatch = method.build().eval(), torch.zeros(1, 1, 16, 16, 16)
        noise = torch.zeros(1, 6)
    macs = [
        by_torch(lambda net, *x: net(*x).reconstruction, *args) for args in ((network, volume, noise), (cube, superpatch, noise))
    ]
    assert network(volume, noise).reconstruction.shape == volume.shape
    assert macs[0] == 6 * macs[1]  # every layer of it is as large as what it sees


def test_a_superpatch_that_does_not_halve_is_refused():
    with pytest.raises(NemesisError, match="cannot be halved 4 times"):
        create("vae", {"channels": (2, 2, 2, 2)}, 16)
