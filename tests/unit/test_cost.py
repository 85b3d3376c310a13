"""Multiply–accumulates: formula, PyTorch and fvcore against figures counted by hand, and against each other."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nemesis.cli import app
from nemesis.contract import small_method
from nemesis.evaluation.cost import cost_rows, method_cost, superpatches
from nemesis.evaluation.counters import by_fvcore, by_torch
from nemesis.evaluation.formula import by_formula
from nemesis.evaluation.presets import CONFIGURATIONS, MAIN, cost_table
from nemesis.method import create, methods
from nemesis.models.architecture import OFFICIAL, Architecture
from nemesis.models.autoencoder import MaskedAutoencoder
from nemesis.models.masking import Masking, draw_mask, nothing_masked

COUNTERS = [by_torch, by_fvcore]


def thinned(ratio):
    return Masking("thinned", plane_ratio=ratio, axis_ratio=ratio) if ratio else None


def official(patch, width):
    return Architecture((128,) * 3, (patch,) * 3, embed_dim=width, **OFFICIAL)


def counted(count, architecture, masking):
    """MAC of the encoder and of the whole network."""
    grid = architecture.grid
    with torch.device("meta"):
        network = MaskedAutoencoder(architecture).train()
        voxels = torch.zeros(1, architecture.channels, *architecture.superpatch)
        scores = torch.rand(1, math.prod(grid))
        mask = draw_mask(grid, masking, scores) if masking else nothing_masked(grid, 1, voxels.device)
    encoder = count(lambda net, x: net.encoder(x, mask)[0], network, voxels)
    return encoder, count(lambda net, x: net(x, mask).loss, network, voxels)


@pytest.mark.parametrize(
    ("patch", "width", "ratio", "encoder", "total"),
    [
        (16, 768, 0.0, 22.1, 33.5),
        (16, 768, 0.5, 5.5, 16.9),
        (8, 768, 0.0, 169.9, 254.0),
        (8, 768, 0.5, 40.7, 124.7),
        (8, 384, 0.75, None, 30.7),
    ],
)
def test_official_preset_costs_what_was_counted_by_hand(patch, width, ratio, encoder, total):
    architecture, masking = official(patch, width), thinned(ratio)
    formula = by_formula(architecture, masking)
    ways = [(formula.encoder.total, formula.total), *(counted(count, architecture, masking) for count in COUNTERS)]
    for of_encoder, of_all in ways:
        assert of_all / 1e9 == pytest.approx(total, rel=0.01)
        assert encoder is None or of_encoder / 1e9 == pytest.approx(encoder, rel=0.01)


def test_linear_layers_outside_attention_give_the_figure_that_the_paper_may_have_counted():
    cost = by_formula(official(8, 768), thinned(0.5))
    assert round(cost.linear_layers_only / 1e9, 1) == 31.2
    assert cost == by_formula(MAIN.method.architecture, MAIN.method.masking)


def test_the_formula_by_hand_for_a_network_of_one_block():
    # 2×1×1 tokens of 2×2×2 voxels; E = 4: two tokens of two numbers, so sub-width 2 and 2 + 2 rows
    architecture = Architecture(
        (4, 2, 2), (2, 2, 2), embed_dim=4, depth=1, heads=1, tokens=2, ffn_dim=3, decoder_dim=None, decoder_depth=0,
        decoder_heads=1,
    )  # fmt: skip
    cost = by_formula(architecture)
    embedding = 2 * (8 * 4 + 2 * 4 * 2 + 4 * 2 * 2)  # linear, embed, proj on all rows; of 2 patches
    block = 2 * (8 * 4 + 4 * 3 + 3 * 4)  # merge, FFN; of 2 tokens
    assert cost.encoder.linear == embedding + block
    assert cost.encoder.projections == 2 * 4 * 4 * 4 + 2 * (2 * 4 * 16)  # of the embedding; of both streams
    assert cost.encoder.products == 2 * 2 * 16 * 2 + 2 * (2 * 1 * 1 * 4 + 1 * 2 * 2 * 4)
    assert cost.decoder.total == 2 * 4 * 8  # the head
    assert by_formula(architecture, reference=False).total == cost.total - 2 * 2 * 2 * 2  # two rows less per patch


@st.composite
def architectures(draw):
    patch = draw(st.tuples(*[st.integers(1, 3)] * 3))
    grid = draw(st.tuples(*[st.integers(1, 4)] * 3))
    heads, tokens = draw(st.sampled_from([1, 2])), draw(st.sampled_from([0, 1, 3]))
    width = heads * max(tokens, 1) * draw(st.integers(1, 5))
    return Architecture(
        superpatch=tuple(g * p for g, p in zip(grid, patch, strict=True)),
        patch=patch,
        channels=draw(st.sampled_from([1, 2])),
        embed_dim=width,
        depth=draw(st.integers(1, 2)),
        heads=heads,
        tokens=tokens,
        gate=draw(st.sampled_from(["linear", "tokens"])),
        streams=draw(st.sampled_from(["both", "plane", "axis", "joint"])),
        merge=draw(st.sampled_from(["fc", "mean"])),
        ffn_dim=draw(st.sampled_from([None, 7])),
        decoder_dim=draw(st.sampled_from([None, width, 2 * heads, 6 * heads])),
        decoder_depth=draw(st.integers(1, 2)),
        decoder_heads=heads,
    )


maskings = st.none() | st.builds(
    Masking,
    st.sampled_from(["columns", "per_slice", "thinned", "uniform"]),
    st.sampled_from(["random", "contiguous"]),
    st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    st.sampled_from([0.0, 0.3, 0.5, 0.75]),
)


@settings(max_examples=25)
@given(architectures(), maskings)
def test_the_three_ways_agree(architecture, masking):
    run = by_formula(architecture, masking, reference=False)
    assert counted(by_torch, architecture, masking) == (run.encoder.total, run.total)
    assert counted(by_fvcore, architecture, masking) == (run.encoder.total, run.total)
    reference = by_formula(architecture, masking)
    skipped = math.prod(masking.visible(architecture.grid) if masking else architecture.grid) * architecture.patch[0]
    sub = architecture.embed_dim // architecture.tokens if architecture.tokens else 0
    assert reference.total - run.total == skipped * sub**2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_whatever_path_pytorch_would_take(training, device):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training).to(device)
    x = torch.zeros(3, 5, 8, device=device)
    expected = 15 * (4 * 8 * 8 + 2 * 8 * 16) + 3 * 2 * 5 * 5 * 8
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        assert [count(torch.nn.Module.__call__, layer, x) for count in COUNTERS] == [expected, expected]
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_convolutions_and_products_count_and_nothing_else_does():
    network = torch.nn.Sequential(
        torch.nn.Conv3d(2, 4, 3, stride=2, padding=1, groups=2),
        torch.nn.BatchNorm3d(4),
        torch.nn.GroupNorm(2, 4),
        torch.nn.ConvTranspose3d(4, 3, 2, stride=2),
        torch.nn.InstanceNorm3d(3, affine=True),
    )
    x = torch.zeros(2, 2, 4, 4, 4)
    expected = 2 * (8 * 4 * 1 * 27 + 8 * 4 * 3 * 8)  # both at 2³ places

    def call(net, x):
        y = net(x).flatten(2)
        return torch.baddbmm(y.new_zeros(3, 3), y, y.transpose(1, 2)) + torch.einsum("bcn,bdn->bcd", y, y)

    assert [count(call, network, x) for count in COUNTERS] == [expected + 2 * 2 * 9 * 64] * 2
    assert by_torch(call, network.to("meta"), x.to("meta")) == expected + 2 * 2 * 9 * 64
    with pytest.raises(ValueError, match="on the CPU"):
        by_fvcore(call, network.to("meta"), x.to("meta"))


def test_a_method_costs_the_same_at_any_mask_to_encode_and_less_to_train():
    plain, masked = (method_cost(create("nemesis", {"preset": "official", "plane_mask_ratio": r, "axis_mask_ratio": r}, 128))
                     for r in (0.0, 0.5))  # fmt: skip
    assert masked.encode == plain.encode
    assert masked.pretext < plain.pretext
    assert masked.encode_volume(128) == 64 * masked.encode
    assert method_cost(create("random_vit", {"preset": "official"}, 128)).encode == plain.encode
    assert method_cost(create("random_vit", {"preset": "official"}, 128)).pretext is None


def test_a_network_whose_constructor_reads_numbers_is_counted_too():
    class Reading(type(create("random_vit", {}, 16))):
        def build(self):
            assert torch.linspace(0, 1, 3)[1].item() == 0.5  # as schedules of drop rates do
            return super().build()

    settings = {"patch": 4, "embed_dim": 64, "depth": 1}
    method = create("random_vit", settings, 16)
    assert method_cost(Reading(method.settings, 16)) == method_cost(method)


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy])
def test_a_method_that_reads_numbers_on_its_way_is_counted_on_the_cpu(read):
    plain = small_method("nemesis")

    class Reading(type(plain)):
        def encode(self, network, voxels):
            assert read(voxels.mean()) == 0
            return super().encode(network, voxels)

    reading = Reading(plain.settings, plain.superpatch)
    with pytest.raises((RuntimeError, TypeError)):
        method_cost(reading)
    rows = cost_rows(reading)
    assert rows == cost_rows(plain)
    assert [(row["metric"], row["unit"]) for row in rows] == [
        ("encode_macs", "MAC"), ("reconstruct_macs", "MAC"), ("pretext_macs", "MAC"), ("encode_macs_fvcore", "MAC"),
        ("reconstruct_macs_fvcore", "MAC"), ("encode_macs_formula", "MAC"), ("reconstruct_macs_formula", "MAC"),
        ("parameters", "parameters"), ("encoder_parameters", "parameters"), ("sample_voxels", "voxels"),
    ]  # fmt: skip
    assert all(row["value"] > 0 for row in rows)


def test_a_method_that_learns_from_labels_is_counted_without_them_too():
    settings = small_method("suprem").settings.model_dump(exclude_unset=True) | {"classes": ()}
    unlabelled = create("suprem", settings, 16)  # as a run with published weights is planned: it names no organs
    labelled = create("suprem", settings | {"classes": ("liver",)}, 16)
    assert method_cost(unlabelled).pretext is None and method_cost(labelled).pretext > 0
    assert method_cost(unlabelled).encode == method_cost(labelled).encode
    assert "pretext_macs" not in {row["metric"] for row in cost_rows(unlabelled)}


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_is_counted_alike_by_pytorch_fvcore_and_where_there_is_one_the_formula(name):
    method = small_method(name)
    found = {row["metric"]: row["value"] for row in cost_rows(method)}
    for part in ("encode_macs", "reconstruct_macs"):
        assert (part in found) == (part == "encode_macs" or method.card.reconstructs)
        if part in found:
            assert found[f"{part}_fvcore"] == pytest.approx(found[part], rel=0.02)
        if name in ("nemesis", "maesil", "random_vit") and part in found:
            assert found[f"{part}_formula"] == found[f"{part}_fvcore"] == found[part]
    assert found["encode_macs"] < found.get("reconstruct_macs", math.inf)


def test_the_encoder_of_the_released_size_costs_what_was_counted_by_hand():
    cost = method_cost(create("nemesis", {"preset": "official", "embed_dim": 768, "patch": 16}, 128))
    assert cost.reconstruct / 1e9 == pytest.approx(33.5, rel=0.01)
    assert cost.encode / 1e9 == pytest.approx(22.1, rel=0.01)


def test_parameters_of_the_encoder_are_those_that_its_vector_is_computed_from():
    method = small_method("nemesis")
    network = method.build()
    cost = method_cost(method)
    assert cost.encoder_parameters == sum(p.numel() for p in network.encoder.parameters())
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    alone = method_cost(small_method("resnet3d"))
    assert alone.encoder_parameters == alone.parameters


def test_a_plain_transformer_costs_what_the_formula_says_of_one_stream_over_all_tokens():
    method = small_method("plain_mae")
    s, edge, patch = method.settings, method.superpatch, method.patch
    n, width, narrow = (edge // patch) ** 3 + 1, s.embed_dim, s.decoder_dim  # with the class token

    def blocks(depth, width, ffn):
        return depth * n * (4 * width**2 + 2 * n * width + 2 * width * ffn)

    encoder = (n - 1) * patch**3 * width + blocks(s.depth, width, s.ffn_dim or 4 * width)
    decoder = n * width * narrow + blocks(s.decoder_depth, narrow, s.ffn_dim or 4 * narrow) + n * narrow * patch**3
    cost = method_cost(method)
    assert cost.encode == encoder
    assert cost.reconstruct == pytest.approx(encoder + decoder, rel=0.01)


def test_superpatches_cover_a_volume():
    assert superpatches(128) == superpatches(128, (512, 512, 512)) == 64
    assert superpatches(64, (65, 64, 1)) == 2


def test_the_table_names_what_comes_nearest_and_compares_whole_volumes():
    result = CliRunner().invoke(app, ["cost"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(CONFIGURATIONS)
    assert len({line.count("|") for line in table}) == 1
    (main,) = (line for line in table if [c.strip() for c in line.split("|")][1:5] == ["official", "8³", "768", "0.5"])
    cells = [cell.strip() for cell in main.split("|")]
    assert cells[5:11] == ["0.75", "40.7", "124.7", "249.4", "31.2", "7982.2"]
    assert cells[11:14] == ["+93.7", "+218.4", "+0.2"]
    assert "GMAC 30.7 (official, patch 8³, E = 384, r = 0.75)" in result.output
    assert "64 × 31.0 = 1,984, more than the 985.8" in result.output
    assert result.output.count("**") == 2 * 3  # one nearest by each convention


def test_the_counters_stand_beside_the_formula():
    text = cost_table(31.0, 985.8, counters=True, configurations=[MAIN])
    head, _, row = (line for line in text.splitlines() if line.startswith("|"))
    assert "PyTorch GMAC" in head and "fvcore GMAC" in head
    assert [cell.strip() for cell in row.split("|")][-4:-1] == ["124.6"] * 3


def test_the_formula_needs_neither_torch_nor_fvcore():
    code = (
        "import sys; from nemesis.evaluation.formula import by_formula; from nemesis.models.architecture import Architecture\n"
        "by_formula(Architecture((128,) * 3, (16,) * 3)); assert not {'torch', 'fvcore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
