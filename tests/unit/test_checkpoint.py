"""Weights come back as they were, or with a sentence."""

import pytest
import torch
from torch import nn

from nemesis.errors import NemesisError
from nemesis.models.checkpoint import load_weights, save_weights


def test_weights_come_back_and_bytes_repeat(tmp_path):
    torch.manual_seed(0)
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(network, tmp_path / "a.safetensors", {"b": "2", "a": "1"})
    save_weights(network, tmp_path / "b.safetensors", {"a": "1", "b": "2"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(network.weight, other.weight)


def test_another_network_is_refused_with_the_share_that_matches(tmp_path):
    save_weights(nn.Linear(3, 2), tmp_path / "a.safetensors", {})
    with pytest.raises(NemesisError, match="50 % of the tensors match, 'weight'"):
        load_weights(nn.Linear(4, 2), tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NemesisError, match=r"a\.safetensors: is not a readable safetensors checkpoint"):
        load_weights(nn.Linear(3, 2), path)
