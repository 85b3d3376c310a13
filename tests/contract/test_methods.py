"""What every method promises, tested because it is registered: adding one needs no new test."""

import fnmatch
import io
import subprocess
import sys

import pytest
import torch
from small_methods import small_method

from nemesis.evaluation.cost import by_fvcore, by_torch, method_cost
from nemesis.method import Batch, methods
from nemesis.models.checkpoint import load_weights, save_weights
from nemesis.models.keyed import Keys

NAMES = list(methods())


def batch_of(method, n=2, step=0):
    edge = method.draw().edge
    generator = torch.Generator().manual_seed(7)
    return Batch(torch.rand(n, 1, edge, edge, edge, generator=generator), Keys.at(0, step, range(n)))


def built(method, seed=0):
    torch.manual_seed(seed)
    return method.build()


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_network_other_seed_other_network(name):
    method = small_method(name)
    one, same, other = (torch.nn.utils.parameters_to_vector(built(method, seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_encodes_each_superpatch_to_a_vector_of_its_own(name):
    method = small_method(name)
    network = built(method).eval()
    voxels = batch_of(method, 3).voxels
    with torch.no_grad():
        vectors = method.encode(network, voxels)
        alone = method.encode(network, voxels[1:2])
    assert vectors.ndim == 2 and len(vectors) == 3
    assert torch.isfinite(vectors).all()
    assert torch.allclose(vectors[1:2], alone, atol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if methods()[name].card.pretext])
def test_pretext_is_finite_repeatable_and_trains_every_parameter(name):
    method = small_method(name)
    network = built(method).train()
    torch.manual_seed(0)
    loss = method.pretext_loss(network, batch_of(method))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(value) and not value.requires_grad for value in loss.monitors.values())
    without = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    unexpected = [n for n in without if not any(fnmatch.fnmatch(n, pattern) for pattern in method.card.no_gradient)]
    assert not unexpected
    again = built(method).train()
    torch.manual_seed(0)
    assert torch.equal(loss.total, method.pretext_loss(again, batch_of(method)).total)


@pytest.mark.parametrize("name", [name for name in NAMES if methods()[name].card.pretext])
def test_a_few_steps_lower_the_loss(name):
    method = small_method(name)
    network = built(method).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss = method.pretext_loss(network, batch_of(method, 4)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", [name for name in NAMES if methods()[name].card.reconstructs])
def test_reconstructs_the_whole_superpatch_under_a_keyed_mask(name):
    method = small_method(name)
    network = built(method).eval()
    voxels = batch_of(method, 2).voxels
    with torch.no_grad():
        masked = method.reconstruct(network, voxels, Keys.at(0, 0, [5, 6]))
        alone = method.reconstruct(network, voxels[1:], Keys.at(0, 0, [6]))
        whole = method.reconstruct(network, voxels, None)
    assert masked.prediction.shape == masked.hidden.shape == voxels.shape
    assert masked.hidden.dtype == torch.bool
    assert torch.equal(masked.hidden[1:], alone.hidden)
    assert torch.allclose(masked.prediction[1:], alone.prediction, atol=1e-5)
    assert not whole.hidden.any()


@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_saving(name, tmp_path):
    method = small_method(name)
    network, fresh = built(method, 0).eval(), built(method, 1).eval()
    save_weights(network, tmp_path / "weights.safetensors", {})
    load_weights(fresh, tmp_path / "weights.safetensors")
    voxels = batch_of(method).voxels
    with torch.no_grad():
        assert torch.equal(method.encode(network, voxels), method.encode(fresh, voxels))
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)  # the resumable state is a torch file
    assert buffer.tell() > 0


@pytest.mark.parametrize("name", NAMES)
def test_bf16_stays_close_to_fp32(name):
    method = small_method(name)
    network = built(method).eval()
    voxels = batch_of(method).voxels
    with torch.no_grad():
        exact = method.encode(network, voxels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = method.encode(network, voxels).float()
    assert (exact - rough).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", NAMES)
def test_both_counters_agree_on_what_it_costs(name):
    method = small_method(name)
    one, other = method_cost(method, by_torch), method_cost(method, by_fvcore, "cpu")
    assert one.encode > 0
    assert other.encode == pytest.approx(one.encode, rel=0.02)
    if not method.card.pretext:
        assert one.pretext is other.pretext is None
        return
    assert one.pretext > 0
    assert other.pretext == pytest.approx(one.pretext, rel=0.02)


def test_planning_imports_no_network_library():
    code = (
        "import sys; from nemesis.method import methods; methods(); import nemesis.experiment, nemesis.runs\n"
        "heavy = {'torch', 'monai', 'lightning', 'mlflow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
