"""Damaged and hostile folders: whatever is wrong, a listing ends with sentences, and names no patient."""

import contextlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replicas import SHAPE, box, lidc_xml, of
from scans import save_dicom
from small_scans import RAS, body

from nemesis.data.lidc import read_nodules, series_of
from nemesis.data.listings import survey
from nemesis.data.readers import Volume
from nemesis.datasets import DicomTree, NnunetFolder, ScanFiles
from nemesis.errors import NemesisError

anything = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NNUNET = NnunetFolder(reader="nnunet", name="ct")


def told(dataset, root):
    """The faults, as people see them; a listing may end in no other way."""
    try:
        faults = survey(dataset, root).faults
    except NemesisError as error:
        faults = error.faults
    text = "\n".join(map(str, faults))
    assert text.isprintable() or "\n" in text
    return text


@anything
@given(
    content=JSON,
    labels=JSON | st.dictionaries(st.text(max_size=5), st.integers(-2, 70000), max_size=3),
    channels=JSON,
    training=JSON | st.lists(st.fixed_dictionaries({"image": st.text(max_size=12), "label": st.text(max_size=12)}), max_size=3),
    drawn=JSON | st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2), max_size=3),
    good=st.sets(st.sampled_from(["labels", "channels", "training", "drawn"])),
)
def test_any_dataset_json(tmp_path, content, labels, channels, training, drawn, good):
    whole = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}
    odd = {"labels": labels, "channel_names": channels, "training": training, "labelled_structures": drawn}
    names = {"labels": "labels", "channels": "channel_names", "training": "training", "drawn": "labelled_structures"}
    for said in (content, whole | {key: odd[key] for name, key in names.items() if name not in good}):
        (tmp_path / "dataset.json").write_text(json.dumps(said))
        assert told(NNUNET, tmp_path)  # nothing is there, so nothing is right


@pytest.mark.parametrize(
    "path", ["../escaped.nii.gz", "/etc/passwd", "imagesTr/../../escaped.nii.gz", "imagesTr/\0.nii.gz", "..", "", "a\nb.nii.gz"]
)
def test_paths_of_training_stay_inside(tmp_path, path):
    (tmp_path / "escaped.nii.gz").write_bytes(b"secret")
    root = tmp_path / "set"
    (root / "imagesTr").mkdir(parents=True)
    training = [{"image": path, "label": path}]
    (root / "dataset.json").write_text(json.dumps({"labels": {"liver": 1}, "modality": {"0": "CT"}, "training": training}))
    assert told(NNUNET, root)


def test_a_dataset_json_that_is_none(tmp_path):
    path = tmp_path / "dataset.json"
    for content in (b"\xff\xfe", b"[" * 200000, b"9" * 10000, b'{"labels": {"a\x1b[31m": 1}}', b'{"labels": {"a\\u001b": 1}}'):
        path.write_bytes(content)
        assert "dataset.json" in told(NNUNET, tmp_path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert "too large" in told(NNUNET, tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in told(NNUNET, tmp_path)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    folder = save_dicom(tmp_path_factory.mktemp("slices"), body((8, 8, 8)), change=of("VERY^SECRET"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@anything
@given(data=st.data())
def test_any_damage_to_a_dicom_header(tmp_path, slices, data):
    name = data.draw(st.sampled_from(sorted(slices)))
    content = bytearray(slices[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), 140, 300, 500]))]
    for each, whole in {**slices, name: bytes(content)}.items():
        (tmp_path / each).write_bytes(whole)
    listing = survey(DicomTree(reader="dicom", name="ct"), tmp_path)
    text = "\n".join([*map(str, listing.faults), listing.said(), *(case.case for case in listing.cases)])
    assert "SECRET" not in text and text.replace("\n", "").isprintable()


@anything
@given(data=st.data())
def test_any_damage_to_an_xml(tmp_path, data):
    volume = Volume(body(SHAPE), (3.0, 2.0, 1.5), RAS, RAS)
    content = bytearray(lidc_xml("1.2.3", [[box((8, 9), (6, 8), (5, 6))]]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / "nodules.xml"
    path.write_bytes(content)
    for look in (series_of, lambda path: read_nodules(path, volume)):
        with contextlib.suppress(NemesisError):
            look(path)


@anything
@given(name=st.binary(min_size=1, max_size=40), list_of=st.booleans())
def test_any_name_of_a_data_file_in_a_header(tmp_path, name, list_of):
    text = b"ObjectType = Image\nNDims = 3\nElementDataFile = " + (b"LIST\n" if list_of else b"") + name + b"\n"
    (tmp_path / "a.mhd").write_bytes(text)
    told(ScanFiles(reader="files", name="ct", image="{case}.mhd"), tmp_path)
