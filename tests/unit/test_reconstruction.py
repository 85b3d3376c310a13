"""PSNR and SSIM against their formulas; padding, masks, pasting, stitching; the whole job on a small store."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

import nemesis.method
from nemesis.config import Preparation, Probe, Reconstruction
from nemesis.data.scans import Scans
from nemesis.data.store import write_volume
from nemesis.data.superpatches import evaluation_superpatches
from nemesis.errors import NemesisError
from nemesis.evaluation import similarity
from nemesis.evaluation.cost import method_cost
from nemesis.evaluation.evaluate import evaluate
from nemesis.evaluation.reconstruction import reconstruct
from nemesis.evaluation.rows import read_rows
from nemesis.evaluation.similarity import measure, psnr, ssim
from nemesis.method import Method, MethodCard, Settings
from nemesis.method import Reconstruction as Reconstructed
from nemesis.models.checkpoint import save_weights
from nemesis.models.keyed import Keys

EDGE = 16
SHAPE = (20, 32, 16)  # the grid is padded along D: 4 superpatches, two of them with 4 slices inside the scan
OFFSET = 0.1
PREPARATION = Preparation()


class FakeSettings(Settings):
    hide: bool = True


class Fake(Method[FakeSettings]):
    """Hides half the voxels at random and answers with the truth plus a tenth; outside the scan it talks nonsense."""

    card: ClassVar[MethodCard] = MethodCard(
        name="fake_for_evaluation", title="Fake", paper="none", licence="MIT", version=1, pretext=False,
        reconstructs=True, smallest_input=1, native_input="any",
    )  # fmt: skip
    settings_type = FakeSettings

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def encode(self, network: nn.Module, voxels: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return nn.functional.adaptive_avg_pool3d(voxels, 4).flatten(1)

    def reconstruct(self, network: nn.Module, voxels: Tensor, keys: Keys | None) -> Reconstructed:
        assert not torch.is_grad_enabled()  # a graph of every activation would take ten times the memory
        hidden = torch.zeros_like(voxels, dtype=torch.bool)
        if keys is not None and self.settings.hide:
            hidden = keys.uniform("mask", voxels[0].numel()).view(voxels.shape) < 0.5
        return Reconstructed(torch.where(voxels > 0, voxels + OFFSET, 1e3), hidden)


def make_store(folder: Path, cases: int = 6) -> tuple[Path, Path]:
    """A pool of scans brighter than the window's floor, in which the organ is the bright half of some superpatches."""
    random = np.random.default_rng(0)
    rows, members = [], []
    for number in range(cases):
        name = f"c{number}"
        hu = random.integers(-150, -50, SHAPE).astype(np.int16)
        labels = np.zeros(SHAPE, np.uint8)
        half = slice(0, 16) if number % 2 else slice(16, 32)
        hu[:, half, :8] += 150
        labels[:, half, :8] = 3
        write_volume(folder / name, f"{name}.hu", hu)
        write_volume(folder / name, f"{name}.labels", labels)
        member = {"dataset": "ct", "case": name, "patient": name, "fingerprint": "f", "label_fingerprint": "l"}
        members.append(member)
        labelled = {"kind": "exhaustive", "annotated": ["liver"]}
        stored = {"store": f"{name}/{name}", "shape": SHAPE, "spacing": [5.0, 1.0, 2.0], "content_hash": f"h{number}"}
        rows.append(member | labelled | stored | {"hu_window": PREPARATION.hu_window, "map_offset": 0})
    pq.write_table(pa.Table.from_pylist(rows), folder / "index.parquet")
    (folder / "pool.json").write_text(json.dumps({"cases": members}))
    return folder / "pool.json", folder / "index.parquet"


def opened(folder: Path) -> tuple[Scans, pd.DataFrame]:
    scans = Scans(*make_store(folder), PREPARATION)
    return scans, evaluation_superpatches(scans, EDGE, ["liver"], {"ct": {"liver": 3}}, 100)


def scikit_images(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over windows wholly inside, with Wang's Gaussian and population covariance."""
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return float(structural_similarity(a.astype(np.float64), b.astype(np.float64), **options))


def smooth_and_noisy(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    a = gaussian_filter(random.random(shape), 2).astype(np.float32)
    a = (a - a.min()) / (a.max() - a.min())
    return a, (a + 0.05 * random.normal(size=a.shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(26, 20, 23), (11, 11, 11), (11, 40, 12)])
def test_ssim_is_scikit_images(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = smooth_and_noisy(shape)
    expected = scikit_images(b, a)
    assert ssim(torch.from_numpy(b), torch.from_numpy(a)) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(similarity, "SLAB_VOXELS", shape[1] * shape[2] * 5)  # several slabs say the same
    assert ssim(torch.from_numpy(b), torch.from_numpy(a)) == pytest.approx(expected, abs=1e-5)
    assert ssim(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_torchmetrics_where_its_padding_does_not_reach() -> None:
    a, b = (torch.from_numpy(volume) for volume in smooth_and_noisy((32, 34, 36)))
    options: dict[str, Any] = {"sigma": 1.5, "data_range": 1.0, "return_full_image": True}
    mean, image = structural_similarity_index_measure(b[None, None], a[None, None], **options)
    assert ssim(b, a) == pytest.approx(image[0, 0, 5:-5, 5:-5, 5:-5].mean().item(), abs=5e-5)
    assert abs(ssim(b, a) - mean.item()) > 1e-3  # its mean counts windows over the mirrored edges


@pytest.mark.parametrize(("one", "other"), [(0.0, 0.0), (0.4, 0.4), (0.2, 0.7), (0.0, 1.0)])
def test_ssim_of_constant_volumes_is_that_of_their_means(one: float, other: float) -> None:
    a, b = np.full((12, 13, 14), one, np.float32), np.full((12, 13, 14), other, np.float32)
    expected = (2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4)
    assert ssim(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, abs=1e-3)
    assert scikit_images(a, b) == pytest.approx(expected, abs=1e-6)


def test_a_volume_thinner_than_the_window_has_no_ssim() -> None:
    assert np.isnan(ssim(torch.zeros(10, 20, 20), torch.zeros(10, 20, 20)))
    assert ssim(torch.zeros(11, 11, 11), torch.zeros(11, 11, 11)) == pytest.approx(1.0)


def test_psnr_is_scikit_images_and_takes_a_volume_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = smooth_and_noisy((12, 13, 14))
    expected = peak_signal_noise_ratio(a.astype(np.float64), b.astype(np.float64), data_range=1.0)
    assert psnr(torch.from_numpy(b), torch.from_numpy(a)) == pytest.approx(expected, abs=1e-4)
    widest = 0
    exactly = torch.Tensor.double

    def double(part: Tensor) -> Tensor:
        nonlocal widest
        widest = max(widest, part.numel())
        return exactly(part)

    monkeypatch.setattr(torch.Tensor, "double", double)
    monkeypatch.setattr(similarity, "SLAB_VOXELS", 100)
    assert psnr(torch.from_numpy(b), torch.from_numpy(a)) == pytest.approx(expected, abs=1e-4)
    assert widest == 100, "four copies in double precision of a whole scan are gigabytes"


def test_psnr() -> None:
    zeros = torch.zeros(2, 3, 4)
    assert psnr(zeros + 0.1, zeros) == pytest.approx(20.0, abs=1e-5)
    assert psnr(zeros, zeros) == pytest.approx(100.0)
    assert np.isnan(psnr(zeros[:0], zeros[:0]))


def test_every_figure_of_a_known_error(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = Fake(FakeSettings(), EDGE)
    rows, each, material = reconstruct(method, method.build(), scans, table, EDGE, Reconstruction(), torch.device("cpu"))
    frame = pd.DataFrame(rows)
    assert_each_is_behind(each.to_pandas(), frame, table)
    values = frame.set_index(["scope", "easy_negatives", "input_masked", "region", "metric"])["value"]
    for scope, easy in (("superpatch", "out"), ("superpatch", "in"), ("stitched", "in")):
        for masked, region in ((True, "masked"), (True, "visible"), (False, "whole")):
            assert values[scope, easy, masked, region, "psnr"] == pytest.approx(20.0, abs=0.01)  # no padding in it
        assert values[scope, easy, True, "whole", "psnr"] == pytest.approx(23.0, abs=0.2)  # half of it is pasted
        for region in ("masked", "visible"):
            assert values[scope, easy, False, region, "psnr"] == pytest.approx(20.0, abs=0.01)  # the same voxels, all seen
        assert 0 < values[scope, easy, False, "whole", "ssim"] < 1
    ratio = frame[(frame["metric"] == "effective_mask_ratio") & (frame["scope"] == "superpatch")]
    assert ratio["value"].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert ratio["n_superpatches"].tolist() == [24, 24]
    ssim_rows = frame[(frame["metric"] == "ssim") & (frame["scope"] == "superpatch")]
    assert (ssim_rows["n_superpatches"] == 12).all()  # four slices are too thin for the window
    assert (frame["dataset"] == "ct").all()
    whole = scans.hu(0).whole()
    np.testing.assert_allclose(material["input"], (whole + 175.0) / 425 * 255, atol=0.51)
    shift = np.where(material["hidden"], OFFSET * 255, 0.0)
    np.testing.assert_allclose(material["reconstruction"].astype(float) - material["input"], shift, atol=1.01)
    assert material["spacing"].tolist() == [5.0, 1.0, 2.0]


def assert_each_is_behind(each: pd.DataFrame, rows: pd.DataFrame, table: pd.DataFrame) -> None:
    """The rows are means of the superpatches and volumes, which are those of the table."""
    place = table.iloc[each["superpatch"]]
    assert each["patient"].tolist() == (place["dataset"] + "/" + place["patient"]).tolist()
    assert each["easy"].tolist() == (place["easy"] & (each["scope"] == "superpatch").to_numpy()).tolist()
    assert each["dataset"].tolist() == place["dataset"].tolist()
    for row in rows.itertuples():
        region = each["region"].isna() if pd.isna(row.region) else each["region"] == row.region
        of_row = each[region & (each["metric"] == row.metric) & (each["input_masked"] == row.input_masked)]
        of_row = of_row[of_row["scope"] == row.scope]
        of_row = of_row if row.easy_negatives == "in" else of_row[~of_row["easy"]]
        assert of_row["patient"].nunique() == row.n_patients
        assert len(of_row) == (row.n_superpatches if row.scope == "superpatch" else row.n_patients)  # a scan of each patient
        assert of_row["value"].mean() == pytest.approx(row.value, abs=1e-9)


def test_the_whole_input_is_reconstructed_only_where_asked_for(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = Fake(FakeSettings(), EDGE)
    common = (method, method.build(), scans, table, EDGE)
    rows, each, _ = reconstruct(*common, Reconstruction(unmasked=False), torch.device("cpu"))
    assert all(row["input_masked"] for row in rows) and each.to_pandas()["input_masked"].all()
    whole, _, _ = reconstruct(*common, Reconstruction(), torch.device("cpu"))
    assert rows == [row for row in whole if row["input_masked"]]


def test_visible_mean(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    table = table[:1]
    method = Fake(FakeSettings(), EDGE)
    rows, _, _ = reconstruct(method, method.build(), scans, table, EDGE, Reconstruction(mask_seed=3), torch.device("cpu"))
    voxels = torch.from_numpy(np.clip((scans.hu(0).whole()[:16, :16].astype(np.float32) + 175) / 425, 0, 1))
    with torch.no_grad():
        hidden = method.reconstruct(method.build(), voxels[None, None], Keys.at(3, 0, [0])).hidden[0, 0]
    error = (voxels[hidden] - voxels[~hidden].mean()).square().mean().item()
    found = [row["value"] for row in rows if row["metric"] == "psnr_visible_mean" and row["scope"] == "superpatch"]
    assert found == pytest.approx([-10 * np.log10(error)] * 2, abs=1e-4)


class HidesFarEnds(Fake):
    """Hides the first four slices of every superpatch: all of those that reach only so far into the scan."""

    def reconstruct(self, network: nn.Module, voxels: Tensor, keys: Keys | None) -> Reconstructed:
        assert not torch.is_grad_enabled()  # a graph of every activation would take ten times the memory
        hidden = torch.zeros_like(voxels, dtype=torch.bool)
        if keys is not None:
            hidden[:, :, :4] = True
        return Reconstructed(voxels + OFFSET, hidden)


def test_masked_psnr_and_its_fill_are_over_the_same_superpatches(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = HidesFarEnds(FakeSettings(), EDGE)
    rows, _, _ = reconstruct(method, method.build(), scans, table, EDGE, Reconstruction(), torch.device("cpu"))
    frame = pd.DataFrame(rows)
    frame = frame[(frame["scope"] == "superpatch") & (frame["easy_negatives"] == "in")]
    counted = frame.set_index(["input_masked", "metric", "region"])["n_superpatches"]
    assert counted[True, "psnr_visible_mean", "masked"] == counted[True, "psnr", "masked"] == 12
    assert counted[True, "psnr", "visible"] == 12
    assert counted[True, "psnr", "whole"] == counted[False, "psnr", "whole"] == 24
    assert counted[True, "ssim", "whole"] == 12  # four slices are too thin for the window


def test_figures_under_a_mask_need_something_hidden_and_something_seen() -> None:
    truth = torch.linspace(0, 1, 12**3).view(12, 12, 12)
    nothing, everything = (torch.full(truth.shape, hides) for hides in (False, True))
    seen = measure(truth, nothing, truth + OFFSET, truth, truth)
    assert np.isnan([seen[True, "masked", "psnr"], seen[True, "whole", "psnr"], seen[True, "whole", "ssim"]]).all()
    unseen = measure(truth, everything, truth + OFFSET, truth, truth)
    assert np.isnan([unseen[True, "masked", "psnr"], unseen[True, "visible", "psnr"]]).all()
    assert unseen[True, "whole", "psnr"] == pytest.approx(20.0, abs=1e-4)


def test_every_scan_is_stitched_unless_some_are_named(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = Fake(FakeSettings(), EDGE)
    for wish, cases in (("all", [0, 1, 2, 3, 4, 5]), (["ct/c3", "ct/c1"], [1, 3]), ([], [0])):
        settings = Reconstruction(stitched=wish)
        rows, each, material = reconstruct(method, method.build(), scans, table, EDGE, settings, torch.device("cpu"))
        volumes = each.to_pandas().query("scope == 'stitched'")
        assert sorted(table["scan"].iloc[volumes["superpatch"]].unique()) == cases
        assert {row["n_patients"] for row in rows if row["scope"] == "stitched"} == {len(cases)}
        shown = scans.hu(3 if wish == ["ct/c3", "ct/c1"] else 0).whole()
        np.testing.assert_allclose(material["input"], (shown + 175.0) / 425 * 255, atol=0.51)


def test_a_stitched_volume_is_judged_as_one(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = HidesFarEnds(FakeSettings(), EDGE)  # in D: 0 to 3, and the 4 slices that the second superpatch reaches into
    _, each, material = reconstruct(method, method.build(), scans, table, EDGE, Reconstruction(), torch.device("cpu"))
    found = each.to_pandas().query("scope == 'stitched' and superpatch == 0 and input_masked")
    value = found.set_index(["region", "metric"])["value"]
    truth = torch.from_numpy(np.clip((scans.hu(0).whole().astype(np.float32) + 175) / 425, 0, 1))
    hidden = torch.zeros(SHAPE, dtype=torch.bool)
    hidden[:4] = hidden[16:] = True
    np.testing.assert_array_equal(material["hidden"], hidden)
    assert value["whole", "psnr"] == pytest.approx(psnr(torch.where(hidden, truth + OFFSET, truth), truth), abs=1e-4)
    assert value["whole", "ssim"] == pytest.approx(ssim(torch.where(hidden, truth + OFFSET, truth), truth), abs=1e-5)
    filled = truth.clone()
    for half in (slice(0, 16), slice(16, 32)):  # of the far superpatches nothing is visible: the scan's mean stands in
        filled[:4, half], filled[16:, half] = truth[4:16, half].mean(), truth[4:16].mean()
    assert value["masked", "psnr_visible_mean"] == pytest.approx(psnr(filled[hidden], truth[hidden]), abs=1e-4)
    ratio = found[found["metric"] == "effective_mask_ratio"]["value"].item()
    assert ratio == pytest.approx(8 / 20)


def test_attention_is_kept_of_the_brightest_superpatch_of_the_volume_that_gives_the_figure(tmp_path: Path) -> None:
    class Attending(Fake):
        def attention(self, network: nn.Module, voxels: Tensor) -> dict[str, Tensor]:
            return {"plane": nn.functional.avg_pool3d(voxels, 4)[:, 0]}

    scans, table = opened(tmp_path)
    settings, method = Reconstruction(stitched=["ct/c1"]), Attending(FakeSettings(), EDGE)
    _, _, material = reconstruct(method, method.build(), scans, table, EDGE, settings, torch.device("cpu"))
    shown = material["attention_input"] / 255
    assert shown.shape == (EDGE,) * 3 and material["attention_plane"].shape == (4, 4, 4)
    half = np.clip((scans.hu(1).whole()[:16, :16].astype(np.float32) + 175) / 425, 0, 1)  # in which the organ lies
    np.testing.assert_allclose(shown, half, atol=0.51 / 255)
    np.testing.assert_allclose(material["attention_plane"].mean(), half.mean(), atol=1e-3)
    plain = Fake(FakeSettings(), EDGE)
    _, _, material = reconstruct(plain, plain.build(), scans, table, EDGE, settings, torch.device("cpu"))
    assert not any("attention" in name for name in material)


def test_lpips_is_of_the_whole_pasted_and_unmasked(tmp_path: Path) -> None:
    seen: list[int] = []

    def distances(volumes: Sequence[Tensor], target: Tensor) -> list[float]:
        seen.append(len(volumes))
        return [(volume - target).abs().mean().item() for volume in volumes]

    scans, table = opened(tmp_path)
    method = Fake(FakeSettings(), EDGE)
    common = (method, method.build(), scans, table, EDGE)
    rows, _, _ = reconstruct(*common, Reconstruction(), torch.device("cpu"), lpips=distances)
    found = {(row["scope"], row["easy_negatives"], row["input_masked"]): row for row in rows if row["metric"] == "lpips"}
    assert {row["region"] for row in found.values()} == {"whole"} and set(seen) == {2}
    for scope, easy in (("superpatch", "out"), ("superpatch", "in"), ("stitched", "in")):
        assert found[scope, easy, False]["value"] == pytest.approx(OFFSET, abs=1e-3)
        assert found[scope, easy, True]["value"] == pytest.approx(OFFSET / 2, abs=5e-3)  # half of it is pasted
    without, _, _ = reconstruct(*common, Reconstruction(), torch.device("cpu"))
    assert without == [row for row in rows if row["metric"] != "lpips"]


def test_a_method_that_hides_nothing_has_unmasked_figures_only(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = Fake(FakeSettings(hide=False), EDGE)
    rows, _, material = reconstruct(method, method.build(), scans, table, EDGE, Reconstruction(), torch.device("cpu"))
    assert {row["input_masked"] for row in rows} == {False}
    assert {row["metric"] for row in rows} == {"psnr", "ssim"}
    assert not material["hidden"].any()
    assert material["reconstruction"].mean() > material["input"].mean() + 20


def test_what_is_not_finite_is_an_error_and_no_mean_over_the_rest(tmp_path: Path) -> None:
    class Overflowing(Fake):
        def reconstruct(self, network: nn.Module, voxels: Tensor, keys: Keys | None) -> Reconstructed:
            found = super().reconstruct(network, voxels, keys)
            if keys is None:
                found.prediction[-1, 0, 0, 0, 0] = float("inf")
            return found

    scans, table = opened(tmp_path)
    method = Overflowing(FakeSettings(), EDGE)
    with pytest.raises(NemesisError, match="not finite, in 32-true"):
        reconstruct(method, method.build(), scans, table, EDGE, Reconstruction(), torch.device("cpu"))


def test_stitching_an_unknown_case_is_refused(tmp_path: Path) -> None:
    scans, table = opened(tmp_path)
    method = Fake(FakeSettings(), EDGE)
    wish = Reconstruction(stitched=["ct/c1", "ct/c9"])
    with pytest.raises(NemesisError, match="ct/c9"):
        reconstruct(method, method.build(), scans, table, EDGE, wish, torch.device("cpu"))


def test_the_whole_job_twice_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(nemesis.method._registry, "fake_for_evaluation", Fake)
    pool, index = make_store(tmp_path)
    save_weights(nn.Linear(1, 1), tmp_path / "checkpoint.safetensors", {})
    probing = Probe(folds=3, label_fractions=[0.5, 1.0], draws=2, positive_voxels=100)
    spec: dict[str, Any] = {
        "run": "fake-0",
        "identity": {"method": "fake_for_evaluation", "settings": {}, "seed": 0, "superpatch": EDGE},
        "checkpoint": str(tmp_path / "checkpoint.safetensors"),
        "pool": str(pool),
        "index": str(index),
        "organs": ["liver"],
        "label_numbers": {"ct": {"liver": 3}},
        "preparation": PREPARATION.model_dump(mode="json"),
        "probe": probing.model_dump(mode="json"),
        "reconstruction": Reconstruction().model_dump(mode="json"),
        "features": str(tmp_path / "features"),
    }
    for name in ("first", "second"):
        evaluate(spec | {"out": str(tmp_path / name)}, "cpu")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"not those that were planned with")
    lpips = {"lpips": {"network": "alex", "weights": str(weights), "sha256": "7be5be79"}, "out": str(tmp_path / "third")}
    with pytest.raises(NemesisError, match="is not the file that this was planned with"):
        evaluate(spec | lpips, "cpu")
    said = capsys.readouterr().out
    assert "24 superpatches of 6 scans" in said
    assert said.count("features 24/24") == 1  # from the second time they are read
    assert said.count("reconstructions 24/24") == 2
    for name in ("rows.parquet", "predictions.parquet", "reconstructions.parquet", "reconstruction.npz"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    rows = read_rows(tmp_path / "first" / "rows.parquet")
    assert set(rows["run"]) == {"fake-0"}
    assert rows[rows["metric"] == "auroc"]["value"].min() > 0.9
    cost = rows[rows["metric"].isin(["parameters", "encode_macs", "pretext_macs"])].set_index("metric")["value"]
    assert cost["parameters"] == 2  # of the linear layer that stands for a network
    assert cost["encode_macs"] == method_cost(Fake(FakeSettings(), EDGE)).encode
    first, second = (json.loads((tmp_path / name / "timing.json").read_text()) for name in ("first", "second"))
    for clock in ("feature_seconds", "encoded_superpatches_per_second"):  # told again where the features are only read
        assert first[clock] == second[clock] > 0
