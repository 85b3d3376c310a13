"""Folders of files: patterns, files that belong together, and what may not be opened."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scans import save_metaimage, save_nrrd
from small_scans import body, save

from nemesis.data import seen
from nemesis.data.listings import list_cases, survey
from nemesis.data.listings.patterns import Pattern
from nemesis.datasets import ScanFiles
from nemesis.errors import NemesisError


def scans(image, **labels):
    return ScanFiles(reader="files", name="ct", image=image, labels=labels)


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


@pytest.mark.parametrize(
    ("pattern", "cases"),
    [
        ("subset*/{case}.mhd", {"a": "subset0/a.mhd", "b": "subset10/b.mhd"}),
        ("sub*/{case}.mh*", {"a": "subset0/a.mhd", "b": "subset10/b.mhd", "c": "subset0/c.mha"}),
        ("*/{case}.mhd", {"a": "subset0/a.mhd", "b": "subset10/b.mhd", "[x]*": "other/[x]*.mhd"}),
        ("*{case}/a.mhd", {"subset0": "subset0/a.mhd"}),
        ("other/{case}.mhd", {"[x]*": "other/[x]*.mhd"}),
        ("./other//{case}.mhd", {"[x]*": "other/[x]*.mhd"}),
        ("Subset0/{case}.mhd", {}),
        ("subset0/{case}/a.mhd", {}),
    ],
)
def test_patterns(tmp_path, pattern, cases):
    put(tmp_path, "subset0/a.mhd", "subset10/b.mhd", "subset0/c.mha", "other/[x]*.mhd", "a.mhd")
    put(tmp_path, "subset0/.hidden.mhd", ".sub/z.mhd", "__MACOSX/a.mhd")
    assert dict(Pattern(pattern).found_in(tmp_path)) == cases


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30))
def test_whatever_a_case_is_called_its_file_is_found_or_its_name_is_a_fault(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("scans")
    put(root, f"scan_{name}.nii")
    assert list(Pattern("scan_{case}.nii").found_in(root)) == [(name, f"scan_{name}.nii")]
    listing = survey(scans("scan_{case}.nii"), root)
    if name.isprintable():
        assert [case.case for case in listing.cases] == [name] and not listing.faults
    else:
        (fault,) = listing.faults
        assert "name cannot be used" in fault.what and str(fault).isprintable()


@pytest.mark.parametrize("name", ["x" * 200, "ä" * 61, "a\nb", "a\x1b[31mb", os.fsdecode(b"a\xffb"), "a\u202eb"])
def test_hostile_names_are_refused_in_plain_letters(tmp_path, name):
    put(tmp_path, f"{name}.nii", "good.nii")
    with pytest.raises(NemesisError, match="name cannot be used") as error:
        list_cases(scans("{case}.nii"), tmp_path)
    assert len(error.value.faults) == 1 and str(error.value).isprintable()


def test_a_case_with_two_scans(tmp_path):
    put(tmp_path, "one/a.nii", "two/a.nii", "two/b.nii")
    with pytest.raises(NemesisError, match=r"several scans \(one/a.nii, two/a.nii\).*exclude: \[ct/a\]"):
        list_cases(scans("*/{case}.nii"), tmp_path)
    assert [case.case for case in list_cases(scans("*/{case}.nii"), tmp_path, ["ct/a"])] == ["b"]


def test_links_may_not_lead_out_of_the_root(tmp_path):
    raw = tmp_path / "raw"
    put(raw, "good/image.nii", "kept/image.nii")
    put(tmp_path, "secret/image.nii", "secret/other.nii")
    for case in ("file", "inside", "gone"):
        (raw / case).mkdir()
    os.symlink(tmp_path / "secret/image.nii", raw / "file/image.nii")
    os.symlink(tmp_path / "secret", raw / "folder")
    os.symlink("../kept/image.nii", raw / "inside/image.nii")
    os.symlink("nowhere.nii", raw / "gone/image.nii")
    listing = survey(scans("{case}/image.nii"), raw)
    assert [case.case for case in listing.cases] == ["good", "inside", "kept"]
    told = {fault.where: str(fault) for fault in listing.faults}
    assert told.keys() == {str(raw / case / "image.nii") for case in ("file", "folder", "gone")}
    assert "leads out" in told[str(raw / "file/image.nii")] and "leads out" in told[str(raw / "folder/image.nii")]
    assert "exclude: [ct/gone]" in told[str(raw / "gone/image.nii")]
    os.symlink(raw, tmp_path / "link")  # the root itself may be one
    assert len(survey(scans("{case}/image.nii"), tmp_path / "link").cases) == 3


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    put(tmp_path, "good.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(NemesisError) as error:
        list_cases(scans("{case}.nii"), tmp_path)
    assert all(re.search(r"(pipe|folder)\.nii.*no regular file", str(fault)) for fault in error.value.faults)
    assert len(error.value.faults) == 2


def test_a_scan_changes_with_the_file_that_its_header_names(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "SETTLED", -1.0)
    raw, keep = tmp_path / "raw", tmp_path / "keep"
    save_metaimage(raw / "a.mhd", body(seed=0))
    save_metaimage(raw / "b.mhd", body(seed=1), compressed=True)
    save_nrrd(raw / "c.nhdr", body(seed=2), encoding="raw", detached="c data.raw")
    save_metaimage(raw / "d.mha", body(seed=3))
    save_nrrd(raw / "e.nrrd", body(seed=4))
    parts = [b"".join(body(seed=5).tobytes() for _ in range(n)) for n in (1, 2)]
    for name, part in zip("xy", parts, strict=True):
        (raw / f"{name}.raw").write_bytes(part)
    text = (raw / "a.mhd").read_text().replace("ElementDataFile = a.raw", "ElementDataFile = LIST\nx.raw\ny.raw")
    (raw / "f.mhd").write_text(text)
    save(raw / "g.nii", body(seed=6))
    dataset = scans("{case}")

    def marks():
        return {case.image: case.fingerprint for case in survey(dataset, raw, keep=keep).cases if not case.image.endswith("raw")}

    for header, data in {"a.mhd": "a.raw", "b.mhd": "b.zraw", "c.nhdr": "c data.raw", "f.mhd": "y.raw"}.items():
        before = marks()
        assert marks() == before
        content = bytearray((raw / data).read_bytes())
        content[-1] ^= 1
        (raw / data).write_bytes(content)
        assert {name for name, mark in marks().items() if before[name] != mark} == {header}
    (raw / "a.raw").unlink()
    faults = survey(dataset, raw, keep=keep).faults
    assert any("a.raw" in fault.where and "No such file" in fault.what for fault in faults)


@pytest.mark.parametrize("name", ["../outside.raw", "/etc/passwd", "a/../../outside.raw"])
def test_a_header_that_names_a_file_elsewhere_gets_nothing_opened(tmp_path, name):
    (tmp_path / "outside.raw").write_bytes(b"secret")
    raw = tmp_path / "raw"
    save_metaimage(raw / "a.mhd", body(), ElementDataFile=name)
    one = list_cases(scans("{case}.mhd"), raw)[0].fingerprint
    (tmp_path / "outside.raw").write_bytes(b"other")
    assert list_cases(scans("{case}.mhd"), raw)[0].fingerprint == one


def test_a_folder_that_cannot_be_read_is_a_fault(tmp_path, monkeypatch):
    put(tmp_path, "a/image.nii")

    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NemesisError, match=r"Permission denied.*permissions"):
        list_cases(scans("{case}/image.nii"), tmp_path)
