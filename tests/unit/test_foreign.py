"""Published weights: every container and prefix, and files that hold too little, something else, or code."""

import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from nemesis.errors import NemesisError
from nemesis.models.foreign import CONTAINERS, load_published, read_published


class Encoder(nn.Module):
    """100 parameters in an encoder with running statistics, and a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.swinViT = nn.Linear(9, 9)  # 90
        self.norm = nn.BatchNorm1d(5)  # 10
        self.head = nn.Linear(2, 2)


ENCODER = ("swinViT.*", "norm.*")


def same(name):
    return name


def without_head(name):
    return None if name.startswith("head.") else name


def weights(seed=1):
    state = Encoder(seed).state_dict()
    state["norm.running_mean"] = torch.arange(5.0)
    return state


def write(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("container", [*CONTAINERS, None])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "student.", "module.student.backbone."])
def test_containers_and_prefixes_come_off(tmp_path, container, prefix):
    state = {prefix + name.replace("swinViT", "swin_vit"): value for name, value in weights().items()}
    content = {container: state, "epoch": 7, "optimizer": {"state": {}}, "best": np.float64(0.5)} if container else state
    network = Encoder()
    matched = load_published(network, write(tmp_path / "w.pt", content), same, ENCODER)
    assert matched.parameters == 1.0 and matched.skipped == ()
    assert all(torch.equal(value, weights()[name]) for name, value in network.state_dict().items())


def test_what_is_left_out_on_purpose_is_told_and_kept_random(tmp_path, capsys):
    network, before = Encoder(), Encoder().state_dict()
    matched = load_published(network, write(tmp_path / "w.pt", weights()), without_head, ENCODER)
    assert matched.skipped == ("head.weight", "head.bias") and matched.parameters == 1.0
    assert torch.equal(network.head.weight, before["head.weight"])
    assert torch.equal(network.norm.running_mean, torch.arange(5.0))
    said = capsys.readouterr().err
    assert "w.pt: 100.0 % of the encoder's parameters matched" in said and "left out on purpose: head.weight, head.bias" in said


def test_half_precision_is_taken_as_it_is(tmp_path):
    network = Encoder()
    load_published(network, write(tmp_path / "w.pt", {k: v.half() for k, v in weights().items()}), same, ENCODER)
    assert network.swinViT.weight.dtype == torch.float32
    assert torch.equal(network.swinViT.weight, weights()["swinViT.weight"].half().float())


def test_95_percent_by_count_is_the_border(tmp_path, capsys):
    state = weights()
    del state["norm.bias"]  # 5 of 100
    assert load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER).parameters == 0.95
    assert "kept random: norm.bias" in capsys.readouterr().err
    network, before = Encoder(), Encoder().state_dict()
    del state["swinViT.bias"]  # 14 of 100
    with pytest.raises(NemesisError, match=r"86\.0 % .* missing: swinViT.bias, norm.bias"):
        load_published(network, write(tmp_path / "w.pt", state), same, ENCODER)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())  # nothing was half loaded


def test_a_weight_of_another_shape_is_no_match(tmp_path):
    state = {**weights(), "swinViT.weight": torch.zeros(9, 18)}
    with pytest.raises(NemesisError, match=r"19\.0 % .* another shape or type: swinViT.weight \(9×18, here 9×9\)"):
        load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER)


def test_weights_of_another_network_are_named(tmp_path):
    with pytest.raises(NemesisError, match=r"0\.0 % .* not of this network: conv.weight, conv.bias"):
        load_published(Encoder(), write(tmp_path / "w.pt", nn.ModuleDict({"conv": nn.Linear(2, 3)}).state_dict()), same, ENCODER)


def test_a_larger_encoder_is_another_network(tmp_path):
    state = {**weights(), "swinViT.more": torch.zeros(5)}  # 5 of 105
    assert load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER).parameters == 1.0
    state["swinViT.more"] = torch.zeros(6)
    network, before = Encoder(), Encoder().state_dict()
    with pytest.raises(NemesisError, match=r"larger encoder: 5\.6 % of its parameters .*: swinViT.more"):
        load_published(network, write(tmp_path / "w.pt", state), same, ENCODER)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_stays_random_is_told_of_the_whole_network(tmp_path, capsys):
    state = {name: value for name, value in weights().items() if not name.startswith("head.")}
    load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER)
    assert "kept random: head.weight, head.bias" in capsys.readouterr().err


KINDS = {
    "sparse_coo": torch.Tensor.to_sparse,
    "complex64": lambda x: x.to(torch.complex64),
    "int8": lambda x: x.to(torch.int8),
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_another_kind_are_no_match(tmp_path, kind):
    state = {**weights(), "swinViT.weight": KINDS[kind](weights()["swinViT.weight"])}
    with pytest.raises(NemesisError, match=rf"19\.0 % .* another shape or type: swinViT.weight \(9×9 {kind}, here 9×9\)"):
        load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER)


def test_a_file_that_holds_itself_is_refused(tmp_path):
    content = {}
    content["net"] = content
    with pytest.raises(NemesisError, match="holds no weights, only: net"):
        read_published(write(tmp_path / "w.pt", content))


def test_running_statistics_belong_to_the_encoder(tmp_path):
    state = weights()
    del state["norm.running_mean"]
    with pytest.raises(NemesisError, match=r"missing: norm.running_mean"):
        load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER)


def test_one_place_is_not_filled_twice(tmp_path):
    twice = {**weights(), "module.norm.bias": torch.zeros(5)}
    with pytest.raises(NemesisError, match=r"two weights that are called 'norm.bias'"):
        read_published(write(tmp_path / "w.pt", twice))
    with pytest.raises(NemesisError, match=r"two weights for 'norm.bias'"):
        load_published(
            Encoder(),
            write(tmp_path / "w.pt", {**weights(), "other": torch.zeros(5)}),
            lambda name: "norm.bias" if name == "other" else name,
            ENCODER,
        )


def test_values_that_are_not_finite_are_refused(tmp_path):
    state = {**weights(), "norm.weight": torch.full((5,), torch.nan)}
    with pytest.raises(NemesisError, match=r"not finite, in 'norm.weight'"):
        load_published(Encoder(), write(tmp_path / "w.pt", state), same, ENCODER)


def test_an_encoder_without_parameters_is_a_mistake_of_the_method(tmp_path):
    with pytest.raises(ValueError, match=r"matches elsewhere\.\*"):
        load_published(Encoder(), write(tmp_path / "w.pt", weights()), same, ["elsewhere.*"])


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("legacy", [False, True])
def test_an_optimiser_saved_as_an_object_is_passed_over(tmp_path, legacy):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters(), amsgrad=True)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"state_dict": weights(), "optimizer": optimizer, "log": defaultdict(list, loss=[1.0])}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    assert read_published(tmp_path / "w.pt").keys() == weights().keys()


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_code_that_a_file_carries_is_named_in_every_protocol(tmp_path, protocol):
    torch.save({"net": weights(), "more": Evil()}, tmp_path / "w.pt", pickle_protocol=protocol)
    with pytest.raises(NemesisError, match=r"carries code \((builtins|__builtin__)\.print\)"):
        read_published(tmp_path / "w.pt")
    torch.save({"net": weights()}, tmp_path / "w.pt", pickle_protocol=4)  # harmless, but not torch.save's own protocol
    with pytest.raises(NemesisError, match="truncated, damaged, or no PyTorch checkpoint"):
        read_published(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "state_dict": {}}, [torch.zeros(2)], OrderedDict(a=1.0)])
def test_files_without_weights_are_refused(tmp_path, content):
    with pytest.raises(NemesisError, match=r"w\.pt: holds no weights"):
        read_published(write(tmp_path / "w.pt", content))


def test_code_garbage_truncation_and_absence_are_refused(tmp_path, capsys):
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"net": Evil()}))
    with pytest.raises(NemesisError, match=r"carries code \(builtins.print\)"):
        read_published(path)
    torch.save({"net": {"a": torch.zeros(2), "b": Evil()}}, path)
    with pytest.raises(NemesisError, match=r"carries code \(__builtin__.print\)"):
        read_published(path)
    assert "run" not in capsys.readouterr().out
    write(path, weights())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(NemesisError, match="truncated, damaged"):
        read_published(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(NemesisError, match="no PyTorch checkpoint"):
        read_published(path)
    with pytest.raises(NemesisError, match="No such file"):
        read_published(tmp_path / "absent.pt")
