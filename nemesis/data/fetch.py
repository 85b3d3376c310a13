"""Real CT for anyone: three scans with organ masks from the tests of TotalSegmentator, in the layout of config/real_ct.yaml.

They come inside a source distribution, which is taken from pip's index, checked by its SHA-256 and never installed or run:
`pip download` would run its build. Only the members that are needed are read, into files that we name.
"""

from __future__ import annotations

import ast
import base64
import gzip
import hashlib
import html.parser
import os
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from nemesis.data.readers import Volume, read_labels, read_volume
from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes, write_text

PROJECT, SDIST = "totalsegmentator", "totalsegmentator-2.18.0.tar.gz"
SHA256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
INDEX = "https://pypi.org/simple"
LARGEST = 1 << 26  # bytes of the distribution, and of what is read of it, each
TIMEOUT = 60.0  # s without an answer
INSIDE = "totalsegmentator-2.18.0/tests/reference_files"
MEMBERS = {  # what is needed of it → our name
    f"{INSIDE}/example_ct.nii.gz": "example.nii.gz",
    f"{INSIDE}/example_seg_fast_force_split.nii.gz": "example_labels.nii.gz",
    f"{INSIDE}/example_seg_dicom.nii.gz": "dicom_labels.nii.gz",
    f"{INSIDE}/aorta_report/example_ct.nii.gz": "aorta.nii.gz",
    f"{INSIDE}/aorta_report/test_result/models/aorta.nii.gz": "aorta_mask.nii.gz",
}
DICOM = f"{INSIDE}/example_ct_dicom/"
TO_BTCV = {1: 1, 2: 2, 3: 3, 4: 4, 15: 5, 5: 6, 6: 7, 52: 8, 63: 9, 64: 10, 7: 11, 8: 12, 9: 13}  # TotalSegmentator v2's numbers
AORTA = 8
CASES = {"ts_example": "label", "ts_example_dicom": "label", "ts_aorta": "label_partial"}
CREDIT = """# Three CT scans with organ labels

From the source distribution of TotalSegmentator 2.18.0 (Wasserthal et al., Radiology: Artificial Intelligence 5, 2023), licence
Apache-2.0. `label.nii.gz`: every organ, `label_partial.nii.gz`: the aorta alone; numbers of BTCV. The labels are what that
network says, kept by its authors as the reference of their tests; nobody drew them by hand.
"""


def fetch_sample(folder: Path) -> bool:
    """Put the scans into ``folder``, a case per folder; False where they are there already.

    Raises:
        NemesisError: no index has the distribution, or it is another one than was expected; the folder cannot be written.
    """
    wanted = [folder / case / f"{name}.nii.gz" for case, label in CASES.items() for name in ("image", label)]
    if all(path.is_file() for path in wanted):
        return False
    try:
        with tempfile.TemporaryDirectory() as temporary:
            there = Path(temporary)
            _download(there / SDIST)
            _unpack(there / SDIST, there)
            _convert(there, folder)
        write_text(folder / "README.md", CREDIT)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise NemesisError(Fault(str(error.filename or folder), what, "Name another place with --to.")) from None
    return True


def _download(path: Path) -> None:
    """The first file of the right content that one of pip's sources has."""
    tried = []
    settings = _pip_settings()
    for source in _sources(settings):
        try:
            for link in _links(source, settings):
                content = _get(link, settings)
                if hashlib.sha256(content).hexdigest() == SHA256:
                    path.write_bytes(content)
                    return
                tried.append(f"{_shown(link)} is another file (its SHA-256 is not the expected one)")
            tried.append(f"{_shown(source)} has no other {SDIST}")
        except (OSError, ValueError, HTTPException) as error:  # urllib's own errors are OSErrors
            tried.append(f"{_shown(source)}: {getattr(error, 'reason', None) or getattr(error, 'strerror', None) or error}")
    what = f"cannot be fetched: {'; '.join(tried) or 'pip is told to use no index'}"
    remedy = "Connect to the network, set pip's index-url (PIP_INDEX_URL), or put the file into a folder named by PIP_FIND_LINKS."
    raise NemesisError(Fault(SDIST, what, remedy))


def _pip_settings() -> dict[str, str]:
    """pip's configuration, by its files and then its environment variables."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    settings = {}
    for section in ("global", "install", "download"):
        for line in done.stdout.splitlines():
            name, mark, value = line.partition("=")
            if mark and name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert", "proxy"):
        if (variable := f"PIP_{name.upper().replace('-', '_')}") in os.environ:
            settings[name] = os.environ[variable]
    return settings


def _sources(settings: dict[str, str]) -> Iterator[str]:
    """Folders and pages with files, then the project's page on every index."""
    yield from settings.get("find-links", "").split()
    if settings.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        for index in [settings.get("index-url", INDEX), *settings.get("extra-index-url", "").split()]:
            yield f"{index.rstrip('/')}/{PROJECT}/"


def _links(source: str, settings: dict[str, str]) -> Iterator[str]:
    """Addresses of the file that a source names."""
    parts = urlsplit(source)
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(source) if parts.scheme == "" else None
    if folder is not None and folder.is_dir():
        yield from (path.resolve().as_uri() for path in sorted(folder.iterdir()) if path.name.lower() == SDIST)
        if not (folder / "index.html").is_file():
            return
        source = (folder / "index.html").resolve().as_uri()
    page = _Page()
    page.feed(_get(source, settings).decode("utf-8", "replace"))
    for link in page.links:
        target = urldefrag(urljoin(source, link)).url
        if unquote(urlsplit(target).path).rpartition("/")[2].lower() == SDIST:
            yield target


class _Page(html.parser.HTMLParser):
    """Where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _get(url: str, settings: dict[str, str]) -> bytes:
    """What an address holds; user and password in it, as pip allows them, go into a header."""
    parts = urlsplit(url)
    headers = {"Accept": "application/vnd.pypi.simple.v1+html, text/html;q=0.5, */*;q=0.1"}
    if parts.username:
        told = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(told.encode()).decode()}"
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    handlers: list[Any] = [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=settings.get("cert")))]
    if "proxy" in settings:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), settings["proxy"])))
    opener = urllib.request.build_opener(*handlers)
    with opener.open(urllib.request.Request(plain, headers=headers), timeout=TIMEOUT) as answer:
        content: bytes = answer.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError("is larger than expected")
    return content


def _shown(url: str) -> str:
    """An address without its user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _unpack(archive: Path, folder: Path) -> None:
    """The members that are needed, under our names: none can lead out of the folder, be a link or a device."""
    (folder / "dicom").mkdir()
    found: set[str] = set()
    left = 4 * LARGEST
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                slices = member.name.startswith(DICOM) and member.isfile()
                if not slices and member.name not in MEMBERS:
                    continue
                left -= member.size
                file = opened.extractfile(member) if member.isfile() else None
                if file is None or left < 0:
                    raise ValueError(f"{member.name} is no file, or too large")
                name = f"dicom/{len(found)}.dcm" if slices else MEMBERS[member.name]
                (folder / name).write_bytes(file.read())
                found.add(member.name)
        if missing := set(MEMBERS) - found:
            raise ValueError(f"has no {min(missing)}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise NemesisError(Fault(SDIST, f"cannot be unpacked ({error})", "Run the command again.")) from None


def _convert(source: Path, folder: Path) -> None:
    example = read_volume(source / "example.nii.gz")
    _save(folder / "ts_example", example, "label", _numbered(read_labels(source / "example_labels.nii.gz", example)))
    slab = read_volume(source / "dicom")
    _save(folder / "ts_example_dicom", slab, "label", _numbered(read_labels(source / "dicom_labels.nii.gz", slab)))
    chest = read_volume(source / "aorta.nii.gz")
    _save(folder / "ts_aorta", chest, "label_partial", _pasted(source / "aorta_mask.nii.gz", chest))


def _numbered(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """TotalSegmentator's numbers → BTCV's."""
    table = np.zeros(max(int(labels.max()), *TO_BTCV) + 1, np.uint8)
    table[list(TO_BTCV)] = list(TO_BTCV.values())
    return table[labels]


def _pasted(mask: Path, whole: Volume) -> NDArray[np.uint8]:
    """The aorta, whose mask is on a box of the scan's grid, on the whole of it."""
    import nibabel

    library: Any = nibabel  # annotated by halves
    image = library.as_closest_canonical(library.load(mask))
    box = np.asarray(image.dataobj) != 0
    place = np.linalg.inv(whole.affine) @ image.affine
    start = np.rint(place[:3, 3]).astype(int)
    labels = np.zeros(whole.hu.transpose(1, 2, 0).shape, np.uint8)
    end = start + box.shape
    if np.abs(place[:3, :3] - np.eye(3)).max() > 1e-3 or (start < 0).any() or (end > labels.shape).any():
        raise NemesisError(Fault(SDIST, "holds a mask that does not fit its scan", "Run the command again."))
    labels[start[0] : end[0], start[1] : end[1], start[2] : end[2]][box] = AORTA
    return labels.transpose(2, 0, 1)


def _save(folder: Path, volume: Volume, label: str, labels: NDArray[np.uint8]) -> None:
    """Scan and label map (D, H, W) as NIfTI in RAS."""
    import nibabel

    library: Any = nibabel  # annotated by halves
    for name, array in (("image", volume.hu), (label, labels)):
        image = library.Nifti1Image(np.ascontiguousarray(array.transpose(1, 2, 0)), volume.affine)
        write_bytes(folder / f"{name}.nii.gz", gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
