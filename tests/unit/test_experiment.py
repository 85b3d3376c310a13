"""The plan: what a run's identity holds, and what it does not."""

import copy
import json

import pytest
import yaml

from nemesis.errors import NemesisError
from nemesis.experiment import plan

AE = {"name": "ae", "settings": {"channels": [4, 8]}}
BASE = {
    "experiment": "t",
    "datasets": [{"reader": "phantom", "subjects": 8, "base_spacing_mm": 12.0}],
    "pools": {"evaluation": 3},
    "superpatch": 16,
    "probe": {"folds": 3},
    "methods": [
        {"name": "nemesis", "settings": {"embed_dim": 64, "depth": 1}},
        {"name": "random_vit", "settings": {"embed_dim": 64, "depth": 1}},
        AE,
    ],
}


@pytest.fixture
def planned(tmp_path):
    def run(change=None, **top):
        raw = copy.deepcopy(BASE) | top
        if change:
            change(raw)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        return plan([tmp_path / "config.yaml"], results=tmp_path / "results")

    return run


def ids(experiment):
    return {run.label: run.id for run in experiment.runs}


def test_pools_are_disjoint_and_complete(planned):
    experiment = planned()
    assert len(experiment.pretraining) == 5 and len(experiment.evaluation) == 3
    assert not {c.patient for c in experiment.pretraining} & {c.patient for c in experiment.evaluation}


@pytest.mark.parametrize(
    "top",
    [
        {"experiment": "another"}, {"probe": {"folds": 3}}, {"organs": ["liver"]}, {"reconstruction": {"mask_seed": 3}},
        {"device": "cpu"}, {"loader_workers": 2}, {"state_every": 7},
    ],
)  # fmt: skip
def test_keys_of_later_stages_do_not_change_a_run(planned, top):
    assert ids(planned()) == ids(planned(**top))


@pytest.mark.parametrize(
    "top",
    [
        {"pretraining": {"steps": 7}}, {"preparation": {"hu_window": [-100, 200]}}, {"pools": {"evaluation": 3, "seed": 9}},
        {"datasets": [{"reader": "phantom", "subjects": 8, "base_spacing_mm": 12.0, "seed": 5}]},
    ],
)  # fmt: skip
def test_what_weights_depend_on_changes_the_trained_runs_only(planned, top):
    before, after = ids(planned()), ids(planned(**top))
    assert before["NEMESIS"] != after["NEMESIS"] and before["AE"] != after["AE"]
    assert before["Random ViT"] == after["Random ViT"]


def test_a_label_is_not_part_of_a_run(planned):
    before = ids(planned())
    after = ids(planned(lambda raw: raw["methods"].__setitem__(2, {**AE, "label": "My AE"})))
    assert after["My AE"] == before["AE"]


def test_adding_a_method_leaves_the_others_alone(planned):
    without = ids(planned(lambda raw: raw["methods"].pop()))
    assert without.items() < ids(planned()).items()


def test_resource_keys_do_not_reach_the_report(planned):
    one, other = planned().report_file, None
    before = one.read_bytes()
    other = planned(device="cpu", loader_workers=3, state_every=5).report_file
    assert other.read_bytes() == before
    assert json.loads(before)["config_hash"]


def test_planning_something_else_leaves_the_file_of_a_running_workflow_alone(planned):
    running = planned().report_file
    before = running.read_bytes()
    assert planned(seeds=[0, 1]).report_file != running
    assert running.read_bytes() == before


def test_planning_again_touches_nothing(planned, tmp_path):
    planned()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*")}
    planned()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*")}


def test_faults_of_keys_methods_folders_and_organs_come_together(planned):
    with pytest.raises(NemesisError) as error:
        planned(
            superpach=1,
            organs=["livr"],
            datasets=[*BASE["datasets"], {"reader": "nnunet", "name": "gone", "root": "no/such/folder"}],
            methods=["nemessis", {"name": "ae", "settings": {"chanels": [1]}}],
        )
    text = str(error.value)
    for said in ("superpach", "no/such/folder", "nemessis", "Did you mean 'nemesis'", "Did you mean 'channels'"):
        assert said in text
    with pytest.raises(NemesisError, match="Did you mean 'liver'"):
        planned(organs=["livr"])


def test_two_entries_need_two_labels(planned):
    with pytest.raises(NemesisError, match="label"):
        planned(methods=[AE, {"name": "ae", "settings": {"channels": [8]}}])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "nemesis", "settings": {"embed_dim": 100}}, "not divisible by tokens × heads"),
        ({"name": "nemesis", "settings": {"patch": 5, "embed_dim": 64}}, "not a multiple of patch"),
        ({"name": "ae", "settings": {"channels": [1, 1, 1, 1, 1]}}, "cannot be halved 5 times"),
        ({"name": "ae"}, "halved 4 times and keep more than a voxel"),
        ({**AE, "pretraining": {"stepps": 3}}, "Did you mean 'steps'"),
        ({**AE, "seeds": []}, "at least one seed"),
        ({"name": "ae", "settings": {"channels": [4, 0]}}, r"channels\.1"),
        ({"name": "nemesis", "settings": {"noise": [0.0, -0.1]}}, r"noise\.1"),
        ({"name": "nemesis", "settings": {"noise": [float("inf")]}}, r"noise\.0"),
        ({**AE, "pretraining": {"betas": [0.9, 1.0]}}, r"methods\[0\]\.pretraining.*betas\.1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_sentence(planned, method, said):
    with pytest.raises(NemesisError, match=said):
        planned(methods=[method])


def test_without_a_patch_the_superpatch_is_a_multiple_of_the_grid(planned):
    with pytest.raises(NemesisError, match="superpatch 20 is not a multiple of 8"):
        planned(superpatch=20)
    by_hand = {"name": "nemesis", "settings": {"patch": 5, "embed_dim": 64, "depth": 1}}
    assert planned(superpatch=20, methods=[by_hand]).runs


def test_too_few_evaluation_patients_are_refused(planned):
    with pytest.raises(NemesisError, match="too few"):
        planned(pools={"evaluation": 2})


def nnunet(folder, drawn):
    """An nnU-Net folder that is only listed: case → organs drawn."""
    for kind, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / kind).mkdir(parents=True)
        for case in drawn:
            (folder / kind / f"{case}{ending}.nii.gz").write_text(case)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "labelled_structures": drawn}
    (folder / "dataset.json").write_text(json.dumps(content))
    return {"reader": "nnunet", "name": "ct", "root": str(folder)}


def test_evaluation_patients_without_a_probed_organ_do_not_count(planned, tmp_path):
    drawn = {case: ["liver", "spleen"] if case in "ab" else ["liver"] for case in "abcdef"}
    top = {"datasets": [nnunet(tmp_path / "ct", drawn)], "pools": {"evaluation": list("abcde")}}
    with pytest.raises(NemesisError, match="2 evaluation patients with labels of the probed organs"):
        planned(**top, organs=["spleen"])
    with pytest.raises(NemesisError, match="6 folds are more than the 5"):
        planned(**top, organs=["liver"], probe={"folds": 6})
    assert planned(**top, organs=["liver"]).runs


def test_stitched_cases_that_are_not_evaluated_are_told_with_the_other_faults(planned):
    stitched = [planned().evaluation[0].name, planned().pretraining[0].name, "phantom/typo"]
    with pytest.raises(NemesisError) as error:
        planned(reconstruction={"stitched": stitched}, organs=["livr"])
    assert [fault.where for fault in error.value.faults] == ["organs", *["reconstruction.stitched"] * 2]
    assert stitched[1] in str(error.value) and "phantom/typo" in str(error.value)


def test_keys_of_reconstructions_reach_the_methods_that_reconstruct_only(planned):
    specs = []
    for mask_seed in (0, 3):
        experiment = planned(reconstruction={"mask_seed": mask_seed})
        specs.append({label: experiment.evaluate_spec(run) for label, run in ids(experiment).items()})
    assert [label for label in specs[0] if specs[0][label] != specs[1][label]] == ["NEMESIS", "AE"]


def test_manifests_hold_the_cases_of_the_pools_only(planned):
    experiment = planned(pools={"evaluation": 3, "pretraining": 1})
    (dataset,) = experiment.datasets
    listed = [case["case"] for case in json.loads(dataset.manifest.read_text())["cases"]]
    assert listed == sorted(case.case for case in (*experiment.pretraining, *experiment.evaluation)) and len(listed) == 4
    assert [case.case for case in dataset.cases] == listed
