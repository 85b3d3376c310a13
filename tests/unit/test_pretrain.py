"""Pretraining on four phantoms: the same bits again, also after an interruption; locks; faults as sentences."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from phantoms import identity_of, ingest_phantoms

from nemesis.errors import NemesisError, TrainingError
from nemesis.method import PretextLoss
from nemesis.methods.nemesis import Nemesis
from nemesis.training import pretrain as module
from nemesis.training.crops import RankBatches
from nemesis.training.pretrain import pretrain
from nemesis.training.state import load_state, save_state

OUTPUTS = ("checkpoint.safetensors", "curve.jsonl", "run.json", "timing.json")
BITS = ("checkpoint.safetensors", "curve.jsonl")
DROPOUT = {"dropout": 0.1}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return ingest_phantoms(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory):
    """A run with dropout, never interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    pretrain(identity_of(DROPOUT), folder, *cohort, "cpu", workers=0, state_every=10)
    return folder


def bits(folder):
    return {name: (folder / name).read_bytes() for name in BITS}


def interrupt(monkeypatch, at):
    """A keyboard interrupt at the start of step ``at``."""
    rate = module.learning_rate

    def interrupted(step, *rest):
        if step == at:
            raise KeyboardInterrupt
        return rate(step, *rest)

    monkeypatch.setattr(module, "learning_rate", interrupted)


def test_a_run_leaves_its_four_files_and_no_state(undisturbed):
    assert sorted(path.name for path in undisturbed.iterdir() if path.name != "lock") == sorted(OUTPUTS)
    assert json.loads((undisturbed / "run.json").read_text()) == identity_of(DROPOUT)
    curve = [json.loads(line) for line in (undisturbed / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [10, 20, 24]
    assert curve[-1]["loss"] < curve[0]["loss"]
    timing = json.loads((undisturbed / "timing.json").read_text())
    assert timing["device"] == "cpu" and timing["precision"] == "32-true" and timing["superpatches_per_second"] > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_identity_gives_the_same_bytes_whatever_the_loader(cohort, undisturbed, tmp_path, workers):
    pretrain(identity_of(DROPOUT), tmp_path / "run", *cohort, "cpu", workers=workers, state_every=7)
    assert bits(tmp_path / "run") == bits(undisturbed)


def test_another_seed_gives_other_weights(cohort, undisturbed, tmp_path):
    pretrain(identity_of(DROPOUT) | {"seed": 1}, tmp_path / "run", *cohort, "cpu", workers=0, state_every=100)
    assert bits(tmp_path / "run")["checkpoint.safetensors"] != bits(undisturbed)["checkpoint.safetensors"]


@pytest.mark.parametrize("at", [(3,), (15,), (13, 22)])
def test_interrupted_and_resumed_ends_with_the_bytes_of_an_undisturbed_run(
    cohort, undisturbed, tmp_path, monkeypatch, capsys, at
):
    for step in at:
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            with pytest.raises(KeyboardInterrupt):
                pretrain(identity_of(DROPOUT), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
        assert not (tmp_path / "run/checkpoint.safetensors").exists()
    pretrain(identity_of(DROPOUT), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
    assert bits(tmp_path / "run") == bits(undisturbed)
    assert not (tmp_path / "run/state.pt").exists()
    told = capsys.readouterr().err
    assert [f"resumed at step {n}" in told for n in (10, 20)] == [at[0] > 10, at[-1] > 20]


def test_stopped_on_the_way_leaves_its_state_and_ends_with_the_bytes_of_an_undisturbed_run(cohort, undisturbed, tmp_path):
    run = tmp_path / "run"

    def train(until):
        pretrain(identity_of(DROPOUT), run, *cohort, "cpu", workers=0, state_every=100, until=until)
        return torch.load(run / "state.pt", weights_only=True)["step"]

    assert [train(until) for until in (3, 10, 20, 11, 1)] == [10, 10, 20, 20, 20]
    assert sorted(path.name for path in run.iterdir()) == ["lock", "state.pt"]
    pretrain(identity_of(DROPOUT), run, *cohort, "cpu", workers=0, state_every=100)
    assert bits(run) == bits(undisturbed)
    assert sorted(path.name for path in run.iterdir() if path.name != "lock") == sorted(OUTPUTS)


@pytest.mark.parametrize("recipe", [{"augmentation": {"flip": 0.5, "rotate": 0.5, "shift": 0.5}}, {"sampling": "size"}])
def test_other_draws_and_augmented_ones_give_other_weights_and_the_same_again_however_often_stopped(
    cohort, undisturbed, tmp_path, recipe
):
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    for run, stops in ((whole, [None]), (parts, [3, 13, None])):
        for until in stops:
            pretrain(identity_of(DROPOUT, **recipe), run, *cohort, "cpu", workers=0, state_every=100, until=until)
    assert bits(whole) == bits(parts)
    assert (whole / "curve.jsonl").read_bytes() != (undisturbed / "curve.jsonl").read_bytes()


def test_to_stop_at_the_last_step_or_beyond_is_to_finish(cohort, undisturbed, tmp_path):
    pretrain(identity_of(DROPOUT), tmp_path / "run", *cohort, "cpu", workers=0, state_every=100, until=24)
    assert bits(tmp_path / "run") == bits(undisturbed)


def test_interrupted_while_the_state_is_written_resumes_from_the_one_before(cohort, undisturbed, tmp_path, monkeypatch):
    def dies(path, state):
        if state["step"] == 20:
            (path.parent / ".state.pt.half").write_bytes(b"as kill -9 leaves it")
            raise KeyboardInterrupt
        save_state(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", dies)
        with pytest.raises(KeyboardInterrupt):
            pretrain(identity_of(DROPOUT), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["step"] == 10
    pretrain(identity_of(DROPOUT), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
    assert bits(tmp_path / "run") == bits(undisturbed)
    assert not list((tmp_path / "run").glob(".state.pt.*"))
    timing = json.loads((tmp_path / "run/timing.json").read_text())
    assert timing["seconds"] >= state["seconds"] > 0  # of all its processes


def test_a_finished_run_is_not_computed_again(cohort, undisturbed, monkeypatch, capsys):
    interrupt(monkeypatch, 0)
    before = {name: (undisturbed / name).stat().st_mtime_ns for name in OUTPUTS}
    pretrain(identity_of(DROPOUT), undisturbed, *cohort, "cpu", workers=0, state_every=10)
    assert "already computed" in capsys.readouterr().err
    assert {name: (undisturbed / name).stat().st_mtime_ns for name in OUTPUTS} == before


def test_whoever_comes_second_waits(cohort, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/lock"):
        arguments = (identity_of(name="random_vit", settings={"embed_dim": 64}), tmp_path / "run", *cohort, "cpu", 0, 100)
        second = threading.Thread(target=pretrain, args=arguments, daemon=True)
        second.start()
        deadline, told = time.monotonic() + 20, ""
        while "waiting for it" not in told and time.monotonic() < deadline:
            told += capsys.readouterr().err
            time.sleep(0.01)
        time.sleep(0.2)
        assert "waiting for it" in told and second.is_alive() and not (tmp_path / "run/run.json").exists()
    second.join(timeout=60)
    assert (tmp_path / "run/run.json").exists()


def test_what_learns_nothing_is_written_as_built(cohort, tmp_path):
    identity = identity_of(name="random_vit", settings={"embed_dim": 64, "depth": 1})
    pretrain(identity, tmp_path / "run", *cohort, "cpu", workers=0, state_every=100)
    assert all((tmp_path / "run" / name).exists() for name in OUTPUTS)
    assert (tmp_path / "run/curve.jsonl").read_bytes() == b""


def test_a_loss_that_explodes_is_one_sentence(cohort, tmp_path):
    with pytest.raises(TrainingError, match="loss is not finite") as caught:
        pretrain(identity_of(learning_rate=1e30), tmp_path / "run", *cohort, "cpu", workers=0, state_every=5)
    assert len(caught.value.faults) == 1
    assert "learning_rate" in caught.value.faults[0].remedy
    assert not (tmp_path / "run/checkpoint.safetensors").exists()


def test_one_loss_that_is_not_a_number_is_told_at_the_next_point_of_the_curve(cohort, tmp_path, monkeypatch):
    loss = Nemesis.pretext_loss

    def broken(self, network, batch):
        found = loss(self, network, batch)
        return PretextLoss(found.total * float("nan") if batch.keys.step == 12 else found.total, found.monitors)

    monkeypatch.setattr(Nemesis, "pretext_loss", broken)
    with pytest.raises(TrainingError, match="not finite at step 20"):
        pretrain(identity_of(), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["step"] == 10  # the last good one


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_state_is_a_sentence_with_its_remedy(cohort, undisturbed, tmp_path, damage):
    folder = tmp_path / "run"
    folder.mkdir()
    save_state(folder / "state.pt", {"step": 10, "weights": torch.zeros(1000)})
    whole = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "other": b"no state"}[damage])
    with pytest.raises(NemesisError, match="damaged") as caught:
        pretrain(identity_of(DROPOUT), folder, *cohort, "cpu", workers=0, state_every=10)
    assert caught.value.faults[0].where.endswith("state.pt")
    assert "Delete it" in caught.value.faults[0].remedy
    (folder / "state.pt").unlink()
    pretrain(identity_of(DROPOUT), folder, *cohort, "cpu", workers=0, state_every=10)
    assert bits(folder) == bits(undisturbed)


def test_a_state_that_another_process_has_just_done_away_with_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: True)  # as it was a moment ago
    assert load_state(tmp_path / "state.pt", torch.device("cpu")) is None


def test_a_state_of_another_precision_is_not_gone_on_with(cohort, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            pretrain(identity_of(precision="auto"), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
    other = "bf16-mixed" if module.resolve_precision("auto", torch.device("cpu")) == "32-true" else "32-true"
    monkeypatch.setattr(module, "resolve_precision", lambda *_: other)
    with pytest.raises(NemesisError, match="would go on in"):
        pretrain(identity_of(precision="auto"), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)


@given(first=st.integers(0, 5), steps=st.integers(0, 6), size=st.integers(1, 20), ranks=st.integers(1, 5))
def test_ranks_share_every_batch_without_rest_or_overlap(first, steps, size, ranks):
    shares = [list(RankBatches(first, first + steps, size, rank, ranks)) for rank in range(ranks)]
    assert all(len(share) == steps == len(RankBatches(first, first + steps, size, 0, ranks)) for share in shares)
    for step, parts in enumerate(zip(*shares, strict=True), start=first):
        numbers = [number for part in parts for number in part]
        assert sorted(numbers) == list(range(step * size, (step + 1) * size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("wanted", [False, True])
def test_the_network_is_compiled_where_it_is_asked_for(wanted, cohort, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(type(network).__name__))
    pretrain(identity_of(steps=1, compile=wanted), tmp_path / "run", *cohort, "cpu", workers=0, state_every=10)
    assert compiled == ["MaskedAutoencoder"] * wanted


@pytest.mark.parametrize("name", ["loss", "step", "learning_rate", "status"])
def test_a_monitor_cannot_take_the_place_of_a_curves_own_column(name):
    loss = torch.zeros(())
    with pytest.raises(ValueError, match=name):
        PretextLoss(loss, {name: loss})
