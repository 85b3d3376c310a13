"""The released network: its names, its calls, its weights, its numbers; and files that only look like it."""

import json
import logging
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import nemesis
from nemesis.cli import app
from nemesis.config import Preparation
from nemesis.errors import NemesisError
from nemesis.models.mae import MAEgic3DMAE, MAEgicDecoder, MAEgicEncoder
from nemesis.models.masking import Masking, mask_of
from nemesis.models.released import export_released, load_released

SMALL = {"superpatch_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "decoder_depth": 1}
FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = {"superpatch_size": 32, "patch_size": 8, "num_heads": 4, "decoder_num_heads": 4}


def fixture(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return json.loads(file.metadata()["config"]), tensors


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["official_tiny", "official_tiny_anisotropic", "official_tiny_no_tokens"])
def test_answers_as_the_released_network(name, recompute):
    config, tensors = fixture(name)
    model = MAEgic3DMAE(**config, dropout=0.0)
    model.recompute(recompute)
    model.load_state_dict(part(tensors, "weight."))
    x = tensors["input"]
    with torch.no_grad():
        losses, reconstruction, _, noisy = model.eval()(x)
        tokens, mask, keep = model.encoder(x)
    assert not mask.any() and keep.shape == mask.shape and torch.equal(noisy, x)
    assert (tokens - tensors["eval.tokens"]).abs().max() <= 1e-5
    assert (reconstruction - tensors["eval.reconstruction"]).abs().max() <= 1e-5
    assert (losses["total_loss"] - tensors["eval.loss"]).abs().max() <= 1e-5

    model.train()
    losses, reconstruction, what, _ = model(x, mask=tensors["train.mask"])
    tokens, _, keep = model.encoder(x, mask_of(tensors["train.mask"], model.encoder.grid))
    assert torch.equal(keep, tensors["train.ids_keep"]) and torch.equal(what["ids_keep"], keep)
    assert (tokens - tensors["train.tokens"]).abs().max() <= 1e-5
    assert (reconstruction - tensors["train.reconstruction"]).abs().max() <= 1e-5
    assert (losses["recon_loss"] - tensors["train.loss"]).abs().max() <= 1e-5
    assert (losses["psnr"] - tensors["train.psnr"]).abs().max() <= 1e-5
    losses["total_loss"].backward()
    norms = part(tensors, "train.gradnorm.")
    assert {name: p.grad.norm().item() for name, p in model.named_parameters()} == {
        name: pytest.approx(norm.item(), rel=1e-4) for name, norm in norms.items()
    }


def test_the_calls_of_the_released_class():
    model = MAEgic3DMAE(superpatch_size=(32, 32, 32), patch_size=(8, 8, 8), embed_dim=64, depth=1, decoder_depth=1, dropout=0.0)
    assert isinstance(model.encoder, MAEgicEncoder) and isinstance(model.decoder, MAEgicDecoder)
    x = torch.rand(2, 1, 32, 32, 32)
    losses, reconstruction, what, noisy = model.train()(x, noise_std=0.1)
    assert set(losses) == {"total_loss", "recon_loss", "full_mse", "masked_ratio", "psnr"}
    assert reconstruction.shape == x.shape == noisy.shape and (noisy - x).std().item() == pytest.approx(0.1, rel=0.05)
    assert losses["masked_ratio"].item() == 0.75 == what["mask"].float().mean().item()
    assert (what["spatial_mask_ratio"], what["depth_mask_ratio"]) == (0.5, 0.5)
    assert not torch.equal(model(x)[2]["mask"], model(x)[2]["mask"])  # drawn afresh
    with pytest.raises(ValueError, match="pos_encoding_type"):
        MAEgic3DMAE(pos_encoding_type="rotary")


def test_noise_reaches_the_network_and_not_the_target():
    torch.manual_seed(0)
    model, x = MAEgic3DMAE(**SMALL, dropout=0.0).eval(), torch.rand(2, 1, 16, 16, 16)
    hidden = torch.tensor([True, False] * 4).expand(2, -1)
    with torch.no_grad():
        losses, reconstruction, _, noisy = model(x, noise_std=0.5, mask=hidden)
        assert torch.equal(model(noisy, mask=hidden)[1], reconstruction)
        assert not torch.allclose(model(x, mask=hidden)[1], reconstruction, atol=1e-2)
    assert losses["full_mse"].item() == pytest.approx((reconstruction - x).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"dropout": -0.1}, {"superpatch_size": 0}, {"superpatch_size": (16, -16, 16)}, {"patch_size": -8}]
)
def test_no_network_is_made_of_impossible_values(wrong):
    with pytest.raises(ValueError, match="is not a size" if "dropout" not in wrong else r"is not in \[0, 1\)"):
        MAEgic3DMAE(**{**SMALL, **wrong})


def test_voxels_of_another_size_are_refused():
    model = MAEgic3DMAE(superpatch_size=32, patch_size=8, embed_dim=64, depth=1, decoder_depth=1).eval()
    for shape in ((1, 1, 64, 64, 64), (1, 1, 16, 64, 32), (1, 2, 32, 32, 32)):
        for call in (model, model.encoder, model.encoder.embed):
            with pytest.raises(ValueError, match=r"voxels are \(B, 1, 32, 32, 32\)"):
                call(torch.rand(shape))


def test_the_decoder_takes_the_width_of_the_file_with_one_warning():
    _, tensors = fixture("official_tiny")
    sizes = {"superpatch_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "decoder_depth": 1, "num_maegic_tokens": 4}
    model = MAEgic3DMAE(**sizes, decoder_embed_dim=16, decoder_num_heads=4)
    with pytest.warns(UserWarning, match="rebuilt at width 48") as warned:
        model.load_state_dict(part(tensors, "weight."))
    assert len(warned) == 1
    with torch.no_grad():
        reconstruction = model.eval()(tensors["input"])[1]
    assert (reconstruction - tensors["eval.reconstruction"]).abs().max() <= 1e-5


@pytest.mark.parametrize("strict", [True, False])
def test_the_encoder_loads_strictly_or_not_at_all(strict):
    config, tensors = fixture("official_tiny")
    weights = part(tensors, "weight.")
    del weights["encoder.norm.bias"]
    with pytest.raises(RuntimeError, match=r"encoder\.norm\.bias"):
        MAEgic3DMAE(**config).load_state_dict(weights, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("heads", "lost", "message"), [(5, "none", "another decoder"), (4, "encoder.norm.bias", "encoder")])
def test_weights_that_do_not_fit_leave_the_decoder_as_it_was(heads, lost, message, strict):
    width = 4 * heads  # another than the file's, 64
    model = MAEgic3DMAE(**SMALL, decoder_embed_dim=width, decoder_num_heads=heads)
    architecture, decoder = model.architecture, model.decoder
    weights = MAEgic3DMAE(**SMALL).state_dict()
    weights.pop(lost, None)
    with warnings.catch_warnings(action="ignore"), pytest.raises(RuntimeError, match=message):
        model.load_state_dict(weights, strict=strict)
    assert model.architecture == architecture and model.decoder is decoder
    assert model.eval()(torch.rand(1, 1, 16, 16, 16))[1].shape == (1, 1, 16, 16, 16)


def test_load_reads_a_released_checkpoint_and_says_what_it_assumes(caplog):
    _, tensors = fixture("official_tiny")
    with caplog.at_level(logging.WARNING):
        model = nemesis.load(FIXTURES / "official_tiny.pt", superpatch_size=32, num_heads=4, decoder_num_heads=4)
    assert "patch_size [8, 8, 8]" in caplog.text and "spatial_mask_ratio 0.5" in caplog.text and "heads" not in caplog.text
    assert model.encoder.masking == Masking("thinned", "random", 0.5, 0.5)
    assert not model.training
    with torch.no_grad():
        assert (model.encoder(tensors["input"])[0] - tensors["eval.tokens"]).abs().max() <= 1e-5


def test_load_reads_a_checkpoint_without_tokens_and_with_other_patches(tmp_path):
    for name in ("official_tiny_no_tokens", "official_tiny_anisotropic"):
        config, tensors = fixture(name)
        torch.save({"model_state_dict": part(tensors, "weight.")}, tmp_path / "w.pt")
        names = ("superpatch_size", "patch_size", "num_heads", "decoder_num_heads")
        model = nemesis.load(tmp_path / "w.pt", **{key: config[key] for key in names})
        with torch.no_grad():
            assert (model.encoder(tensors["input"])[0] - tensors["eval.tokens"]).abs().max() <= 1e-5


def test_load_believes_the_file_s_own_config_and_harmless_extras(tmp_path, caplog):
    _, tensors = fixture("official_tiny")
    extras = {"config": TINY, "best_val_loss": np.float64(0.1), "epoch": np.int64(3)}
    torch.save({"model_state_dict": part(tensors, "weight."), **extras}, tmp_path / "w.pt")
    nemesis.load(tmp_path / "w.pt")
    assert "num_heads" not in caplog.text and "superpatch_size" not in caplog.text


@pytest.mark.parametrize(
    ("name", "config", "told", "ratio"),
    [
        ("MAE_48_0.25.pt", {"spatial_mask_ratio": 0.3, "depth_mask_ratio": 0.3}, 0.6, 0.6),
        ("MAE_48_0.25.pt", {"spatial_mask_ratio": 0.3, "depth_mask_ratio": 0.3}, None, 0.3),
        ("MAE_48_0.25.pt", {}, None, 0.25),
        ("MAE_48_0.25.pt", {}, 0.0, 0.0),
        ("w.pt", {}, None, 0.5),
    ],
)
def test_the_mask_ratio_is_the_argument_s_else_the_config_s_else_the_name_s(name, config, told, ratio, tmp_path, caplog):
    _, tensors = fixture("official_tiny")
    torch.save({"model_state_dict": part(tensors, "weight."), "config": config}, tmp_path / name)
    masking = nemesis.load(tmp_path / name, **TINY, spatial_mask_ratio=told, depth_mask_ratio=told).encoder.masking
    assert (masking.plane_ratio, masking.axis_ratio) == (ratio, ratio)
    assert ("spatial_mask_ratio 0.5" in caplog.text) == (name == "w.pt")


def test_arguments_of_load_win_over_the_file_s_config(tmp_path):
    _, tensors = fixture("official_tiny")
    torch.save({"model_state_dict": part(tensors, "weight."), "config": {**TINY, "dropout": 0.3}}, tmp_path / "w.pt")
    said = nemesis.load(tmp_path / "w.pt").architecture
    other = {"superpatch_size": (16, 32, 64), "num_heads": 2, "decoder_num_heads": 6, "dropout": 0.0}
    told = nemesis.load(tmp_path / "w.pt", **other).architecture
    assert (said.superpatch, said.heads, said.decoder_heads, said.dropout) == ((32, 32, 32), 4, 4, 0.3)
    assert (told.superpatch, told.heads, told.decoder_heads, told.dropout) == ((16, 32, 64), 2, 6, 0.0)


def test_the_command_line_tells_what_the_tensors_do_not(tmp_path):
    _, tensors = fixture("official_tiny")
    torch.save({"model_state_dict": part(tensors, "weight.")}, tmp_path / "w.pt")
    words = ["export", "--weights", tmp_path / "w.pt", "--out", tmp_path / "net", "--heads", "4", "--decoder-heads", "4"]
    result = CliRunner().invoke(app, [*map(str, words), "--superpatch", "16,32,64", "--patch", "8", "--mask-ratio", "0.25"])
    assert result.exit_code == 0, result.output
    model = nemesis.load(tmp_path / "net")
    assert (model.architecture.superpatch, model.architecture.patch) == ((16, 32, 64), (8, 8, 8))
    assert model.encoder.masking == Masking("thinned", "random", 0.25, 0.25)
    for option in ("--superpatch", "--patch"):
        for size in ("16,16", "0", "a", "8,-8,8", "1.5", ""):
            error = CliRunner().invoke(app, [*map(str, words), option, size]).exception
            assert str(error) == f"{option}: '{size}' is no size. Give one number of voxels, or three as D,H,W."


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(NemesisError, match="embed_dim 48 is not divisible by tokens × heads"):
        nemesis.load(FIXTURES / "official_tiny.pt")  # the released 8 heads
    with pytest.raises(NemesisError, match="heads 0 is less than 1"):
        nemesis.load(FIXTURES / "official_tiny.pt", num_heads=0)
    with pytest.raises(NemesisError, match="is not a size"):
        nemesis.load(FIXTURES / "official_tiny.pt", superpatch_size=(32, 32))
    for size in (0, -32, (32, 0, 32)):
        with pytest.raises(NemesisError, match="is not a size"):
            nemesis.load(FIXTURES / "official_tiny.pt", **{**TINY, "superpatch_size": size})
    with pytest.raises(NemesisError, match="8 slices of 64 voxels"):
        nemesis.load(FIXTURES / "official_tiny.pt", **{**TINY, "patch_size": (8, 4, 4)})


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"model_state_dict": {}, "epoch": Evil(ran)}, tmp_path / "zip.pt")
    torch.save({"model_state_dict": {}, "epoch": Evil(ran)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / f"pickle{protocol}.pt").write_bytes(pickle.dumps(Evil(ran), protocol))
    names = [path.name for path in tmp_path.glob("*.pt")]
    assert len(names) == 8
    for name in names:
        with pytest.raises(NemesisError, match=r"carries code \(.*\), which was not run") as error:
            nemesis.load(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not ran.exists()


@pytest.mark.parametrize("call", ["torch.hub.load", "torch.compile", "collections.namedtuple"])
def test_functions_beside_tensors_and_dicts_are_code(call, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(call, lambda *arguments: ran.append(arguments))
    module, name = call.rsplit(".", 1)
    plain = f"c{module}\n{name}\n(S'a'\ntR.".encode()
    framed = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93)R."
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3\n")
    (tmp_path / "plain.pt").write_bytes(plain)
    (tmp_path / "framed.pt").write_bytes(framed)
    for file in ("zip.pt", "plain.pt", "framed.pt"):
        with pytest.raises(NemesisError, match=rf"carries code \({call}\), which was not run"):
            load_released(tmp_path / file)
    assert not ran


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_with_numpy_s_scalars_is_said_to_be_truncated(new, tmp_path):
    state = torch.load(FIXTURES / "official_tiny.pt", weights_only=True)["model_state_dict"]
    content = {"best_val_loss": np.float64(0.1), "epoch": np.int64(3), "seen": np.arange(3), "model_state_dict": state}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    nemesis.load(tmp_path / "w.pt", **TINY)
    whole = (tmp_path / "w.pt").read_bytes()
    for kept in (0.1, 0.5, 0.99):
        (tmp_path / "w.pt").write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(NemesisError, match="is truncated"):
            nemesis.load(tmp_path / "w.pt", **TINY)


def test_files_that_are_something_else_are_refused_in_one_sentence(tmp_path):
    whole = (FIXTURES / "official_tiny.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model_state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    torch.save({"model_state_dict": {"encoder.norm.weight": 3}}, tmp_path / "number.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("a", "b")
    torch.save({"model_state_dict": {3: torch.zeros(1)}}, tmp_path / "keys.pt")
    prepared = {"config": {"preparation": {"hu_window": 3}}}
    torch.save({**torch.load(FIXTURES / "official_tiny.pt", weights_only=True), **prepared}, tmp_path / "prepared.pt")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    state = torch.load(FIXTURES / "official_tiny.pt", weights_only=True)["model_state_dict"]
    torch.save({"model_state_dict": {**state, "encoder.adaptive_agg.mt": torch.zeros(4)}}, tmp_path / "axes.pt")
    save_file(state, tmp_path / "no_card.safetensors")
    torch.save({"model_state_dict": {k: v for k, v in state.items() if "blocks.1.norm1" not in k}}, tmp_path / "lacking.pt")
    names = [path.name for path in tmp_path.iterdir()]
    for name in [*names, "missing.pt"]:
        with pytest.raises(NemesisError) as error:
            nemesis.load(tmp_path / name, **TINY)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_what_is_exported_loads_as_released(tmp_path):
    torch.manual_seed(0)
    config, tensors = fixture("official_tiny")
    model = MAEgic3DMAE(**{**config, "spatial_mask_ratio": 0.25, "depth_mask_ratio": 0.75, "dropout": 0.3})
    model.preparation = Preparation(spacing_mm=(3.0, 1.0, 1.5), hu_window=(-100.0, 300.0))
    export_released(model, tmp_path / "out.pt", epoch=3, val_loss=0.5)
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    released = torch.load(FIXTURES / "official_tiny.pt", weights_only=True)
    assert set(released) <= set(content) and content["epoch"] == 3
    assert {n: t.shape for n, t in content["model_state_dict"].items()} == {
        n: t.shape for n, t in released["model_state_dict"].items()
    }
    again = nemesis.load(tmp_path / "out.pt")
    assert (again.encoder.masking.plane_ratio, again.encoder.masking.axis_ratio) == (0.25, 0.75)
    assert again.architecture.dropout == 0.3 and again.preparation == model.preparation
    with torch.no_grad():
        assert torch.equal(again.encoder(tensors["input"])[0], model.eval().encoder(tensors["input"])[0])


def test_only_the_official_architecture_is_exported(tmp_path):
    from nemesis.method import create

    sizes = {"embed_dim": 64, "depth": 1, "heads": 4, "decoder_depth": 1, "decoder_heads": 4, "patch": 8}
    for other in ({}, {"preset": "official", "streams": "joint"}, {"preset": "official", "decoder_dim": 32}):
        network = create("nemesis", {**sizes, **other}, 16).build()
        with pytest.raises(NemesisError, match="preset: official"):
            export_released(MAEgic3DMAE.of(network.architecture), tmp_path / "out.pt")
    official = MAEgic3DMAE(**SMALL).architecture
    for strategy in ("columns", "per_slice", "uniform"):
        with pytest.raises(NemesisError, match=f"`plane_masking: {strategy}`; the released code knows thinned only"):
            export_released(MAEgic3DMAE.of(official, Masking(strategy)), tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    several = MAEgic3DMAE(**SMALL, in_channels=4)
    export_released(several, tmp_path / "out.pt")
    assert nemesis.load(tmp_path / "out.pt").architecture.channels == 4


@pytest.mark.parametrize("preset", ["paper", "official", "maesil"])
def test_a_saved_network_comes_back_from_its_folder(preset, tmp_path):
    from nemesis.method import create

    sizes = {"preset": preset, "patch": 8, "embed_dim": 64, "depth": 1, "heads": 4, "decoder_depth": 1, "decoder_heads": 4}
    network = create("nemesis", sizes, 16).build()
    model = MAEgic3DMAE.of(network.architecture, network.encoder.masking)
    model.save_pretrained(tmp_path / "net", {"trained on": "phantoms"})
    again = nemesis.load(tmp_path / "net")
    assert nemesis.load(tmp_path / "net/model.safetensors").architecture == again.architecture
    assert again.architecture == model.architecture and again.encoder.masking == model.encoder.masking
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x)[1], model.eval()(x)[1])
    card = json.loads((tmp_path / "net/card.json").read_text())
    assert card["about"] == {"trained on": "phantoms"}
    (tmp_path / "net/card.json").write_text(json.dumps({**card, "architecture": {**card["architecture"], "streams": "none"}}))
    with pytest.raises(NemesisError, match="no card of a NEMESIS network"):
        MAEgic3DMAE.from_pretrained(tmp_path / "net")


def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path):
    MAEgic3DMAE(**SMALL).save_pretrained(tmp_path)
    card, weights = json.loads((tmp_path / "card.json").read_text()), (tmp_path / "model.safetensors").read_bytes()
    architecture, masking = card["architecture"], card["masking"]
    damaged = [
        *({"architecture": {k: v for k, v in architecture.items() if k != name}} for name in architecture),
        *({"masking": {k: v for k, v in masking.items() if k != name}} for name in masking),
        {"architecture": {**architecture, "superpatch": [0, 16, 16]}},
        {"architecture": {**architecture, "patch": [8, 8, -8]}},
        {"preparation": {"hu_window": 3}},
    ]
    for change in damaged:
        (tmp_path / "card.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(NemesisError, match=r"card\.json: is no card of a NEMESIS network \(.+\)") as error:
            nemesis.load(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "card.json").write_text(json.dumps(card))
    for content in (b"", weights[:7], weights[: len(weights) // 2], weights[:8] + b"x" + weights[9:]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(NemesisError, match=r"model\.safetensors: is not a readable safetensors checkpoint") as error:
            nemesis.load(tmp_path)
        assert "\n" not in str(error.value)


class Hub:
    """As much of huggingface_hub as is called: a folder stands for the hub."""

    def __init__(self, folder):
        self.folder = folder

    def create_repo(self, name, private, exist_ok):
        (self.folder / name).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        for name in allow_patterns:
            (self.folder / repo_id / name).write_bytes((Path(folder_path) / name).read_bytes())
        return f"https://hub/{repo_id}"

    def snapshot_download(self, name, revision, allow_patterns):
        if not (self.folder / name).is_dir():
            raise OSError(f"no repository {name}")
        return str(self.folder / name)


def test_a_network_goes_to_the_hub_and_comes_back(tmp_path, monkeypatch):
    model = MAEgic3DMAE(superpatch_size=16, embed_dim=64, depth=1, decoder_depth=1)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NemesisError, match="pip install huggingface_hub"):
        model.push_to_hub("me/net")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path))
    assert model.push_to_hub("me/net") == "https://hub/me/net"
    again = nemesis.load("me/net")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(NemesisError, match="no repository me/other"):
        MAEgic3DMAE.from_pretrained("me/other")
