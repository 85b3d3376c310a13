"""`nemesis data check`, `cards` and `fetch`, as a person types them."""

import numpy as np
import pytest
import replicas
from small_scans import REAL, body, organs, save

from nemesis import cli
from nemesis.data.cards import cards


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Runs `nemesis data ...` in an empty folder; returns status, output and errors."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["nemesis", "data", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return run


def test_a_good_folder(typed, tmp_path, caplog):
    replicas.btcv_raw(tmp_path / "raw")
    caplog.set_level("INFO", "nemesis")
    status, out, _ = typed("check", "btcv", tmp_path / "raw", "--scans", "--workers", "1")
    assert status == 0 and "RawData/Training" in out and "3 of 30 as published: 27 are missing" in out
    assert caplog.text.count(": ok") == 3 and "note " in out


def test_every_fault_of_listing_and_scans_and_the_status(typed, tmp_path):
    replicas.btcv_raw(tmp_path)
    training = tmp_path / "RawData/Training"
    (training / "label/label0099.nii.gz").write_bytes(b"an orphan")
    cut = training / "img/img0001.nii.gz"
    cut.write_bytes(cut.read_bytes()[:100])
    save(training / "label/label0021.nii.gz", organs()[1:])
    status, out, err = typed("check", "btcv", tmp_path)
    assert status == 1 and "scans      3 of 30" in out and "label0099" in err and "img0001" not in err
    status, out, err = typed("check", "btcv", tmp_path, "--scans", "--workers", "2")
    assert status == 1 and "3 faults" in err and "Traceback" not in err
    for name in ("label0099", "img0001.nii.gz: is truncated", "label0021.nii.gz: has another shape"):
        assert name in err, err


def test_a_folder_of_ones_own(typed, tmp_path):
    for n in range(3):
        save(tmp_path / f"scans/p{n}.nii.gz", body(seed=n))
    save(tmp_path / "maps/p1.nii.gz", organs())
    keys = ["--config", "image=scans/{case}.nii.gz", "--config", "labels={partial: 'maps/{case}.nii.gz'}"]
    status, out, _ = typed("check", "files", tmp_path, *keys, "--config", "label_numbers={liver: 1, heart: 2}")
    assert status == 0
    assert "scans      3\n" in out and "labelled   1 (1 partial)" in out and "organs     liver 1, heart 2" in out
    status, _, err = typed("check", "files", tmp_path, "--config", "imgae=x")
    assert status == 1 and "Did you mean 'image'?" in err
    status, _, err = typed("check", "files", tmp_path)
    assert status == 1 and "no scan fits the pattern" in err
    status, _, err = typed("check", "btvc", tmp_path)
    assert status == 1 and "Did you mean 'btcv'?" in err
    status, _, err = typed("check", "btcv", tmp_path / "nowhere")
    assert status == 1 and "is no folder" in err


def test_dicom_and_nnunet_folders_of_ones_own(typed, tmp_path):
    replicas.hnscc(tmp_path / "dicom")
    status, out, _ = typed("check", "dicom", tmp_path / "dicom")
    assert status == 0 and "patients   2\n" in out and "1 × PT series" in out and "HNSCC-01" not in out.split("passed over")[1]
    replicas.openkbp(tmp_path / "nnunet")
    status, out, _ = typed("check", "nnunet", tmp_path / "nnunet")
    assert status == 0 and "labelled   2 (1 exhaustive, 1 partial)" in out


def test_a_card_is_shown(typed):
    status, out, _ = typed("cards")
    assert status == 0 and all(f"\n{name} " in f"\n{out}" for name in cards())
    status, out, _ = typed("cards", "LUNA16")
    assert status == 0 and "888 scans" in out and "CC BY 3.0" in out and "subset0/<series>.mhd" in out


def test_every_card_says_what_a_user_needs():
    assert set(cards()) >= {
        "btcv", "totalsegmentator", "lidc_idri", "luna16", "hnscc", "tcia_covid19", "flare23", "kits23", "msd_pancreas",
        "synapse", "openkbp",
    }  # fmt: skip
    for name, card in cards().items():
        assert card.title and card.licence and card.citation and card.get and card.layouts
        assert card.expected.scans or card.expected.patients, name
        for layout in card.layouts:
            card.section(layout, {"name": name}, name)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")
def test_the_real_openkbp(typed):
    status, out, _ = typed("check", "openkbp", REAL / "openkbp")
    assert status == 0 and "scans      170" in out and "30 exhaustive, 140 partial" in out


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")
def test_a_real_scan_in_other_clothes(typed, tmp_path):
    """A real scan as LUNA16 would have it, and with a voxel that is not a number."""
    from scans import save_metaimage

    from nemesis.data.readers import read_volume

    volume = read_volume(REAL / "ct/ts_example/image.nii.gz")
    save_metaimage(tmp_path / "subset3/1.2.3.mhd", volume.hu, affine=volume.affine)
    bad = volume.hu.astype(np.float32)
    bad[3, 4, 5] = np.nan
    save_metaimage(tmp_path / "subset3/1.2.4.mhd", bad, affine=volume.affine)
    status, out, err = typed("check", "luna16", tmp_path, "--scans", "--workers", "1")
    assert status == 1 and "2 of 888" in out and "1.2.4.mhd: holds values that are not numbers" in err
    assert "1 faults" not in err and "1.2.3.mhd" not in err
