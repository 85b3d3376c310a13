"""The notebooks, executed on a small finished experiment, and what they call."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import optuna
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from phantoms import ingest_phantoms
from report_experiment import Report
from typer.testing import CliRunner

from nemesis.cli import app, read_report_spec
from nemesis.config import Preparation
from nemesis.data.pools import read_pool
from nemesis.data.superpatches import Scans
from nemesis.errors import NemesisError
from nemesis.report import FIGURES, NOTEBOOKS, cohort
from nemesis.report.collect import SPECIFICATION
from nemesis.report.notebooks import run_notebook
from nemesis.report.results import Results, open_results
from nemesis.sweep.study import rebuild_study

NOTEBOOK_FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def finish(report: Report, folder: Path) -> Path:
    """The report's small experiment with a cohort and a study, as the workflow leaves it in ``folder``; its specification."""
    for made in (report.collected, report.tables, report.figures):
        shutil.copytree(made, folder / made.name)
    pool, _ = ingest_phantoms(folder / "data")
    cases = json.loads(pool.read_text())["cases"]
    pools = {"pretraining": cases[:1], "evaluation": cases[1:]}
    for name, of_pool in pools.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps({"cases": of_pool}))
    spec = report.spec | {"pools": {name: str(folder / "data" / f"{name}.json") for name in pools}}
    spec["config"] = spec["config"] | {"preparation": Preparation().model_dump(mode="json")}
    rebuild_study(spec, report.collected, folder / "sweep" / "study.db")
    path = folder / "experiment-0123456789ab.json"
    path.write_text(json.dumps(spec))
    shutil.copyfile(path, folder / "collected" / SPECIFICATION)
    return path


@pytest.fixture(scope="module")
def finished(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(report, tmp_path_factory.mktemp("results") / "results" / "small")


@pytest.fixture(scope="module")
def pages(finished: Path) -> dict[str, str]:
    """Every notebook, executed."""
    made = {}
    for name in NOTEBOOKS:
        out = finished.parent / "notebooks" / f"{name}.html"
        run_notebook(finished, NOTEBOOK_FOLDER / f"{name}.ipynb", out)
        made[name] = out.read_text(encoding="utf-8")
    return made


def shown(text: str) -> Counter[str]:
    """The cells of all data frames of a page."""
    return Counter(re.findall(r"<td>([^<]*)</td>", text))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_needs_nothing_from_elsewhere(pages, name):
    addresses = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]*)', pages[name])
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|@import|url\(|https?://", pages[name])
    assert "No description" not in pages[name]


@pytest.mark.parametrize(
    ("name", "table", "columns"),
    [
        ("ablation_tables", "ablations", ["auroc", "difference", "psnr_masked", "ssim_whole"]),
        ("ablation_tables", "sweep", ["auroc", "auroc_low", "validation_auroc"]),
        ("paper_figures", "label_fractions", ["auroc", "auroc_low"]),
        ("paper_figures", "main", ["auroc"]),
        ("paper_figures", "claims", ["difference", "difference_low"]),
        ("paper_figures", "sweep", ["auroc", "validation_auroc"]),
        ("paper_figures", "ablations", ["auroc", "psnr_masked_high"]),
    ],
)
def test_the_numbers_of_the_tables_are_shown(pages, finished, name, table, columns):
    figures = pd.read_csv(finished.parent / "tables" / f"{table}.csv")[columns].to_numpy().ravel()
    figures = [f"{figure:.4g}" for figure in figures if np.isfinite(figure)]
    assert len(figures) >= len(columns)
    assert Counter(figures) <= shown(pages[name])


def test_every_figure_of_the_report_is_shown(pages, finished):
    for name in FIGURES:
        picture = base64.b64encode((finished.parent / "figures" / f"{name}.png").read_bytes()).decode()
        assert picture in pages["paper_figures"].replace("\n", "")


def test_the_study_is_drawn(pages, finished):
    assert pages["ablation_tables"].count("data:image/png;base64,") == len(open_results(finished).study_plots()) == 3


def test_a_repeat_gives_the_same_bytes_whatever_the_user_has_set_up(pages, finished, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    broken = {"argv": ["false", "{connection_file}"], "display_name": "broken", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(broken))
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "first.py").write_text("import pandas; pandas.set_option('display.max_rows', 1)")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    run_notebook(finished, NOTEBOOK_FOLDER / "data.ipynb", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == pages["data"]


def test_a_failing_cell_fails_with_what_it_said_and_leaves_no_page(finished, tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 + 1", "raise ValueError('the scan is upside down')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "broken.ipynb")
    with pytest.raises(NemesisError, match=r"broken\.ipynb(.|\n)*raise ValueError(.|\n)*the scan is upside down") as raised:
        run_notebook(finished, tmp_path / "broken.ipynb", tmp_path / "broken.html")
    assert "\x1b" not in str(raised.value)
    assert not (tmp_path / "broken.html").exists()


def test_notebooks_are_light_in_git():
    assert sorted(path.stem for path in NOTEBOOK_FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)
    for path in NOTEBOOK_FOLDER.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert cell.get("outputs", []) == [] and cell.get("execution_count") is None, path
        assert path.stat().st_size < 20_000


# ------------------------------------------------------------------------------------------------------ opening results


@pytest.mark.parametrize("below", [".", "notebooks"])
def test_an_experiment_is_found_from_the_folder_of_results_and_from_below(finished, monkeypatch, tmp_path, below):
    (tmp_path / "results").symlink_to(finished.parents[1])
    (tmp_path / below).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / below)
    monkeypatch.setenv("NEMESIS_EXPERIMENT", "results/small")
    assert open_results().folder == tmp_path / "results" / "small"
    assert open_results().path("results/pools/0.json") == tmp_path / "results" / "pools" / "0.json"
    assert open_results("results/small").spec["config_hash"] == "abcdef012345"
    monkeypatch.delenv("NEMESIS_EXPERIMENT")
    with pytest.raises(NemesisError, match="results/demo: does not exist"):
        open_results()


def test_a_folder_opens_as_what_was_collected_whatever_was_planned_since(finished, tmp_path):
    folder = tmp_path / "results" / "small"
    shutil.copytree(finished.parent / "collected", folder / "collected")
    shutil.copyfile(finished, folder / "experiment-0.json")
    spec = json.loads(finished.read_text())
    fewer = spec | {"config_hash": "fewer", "runs": spec["runs"][1:]}  # all of them were collected, too
    (folder / "experiment-1.json").write_text(json.dumps(fewer))
    os.utime(folder / "experiment-0.json", (1, 1))
    assert open_results(folder).spec == open_results(folder / "experiment-0.json").spec == spec
    with pytest.raises(NemesisError, match=r"results of configuration abcdef012345, not of fewer\. Run the workflow with"):
        open_results(folder / "experiment-1.json")
    (folder / "experiment-1.json").write_text(json.dumps(spec | {"transductive": 1}))
    with pytest.raises(NemesisError, match=r"the same configuration with other data, versions or runs\. Run the workflow with"):
        open_results(folder / "experiment-1.json")


def test_an_unfinished_experiment_is_told_from_a_missing_file(tmp_path, finished):
    shutil.copyfile(finished, tmp_path / "experiment-0.json")
    for where in (tmp_path, tmp_path / "experiment-0.json"):
        with pytest.raises(NemesisError, match=r"holds no finished experiment\. Run the workflow with its configuration"):
            open_results(where)
    shutil.copytree(finished.parent / "collected", tmp_path / "collected")
    with pytest.raises(NemesisError, match=r"main\.csv: does not exist"):
        open_results(tmp_path).table("main")


def test_jobs_of_the_report_refuse_what_another_configuration_left(finished, tmp_path):
    spec, collected = json.loads(finished.read_text()), finished.parent / "collected"
    assert read_report_spec(str(finished), collected) == spec
    other, out = json.dumps(spec | {"config_hash": "other"}), str(tmp_path / "out")
    for job in (("tables", collected), ("figures", collected, out), ("track", collected, out, out, out, out)):
        failed = CliRunner().invoke(app, ["report", job[0], other, *map(str, job[1:]), out])
        assert isinstance(failed.exception, NemesisError) and "abcdef012345, not of other" in str(failed.exception)
    failed = CliRunner().invoke(app, ["sweep", "study", other, str(collected), out])
    assert "abcdef012345, not of other" in str(failed.exception)
    assert not (tmp_path / "out").exists()


def test_without_a_sweep_there_is_no_study(finished):
    results = open_results(finished)
    assert len(results.study().trials) == 4
    without = replace(results, spec=results.spec | {"config": results.spec["config"] | {"sweep": None}})
    assert without.study() is None and without.study_plots() == []


def test_a_study_without_values_is_not_drawn(finished, tmp_path):
    results = replace(open_results(finished), folder=tmp_path)
    (tmp_path / "sweep").mkdir()
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/sweep/study.db", study_name="sweep")
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    assert len(results.study().trials) == 1 and results.study_plots() == []


def test_a_search_brings_its_best_run_and_its_own_study(finished, tmp_path):
    spec = json.loads(finished.read_text())
    sweep = spec["config"]["sweep"] | {"search": {"trials": 3}}
    spec |= {"config": spec["config"] | {"sweep": sweep}, "search": "results/small/sweep"}
    folder = tmp_path / "results" / "small"
    (folder / "sweep").mkdir(parents=True)
    (folder / "experiment-0.json").write_text(json.dumps(spec))
    best = spec["runs"][-1] | {"run": "nemesis-s0-ffffffffffff", "part": "sweep", "study": "search-0.db"}
    (folder / "sweep" / "best.json").write_text(json.dumps(best))
    study = optuna.create_study(storage=f"sqlite:///{folder}/sweep/search-0.db", study_name="sweep", direction="maximize")
    for value in (0.6, 0.7, 0.65):
        trial = study.ask()
        trial.suggest_categorical("embed_dim", [48, 96])
        trial.suggest_float("mask_ratio", 0.25, 0.75, step=0.05)
        trial.report(value - 0.1, 10)
        study.tell(trial, value)
    (folder / "collected").mkdir()
    (folder / "collected" / SPECIFICATION).write_text(json.dumps(spec | {"runs": [*spec["runs"], best]}))
    results = open_results(folder / "experiment-0.json")
    assert results.spec == open_results(folder).spec
    assert results.spec["runs"][-1]["run"] == best["run"]
    assert [trial.value for trial in results.study().trials] == [0.6, 0.7, 0.65]
    assert len(results.study_plots()) == 4


def test_of_several_searches_the_one_counts_in_which_the_best_run_was_found(tmp_path):
    results = Results(tmp_path, {"config": {"sweep": {"search": {"trials": 1}}}})
    (tmp_path / "sweep").mkdir()
    for name, value in (("kept", 0.6), ("newer", 0.7)):
        study = optuna.create_study(storage=f"sqlite:///{tmp_path}/sweep/search-{name}.db", study_name="sweep")
        study.add_trial(optuna.trial.create_trial(value=value))
    (tmp_path / "sweep" / "best.json").write_text(json.dumps({"study": "search-kept.db"}))
    assert results.study().best_value == 0.6
    (tmp_path / "sweep" / "search-kept.db").unlink()
    with pytest.raises(NemesisError, match=r"search-kept\.db: does not exist\. Delete .*best\.json"):
        results.study()


# ------------------------------------------------------------------------------------------------------------ the cohort


@pytest.fixture(scope="module")
def results(finished: Path) -> Results:
    return open_results(finished)


def test_cases_by_pool(results):
    table = cohort.cases(results)
    assert Counter(table["pool"]) == {"pretraining": 1, "evaluation": 3}
    for pool in cohort.POOLS:
        members = read_pool(results.path(results.spec["pools"][pool]))
        assert table[table["pool"] == pool]["case"].tolist() == [member.case for member in members]
    volume = cohort.scans(results, "evaluation").hu(2).whole()
    last = table.iloc[-1]
    assert [last[f"voxels {axis}"] for axis in "DHW"] == list(volume.shape)
    assert len(set(volume.shape)) == 3
    assert last["hu_mean"] == pytest.approx(volume.mean())


def test_organs_are_counted_where_they_were_drawn(results):
    table = cohort.organs(results)
    numbers = json.loads((results.folder / "data" / "manifest.json").read_text())["label_numbers"]
    volumes, drawn = [], 0
    for pool in cohort.POOLS:
        scans = cohort.scans(results, pool)
        for n in range(len(scans)):
            row = scans.row(n)
            drawn += "spleen" in row["annotated"]
            volumes.append((scans.labels(n).whole() == numbers["spleen"]).sum() * np.prod(row["spacing"]) / 1000)
    spleen = table.loc["spleen"]
    assert spleen["scans drawn in"] == drawn == 4
    assert spleen["scans that show it"] == np.count_nonzero(volumes)
    assert spleen["median volume, ml"] == pytest.approx(np.median([v for v in volumes if v]))
    rows = results.collected("rows")
    prevalence = rows[(rows["metric"] == "prevalence") & (rows["organ"] == "spleen")]["value"]
    assert spleen["positive superpatches"] == pytest.approx(prevalence.iloc[0])
    assert np.isnan(table.loc["aorta", "positive superpatches"])  # labelled, not probed


def test_evenly_spaced_numbers():
    assert cohort.evenly(8, 4) == [1, 3, 5, 7]
    assert cohort.evenly(3, 24) == [0, 1, 2]
    assert cohort.evenly(100, 1) == [50]


@pytest.fixture
def figures(monkeypatch) -> None:
    """Figures as they are drawn, in place of their pictures; spacings that differ along D, H and W."""
    monkeypatch.setattr(cohort, "picture", lambda figure, what: figure)
    row = Scans.row
    monkeypatch.setattr(Scans, "row", lambda self, n: row(self, n) | {"spacing": [5.0, 2.0, 3.0]})


def test_spacings_are_those_of_their_axes(results, figures):
    assert set(cohort.cases(results)[[f"spacing {axis}" for axis in "DHW"]].itertuples(index=False, name=None)) == {(5, 2, 3)}


@pytest.mark.parametrize("end", [1050, 500])
def test_the_histogram_counts_the_voxels_of_either_pool(results, figures, monkeypatch, end):
    bins = np.arange(-end, end + 1, 25)
    if end < 1050:  # and voxels beyond it
        monkeypatch.setattr(cohort, "HU_BINS", bins)
    (axes,) = cohort.hu_histogram(results).axes
    *drawn, window = axes.patches
    for steps, (pool, look) in zip(drawn, cohort.POOLS.items(), strict=True):
        of_pool = cohort.scans(results, pool)
        hu = []
        for n in range(len(of_pool)):
            volume = of_pool.hu(n).whole()
            hu.append(volume[cohort.evenly(len(volume), cohort.MEASURED_PLANES)].ravel())
        counts, _ = np.histogram(np.clip(np.concatenate(hu), -end, end), bins)
        values, at, _ = steps.get_data()
        np.testing.assert_allclose(values, 100 * counts / counts.sum())
        np.testing.assert_array_equal(at, bins)
        assert to_hex(steps.get_edgecolor()) == to_hex(look["color"])
    low, high = results.spec["config"]["preparation"]["hu_window"]
    assert (window.get_x(), window.get_x() + window.get_width()) == (low, high)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["pretraining pool", "evaluation pool", "window"]
    assert axes.get_xlabel() == "HU (what lies beyond the ends is counted at the ends)"
    assert axes.get_ylabel() == "share of the voxels, %" and axes.get_yscale() == "log"


@pytest.mark.parametrize("drawn", [True, False])
def test_slices_show_the_plane_with_most_labels_the_right_way_up(results, figures, monkeypatch, drawn):
    if not drawn:
        monkeypatch.setattr(Scans, "labels", lambda self, n: None)
    of_pool = cohort.scans(results, "evaluation")
    panels = cohort.axial_slices(results).axes
    for axes, n in zip(panels, range(3), strict=True):
        volume, labels = of_pool.hu(n).whole(), of_pool.labels(n)
        plane = len(volume) // 2
        if labels is not None:
            plane = max(range(len(volume)), key=lambda d: np.count_nonzero(labels.whole()[d]))
            assert plane != len(volume) // 2
            shown = labels.whole()[plane].T[::-1, ::-1]
            outlines = np.concatenate([p.vertices for c in axes.collections for p in c.get_paths() if len(p.vertices)])
            ends = np.argwhere(shown > 0)[:, ::-1]  # x, y
            np.testing.assert_allclose(outlines.min(0), ends.min(0) - 0.5)
            np.testing.assert_allclose(outlines.max(0), ends.max(0) + 0.5)
        (picture,) = axes.images
        np.testing.assert_array_equal(picture.get_array(), volume[plane].T[::-1, ::-1])  # anterior at the top, right at the left
        assert list(picture.get_clim()) == list(results.spec["config"]["preparation"]["hu_window"])
        assert axes.get_aspect() == 1.5  # rows lie 3 mm apart, columns 2 mm
        name = of_pool.cases[n].case
        assert axes.get_title() == f"phantom/{name}, plane {plane + 1} of {len(volume)}"
