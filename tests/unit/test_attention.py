"""What the streams' attention to tokens is: the weights by hand, shapes, and that asking leaves the network as it was."""

from __future__ import annotations

import pytest
import torch

from nemesis.contract import small_method
from nemesis.method import create
from nemesis.models.attention import received
from nemesis.models.blocks import Attention

SMALL = {"patch": 4, "embed_dim": 64, "depth": 2, "heads": 4, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}


def network(**settings):
    torch.manual_seed(0)
    return create("nemesis", SMALL | settings, 16).build().eval()


def superpatches():
    return torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_weights_are_those_that_the_layer_attends_by():
    torch.manual_seed(0)
    layer = Attention(24, 3, 0.0).eval()
    x = torch.rand(5, 7, 24)
    weights = layer.weights(x)
    assert weights.shape == (5, 3, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 3, 7))
    values = torch.nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias)[..., 48:].view(5, 7, 3, 8).transpose(1, 2)
    torch.testing.assert_close(layer.out_proj((weights @ values).transpose(1, 2).flatten(2)), layer(x), atol=1e-5, rtol=1e-5)


def test_what_tokens_receive_is_the_mean_of_the_weights_of_their_own_sequence():
    net, x = network(), superpatches()
    found = received(net.encoder, x)
    assert {stream: tuple(values.shape) for stream, values in found.items()} == {"plane": (2, 4, 4, 4), "axis": (2, 4, 4, 4)}
    seen = []
    block = net.encoder.blocks[-1]
    block.norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        net.encoder.embed(x)
        (tokens,) = seen  # (B, T, n, E)
        plane = block.spatial_attn.weights(tokens[1, 2][None])[0]  # of one slice
        axis = block.depth_attn.weights(tokens[1, :, 6][None])[0]  # of one column
    torch.testing.assert_close(found["plane"][1, 2].flatten(), 16 * plane.mean(dim=(0, 1)))
    torch.testing.assert_close(found["axis"][1, :, 1, 2], 4 * axis.mean(dim=(0, 1)))
    torch.testing.assert_close(found["plane"].mean(dim=(2, 3)), torch.ones(2, 4))
    torch.testing.assert_close(found["axis"].mean(dim=1), torch.ones(2, 4, 4))


@pytest.mark.parametrize("stream", ["plane", "axis", "joint"])
def test_a_network_shows_the_streams_that_it_has(stream):
    found = received(network(streams=stream).encoder, superpatches())
    assert list(found) == [stream] and found[stream].shape == (2, 4, 4, 4)


def test_asking_leaves_no_hook_and_no_other_numbers():
    net, x = network(), superpatches()
    with torch.no_grad():
        before = net.encoder.embed(x)
        received(net.encoder, x)
        torch.testing.assert_close(net.encoder.embed(x), before, rtol=0, atol=0)
    assert not net.encoder.blocks[-1].spatial_attn._forward_pre_hooks


def test_methods_show_the_streams_that_their_encoders_have():
    assert small_method("ae").attention(None, superpatches()) == {}
    assert set(small_method("maesil").attention(small_method("maesil").build(), superpatches())) == {"joint"}
