"""The released network: its names, its calls, its weights, its numbers; and files that only look like it."""

import json
import logging
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nemesis
from nemesis.errors import NemesisError
from nemesis.models.mae import MAEgic3DMAE, MAEgicDecoder, MAEgicEncoder
from nemesis.models.masking import Masking, mask_of
from nemesis.models.released import export_released

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


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(NemesisError, match="embed_dim 48 is not divisible by tokens × heads"):
        nemesis.load(FIXTURES / "official_tiny.pt")  # the released 8 heads
    with pytest.raises(NemesisError, match="heads 0 is less than 1"):
        nemesis.load(FIXTURES / "official_tiny.pt", num_heads=0)
    with pytest.raises(NemesisError, match="is not a size"):
        nemesis.load(FIXTURES / "official_tiny.pt", superpatch_size=(32, 32))
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
    model = MAEgic3DMAE(**{**config, "spatial_mask_ratio": 0.25, "depth_mask_ratio": 0.75})
    export_released(model, tmp_path / "out.pt", epoch=3, val_loss=0.5)
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    released = torch.load(FIXTURES / "official_tiny.pt", weights_only=True)
    assert set(released) <= set(content) and content["epoch"] == 3
    assert {n: t.shape for n, t in content["model_state_dict"].items()} == {
        n: t.shape for n, t in released["model_state_dict"].items()
    }
    again = nemesis.load(tmp_path / "out.pt")
    assert (again.encoder.masking.plane_ratio, again.encoder.masking.axis_ratio) == (0.25, 0.75)
    with torch.no_grad():
        assert torch.equal(again.encoder(tensors["input"])[0], model.eval().encoder(tensors["input"])[0])


def test_only_the_official_architecture_is_exported(tmp_path):
    from nemesis.method import create

    sizes = {"embed_dim": 64, "depth": 1, "heads": 4, "decoder_depth": 1, "decoder_heads": 4, "patch": 8}
    for other in ({}, {"preset": "official", "streams": "joint"}, {"preset": "official", "decoder_dim": 32}):
        network = create("nemesis", {**sizes, **other}, 16).build()
        with pytest.raises(NemesisError, match="preset: official"):
            export_released(MAEgic3DMAE.of(network.architecture), tmp_path / "out.pt")
    several = MAEgic3DMAE(superpatch_size=16, patch_size=8, in_channels=4, embed_dim=64, depth=1, decoder_depth=1)
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
