"""The sample: found as pip would find it, checked, unpacked into files of our names, converted; nothing of it is ever run."""

import base64
import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
from scans import save_dicom
from small_scans import body, organs, save

from nemesis.data import fetch as module
from nemesis.data.fetch import CASES, DICOM, INSIDE, MEMBERS, SDIST, fetch_sample
from nemesis.data.listings import list_cases
from nemesis.data.readers import read_labels, read_volume
from nemesis.datasets import ScanFiles
from nemesis.errors import NemesisError

TOTAL = np.array([0, 5, 52], np.uint8)  # TotalSegmentator's numbers of liver and aorta, for organs()'s 1 and 2
BTCV = np.array([0, 6, 8], np.uint8)


def members(folder):
    """What of the distribution is needed, in miniature: name → content."""
    save(folder / "example.nii.gz", body(seed=0), "RAS")
    save(folder / "example_labels.nii.gz", TOTAL[organs()], "RAS")
    save_dicom(folder / "dicom", body(seed=1), syntax="jpeg2000", series="", names="CT.1.2.{}".format)  # its UIDs were emptied
    save(folder / "dicom_labels.nii.gz", TOTAL[organs()], "LAS")
    save(folder / "aorta.nii.gz", body(seed=2), "LPS")
    corner = np.diag([2.0, 1.5, 3.0, 1.0])
    corner[:3, 3] = 2.0 * 4, 1.5 * 3, 3.0 * 10
    save(folder / "aorta_mask.nii.gz", (organs()[10:14, 4:9, 3:8] == 2).astype(np.uint8), "LPS", corner)
    content = {name: (folder / ours).read_bytes() for name, ours in MEMBERS.items()}
    return content | {f"{DICOM}{path.name}": path.read_bytes() for path in (folder / "dicom").iterdir()}


def packed(content, odd=()):
    """A source distribution with a build that must never run, and members that must never be unpacked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        boom = b"import pathlib; pathlib.Path('ran').touch(); raise SystemExit(3)"
        bad = {"totalsegmentator-2.18.0/setup.py": boom, "../../escaped": b"x", "/tmp/escaped": b"x"}
        for name, data in {**bad, **content}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in odd:
            archive.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder to serve from, pip's settings emptied, the miniature's hash expected."""
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "CERT", "PROXY"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(module, "INDEX", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.chdir(tmp_path)
    sdist = packed(members(tmp_path / "made"))
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(sdist).hexdigest())
    folder = tmp_path / "site"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / SDIST).write_bytes(sdist)
    page = folder / "simple/totalsegmentator/index.html"
    page.parent.mkdir(parents=True)
    links = ["totalsegmentator-2.17.0.tar.gz", f"../../files/{SDIST}#sha256={'0' * 64}", "TotalSegmentator-2.18.0.whl"]
    page.write_text("<!DOCTYPE html><html><body>" + "".join(f'<a href="{link}">file</a><br/>' for link in links))
    return folder


@pytest.fixture
def served(site):
    """The site by HTTP; what was asked for, with its Authorization."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def check(folder):
    """All three scans are there with their labels, as config/real_ct.yaml reads them."""
    labels = {"exhaustive": "{case}/label.nii.gz", "partial": "{case}/label_partial.nii.gz"}
    cases = list_cases(ScanFiles(reader="files", name="ct", labels=labels), folder)
    assert {case.case: case.kind for case in cases} == {
        "ts_example": "exhaustive", "ts_example_dicom": "exhaustive", "ts_aorta": "partial",
    }  # fmt: skip
    for n, (case, label) in enumerate({"ts_example": BTCV, "ts_example_dicom": BTCV, "ts_aorta": np.array([0, 0, 8])}.items()):
        volume = read_volume(folder / case / "image.nii.gz")
        np.testing.assert_array_equal(volume.hu, body(seed=n))
        np.testing.assert_array_equal(read_labels(folder / case / f"{CASES[case]}.nii.gz", volume), label[organs()])
    assert "Apache-2.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize("how", ["index", "extra", "find-links folder", "find-links page", "file index", "configuration"])
def test_it_is_taken_from_where_pip_would_take_it(site, served, tmp_path, monkeypatch, how):
    address, _ = served
    if how == "configuration":
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = http://{address}/simple/\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    else:
        name, value = {
            "index": ("INDEX_URL", f"http://{address}/simple"),
            "extra": ("EXTRA_INDEX_URL", f"http://127.0.0.1:9/no http://{address}/simple/"),
            "find-links folder": ("FIND_LINKS", str(site / "files")),
            "find-links page": ("FIND_LINKS", f"http://{address}/simple/totalsegmentator/"),
            "file index": ("INDEX_URL", (site / "simple").as_uri()),
        }[how]
        monkeypatch.setenv(f"PIP_{name}", value)
    assert fetch_sample(tmp_path / "sample")
    check(tmp_path / "sample")
    assert not list(tmp_path.rglob("ran")) and not list(tmp_path.rglob("escaped"))


def test_it_is_fetched_once_and_mended_where_something_is_missing(served, tmp_path, monkeypatch):
    address, asked = served
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{address}/simple")
    folder = tmp_path / "sample"
    fetch_sample(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    number = len(asked)
    assert not fetch_sample(folder) and len(asked) == number
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")} == before
    content = (folder / "ts_aorta/image.nii.gz").read_bytes()
    (folder / "ts_aorta/image.nii.gz").unlink()
    assert fetch_sample(folder)
    assert (folder / "ts_aorta/image.nii.gz").read_bytes() == content


def test_user_and_password_of_an_index_go_into_a_header_and_no_message(served, tmp_path, monkeypatch):
    address, asked = served
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:se%40cret@{address}/simple")
    assert fetch_sample(tmp_path / "sample")
    assert asked[0] == ("/simple/totalsegmentator/", f"Basic {base64.b64encode(b'me:se@cret').decode()}")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:se%40cret@127.0.0.1:9/simple")
    with pytest.raises(NemesisError) as error:
        fetch_sample(tmp_path / "other")
    assert "127.0.0.1:9" in str(error.value) and "cret" not in str(error.value)


def test_without_a_network_there_is_one_clear_error(site, tmp_path):
    with pytest.raises(NemesisError, match=r"cannot be fetched.*refused.*Connect to the network.*PIP_FIND_LINKS") as error:
        fetch_sample(tmp_path / "sample")
    assert len(error.value.faults) == 1 and not (tmp_path / "sample").exists()


def test_where_pip_uses_no_index_none_is_asked(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NemesisError, match="told to use no index"):
        fetch_sample(tmp_path / "sample")


def test_another_file_under_its_name_is_not_taken(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(site / "files"))
    (site / "files" / SDIST).write_bytes((site / "files" / SDIST).read_bytes() + b"more")
    with pytest.raises(NemesisError, match="SHA-256 is not the expected one"):
        fetch_sample(tmp_path / "sample")
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(NemesisError, match="larger than expected"):
        fetch_sample(tmp_path / "sample")
    assert not (tmp_path / "sample").exists()


def without(content, part):
    return {name: data for name, data in content.items() if part not in name}


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: packed(without(content, "aorta.nii")), "has no .*aorta"),
        (lambda content: packed(without(content, "seg_dicom"), [link(f"{INSIDE}/example_seg_dicom.nii.gz")]), "is no file"),
        (lambda content: packed(content)[:-2000], "cannot be unpacked"),
        (lambda content: b"no archive", "cannot be unpacked"),
    ],
)
def test_an_archive_that_is_otherwise_is_refused(site, tmp_path, monkeypatch, change, what):
    sdist = change(members(tmp_path / "again"))
    (site / "files" / SDIST).write_bytes(sdist)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(sdist).hexdigest())
    monkeypatch.setenv("PIP_FIND_LINKS", str(site / "files"))
    with pytest.raises(NemesisError, match=what):
        fetch_sample(tmp_path / "sample")
    assert not (tmp_path / "sample").exists()


def test_a_folder_that_cannot_be_written_is_a_fault(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(site / "files"))
    (tmp_path / "file").touch()
    with pytest.raises(NemesisError, match=r"cannot be written.*--to"):
        fetch_sample(tmp_path / "file/sample")
