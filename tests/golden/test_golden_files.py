"""The golden comparison itself: when it fails, when it writes."""

import json

import pytest
from golden_files import check_figures

VALUES = {"count": 3, "name": "a", "loss": 0.5, "curve": [1.0, 2.0]}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A golden file of version 1."""
    with monkeypatch.context() as patch:
        patch.setenv("NEMESIS_UPDATE_GOLDEN", "1")
        check_figures(tmp_path / "golden.json", "stage.VERSION", 1, VALUES)
    monkeypatch.delenv("NEMESIS_UPDATE_GOLDEN", raising=False)
    return tmp_path / "golden.json"


def test_the_same_figures_pass_within_tolerance(path):
    check_figures(path, "stage.VERSION", 1, VALUES)
    check_figures(path, "stage.VERSION", 1, VALUES | {"curve": [1.0, 2.001]}, rel=1e-3)


@pytest.mark.parametrize("change", [{"count": 4}, {"name": "b"}, {"loss": 0.6}, {"curve": [1.0]}, {"loss": float("nan")}])
def test_changed_figures_fail_under_the_old_version_even_when_asked_to_update(path, monkeypatch, change):
    for update in ("0", "1"):
        monkeypatch.setenv("NEMESIS_UPDATE_GOLDEN", update)
        with pytest.raises(pytest.fail.Exception, match=r"bump stage\.VERSION"):
            check_figures(path, "stage.VERSION", 1, VALUES | change, rel=1e-3)


def test_a_figure_that_is_gone_counts_as_changed(path):
    with pytest.raises(pytest.fail.Exception, match="count"):
        check_figures(path, "stage.VERSION", 1, {key: value for key, value in VALUES.items() if key != "count"})


def test_a_raised_version_wants_its_golden_file_written(path, monkeypatch):
    for values in (VALUES, VALUES | {"count": 4}):
        with pytest.raises(pytest.fail.Exception, match="NEMESIS_UPDATE_GOLDEN"):
            check_figures(path, "stage.VERSION", 2, values)
    monkeypatch.setenv("NEMESIS_UPDATE_GOLDEN", "1")
    check_figures(path, "stage.VERSION", 2, VALUES | {"count": 4})
    assert json.loads(path.read_text()) == {"version": 2, "values": VALUES | {"count": 4}}


def test_new_figures_need_no_new_version_but_a_decision(path, monkeypatch):
    with pytest.raises(pytest.fail.Exception, match="new"):
        check_figures(path, "stage.VERSION", 1, VALUES | {"more": 1.0})
    monkeypatch.setenv("NEMESIS_UPDATE_GOLDEN", "1")
    check_figures(path, "stage.VERSION", 1, VALUES | {"more": 1.0})
    assert json.loads(path.read_text())["values"]["more"] == 1.0


def test_an_update_leaves_figures_within_tolerance_alone(path, monkeypatch):
    monkeypatch.setenv("NEMESIS_UPDATE_GOLDEN", "1")
    before = path.read_bytes()
    check_figures(path, "stage.VERSION", 1, VALUES | {"loss": 0.5001}, rel=1e-3)
    assert path.read_bytes() == before
