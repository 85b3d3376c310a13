"""What a pretext reaches on patients it never saw: fixed samples and keys, both networks, evaluation mode."""

from types import SimpleNamespace

import pytest
import torch

from nemesis.evaluation.pretext import SEED, SUPERPATCHES, pretext_rows
from nemesis.method import Draw, PretextLoss
from nemesis.models.keyed import Keys
from nemesis.training.crops import Cut


class Samples:
    """Sample n holds n HU everywhere."""

    draw = Draw(4)
    scans = SimpleNamespace(preparation=SimpleNamespace(hu_window=(0.0, 100.0)), cases=[SimpleNamespace(dataset="a")] * 2)

    def __getitem__(self, numbers):
        return Cut(torch.tensor(numbers).view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 4, 4), torch.tensor(numbers))


class Shows:
    """Monitors that say what was seen: the mean voxel, times the network's weight; the keys; one that is undefined at first."""

    def pretext_loss(self, network, batch):
        assert not network.training and not torch.is_grad_enabled()
        brightness = batch.voxels.mean() * network.weight
        keyed = batch.keys.uniform("x", 1).mean()
        late = torch.tensor(1.0 if batch.keys.step else float("nan"))
        return PretextLoss(brightness, {"brightness": brightness, "keyed": keyed, "late": late})


def test_rows_are_means_of_the_monitors_of_both_networks_over_the_batches_where_they_say_something():
    trained, untrained = torch.nn.Module().eval(), torch.nn.Module().eval()
    trained.weight, untrained.weight = 2.0, 1.0
    rows = pretext_rows(Shows(), trained, untrained, Samples(), 16, torch.device("cpu"), "32-true")
    found = {row["metric"]: row for row in rows}
    mean = sum(range(SUPERPATCHES)) / SUPERPATCHES / 100  # of the window
    assert found["untrained_brightness"]["value"] == pytest.approx(mean)
    assert found["trained_brightness"]["value"] == pytest.approx(2 * mean)
    keyed = sum(float(Keys.at(SEED, step, range(16)).uniform("x", 1).mean()) for step in range(4)) / 4
    assert found["trained_keyed"]["value"] == found["untrained_keyed"]["value"] == pytest.approx(keyed)
    assert (found["trained_late"]["value"], found["trained_late"]["n_superpatches"]) == (1.0, SUPERPATCHES - 16)
    assert found["trained_keyed"]["n_superpatches"] == SUPERPATCHES and found["trained_keyed"]["dataset"] == "a"
    assert len(rows) == 6
