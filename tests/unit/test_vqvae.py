"""VQ-VAE: its codebook, moved and revived by hand, alone and by several processes."""

import math

import pytest
import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer

from baselines.networks.codebook import REVIVED, Codebook, perplexity
from nemesis.method import Batch, create
from nemesis.models.keyed import Keys


def codebook(codes, sizes, dead_below=0.0, **arguments):
    """Codes (k, C) with these moving numbers of uses, in training."""
    codes, sizes = torch.tensor(codes), torch.tensor(sizes)
    book = Codebook(num_embeddings=len(codes), embedding_dim=codes.shape[1], dead_below=dead_below, **arguments)
    book.embedding.weight.data.copy_(codes)
    book.ema_cluster_size.copy_(sizes)
    book.ema_w.copy_(codes * sizes[:, None])
    return book.train()


def line(*numbers):
    """Encodings (1, 1, 1, 1, n) on a line."""
    return torch.tensor(numbers).view(1, 1, 1, 1, -1)


def test_nearest_codes_commitment_and_gradient_by_hand():
    encodings = line(1.0, 9.0, 2.0).requires_grad_()
    vectors, commitment, numbers = codebook([[0.0], [10.0]], [1.0, 1.0], commitment_cost=0.25).eval()(encodings)
    assert numbers.flatten().tolist() == [0, 1, 0]
    assert vectors.flatten().tolist() == [0, 10, 0]
    assert commitment.item() == pytest.approx(0.25 * (1 + 1 + 4) / 3)
    (3 * vectors.sum() + commitment).backward()  # straight through to the encodings, and what the commitment asks of them
    assert encodings.grad.flatten().tolist() == pytest.approx([3 + 0.5 / 3, 3 - 0.5 / 3, 3 + 1 / 3])


def test_codes_follow_what_is_assigned_to_them_by_hand():
    book = codebook([[0.0], [10.0]], [2.0, 4.0], decay=0.5)
    book(line(1.0, 2.0, 9.0))
    assert book.ema_cluster_size.tolist() == [0.5 * 2 + 0.5 * 2, 0.5 * 4 + 0.5 * 1]
    # sums 0.5 · 0 + 0.5 · (1 + 2) and 0.5 · 40 + 0.5 · 9, over sizes 2 and 2.5
    assert book.embedding.weight.flatten().tolist() == pytest.approx([0.75, 9.8], rel=1e-4)


def test_codes_move_as_monais_do():
    torch.manual_seed(0)
    arguments = {"num_embeddings": 8, "embedding_dim": 3, "decay": 0.9, "commitment_cost": 0.4}
    ours, monais = Codebook(dead_below=0.0, **arguments).train(), EMAQuantizer(3, **arguments).train()
    ours.ema_cluster_size.fill_(1.5)
    monais.load_state_dict(ours.state_dict())
    for _ in range(3):
        encodings = torch.randn(2, 3, 2, 3, 4)
        for mine, theirs in zip(ours(encodings), monais(encodings), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6)
        for name, value in ours.state_dict().items():
            assert torch.allclose(value, monais.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([3] * 8, 1.0),
        ([0, 0, 5, 5], 2.0),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8.0),
        ([0, 0, 0, 1], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_perplexity_by_hand(codes, expected):
    assert perplexity(torch.tensor(codes).view(-1, 1), 8).item() == pytest.approx(expected, rel=1e-6)


def test_dead_codes_become_the_encodings_with_the_lowest_scores():
    # four encodings and four codes: one use per step would be fair, and codes 1 and 3 have less than half of that
    book = codebook([[0.0], [50.0], [2.0], [90.0]], [3.0, 0.4, 0.6, 0.5], dead_below=0.5)
    book.revive(line(5.0, 6.0, 7.0, 8.0), torch.tensor([[0.9, 0.2, 0.8, 0.1]]))
    assert book.embedding.weight.flatten().tolist() == [0, 8, 2, 6]
    assert book.ema_cluster_size.tolist() == pytest.approx([3, 0.5 * REVIVED, 0.6, 0.5 * REVIVED])
    assert torch.allclose(book.ema_w[:, 0], book.embedding.weight[:, 0] * book.ema_cluster_size)


def test_with_fewer_encodings_than_dead_codes_the_others_wait():
    book = codebook([[10.0], [20.0], [30.0]], [0.0, 0.0, 0.0], dead_below=0.5)
    book.revive(line(1.0, 2.0), torch.tensor([[0.5, 0.4]]))
    assert book.embedding.weight.flatten().tolist() == [2, 1, 30]


def test_order_of_samples_does_not_matter():
    torch.manual_seed(0)
    encodings, scores, order = torch.randn(4, 2, 2, 2, 2), torch.rand(4, 8), [2, 0, 3, 1]
    books = [codebook(torch.zeros(5, 2).tolist(), [0.0] * 5, dead_below=0.1) for _ in range(2)]
    books[0].revive(encodings, scores)
    books[1].revive(encodings[order], scores[order])
    assert torch.equal(books[0].embedding.weight, books[1].embedding.weight)


def test_codes_far_from_all_encodings_stay_unused_unless_they_are_revived():
    def used(dead_below):
        book = codebook([[100.0], [200.0], [300.0], [400.0]], [1.0] * 4, dead_below=dead_below, decay=0.5)
        for step in range(6):
            encodings = torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(step))
            book.revive(encodings, Keys.at(0, step, range(2)).uniform("dead codes", 8))
            numbers = book(encodings)[2]
        return perplexity(numbers, 4).item()

    assert used(0.0) == pytest.approx(1.0)  # what a broken codebook gives
    assert used(0.2) > 2


def test_assignments_are_those_of_single_precision_under_autocast():
    torch.manual_seed(0)
    book = Codebook(num_embeddings=64, embedding_dim=16, dead_below=0.0).eval()
    encodings = 100 + torch.randn(2, 16, 4, 4, 4)
    exact = book(encodings)[2]
    with torch.autocast("cpu", torch.bfloat16):
        vectors, _, numbers = book(encodings)
    assert torch.equal(numbers, exact)
    assert vectors.dtype == torch.float32


def test_evaluation_leaves_the_codebook_alone():
    method = create("vqvae", {"channels": (4, 8), "codes": 16, "code_dim": 4}, 16)
    torch.manual_seed(0)
    network = method.build()
    batch = Batch(torch.rand(2, 1, 16, 16, 16), Keys.at(0, 0, range(2)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        method.pretext_loss(network.eval(), batch)
        method.encode(network, batch.voxels)
        method.reconstruct(network, batch.voxels, None)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    method.pretext_loss(network.train(), batch)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"quantizer.quantizer.{name}" for name in ("ema_cluster_size", "ema_w", "embedding.weight")}


def _on_a_rank(rank, world, address, folder):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.save(_trained(rank, world).state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _trained(rank, world):
    torch.manual_seed(0)
    book = Codebook(num_embeddings=12, embedding_dim=3, dead_below=0.2, decay=0.9).train()
    for step in range(4):
        encodings = torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(step))
        mine = list(range(4))[rank::world]
        book.revive(encodings[mine], Keys.at(0, step, mine).uniform("dead codes", 8))
        book(encodings[mine])
    return book


def test_several_processes_keep_one_codebook_that_of_a_single_one(tmp_path):
    address = f"file://{tmp_path}/meeting"
    torch.multiprocessing.spawn(_on_a_rank, (2, address, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in _trained(0, 1).state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-5), name


def test_the_loss_is_error_and_commitment_by_hand():
    method = create("vqvae", {"channels": (4, 8), "codes": 16, "code_dim": 4, "commitment": 0.3}, 16)
    torch.manual_seed(0)
    network = method.build().eval()
    voxels = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        loss = method.pretext_loss(network, Batch(voxels, Keys.at(0, 0, range(2))))
        encodings = network.encode(voxels)
        flat, codes = encodings.movedim(1, -1).reshape(-1, 4), network.quantizer.quantizer.embedding.weight
        nearest = codes[torch.cdist(flat, codes).argmin(1)].view(2, 4, 4, 4, 4).movedim(-1, 1)
        mse = (network.decode(nearest) - voxels).square().mean().item()
    assert loss.total.item() == pytest.approx(mse + 0.3 * (encodings - nearest).square().mean().item(), rel=1e-5)
    assert loss.monitors["psnr"].item() == pytest.approx(-10 * math.log10(mse), abs=1e-4)


def test_the_settings_reach_the_codebook_and_training_revives_it():
    method = create("vqvae", {"channels": (4, 8), "codes": 16, "code_dim": 4, "decay": 0.7, "dead_below": 0.2}, 16)
    torch.manual_seed(0)
    network = method.build().train()
    book = network.quantizer.quantizer
    assert (book.decay, book.dead_below, book.commitment_cost) == (0.7, 0.2, 0.05)
    assert create("vqvae", {}, 16).settings.decay == 0.99
    book.embedding.weight.data.add_(100)  # far from whatever is encoded
    book.ema_w.copy_(book.embedding.weight)
    batch = Batch(torch.rand(2, 1, 16, 16, 16), Keys.at(0, 0, range(2)))
    assert method.pretext_loss(network.eval(), batch).monitors["perplexity"] == pytest.approx(1)
    assert method.pretext_loss(network.train(), batch).monitors["perplexity"] > 4
