"""LPIPS: torchmetrics' formula on the same weights, the published layouts, files of weights that are told apart by their hash."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as theirs

from nemesis.config import Lpips as Settings
from nemesis.errors import NemesisError
from nemesis.evaluation import backbones
from nemesis.evaluation.backbones import BACKBONES, find_weights, how_to_get, hub_folder
from nemesis.evaluation.lpips import TAPS, Lpips, feature_stack
from nemesis.files import file_sha256

NETWORKS = list(BACKBONES)
TORCHVISION = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
SHAPES = {  # some of what torchvision's files hold
    "alex": {"features.0.weight": (64, 3, 11, 11), "features.3.weight": (192, 64, 5, 5), "features.10.bias": (256,)},
    "vgg": {"features.0.weight": (64, 3, 3, 3), "features.14.weight": (256, 256, 3, 3), "features.28.bias": (512,)},
    "squeeze": {"features.3.squeeze.weight": (16, 64, 1, 1), "features.12.expand3x3.weight": (256, 64, 3, 3)},
}
PARAMETERS = {"alex": 2_469_696, "vgg": 14_714_688, "squeeze": 722_496}  # of the features, as published


def of(network):
    torch.manual_seed(0)
    return Lpips(network)


@pytest.fixture
def file(tmp_path):
    """What torchvision would publish, with random weights."""

    def write(network="alex", folder=tmp_path, name=None):
        stored = {f"features.{name}": value for name, value in of(network).features.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name or BACKBONES[network].file)
        torch.save(stored | {"classifier.1.weight": torch.zeros(2)}, path)
        return path

    return write


def published_as(monkeypatch, network, path):
    """The file's own hash as that which its name ought to tell."""
    prefix = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    backbone = BACKBONES[network]
    renamed = backbones.Backbone(backbone.title, f"{TORCHVISION[network]}-{prefix}.pth", backbone.smallest)
    monkeypatch.setitem(BACKBONES, network, renamed)
    return renamed.file


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_torchmetrics_formula_on_the_same_weights(network, monkeypatch):
    ours = of(network)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: ours.features)
    reference = theirs._NoTrainLpips(net=network)  # with the heads that it ships
    a, b = 2 * torch.rand(2, 3, 3, 64, 70, generator=torch.Generator().manual_seed(1)) - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), reference(a, b).flatten(), rtol=1e-5, atol=1e-6)
        assert ours(a, a).abs().max() == 0
    assert ours(a, b).min() > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_torchmetrics_own_with_torchvisions_network(network, monkeypatch):
    models = pytest.importorskip("torchvision.models", reason="torchvision does not import beside this torch", exc_type=Exception)
    torch.manual_seed(0)
    features = getattr(models, TORCHVISION[network])(weights=None).features
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: features)
    reference = theirs._NoTrainLpips(net=network)
    ours = Lpips(network)
    kept = {name: value for name, value in features.state_dict().items() if name in ours.features.state_dict()}
    ours.features.load_state_dict(kept)
    a, b = 2 * torch.rand(2, 3, 3, 64, 70) - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), reference(a, b).flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_layout_and_names_are_the_published_ones(network):
    stack = feature_stack(network)
    stored = {f"features.{name}": tuple(value.shape) for name, value in stack.state_dict().items()}
    assert stored.items() >= SHAPES[network].items()
    assert sum(value.numel() for value in stack.parameters()) == PARAMETERS[network]
    assert max(TAPS[network]) == len(stack) - 1
    assert all(isinstance(stack[tap], nn.ReLU) or network == "squeeze" for tap in TAPS[network])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_smallest_picture_is_the_smallest_that_passes(network):
    stack = feature_stack(network).to("meta")
    edge = BACKBONES[network].smallest
    assert min(stack(torch.zeros(1, 3, edge, edge, device="meta")).shape) > 0
    with pytest.raises(RuntimeError):
        stack(torch.zeros(1, 3, edge - 1, edge - 1, device="meta"))


def test_of_a_volume_it_is_the_mean_over_slices_of_each_plane_and_over_planes(monkeypatch):
    lpips = of("alex")
    generator = torch.Generator().manual_seed(2)
    target, volume = torch.rand(2, 33, 40, 36, generator=generator)
    expected = []
    for axis in range(3):
        slices = [(2 * v.movedim(axis, 0)[:, None].expand(-1, 3, -1, -1) - 1) for v in (volume, target)]
        expected.append(lpips(*slices).mean().item())
    mean = sum(expected) / 3
    assert lpips.of_volumes([volume, target, volume], target) == pytest.approx([mean, 0.0, mean], rel=1e-4)
    monkeypatch.setattr("nemesis.evaluation.lpips.PIXELS_AT_ONCE", 5 * 40 * 36)
    assert lpips.of_volumes([volume], target) == pytest.approx([mean], rel=1e-4)
    assert lpips.of_volumes([3 * volume - 1], target) == lpips.of_volumes([(3 * volume - 1).clamp(0, 1)], target)


def test_slices_that_the_network_cannot_take_have_no_distance():
    lpips = of("alex")
    assert (
        torch.isnan(torch.tensor(lpips.of_volumes([torch.zeros(30, 64, 64)] * 2, torch.ones(30, 64, 64)))).tolist() == [True] * 2
    )
    assert lpips.of_volumes([torch.zeros(31, 31, 31)], torch.ones(31, 31, 31))[0] > 0


def test_weights_are_those_of_the_file(file):
    path = file("squeeze")
    other = Lpips("squeeze")  # of other random weights
    a, b = torch.rand(2, 1, 3, 40, 40)
    expected = of("squeeze")(a, b)
    assert not torch.allclose(other(a, b), expected)
    torch.testing.assert_close(other.load(path)(a, b), expected)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_of_something_else_is_refused(content, tmp_path):
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    path.write_bytes(content)
    with pytest.raises(NemesisError, match="is truncated, damaged, or no PyTorch checkpoint"):
        Lpips("alex").load(path)


def test_weights_of_another_network_are_refused(file):
    with pytest.raises(NemesisError, match="does not hold the weights of VGG16"):
        Lpips("vgg").load(file("alex"))


def test_code_in_a_file_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.0.weight": Code()}, tmp_path / "bad.pth")
    with pytest.raises(NemesisError, match="carries code"):
        Lpips("alex").load(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_the_caches_file_is_found_and_its_hash_checked(file, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert find_weights(Settings(), file_sha256) is None
    path = file(folder=tmp_path / "home" / "hub" / "checkpoints")
    with pytest.raises(NemesisError, match=r"is not AlexNet's alexnet-owt-7be5be79\.pth: its sha256 starts with"):
        find_weights(Settings(), file_sha256)
    renamed = path.with_name(published_as(monkeypatch, "alex", path))
    path.rename(renamed)
    assert find_weights(Settings(), file_sha256) == (renamed, file_sha256(renamed))
    assert find_weights(Settings(network="vgg"), file_sha256) is None


def test_a_named_file_may_bear_any_name_but_must_be_there_and_right(file, monkeypatch, tmp_path):
    path = file(name="mine.pth")
    with pytest.raises(NemesisError, match="does not exist"):
        find_weights(Settings(weights=str(tmp_path / "nowhere.pth")), file_sha256)
    with pytest.raises(NemesisError, match="its sha256 starts with"):
        find_weights(Settings(weights=str(path)), file_sha256)
    published_as(monkeypatch, "alex", path)
    assert find_weights(Settings(weights=str(path)), file_sha256) == (path, file_sha256(path))


def test_the_cache_is_torch_hubs(monkeypatch, tmp_path):
    for name, value in (("TORCH_HOME", tmp_path / "a"), ("TORCH_HOME", None), ("XDG_CACHE_HOME", tmp_path / "b")):
        monkeypatch.setenv(name, str(value)) if value else monkeypatch.delenv(name, raising=False)
        assert hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_without_weights_it_is_said_how_to_get_them():
    said = how_to_get("squeeze")
    assert said.startswith("LPIPS not measured: put https://") and "squeezenet1_1-b8a52dc0.pth" in said
    assert "reconstruction.lpips.weights" in said
