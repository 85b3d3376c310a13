"""VoCo: overlaps against counted pixels, its losses by hand, its teacher, and its authors' files."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.networks.voco import Head, Layout, correlation, discrepancy_loss, position_loss, similarity
from nemesis.errors import NemesisError
from nemesis.method import Batch, create
from nemesis.models.keyed import Keys

SMALL = {"crop": 8, "grid": 2, "randoms": 2, "feature_size": 12, "window": 2, "head_width": 16}


def small(**settings):
    return create("voco", SMALL | settings, 16)


@given(st.integers(0, 2**31 - 1), st.integers(2, 9), st.integers(2, 4))
def test_overlaps_are_what_counting_pixels_gives(seed, crop, grid):
    layout = Layout(crop, grid, 3, 64)
    starts = layout.starts(Keys.at(seed, 0, range(2)))
    found = layout.overlaps(starts).numpy()
    owner = np.add.outer(grid * (np.arange(grid * crop) // crop), np.arange(grid * crop) // crop)  # base crop of each pixel
    for sample in range(2):
        for k in range(3):
            h, w = starts[sample, k].tolist()
            counted = np.bincount(owner[h : h + crop, w : w + crop].ravel(), minlength=grid**2) / crop**2
            assert counted.sum() == pytest.approx(1)  # inside the volume
            np.testing.assert_allclose(found[sample, k], counted, atol=1e-6)


def test_overlaps_by_hand():
    # 4 × 4 crops of 96: a crop that begins at (48, 96) covers halves of base crops (0, 1) and (1, 1)
    y = Layout(96, 4, 2, 64).overlaps(torch.tensor([[[48, 96], [24, 264]]]))[0]
    assert y[0].nonzero().flatten().tolist() == [1, 5] and y[0, [1, 5]].tolist() == [0.5, 0.5]
    # (24, 264): rows ¾ in 0 and ¼ in 1, columns ¼ in 2 and ¾ in 3
    assert y[1, [2, 3, 6, 7]].tolist() == [3 / 16, 9 / 16, 1 / 16, 3 / 16] and y[1].sum() == 1


def test_random_crops_lie_everywhere_inside():
    starts = Layout(96, 4, 2, 64).starts(Keys.at(0, 0, range(2000)))
    assert starts.min() == 0 and starts.max() == 288  # centres 48 to 336
    assert starts.float().mean() == pytest.approx(144, abs=5)
    assert torch.equal(starts[5:6], Layout(96, 4, 2, 64).starts(Keys.at(0, 0, [5])))


def test_crops_are_cut_where_the_layout_says():
    layout = Layout(4, 3, 2, 64)
    volumes = torch.arange(2 * 4 * 12 * 12.0).view(2, 1, 4, 12, 12)
    starts = torch.tensor([[[1, 8], [0, 0]], [[7, 2], [5, 5]]])
    crops = layout.cut(volumes, starts)
    assert crops.shape == (2, 11, 1, 4, 4, 4)
    for sample in range(2):
        for i in range(3):
            for j in range(3):
                assert torch.equal(crops[sample, 3 * i + j], volumes[sample, :, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4])
        for k, (h, w) in enumerate(starts[sample].tolist()):
            assert torch.equal(crops[sample, 9 + k], volumes[sample, :, :, h : h + 4, w : w + 4])


def test_position_loss_by_hand():
    y = torch.tensor([[[0.75, 0.25, 0.0, 0.0]]])
    p = torch.tensor([[[0.5, 0.25, 0.2, 0.1]]])
    pos, neg = position_loss(p, y)
    assert pos.item() == pytest.approx(-0.75 * math.log(0.75), abs=1e-5)
    assert neg.item() == pytest.approx((0.2**2 + 0.1**2) / 2)
    assert position_loss(y, y)[0].item() == pytest.approx(0, abs=2e-6)
    # the worst prediction is bounded by the 1e-6 within the logarithm
    pos, neg = position_loss(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]]))
    assert pos.item() == pytest.approx(-math.log(1e-6), rel=1e-3) and neg == 1
    # two random crops of one sample: overlaps add up to 2, and with them the error is their mean
    pos, neg = position_loss(torch.cat([p, y], 1), torch.cat([y, y], 1))
    assert pos.item() == pytest.approx(-0.375 * math.log(0.75), abs=1e-5) and neg.item() == pytest.approx(0.0125)
    # two samples: the mean of both
    pos, neg = position_loss(torch.stack([p[0], y[0]]), torch.stack([y[0], y[0]]))
    assert pos.item() == pytest.approx(-0.375 * math.log(0.75), abs=1e-5) and neg.item() == pytest.approx(0.0125)


def test_similarity_is_the_positive_part_of_the_cosine():
    crops = torch.tensor([[[3.0, 0.0]]])
    bases = torch.tensor([[[1.0, 1.0], [0.0, 2.0], [-1.0, 0.0], [5.0, 0.0]]])
    assert similarity(crops, bases)[0, 0].tolist() == pytest.approx([math.sqrt(0.5), 0, 0, 1])


def test_discrepancy_loss_by_hand_and_its_gradient():
    sixty = [0.5, math.sqrt(0.75)]
    bases = torch.tensor([[[1.0, 0.0], sixty, [-1.0, 0.0]]], requires_grad=True)
    loss = discrepancy_loss(bases)  # cosines ½, −1, −½: only the first is not cut off
    loss.backward()
    assert loss.item() == pytest.approx(0.25 / 3)
    assert bases.grad[0, 0].abs().sum() > 0  # the first of the pair
    assert bases.grad[0, 1].abs().sum() == 0 and bases.grad[0, 2].abs().sum() == 0


def test_correlation_is_numpys():
    p, y = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    assert correlation(p, y).item() == pytest.approx(np.corrcoef(p.flatten(), y.flatten())[0, 1], abs=1e-6)
    assert correlation(y, y).item() == pytest.approx(1) and correlation(torch.ones_like(y), y) == 0


class Fixed(torch.nn.Module):
    """Answers with given embeddings and records what it was asked."""

    def __init__(self, student, teacher=None):
        super().__init__()
        self.student, self.teacher, self.asked = student, teacher, []

    def forward(self, crops):
        self.asked.append(crops)
        return self.student, self.teacher


def volumes(n=1, **settings):
    return torch.rand(n, 1, *small(**settings).draw().size, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_made_of_its_terms_and_a_perfect_answer_is_told():
    method = small()
    batch = Batch(volumes(), Keys.at(0, 0, [0]))
    y = method.layout.overlaps(method.layout.starts(batch.keys))[0]
    bases = torch.eye(6)[:4]  # unlike each other; the cosine of a crop with base k is its k-th component
    rest = (1 - y.square().sum(1)).sqrt()
    perfect = torch.cat([bases, torch.cat([y, rest[:, None], torch.zeros(2, 1)], 1)])
    network = Fixed(perfect)
    loss = method.pretext_loss(network, batch)
    assert network.asked[0].shape == (6, 1, 64, 64, 64) and len(network.asked) == 1
    assert loss.monitors["overlap_correlation"] == pytest.approx(1)
    assert loss.total.item() == pytest.approx(0, abs=1e-5)
    other = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    loss = method.pretext_loss(Fixed(other), batch)
    p = torch.nn.functional.cosine_similarity(other[4:, None], other[None, :4], dim=-1).relu()
    expected = sum(position_loss(p[None], y[None])) + discrepancy_loss(other[None, :4])
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sum(loss.monitors[k] for k in ("pos", "neg", "reg")).item() == pytest.approx(loss.total.item(), rel=1e-6)


def test_with_a_teacher_p_is_averaged_both_ways():
    method = small(teacher=True)
    batch = Batch(volumes(), Keys.at(0, 0, [0]))
    y = method.layout.overlaps(method.layout.starts(batch.keys))
    s, t = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))

    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(a[4:, None], b[None, :4], dim=-1).relu()

    pos, neg = position_loss((cosine(s, t) + cosine(t, s))[None] / 2, y)
    loss = method.pretext_loss(Fixed(s, t), batch)
    assert loss.monitors["pos"] == pytest.approx(pos.item(), rel=1e-5)
    assert loss.monitors["neg"] == pytest.approx(neg.item(), rel=1e-5)
    assert loss.monitors["reg"] == pytest.approx(discrepancy_loss(s[None, :4]).item(), rel=1e-5)


def test_each_crop_is_augmented_by_itself_in_training_only():
    method = small()
    batch = Batch(volumes(12), Keys.at(0, 0, range(12)))
    trained, evaluated = Fixed(torch.randn(72, 6)).train(), Fixed(torch.randn(72, 6)).eval()
    for network in (trained, evaluated):
        method.pretext_loss(network, batch)
    plain = method.layout.fitted(method.layout.cut(batch.voxels, method.layout.starts(batch.keys)).flatten(0, 1))
    assert torch.equal(evaluated.asked[0], plain)
    by = (trained.asked[0].flatten(1).mean(1) - plain.flatten(1).mean(1)).abs()  # only a shift moves the mean
    assert 0.05 < by.max() <= 0.1 and (by > 1e-5).float().mean() == pytest.approx(0.1, abs=0.08)
    untouched = (trained.asked[0] == plain).flatten(1).all(1).float().mean()
    assert untouched == pytest.approx(0.8**3 * 0.8 * 0.9, abs=0.15)


def test_draw_counts_what_is_seen():
    full = create("voco", {}, 128).draw()
    assert full.size == (96, 384, 384) and full.voxels == 18 * 64**3
    assert small().draw().size == (8, 16, 16) and small().draw().voxels == 6 * 8**3
    with pytest.raises(ValueError, match="not the view"):
        small().pretext_loss(Fixed(torch.zeros(1, 1)), Batch(torch.rand(1, 1, 16, 16, 16), Keys.at(0, 0, [0])))


def test_presets_switch_the_teacher():
    assert not small().settings.teacher and small(preset="released").settings.teacher
    assert not small(preset="released", teacher=False).settings.teacher


def test_the_teacher_follows_without_gradient_and_in_training_only():
    torch.manual_seed(0)
    network = small(preset="released").build().train()
    student = {name: p.clone() for name, p in network.student.named_parameters()}
    teacher = {name: p.clone() for name, p in network.teacher.named_parameters()}
    assert not torch.equal(student["swinViT.patch_embed.proj.weight"], teacher["swinViT.patch_embed.proj.weight"])
    crops = torch.rand(2, 1, 64, 64, 64)
    out, others = network(crops)
    assert out.requires_grad and not others.requires_grad
    for name, p in network.teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * teacher[name] + 0.1 * student[name])
        assert not p.requires_grad
    after = {name: p.clone() for name, p in network.teacher.named_parameters()}
    with torch.no_grad():
        network.eval()(crops)
    assert all(torch.equal(p, after[name]) for name, p in network.teacher.named_parameters())
    assert any(name.startswith("teacher.") for name in network.state_dict())  # a resumed run goes on with it


def test_segments_on_its_own_encoder():
    method = small()
    network = method.build().eval()
    segmenter = method.segmenter(network, 3).eval()
    own = {id(p) for p in network.student.parameters()}
    shared = sum(p.numel() for p in segmenter.parameters() if id(p) in own)
    head = sum(p.numel() for p in network.student.proj_head.parameters())
    assert shared == sum(p.numel() for p in network.student.parameters()) - head
    with torch.no_grad():
        assert segmenter(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
        assert method.encode(network, torch.rand(1, 1, 16, 16, 16)).shape == (1, 288)


def test_the_encoder_has_the_published_size():
    network = create("voco", {"head_width": 8}, 64).build()
    encoder = sum(p.numel() for name, p in network.student.named_parameters() if "proj_head" not in name)
    assert encoder == pytest.approx(53.16e6, rel=1e-3)  # the authors: 53 M
    assert network.student.proj_head.layer1[0].in_features == 1152


@pytest.fixture(scope="module")
def theirs():
    """Weights of an encoder, by the authors' names without prefixes, and of a whole SwinUNETR on it."""
    torch.manual_seed(5)
    method = small()
    network = method.build()
    encoder = {name.removeprefix("student."): value for name, value in network.state_dict().items()}
    unetr = {name.removeprefix("backbone."): value for name, value in method.segmenter(network, 21).state_dict().items()}
    return encoder, unetr


def prefixed(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def old_names(weights):
    return {name.replace("swinViT", "swin_vit"): value for name, value in weights.items()}


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("proj_head")}


LAYOUTS = {
    "VoCo_10k.pt": lambda e, u: old_names(prefixed("module.", without_head(e))),
    "VoCo_cvpr.pt": lambda e, u: {"state_dict": prefixed("module.student.", e) | prefixed("module.teacher.", e), "epoch": 3},
    "VoCo_B_SSL_head.pt": lambda e, u: (
        prefixed("backbone.", without_head(e)) | {f"{who}.layer1.0.weight": torch.rand(4, 4) for who in ("student", "teacher")}
    ),
    "VoCo_L_SSL_head.pt": lambda e, u: {"student": prefixed("module.backbone.", e), "teacher": prefixed("module.backbone.", e)},
    "VoCo_H_SSL_head.pt": lambda e, u: {"raw": prefixed("student.backbone.", without_head(e))},
    "VoComni_B.pt": lambda e, u: {"network_weights": prefixed("module.", old_names(u))},
    "again_VoComni_B.pt": lambda e, u: {"net": u, "optimizer": {}},
}


@pytest.mark.parametrize("file", LAYOUTS)
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_reads_the_authors_files(file, preset, theirs, tmp_path):
    torch.save(LAYOUTS[file](*theirs), tmp_path / file)
    method = small(preset=preset)
    network = method.build()
    matched = method.load_published(network, tmp_path / file)
    assert matched.parameters == 1.0
    own = network.student.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in without_head(theirs[0]).items())
    if "omni" in file:
        assert any(name.startswith("decoder1.") for name in matched.skipped)
        assert any(name.startswith("out.") for name in matched.skipped)
    assert all(name.startswith(("teacher.", "layer1.", "decoder", "out.")) for name in matched.skipped)


def test_every_file_of_the_card_has_a_layout_here():
    assert {published.file for published in small().card.published} <= set(LAYOUTS)


def load(path, content, **settings):
    torch.save(content, path)
    method = small(**settings)
    return method.load_published(method.build(), path)


def test_other_versions_sizes_and_networks_are_refused_in_words(theirs, tmp_path):
    encoder, path = theirs[0], tmp_path / "VoCo_10k.pt"
    first = {name: value for name, value in encoder.items() if not name.startswith("swinViT.layers") or "c.0." not in name}
    with pytest.raises(NemesisError, match=r"first version \(use_v2=False\).*residual convolutions.*10.58 M.*stay random"):
        load(path, first)
    with pytest.raises(NemesisError, match=r"feature size 12, the network has 24.*`feature_size: 12`"):
        load(path, encoder, feature_size=24)
    with pytest.raises(NemesisError, match=r"no weights of a SwinUNETR"):
        load(path, {"net": {"conv1.weight": torch.zeros(2)}})
    with pytest.raises(NemesisError, match=r"windows of 2 tokens, the network has 4.*`window: 2`"):
        load(path, encoder, window=4)
    half = {name: value for name, value in encoder.items() if not name.startswith("encoder10")}
    with pytest.raises(NemesisError, match=r"missing: student.encoder10"):
        load(path, half)


def test_the_head_normalises_by_the_crops_of_the_batch_in_evaluation_too():
    torch.manual_seed(0)
    head, x = Head(5, 4).eval(), torch.randn(6, 5)

    def normalised(y):
        return ((y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()).relu()

    (one, *_), (two, *_), (three,) = head.layer1, head.layer2, head.layer3
    with torch.no_grad():
        assert torch.allclose(head(x), three(normalised(two(normalised(one(x))))), atol=1e-5)
    assert set(dict(head.named_parameters())) == {f"layer{n}.0.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}


def test_crops_reach_the_encoder_along_right_anterior_superior_and_all_five_maps_make_its_vector():
    torch.manual_seed(0)
    encoder = small().build().student.eval()
    seen, parts = {}, ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
    for name in ("swinViT", *parts):
        encoder.get_submodule(name).register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: (inputs[0], out)}))
    crops = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        vector = encoder.embed(crops)
    for name in ("swinViT", "encoder1"):
        assert torch.equal(seen[name][0], crops.permute(0, 1, 3, 4, 2))
    means = [seen[name][1].mean((2, 3, 4)) for name in parts]
    assert [m.shape[1] for m in means] == [12, 12, 24, 48, 192]
    assert torch.allclose(vector, torch.cat(means, 1), atol=1e-6)
