"""The stream of crops, cut by a thread or by processes."""

import threading

import numpy as np
import pytest
import torch
from stored_scans import blobs, store_scans

from nemesis.data.superpatches import draw_crop
from nemesis.errors import Fault, NemesisError
from nemesis.method import Draw
from nemesis.training import crops as module
from nemesis.training.crops import Crops, RankBatches, crop_loader


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return store_scans(tmp_path_factory.mktemp("store"), [blobs((30, 28, 26), n) for n in range(3)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampling", ["scan", "size"])
def test_whoever_cuts_them_the_crops_are_the_same(scans, workers, sampling):
    batches = RankBatches(2, 9, 3, 0, 1)
    stream = list(crop_loader(Crops(scans, Draw(16), 7, sampling), batches, workers, pin=False))
    assert len(stream) == len(batches) == 7
    for step, (hu, numbers, *_) in enumerate(stream, start=2):
        assert numbers.tolist() == [3 * step, 3 * step + 1, 3 * step + 2] and hu.dtype == torch.int16
        for crop, number in zip(hu, numbers.tolist(), strict=True):
            np.testing.assert_array_equal(crop[0].numpy(), draw_crop(scans, 16, 7, number, sampling))


def test_ranks_share_every_batch(scans):
    crops = Crops(scans, Draw(16), 7, "scan")
    parts = [list(crop_loader(crops, RankBatches(0, 2, 5, rank, 2), 0, pin=False)) for rank in range(2)]
    assert [[numbers.tolist() for _, numbers, *_ in part] for part in parts] == [[[0, 2, 4], [5, 7, 9]], [[1, 3], [6, 8]]]


def test_the_next_batches_are_cut_while_one_is_used_and_not_all_at_once(scans, monkeypatch):
    cut, enough = [], threading.Event()

    def watched(self, numbers):
        cut.append(numbers)
        if len(cut) == 1 + module.AHEAD:
            enough.set()
        return torch.zeros(1), torch.tensor(numbers)

    monkeypatch.setattr(Crops, "__getitem__", watched)
    stream = iter(crop_loader(Crops(scans, Draw(16), 0, "scan"), RankBatches(0, 50, 1, 0, 1), 0, pin=False))
    next(stream)
    assert enough.wait(10)
    assert len(cut) == 1 + module.AHEAD
    stream.close()
    assert len(cut) == 1 + module.AHEAD


def test_what_goes_wrong_with_a_crop_is_told(scans, monkeypatch):
    fault = NemesisError(Fault("ct/a", "is gone", "Look for it."))
    monkeypatch.setattr(Crops, "__getitem__", lambda self, numbers: (_ for _ in ()).throw(fault))
    with pytest.raises(NemesisError, match="is gone"):
        list(crop_loader(Crops(scans, Draw(16), 0, "scan"), RankBatches(0, 3, 1, 0, 1), 0, pin=False))
