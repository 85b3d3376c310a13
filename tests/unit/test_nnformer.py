"""nnFormer: sizes of the published configuration, windows and their masks, hidden units, the decoder."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.networks.nnformer import Encoder, MaskedNnFormer, NnFormer, embedding, enlarged
from baselines.networks.nnformer_shape import Shape
from baselines.networks.windows import Block, WindowAttention, Windows, relative_places
from nemesis.contract import small_method
from nemesis.method import Batch, create
from nemesis.models.keyed import Keys

SMALL = Shape((16, 16, 16), (2, 2, 2), 24, (2, 2, 2), (3, 6, 12), (2, 2, 2))
SIZES = st.tuples(*[st.integers(1, 7)] * 3)


def places(grid):
    """(1, D, H, W, 3): every token says where it is."""
    return torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), dim=-1)[None]


# ------------------------------------------------------------------------------------------------- the published network


def test_the_published_configuration_has_the_published_sizes():
    shape = Shape()
    with torch.device("meta"):
        network = NnFormer(Encoder(shape), classes=14)
        voxels = torch.zeros(1, 1, *shape.crop)
    grids = [(1, 32, 32, 32, 192), (1, 16, 16, 16, 384), (1, 8, 8, 8, 768), (1, 4, 4, 4, 1536)]
    assert [tuple(tokens.shape) for tokens in network.encoder(voxels)] == grids
    resolutions = [(1, 14, 64, 128, 128), (1, 14, 32, 64, 64), (1, 14, 16, 32, 32)]
    assert [tuple(logits.shape) for logits in network.train()(voxels)] == resolutions
    assert tuple(network.eval()(voxels).shape) == resolutions[0]
    assert shape.unit == (16, 32, 32)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == pytest.approx(150.5e6, rel=0.005)  # as the paper prints


def test_the_published_configuration_costs_what_is_published():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network, voxels = NnFormer(Encoder(Shape()), classes=14).eval(), torch.zeros(1, 1, 64, 128, 128)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(voxels)
    assert counter.get_total_flops() / 2 == pytest.approx(213.4e9, rel=0.01)  # its "FLOPs" are multiply–accumulates


@pytest.mark.parametrize(
    ("crop", "patch"),
    [((32, 32, 32), (1, 2, 4)), ((64, 64, 64), (2, 2, 2)), ((48, 64, 96), (2, 4, 4)), ((40, 24, 56), (1, 1, 1))],
)
def test_any_crop_of_whole_units_comes_back_whole(crop, patch):
    shape = Shape(crop, patch, 8, (1, 2, 1, 1), (1, 1, 2, 2), (4, 4, 8, 4))
    with torch.device("meta"):
        voxels = torch.zeros(2, 1, *crop)
        logits = NnFormer(Encoder(shape), 3).train()(voxels)
        masked = MaskedNnFormer(shape)(voxels, torch.ones(2, *shape.grid(3), dtype=torch.bool))
    assert masked.shape == voxels.shape
    assert [tuple(x.shape) for x in logits] == [(2, 3, *(n // 2**level for n in crop)) for level in range(3)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"crop": (64, 128, 120)}, "not a multiple"),
        ({"patch": (2, 3, 4)}, "1, 2 and 4"),
        ({"heads": (6, 12, 24)}, "different numbers of stages"),
        ({"heads": (6, 12, 24, 50)}, "of stage 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        Shape(**changed)


# ------------------------------------------------------------------------------------------------- windows


@given(grid=SIZES, edge=st.integers(1, 5), shifted=st.booleans())
def test_windows_are_joined_as_they_were_split(grid, edge, shifted):
    windows, x = Windows.of(grid, edge, shifted), places(grid)
    split = windows.split(x)
    assert split.shape == (1, windows.number, windows.tokens, 3)
    assert torch.equal(windows.join(split), x)


@given(grid=SIZES, edge=st.integers(1, 5), shifted=st.booleans())
def test_tokens_see_each_other_where_they_lie_within_a_window_of_the_uncut_grid(grid, edge, shifted):
    """By another route: along each axis the moved windows' borders lie at shift, shift + edge, …, and nothing comes round."""
    windows = Windows.of(grid, edge, shifted)
    apart = windows.apart()
    if apart is None:
        apart = torch.zeros(windows.number, windows.tokens, windows.tokens, dtype=torch.bool)
    where = windows.split(places(grid) + 1)[0]  # 0 is padding now
    real = (where > 0).all(dim=-1)
    cell = torch.stack(
        [(where[..., a] - 1 - windows.shift[a]).div(windows.window[a], rounding_mode="floor") for a in range(3)], -1
    )
    together = (cell[:, :, None] == cell[:, None, :]).all(dim=-1)
    both = real[:, :, None] & real[:, None, :]
    assert torch.equal(~apart[both], together[both])
    assert apart[real[:, :, None] != real[:, None, :]].all()  # nobody sees padding
    assert not apart.diagonal(dim1=1, dim2=2).any()  # and nobody sees nothing


@pytest.mark.parametrize("grid", [(4, 4, 4), (2, 4, 3)])
def test_a_window_that_holds_the_grid_is_neither_shifted_nor_masked(grid):
    windows = Windows.of(grid, 4, shifted=True)
    assert windows == Windows(grid, grid, (0, 0, 0))
    assert windows.apart() is None
    assert windows.number == 1


def test_shift_by_hand():
    windows = Windows.of((1, 1, 8), 4, shifted=True)
    x = torch.arange(8).view(1, 1, 1, 8, 1)
    assert windows.split(x)[0, :, :, 0].tolist() == [[2, 3, 4, 5], [6, 7, 0, 1]]
    apart = windows.apart().int().tolist()
    assert apart == [[[0] * 4] * 4, [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("grid", [(8, 8, 8), (6, 4, 5)])
def test_gradients_flow_within_a_region_alone(grid, skip):
    torch.manual_seed(0)
    windows = Windows.of(grid, 4, shifted=True)
    attention = WindowAttention(12, 3, windows, skip)
    x = torch.randn(1, *grid, 12, requires_grad=True)
    asked = (grid[0] - 1, 0, grid[2] - 1)
    attention(torch.randn(1, *grid, 12) if skip else x, x if skip else None)[0][asked].sum().backward()
    reached = x.grad[0].abs().sum(dim=-1) > 0
    cells = [
        (torch.arange(n) - s).div(w, rounding_mode="floor") for n, s, w in zip(grid, windows.shift, windows.window, strict=True)
    ]
    same = [cell == cell[place] for cell, place in zip(cells, asked, strict=True)]
    assert torch.equal(reached, same[0][:, None, None] & same[1][:, None] & same[2])


def test_relative_places_depend_on_the_offset_alone():
    window = (2, 3, 4)
    numbers, where = relative_places(window), places(window)[0].view(-1, 3)
    offsets = where[:, None] - where[None]
    by_number = {}
    for number, offset in zip(numbers.flatten().tolist(), offsets.view(-1, 3).tolist(), strict=True):
        assert by_number.setdefault(number, offset) == offset
    assert len(by_number) == 3 * 5 * 7 == len({tuple(offset) for offset in by_number.values()})
    assert sorted(by_number) == list(range(3 * 5 * 7))


@pytest.mark.parametrize(("grid", "edge"), [((4, 4, 4), 2), ((4, 6, 5), 4)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_attention_is_what_the_formula_says_pair_by_pair(grid, edge, shifted, skip):
    """Softmax of q·k / √d + bias over the tokens of the same cell of the uncut grid, one query at a time."""
    torch.manual_seed(1)
    attention = WindowAttention(8, 2, Windows.of(grid, edge, shifted), skip)
    x, memory = torch.randn(2, 1, *grid, 8).unbind()
    windows, where = attention.windows, places(grid)[0]
    if skip:
        q, (k, v) = x[0], attention.projections(memory)[0].chunk(2, dim=-1)
    else:
        q, k, v = attention.projections(x)[0].chunk(3, dim=-1)
    cell = (where - torch.tensor(windows.shift)).div(torch.tensor(windows.window), rounding_mode="floor")
    spans = [2 * n - 1 for n in windows.window]
    out = torch.empty(*grid, 8)
    for place in where.view(-1, 3).tolist():
        d, h, w = place
        same = (cell == cell[d, h, w]).all(dim=-1)
        offset = torch.tensor(place) - where[same] + torch.tensor(windows.window) - 1
        bias = attention.bias[(offset[:, 0] * spans[1] + offset[:, 1]) * spans[2] + offset[:, 2]]
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weights = (k[same][:, part] @ q[d, h, w, part] / 2 + bias[:, head]).softmax(dim=0)
            out[d, h, w, part] = weights @ v[same][:, part]
    expected = attention.out(out)[None]
    assert torch.allclose(attention(x, memory if skip else None), expected, atol=1e-5)


def test_a_block_of_skip_attention_keeps_the_sum_of_both_sides():
    torch.manual_seed(0)
    block = Block(8, 2, Windows.of((2, 2, 2), 2, False), skip=True)
    torch.nn.init.zeros_(block.attention.out.weight)
    torch.nn.init.zeros_(block.mlp[2].weight)
    x, memory = torch.randn(2, 1, 2, 2, 2, 8).unbind()
    assert torch.equal(block(x, memory), x + memory)


# ------------------------------------------------------------------------------------------------- hidden units


def test_what_is_hidden_does_not_reach_the_network():
    torch.manual_seed(0)
    network = MaskedNnFormer(SMALL).eval()
    hidden = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 1] = hidden[0, 1, 0, 0] = True
    voxels = torch.rand(1, 1, 16, 16, 16)
    other = torch.where(enlarged(hidden, (8, 8, 8))[:, None], torch.rand_like(voxels), voxels)
    with torch.no_grad():
        assert not torch.equal(voxels, other)
        assert torch.equal(network(voxels, hidden), network(other, hidden))
        assert not torch.equal(network(voxels), network(other))


def test_embeddings_of_hidden_units_are_one_learned_vector():
    torch.manual_seed(0)
    network = MaskedNnFormer(SMALL).eval()
    seen = []
    network.encoder.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    hidden = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 1, 0] = True
    with torch.no_grad():
        network(torch.rand(1, 1, 16, 16, 16), hidden)
    tokens = seen[0][0]  # 8 places a side, 4 to a unit
    assert tokens.shape == (8, 8, 8, 24)
    assert (tokens[:4, 4:, :4] == network.replacement).all()
    assert not (tokens[4:] == network.replacement).all(dim=-1).any()


def test_predictions_lie_where_their_units_are():
    network = MaskedNnFormer(SMALL).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.arange(512.0))  # the number of a voxel within its unit
        said = network(torch.zeros(1, 1, 16, 16, 16))[0, 0]
    assert torch.equal(said[8:, :8, 8:].reshape(-1), torch.arange(512.0))


@pytest.mark.parametrize(("ratio", "number"), [(0.6, 38), (0.75, 48), (0.001, 1), (0.999, 63)])
def test_as_many_units_are_hidden_as_the_ratio_says(ratio, number):
    method = create("nnformer_mae", {"patch": (2, 2, 2), "width": 12, "depths": (1, 1), "heads": (1, 1), "windows": (2, 2)}
                    | {"mask_ratio": ratio}, 16)  # fmt: skip
    hidden = method.hidden(Keys.at(0, 0, range(50))).flatten(1)
    assert hidden.sum(dim=1).tolist() == [number] * 50
    assert len({tuple(row) for row in hidden.tolist()}) > (30 if number > 1 else 10)
    assert hidden.float().mean(dim=0).std() < 0.1  # no place is preferred


def test_the_loss_is_the_error_over_hidden_voxels_alone():
    method = small_method("nnformer_mae")
    keys = Keys.at(3, 1, range(2))
    hidden = enlarged(method.hidden(keys), method.shape.unit)[:, None]
    voxels = torch.rand(2, 1, 16, 16, 16)
    said = torch.where(hidden, voxels + 0.1, voxels + 0.2)
    loss = method.pretext_loss(lambda v, h: said, Batch(voxels, keys))
    share = hidden.float().mean().item()
    assert loss.total.item() == pytest.approx(0.01, rel=1e-4)
    assert loss.monitors["psnr_masked"].item() == pytest.approx(20.0, abs=1e-3)
    assert loss.monitors["psnr"].item() == pytest.approx(-10 * math.log10(0.01 * share + 0.04 * (1 - share)), abs=1e-3)


# ------------------------------------------------------------------------------------------------- segmentation


def test_the_segmenter_starts_from_the_pretrained_encoder_and_all_of_it_trains():
    from nemesis.evaluation.segmentation import dice_bce

    torch.manual_seed(0)
    method = create(
        "nnformer_mae", {"patch": (2, 2, 2), "width": 12, "depths": (2, 2, 2), "heads": (1, 2, 4), "windows": (2, 4, 2)}, 16
    )
    network = method.build()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    segmenter = method.segmenter(network, 3).train()
    assert all(torch.equal(value, before[name]) for name, value in segmenter.encoder.state_dict().items())
    logits = segmenter(torch.rand(2, 1, 16, 16, 16))
    assert [tuple(x.shape) for x in logits] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8)]  # three stages: two of them are decoded
    classes = torch.randint(0, 4, (2, 1, 16, 16, 16), dtype=torch.uint8)
    dice_bce(logits, classes, torch.ones(2, 3, dtype=torch.bool)).backward()
    assert not [name for name, p in segmenter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_an_untrained_segmenter_expects_organs_to_be_rare():
    torch.manual_seed(0)
    with torch.no_grad():
        for logits in NnFormer(Encoder(SMALL), 3).train()(torch.rand(2, 1, 16, 16, 16)):
            assert 0.005 < logits.sigmoid().mean() < 0.02


def test_small_organs_are_learnt_from_partial_labels_within_some_steps():
    """Balls of two classes by brightness, each 1.4 % of the voxels; the second is unknown in one sample."""
    from nemesis.evaluation.segmentation import dice_bce

    torch.manual_seed(0)
    place = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"))
    classes = torch.zeros(2, 1, 16, 16, 16, dtype=torch.uint8)
    for sample, number, centre in ((0, 1, (4, 4, 4)), (0, 2, (11, 10, 4)), (1, 1, (9, 4, 11))):
        classes[sample, 0][(place - torch.tensor(centre).view(3, 1, 1, 1)).square().sum(0) <= 5] = number
    voxels = 0.2 + 0.4 * (classes == 1).float() + 0.8 * (classes == 2).float()
    known = torch.tensor([[True, True], [True, False]])
    network = NnFormer(Encoder(Shape((16, 16, 16), (2, 2, 2), 16, (1, 2), (2, 2), (4, 4))), 2).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        loss = dice_bce(network(voxels), classes, known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(voxels) > 0
    for sample, number in ((0, 1), (0, 2), (1, 1)):
        right = classes[sample, 0] == number
        dice = 2 * (found[sample, number - 1] & right).sum() / (found[sample, number - 1].sum() + right.sum())
        assert dice > 0.8, (sample, number, dice)


def test_paths_are_dropped_more_often_the_deeper_they_lie_and_never_in_pretraining():
    encoder = Encoder(SMALL)
    rates = lambda: [block.drop_path.drop_prob for stage in encoder.stages for block in stage.blocks]  # noqa: E731
    assert rates() == [0] * 6
    network = NnFormer(encoder, 2, drop_path=0.5)
    assert rates() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    decoder = [block.drop_path.drop_prob for level in network.levels for block in level.stage.blocks]
    assert decoder == pytest.approx([0, 0.1, 0.2, 0.3])


def test_a_superpatch_of_one_unit_is_refused():
    from nemesis.errors import NemesisError

    with pytest.raises(NemesisError, match="one masked unit"):
        create("nnformer_mae", {"patch": (2, 2, 2)}, 16)
    with pytest.raises(NemesisError, match="not a multiple"):
        create("nnformer_mae", {}, 16)


def test_settings_are_checked_without_torch():
    code = (
        "import sys; from nemesis.method import create\n"
        "create('nnformer_mae', {}, 128)\n"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_embedding_and_merging_are_put_together_as_published():
    """Convolution, GELU, LayerNorm, thrice, and a last convolution that is only normalised; merging convolves last."""

    def names(modules):
        return [type(m).__name__ if not hasattr(m, "convolution") else tuple(m.convolution.stride) for m in modules]

    encoder = Encoder(SMALL)
    normed = ["GELU", "LayerNorm"]
    assert names(encoder.embedding) == [(2, 2, 2), *normed, (1, 1, 1), *normed, (1, 1, 1), *normed, (1, 1, 1), "LayerNorm"]
    assert names(embedding((2, 4, 4), 8))[6] == (1, 2, 2)
    assert [names(each) for each in encoder.merging] == [[*normed, (2, 2, 2)]] * 2


def test_every_second_block_is_shifted_by_half_a_window():
    shape = Shape((16, 16, 16), (1, 1, 1), 8, (3, 2), (1, 1), (4, 2))
    shifts = [[block.attention.windows.shift for block in stage.blocks] for stage in Encoder(shape).stages]
    assert shifts == [[(0, 0, 0), (2, 2, 2), (0, 0, 0)], [(0, 0, 0), (1, 1, 1)]]
