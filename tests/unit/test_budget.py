"""Fairness: what every pretraining gets alike, published weights as runs, and who learns from labels."""

import hashlib
import math

import pytest
from pydantic import Field

from baselines.ae import AutoEncoder
from nemesis.config import Config
from nemesis.errors import NemesisError
from nemesis.method import Draw, MethodCard, Published, Settings, WholeVolume, _registry
from nemesis.runs import Material, plan_runs

MATERIAL = Material("pool", "labelled", {"a": {"liver": 1, "spleen": 2}, "b": {"liver": 7, "aorta": 3}})


class LabelSettings(Settings):
    classes: tuple[str, ...] = Field(())


def method_of(**card):
    """A method like the autoencoder with another card, known for the length of a test."""
    return type("Other", (AutoEncoder,), {"card": MethodCard(**{**AutoEncoder.card.model_dump(), "name": "other", **card})})


@pytest.fixture
def known(monkeypatch):
    def add(method):
        monkeypatch.setitem(_registry, method.card.name, method)

    return add


def config_of(*methods, **top):
    raw = {"experiment": "e", "datasets": [{"reader": "phantom"}], "pools": {"evaluation": 3}, "superpatch": 32}
    return Config.model_validate({**raw, "pretraining": {"steps": 40, "batch_size": 16}, "methods": list(methods), **top})


def recipes(config, material=MATERIAL):
    return {run.label: run.identity["pretraining"] for run in plan_runs(config, material)}


def test_a_method_with_batches_of_its_own_sees_as_many_voxels():
    found = recipes(config_of("nemesis", {"name": "ae", "pretraining": {"batch_size": 3}}))
    assert found["NEMESIS"]["steps"] == 40
    assert found["AE"]["steps"] == math.ceil(40 * 16 / 3)


def test_a_method_that_draws_whole_volumes_sees_as_many_voxels(known):
    class Whole(method_of(title="Whole")):
        def draw(self):
            return WholeVolume((32, 64, 64), 5 * 32**3)

    known(Whole)
    assert recipes(config_of({"name": "other", "pretraining": {"batch_size": 2}}))["Whole"]["steps"] == 40 * 16 / (2 * 5)


def test_steps_of_its_own_are_taken_as_they_are():
    assert recipes(config_of({"name": "ae", "pretraining": {"steps": 7, "batch_size": 3}}))["AE"]["steps"] == 7


def test_equal_steps_and_equal_flop():
    entries = "nemesis", {"name": "ae", "pretraining": {"batch_size": 4}}
    assert recipes(config_of(*entries, budget="steps"))["AE"]["steps"] == 40
    material = Material("pool", macs=lambda method: {"nemesis": 300, "ae": 100}[method.card.name])
    found = recipes(config_of(*reversed(entries), budget="flop"), material)
    assert found["NEMESIS"]["steps"] == 40
    assert found["AE"]["steps"] * 4 * 100 == pytest.approx(40 * 16 * 300)


def test_a_fault_of_the_method_that_sets_the_flop_is_told_once():
    with pytest.raises(NemesisError) as error:
        plan_runs(config_of({"name": "nemesis", "settings": {"patch": 5}}, "ae", budget="flop"), MATERIAL)
    assert [fault.where for fault in error.value.faults] == ["methods[0]"]


def test_the_budget_is_no_part_of_a_run(known):
    entries = ("nemesis", "ae")
    one, other = (plan_runs(config_of(*entries, budget=budget), MATERIAL) for budget in ("voxels", "steps"))
    assert [run.id for run in one] == [run.id for run in other]


def test_who_learns_from_labels_gets_the_labelled_pool_and_its_classes(known):
    method = method_of(title="Labels", uses_labels=True)
    method.settings_type, method.check = LabelSettings, lambda self: None
    known(method)
    (run,) = plan_runs(config_of("other"), MATERIAL)
    assert run.pool == run.identity["pool"] == "labelled"
    assert run.identity["settings"]["classes"] == ["aorta", "liver", "spleen"]
    assert run.identity["label_numbers"] == MATERIAL.label_numbers
    (run,) = plan_runs(config_of({"name": "other", "settings": {"classes": ["liver"]}}), MATERIAL)
    assert run.identity["settings"]["classes"] == ["liver"]
    with pytest.raises(NemesisError, match=r"names 'lever'.*liver"):
        plan_runs(config_of({"name": "other", "settings": {"classes": ["lever"]}}), MATERIAL)
    with pytest.raises(NemesisError, match="no scan of the pretraining pool has one"):
        plan_runs(config_of("other"), Material("pool"))
    assert "label_numbers" not in plan_runs(config_of("ae"), MATERIAL)[0].identity


def test_published_weights_are_a_run_of_their_own_by_content(known, tmp_path):
    method = method_of(title="Other", published=(Published(file="theirs.pt", source="https://example.org"),))
    known(method)
    path = tmp_path / "theirs.pt"
    path.write_bytes(b"one")
    entry = {"name": "other", "weights": str(path)}
    (run,) = plan_runs(config_of(entry), MATERIAL)
    assert not run.trains and run.weights == path and run.pool is None
    assert run.identity["weights"] == {"file": "theirs.pt", "sha256": hashlib.sha256(b"one").hexdigest()}
    (tmp_path / "moved").mkdir()
    moved = path.rename(tmp_path / "moved" / "theirs.pt")
    assert plan_runs(config_of({**entry, "weights": str(moved)}), MATERIAL)[0].id == run.id  # wherever it lies
    moved.write_bytes(b"two")
    assert plan_runs(config_of({**entry, "weights": str(moved)}), MATERIAL)[0].id != run.id


def test_a_recipe_beside_weights_is_refused_as_it_would_do_nothing(known, tmp_path):
    known(method_of(published=(Published(file="theirs.pt", source="https://example.org/theirs"),)))
    path = tmp_path / "theirs.pt"
    path.write_bytes(b"one")
    with pytest.raises(NemesisError, match=r"methods\[0\].pretraining: .*not pretrained here.*Leave it or `weights` out"):
        plan_runs(config_of({"name": "other", "weights": str(path), "pretraining": {"steps": 5}}), MATERIAL)


def test_weights_that_are_not_there_or_nobody_published(known, tmp_path):
    known(method_of(published=(Published(file="theirs.pt", source="https://example.org/theirs"),)))
    with pytest.raises(NemesisError, match=r"methods\[0\].weights: .*lost.pt does not exist.*https://example.org/theirs"):
        plan_runs(config_of({"name": "other", "weights": str(tmp_path / "lost.pt")}), MATERIAL)
    with pytest.raises(NemesisError, match="AE has no published weights"):
        plan_runs(config_of({"name": "ae", "weights": "x.pt"}), MATERIAL)


def test_draws_say_how_many_voxels_they_show():
    assert Draw(32).voxels == 32**3 and Draw(8).size == (8, 8, 8)
    assert WholeVolume((96, 384, 384), 18 * 64**3).voxels == 18 * 64**3
