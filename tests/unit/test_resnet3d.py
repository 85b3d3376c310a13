"""ResNet3D: MONAI's network by its own names, and MedicalNet's files."""

import pytest
import torch
from monai.networks.nets.resnet import resnet50

from nemesis.errors import NemesisError
from nemesis.method import create

MEDICALNET = {"stem_stride": 2, "shortcut_bias": False, "standardise": True}
SMALL = {"layers": (1, 1, 1, 1), "width": 4}


def shapes(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("settings", "options"),
    [({}, {}), (MEDICALNET, {"shortcut_type": "B", "bias_downsample": False, "conv1_t_stride": 2})],
)
def test_is_monais_resnet50(settings, options):
    with torch.device("meta"):
        ours = create("resnet3d", settings, 32).build()
        monais = resnet50(spatial_dims=3, n_input_channels=1, feed_forward=False, **options)
    assert shapes(ours) == shapes(monais)
    assert ours.conv1.stride == monais.conv1.stride
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 1) == 46.2
    assert ours.eval()(torch.zeros(1, 1, 32, 32, 32, device="meta")).shape == (1, 2048)


def published(path, **settings):
    """A file as MedicalNet publishes it, of a small network; and that network."""
    torch.manual_seed(5)
    network = create("resnet3d", {**SMALL, **MEDICALNET, **settings}, 16).build()
    for name, value in network.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state | {"module.conv_seg.0.weight": torch.zeros(3)}}, path)
    return network.eval()


def test_takes_medicalnets_weights(tmp_path):
    authors = published(tmp_path / "resnet_50.pth")
    method = create("resnet3d", {**SMALL, **MEDICALNET}, 16)
    torch.manual_seed(0)
    network = method.build().eval()
    matched = method.load_published(network, tmp_path / "resnet_50.pth")
    assert (matched.parameters, matched.skipped) == (1.0, ("conv_seg.0.weight",))
    voxels = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(method.encode(network, voxels), authors(voxels))


@pytest.mark.parametrize("key", MEDICALNET)
def test_refuses_them_under_other_options(tmp_path, key):
    published(tmp_path / "resnet_50.pth")
    method = create("resnet3d", {**SMALL, **{name: value for name, value in MEDICALNET.items() if name != key}}, 16)
    network = method.build()
    before = network.conv1.weight.clone()
    with pytest.raises(NemesisError, match=f"other {key} than"):
        method.load_published(network, tmp_path / "resnet_50.pth")
    assert torch.equal(network.conv1.weight, before)


def test_refuses_a_deeper_network(tmp_path):
    published(tmp_path / "resnet_101.pth", layers=(1, 1, 3, 1))
    method = create("resnet3d", {**SMALL, **MEDICALNET}, 16)
    with pytest.raises(NemesisError, match=r"larger encoder: .* no place in this network: layer3.1.conv1.weight"):
        method.load_published(method.build(), tmp_path / "resnet_101.pth")


def test_refuses_a_file_of_another_size(tmp_path):
    published(tmp_path / "resnet_50.pth", width=8)
    method = create("resnet3d", {**SMALL, **MEDICALNET}, 16)
    with pytest.raises(NemesisError, match="at least 95% are needed"):
        method.load_published(method.build(), tmp_path / "resnet_50.pth")


def test_superpatches_are_standardised_for_medicalnet_each_by_itself_and_air_stays_air():
    voxels = torch.rand(2, 1, 16, 16, 16)
    voxels[1] = 0
    told = []
    for standardise in (False, True):
        torch.manual_seed(0)
        method = create("resnet3d", {**SMALL, "standardise": standardise}, 16)
        network = method.build().eval()
        told.append([method.encode(network, v) for v in (voxels, 0.5 * voxels + 0.2)])
    (plain, paler), (brought, alike) = told
    assert torch.allclose(brought, alike, atol=1e-4) and not torch.allclose(plain[0], paler[0], atol=1e-4)
    by_hand = (voxels[:1] - voxels[:1].mean()) / voxels[:1].std()
    assert torch.allclose(network(by_hand)[0], brought[0], atol=1e-5)
    assert torch.isfinite(brought).all() and torch.allclose(brought[1], network(voxels[1:])[0], atol=1e-5)
