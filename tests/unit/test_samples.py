"""Samples with labels and whole volumes: what a method learns from beyond plain superpatches."""

import pickle

import numpy as np
import pytest
from phantoms import ingest_phantoms

from nemesis.config import Preparation
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.pools import write_pool
from nemesis.data.samples import Labelling, draw_sample, resized_body
from nemesis.data.scans import Scans
from nemesis.data.superpatches import draw_crop
from nemesis.datasets import PhantomCohort
from nemesis.method import Draw, WholeVolume
from nemesis.training.crops import Crops

CLASSES = ("liver", "spleen")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    _, index = ingest_phantoms(folder)
    phantom = PhantomCohort(reader="phantom", subjects=4, base_spacing_mm=12.0)
    write_pool(folder / "labelled.json", list_cases(phantom, None), labels=True)
    scans = Scans(folder / "labelled.json", index, Preparation())
    return scans, {"phantom": label_numbers(phantom, None)}


def test_without_labels_a_sample_is_the_crop_of_its_number(cohort):
    scans, _ = cohort
    for number in range(5):
        sample = draw_sample(scans, Draw(16), 3, number)
        assert np.array_equal(sample.hu, draw_crop(scans, 16, 3, number)) and sample.classes is None is sample.known


def test_classes_lie_where_the_label_map_has_them(cohort):
    scans, numbers = cohort
    labelling = Labelling(scans, CLASSES, numbers)
    for i in range(len(scans)):
        labels = scans.labels(i).whole()
        classes = labelling.classes_of(i, labels)
        for k, name in enumerate(CLASSES):
            drawn = name in scans.row(i)["annotated"]
            assert labelling.known(i)[k] == drawn
            assert np.array_equal(classes == k + 1, labels == numbers["phantom"][name] if drawn else np.zeros_like(labels, bool))


def test_voxels_and_classes_of_a_sample_are_of_one_place(cohort):
    """The crop's place is found by its voxels; the classes there are the stored ones."""
    scans, numbers = cohort
    labelling = Labelling(scans, CLASSES, numbers)
    sample = draw_sample(scans, Draw(16, centred=1.0), 0, 4, labelling=labelling)
    places = []
    for i in range(len(scans)):
        hu, classes = scans.hu(i).whole(), labelling.classes_of(i, scans.labels(i).whole())
        windows = np.lib.stride_tricks.sliding_window_view(hu, (16, 16, 16))
        for d, h, w in np.argwhere((windows[..., 0, 0, 0] == sample.hu[0, 0, 0]) & (windows[..., 7, 8, 9] == sample.hu[7, 8, 9])):
            if np.array_equal(windows[d, h, w], sample.hu):
                places.append(np.array_equal(classes[d : d + 16, h : h + 16, w : w + 16], sample.classes))
    assert places == [True]


def test_centred_crops_hold_a_labelled_voxel_and_the_share_is_kept(cohort):
    scans, numbers = cohort
    labelling = Labelling(scans, ("pancreas",), numbers)  # small: a crop drawn anywhere seldom holds it

    def share(centred):
        return np.mean([draw_sample(scans, Draw(8, centred), 1, n, labelling=labelling).classes.any() for n in range(60)])

    assert share(1.0) == 1.0
    assert share(0.0) + 0.2 < share(0.5) < 0.95


def test_a_scan_smaller_than_the_crop_is_padded_with_air_and_with_nothing(cohort):
    scans, numbers = cohort
    edge = max(max(scans.shape(i)) for i in range(len(scans))) + 3
    sample = draw_sample(scans, Draw(edge, 1.0), 0, 0, labelling=Labelling(scans, CLASSES, numbers))
    assert sample.hu.shape == sample.classes.shape == (edge,) * 3
    assert (sample.hu[-3:] == -1024).all() and not sample.classes[-3:].any()


def test_samples_do_not_depend_on_who_draws_them(cohort):
    scans, numbers = cohort
    labelling = Labelling(scans, CLASSES, numbers)
    crops = Crops(scans, Draw(16, 0.5), 5, "scan", labelling)
    drawn = crops[[3, 4]]
    again = pickle.loads(pickle.dumps(crops))[[4]]
    assert drawn.classes.shape == (2, 1, 16, 16, 16) and drawn.known.shape == (2, 2)
    assert all((a[1:] == b).all() for a, b in zip(drawn, again, strict=True))


def test_a_whole_volume_is_the_body_resized():
    hu = np.full((12, 10, 8), -1000, np.int16)
    hu[2:10, 1:9, 2:6] = np.arange(8, dtype=np.int16)[:, None, None] * 10  # brightens upwards
    resized = resized_body(hu, (4, 8, 8), -175.0)
    assert resized.shape == (4, 8, 8)
    assert np.array_equal(resized[:, 0, 0], [5, 25, 45, 65])  # means of two slices: voxel centres are kept
    assert (resized == resized[:, :1, :1]).all()  # nothing of the air around it


def test_a_body_without_a_voxel_above_the_window_is_the_whole_scan():
    assert (resized_body(np.full((4, 4, 4), -1000, np.int16), (2, 2, 2), -175.0) == -1000).all()


def test_whole_volumes_are_drawn_from_every_scan(cohort):
    scans, _ = cohort
    size = (8, 12, 12)
    drawn = [draw_sample(scans, WholeVolume(size, 100), 0, n).hu for n in range(30)]
    bodies = [resized_body(scans.hu(i).whole(), size, -175.0) for i in range(len(scans))]
    found = {next(i for i, body in enumerate(bodies) if np.array_equal(body, one)) for one in drawn}
    assert found == set(range(len(scans)))


def test_a_class_that_was_not_drawn_in_full_is_neither_known_nor_shown(cohort):
    scans, numbers = cohort

    class Partly:
        """The scans, of whose organs only the spleen was drawn in full."""

        cases = scans.cases

        def row(self, i):
            return {"annotated": ["spleen"]}

    labelling = Labelling(Partly(), CLASSES, numbers)
    labels = scans.labels(0).whole()
    assert (labels == numbers["phantom"]["liver"]).any()
    assert labelling.known(0).tolist() == [False, True]
    assert np.array_equal(labelling.classes_of(0, labels), 2 * (labels == numbers["phantom"]["spleen"]))
