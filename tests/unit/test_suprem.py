"""SuPreM: its losses by hand, unknown organs, its three backbones, and its authors' files."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.networks.partial_labels import bce_loss, dice_loss, hard_dice, one_hot
from baselines.networks.unet3d import UNet3D
from nemesis.errors import NemesisError
from nemesis.method import Batch, create
from nemesis.models.keyed import Keys

SMALL = {
    "swinunetr": {"backbone": "swinunetr", "feature_size": 12, "window": 2},
    "unet": {"backbone": "unet", "feature_size": 4},
    "segresnet": {"backbone": "segresnet", "feature_size": 8},
}


def small(backbone, classes=("a", "b"), edge=16, **settings):
    return create("suprem", {**SMALL[backbone], "classes": classes, **settings}, edge)


def volume(*values):
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def test_classes_become_masks():
    assert one_hot(volume(0, 2, 1, 2).to(torch.uint8), 2).flatten(2).tolist() == [[[0, 0, 1, 0], [0, 1, 0, 1]]]


def test_dice_and_bce_by_hand():
    # σ(0) = 1/2 everywhere; class 1 in two of four voxels, class 2 in none
    logits = torch.zeros(1, 2, 1, 1, 4)
    truth = one_hot(volume(1, 1, 0, 0).to(torch.uint8), 2)
    known = torch.ones(1, 2, dtype=torch.bool)
    # 2 · (½ + ½) / (2 + 2 + 1) = 0.4; the class that is not shown does not count
    assert dice_loss(logits, truth, known).item() == pytest.approx(0.6)
    assert bce_loss(logits, truth, known).item() == pytest.approx(math.log(2))
    # σ(ln 3) = 3/4 on the organ, σ(−ln 3) = 1/4 beside it: 2 · 1.5 / (2 + 2 + 1) = 0.6; −ln ¾ in every voxel
    logits = math.log(3) * torch.where(truth > 0, 1.0, -1.0)
    assert dice_loss(logits, truth, known).item() == pytest.approx(0.4)
    assert bce_loss(logits, truth, known).item() == pytest.approx(-math.log(0.75))


def test_means_run_over_the_classes_shown_and_over_the_classes_known():
    logits = torch.tensor([math.log(3), -math.log(3)]).view(1, 2, 1, 1, 1).expand(2, 2, 1, 1, 2).contiguous()
    truth = one_hot(torch.tensor([[1, 1], [2, 2]]).view(2, 1, 1, 1, 2).to(torch.uint8), 2)
    known = torch.tensor([[True, False], [True, True]])
    # shown: class 1 of the first (2 · 1.5 / (1.5 + 2 + 1)), class 2 of the second (2 · 0.5 / (0.5 + 2 + 1))
    assert dice_loss(logits, truth, known).item() == pytest.approx(1 - (3 / 4.5 + 1 / 3.5) / 2)
    # known: class 1 of the first (right, −ln ¾), both of the second (wrong, −ln ¼)
    assert bce_loss(logits, truth, known).item() == pytest.approx(-(math.log(0.75) + 2 * math.log(0.25)) / 3)


def test_hard_dice_by_hand():
    known = torch.ones(1, 2, dtype=torch.bool)
    truth = one_hot(volume(1, 1, 2, 0).to(torch.uint8), 2)
    logits = torch.tensor([[1.0, -1, 1, 1], [-1, -1, 1, -1]]).view(1, 2, 1, 1, 4)
    assert hard_dice(logits, truth, known).item() == pytest.approx((2 / 5 + 1) / 2)
    nothing = torch.zeros_like(truth)
    assert hard_dice(-torch.ones_like(truth), nothing, known) == 1
    assert hard_dice(torch.ones_like(truth), nothing, known) == 0


@given(st.integers(0, 2**31 - 1))
def test_what_is_unknown_changes_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 2, 2, 2, generator=generator, requires_grad=True)
    truth = one_hot(torch.randint(0, 4, (2, 1, 2, 2, 2), generator=generator).to(torch.uint8), 3)
    known = torch.rand(2, 3, generator=generator) < 0.5
    unknown = ~known[:, :, None, None, None]
    loss = dice_loss(logits, truth, known) + bce_loss(logits, truth, known)
    loss.backward()
    assert not (logits.grad * unknown).any()
    other = torch.where(unknown, -5 * logits.detach() + 1, logits.detach())
    for measure in (dice_loss, bce_loss, hard_dice):
        assert torch.equal(measure(logits.detach(), truth, known), measure(other, truth * ~unknown, known))


def test_nothing_known_is_no_loss():
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    loss = bce_loss(logits, torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("backbone", SMALL)
def test_each_backbone_learns_encodes_and_segments(backbone):
    method = small(backbone)
    assert method.draw().centred == pytest.approx(2 / 3)
    torch.manual_seed(0)
    network = method.build()
    voxels = torch.rand(2, 1, 16, 16, 16)
    classes = (3 * voxels).clamp_max(2).to(torch.uint8)
    batch = Batch(voxels, Keys.at(0, 0, range(2)), classes, torch.ones(2, 2, dtype=torch.bool))
    loss = method.pretext_loss(network.train(), batch)
    loss.total.backward()
    assert all(p.grad is not None for p in network.parameters())
    assert set(loss.monitors) == {"dice", "dice_loss", "bce"} and 0 <= loss.monitors["dice"] <= 1
    network.eval()
    with torch.no_grad():
        vectors = method.encode(network, voxels)
        assert vectors.shape == (2, {"swinunetr": 192, "unet": 32, "segresnet": 64}[backbone])
        segmenter = method.segmenter(network, 5).eval()
        assert segmenter(voxels).shape == (2, 5, 16, 16, 16)
        assert network(voxels).shape == (2, 2, 16, 16, 16)  # its own last layer is still there
    own = {id(p) for p in network.parameters()}
    new = [name for name, p in segmenter.named_parameters() if id(p) not in own]
    assert len(new) == 2 and all("conv" in name for name in new)


def test_augments_in_training_only_and_masks_with_the_voxels():
    method = small("segresnet", edge=16)

    class Copy(torch.nn.Module):
        """Says of each voxel what its value says: right, wherever a voxel is moved to, as long as the mask moves along."""

        def forward(self, voxels):
            return 100 * torch.cat([(voxels - 0.5), 0.5 - voxels], 1)

    voxels = (torch.rand(64, 1, 16, 16, 16) > 0.5).float() * 0.8 + 0.1
    classes = torch.where(voxels > 0.5, 1, 2).to(torch.uint8)
    batch = Batch(voxels, Keys.at(0, 0, range(64)), classes, torch.ones(64, 2, dtype=torch.bool))
    plain = method.pretext_loss(Copy().eval(), batch).monitors
    augmented = method.pretext_loss(Copy().train(), batch).monitors
    assert plain["dice"] == augmented["dice"] == 1
    assert plain["bce"] != augmented["bce"]  # some were shifted
    seen = []
    Copy.forward = lambda self, given: (seen.append(given), torch.zeros(64, 2, 16, 16, 16))[1]
    method.pretext_loss(Copy().train(), batch)
    by = (seen[0] - voxels).flatten(1).mean(1)  # a turn leaves the mean alone
    turned = ((seen[0] - by.view(-1, 1, 1, 1, 1) - voxels).abs() > 1e-4).flatten(1).any(1)
    assert 0.05 < by.abs().max() <= 0.1 and (by.abs() > 1e-5).float().mean() == pytest.approx(0.2, abs=0.12)
    assert turned.float().mean() == pytest.approx(0.1, abs=0.08)


def test_without_masks_there_is_nothing_to_learn():
    method = small("unet")
    batch = Batch(torch.rand(1, 1, 16, 16, 16), Keys.at(0, 0, [0]))
    with pytest.raises(ValueError, match="organ masks"):
        method.pretext_loss(method.build(), batch)


def test_sizes_as_published():
    assert sum(p.numel() for p in UNet3D(1).parameters()) == pytest.approx(19.08e6, rel=1e-3)
    with torch.device("meta"):
        segresnet = create("suprem", {"backbone": "segresnet", "classes": ["x"] * 32}, 32).build()
    assert sum(p.numel() for p in segresnet.parameters()) * 4 == 18_805_696  # bytes of the published file


@pytest.mark.parametrize(("backbone", "width"), [("swinunetr", 20), ("segresnet", 12), ("unet", 3)])
def test_widths_that_do_not_fit_are_refused(backbone, width):
    with pytest.raises(NemesisError, match="not a multiple"):
        small(backbone, feature_size=width)


PREFIX = {"swinunetr": "module.backbone.", "unet": "module.backbone.", "segresnet": "module."}


def published(backbone, folder, seed=1, drop=(), **settings):
    """A file as the authors lay it out: their last layer, their heads, optimiser and schedule beside."""
    torch.manual_seed(seed)
    network = small(backbone, classes=["x"] * 32, **settings).build()
    state = {
        PREFIX[backbone] + name.removeprefix("backbone."): value
        for name, value in network.state_dict().items()
        if not name.removeprefix("backbone.").startswith(tuple(drop))
    }
    if backbone != "segresnet":
        heads = ("organ_embedding", "precls_conv.0.weight", "GAP.3.weight", "controller.bias", "text_to_vision.weight")
        state |= {f"module.{name}": torch.rand(3) for name in heads}
    path = folder / f"supervised_suprem_{backbone}_2100.pth"
    torch.save({"net": state, "optimizer": {"state": {}}, "scheduler": {"base_lrs": [1e-4]}, "epoch": 2100}, path)
    return path, network


@pytest.mark.parametrize("backbone", SMALL)
def test_reads_the_authors_file(backbone, tmp_path, capsys):
    path, theirs = published(backbone, tmp_path)
    method = small(backbone)
    network = method.build()
    matched = method.load_published(network, path)
    assert matched.parameters == 1.0
    assert any("precls_conv" in name for name in matched.skipped) == (backbone != "segresnet")
    assert "100.0 % of the encoder's parameters matched" in capsys.readouterr().err
    voxels = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(method.encode(network.eval(), voxels), small(backbone).encode(theirs.eval(), voxels))
    last = [name for name in network.state_dict() if network.state_dict()[name].shape != theirs.state_dict()[name].shape]
    assert len(last) == 2  # everything but the last layer is theirs
    assert all(torch.equal(v, theirs.state_dict()[n]) for n, v in network.state_dict().items() if n not in last)


def load(method, path):
    return method.load_published(method.build(), path)


def test_another_backbone_size_or_version_is_refused_in_words(tmp_path):
    swin, _ = published("swinunetr", tmp_path)
    unet, _ = published("unet", tmp_path)
    with pytest.raises(NemesisError, match=r"holds a swinunetr, the network is a unet.*`backbone: swinunetr`"):
        load(small("unet"), swin)
    with pytest.raises(NemesisError, match="holds a unet, the network is a swinunetr"):
        load(small("swinunetr"), unet)
    with pytest.raises(NemesisError, match=r"trained with feature size 12, the network has 24.*`feature_size: 12`"):
        load(small("swinunetr", feature_size=24), swin)
    with pytest.raises(NemesisError, match=r"windows of 2 tokens, the network has 7.*`window: 2`"):
        load(small("swinunetr", window=7), swin)
    content = torch.load(swin)
    content["net"]["module.backbone.swinViT.layers1c.0.layer.conv1.conv.weight"] = torch.zeros(12, 12, 3, 3, 3)
    torch.save(content, swin)
    with pytest.raises(NemesisError, match="second version"):
        load(small("swinunetr"), swin)


@pytest.mark.parametrize(
    ("backbone", "drop"),
    [("swinunetr", ["swinViT.layers4"]), ("unet", ["down_tr512"]), ("segresnet", ["down_layers.3"])],
)
def test_half_an_encoder_is_refused(backbone, drop, tmp_path):
    path, _ = published(backbone, tmp_path, drop=drop)
    method = small(backbone)
    network = method.build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NemesisError, match=rf"% of the encoder's parameters .* missing: backbone.{drop[0]}"):
        method.load_published(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_loss_is_dice_and_cross_entropy_in_equal_parts():
    method = small("segresnet")
    classes = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)
    classes[:, :, :8] = 1  # half of the voxels; the second class is not shown
    batch = Batch(torch.rand(1, 1, 16, 16, 16), Keys.at(0, 0, [0]), classes, torch.ones(1, 2, dtype=torch.bool))

    class Undecided(torch.nn.Module):
        def forward(self, voxels):
            return torch.zeros(1, 2, 16, 16, 16)

    loss = method.pretext_loss(Undecided(), batch)
    dice = 1 - 2 * 1024 / (2048 + 2048 + 1)
    assert loss.total.item() == pytest.approx(dice + math.log(2), rel=1e-6)
    assert loss.monitors["dice_loss"].item() == pytest.approx(dice, rel=1e-6)
    assert loss.monitors["bce"].item() == pytest.approx(math.log(2), rel=1e-6)
