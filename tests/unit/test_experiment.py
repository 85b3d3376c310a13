"""The plan: what a run's identity holds, and what it does not."""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemesis.config import PROBE_ORGANS
from nemesis.errors import NemesisError
from nemesis.evaluation.backbones import BACKBONES, Backbone
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
    def run(change=None, dry_run=False, **top):
        raw = copy.deepcopy(BASE) | top
        if change:
            change(raw)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        return plan([tmp_path / "config.yaml"], results=tmp_path / "results", dry_run=dry_run)

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
        {"experiment": "another"}, {"probe": {"folds": 2}}, {"organs": ["liver"]}, {"reconstruction": {"mask_seed": 3}},
        {"device": "cpu"}, {"loader_workers": 2}, {"state_every": 7}, {"finetune": {"controls": ["scratch"]}},
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


def test_how_many_work_on_a_search_does_not_reach_the_report(planned):
    def reported(**search):
        enough = {"pools": {"evaluation": 6}, "probe": {"folds": 6}}
        return json.loads(planned(**enough, sweep={"embed_dims": [64], "search": search}).report_file.read_text())

    assert reported(workers=1) == reported(workers=3)
    assert reported(trials=9)["config_hash"] != reported(trials=8)["config_hash"]


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


def test_weights_of_lpips_reach_what_reconstructs_by_their_hash_and_a_wrong_file_is_a_fault(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    without = planned()
    assert without.lpips is None and without.report_spec()["lpips"] == {"network": "alex", "sha256": None}
    assert not any("lpips" in without.evaluate_spec(run) for run in without.run_ids)
    file = tmp_path / "squeeze.pth"
    named = {"reconstruction": {"lpips": {"network": "squeeze", "weights": str(file)}}}
    with pytest.raises(NemesisError, match=r"squeeze\.pth does not exist") as error:
        planned(**named, organs=["livr"])
    assert [fault.where for fault in error.value.faults] == ["organs", "reconstruction.lpips.weights"]
    file.write_bytes(b"weights")
    with pytest.raises(NemesisError, match=r"is not SqueezeNet 1\.1's squeezenet1_1-b8a52dc0\.pth"):
        planned(**named)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    published = Backbone("SqueezeNet 1.1", f"squeezenet1_1-{sha256[:8]}.pth", 17)
    monkeypatch.setitem(BACKBONES, "squeeze", published)
    found = planned(**named)
    assert found.report_spec()["lpips"] == {"network": "squeeze", "sha256": sha256}
    elsewhere = file.rename(tmp_path / "moved.pth")
    named["reconstruction"]["lpips"]["weights"] = str(elsewhere)
    moved = planned(**named)
    assert moved.report_spec() == found.report_spec() and str(tmp_path / "squeeze") not in json.dumps(found.report_spec())
    for run in map(found.run, found.run_ids):
        told = {"network": "squeeze", "weights": str(file), "sha256": sha256} if run.method != "random_vit" else None
        assert found.evaluate_spec(run.id).get("lpips") == told
    assert found.run_ids == without.run_ids  # no network depends on them


def test_every_volume_of_the_methods_is_stitched_and_one_of_each_variant(planned):
    ablations = {"variants": [{"label": "short", "group": "g", "pretraining": {"steps": 3}}]}
    experiment = planned(methods=BASE["methods"][:1], ablations=ablations)
    settings = {run.part: experiment.evaluate_spec(run.id)["reconstruction"] for run in experiment.runs[::-1]}
    assert (settings["methods"]["stitched"], settings["methods"]["unmasked"]) == ("all", True)
    short = next(run for run in experiment.runs if run.label == "short")
    told = experiment.evaluate_spec(short.id)["reconstruction"]
    assert (told["stitched"], told["unmasked"]) == ([], False)


def test_manifests_hold_the_cases_of_the_pools_only(planned):
    experiment = planned(pools={"evaluation": 3, "pretraining": 1})
    (dataset,), (shard,) = experiment.datasets, experiment.shards.values()
    listed = [case["case"] for case in json.loads(shard.manifest.read_text())["cases"]]
    assert listed == sorted(case.case for case in (*experiment.pretraining, *experiment.evaluation)) and len(listed) == 4
    assert [case.case for case in dataset.cases] == listed


ABSENT = {
    "datasets": [
        {"reader": "files", "name": "judged", "root": "judged", "labels": {"exhaustive": "{case}/label.nii.gz"}, "expected": 5},
        {"reader": "files", "name": "bare", "root": "bare", "expected": 40},
        {"reader": "nnunet", "name": "drawn", "root": "drawn", "expected": 3},
    ],
    "pools": {"evaluation": {"judged": "all", "drawn": "all"}},
    "data_root": "no/such",
}


def test_a_dry_run_stands_in_for_folders_that_are_not_there_and_says_so(planned, capsys):
    experiment = planned(**ABSENT, dry_run=True)
    assert [case.dataset for case in experiment.pretraining] == ["bare"] * 40
    assert [case.kind for case in experiment.evaluation] == ["exhaustive"] * 8
    assert {dataset.config.name: dataset.absent for dataset in experiment.datasets} == dict.fromkeys(
        ("judged", "bare", "drawn"), True
    )
    assert set(experiment.datasets[2].label_numbers) == set(PROBE_ORGANS)  # which its dataset.json would have told
    said = capsys.readouterr().err
    assert said.count("NOT REAL SCANS") == 1 and "put the scans there" in said
    for folder in ("no/such/judged (datasets.judged): 5", "no/such/bare (datasets.bare): 40", "no/such/drawn"):
        assert folder in said


def test_a_real_run_refuses_folders_that_are_not_there(planned, tmp_path):
    with pytest.raises(NemesisError) as error:
        planned(**ABSENT)
    assert [fault.where for fault in error.value.faults] == ["no/such/judged", "no/such/bare", "no/such/drawn"]
    assert not (tmp_path / "results").exists()


def test_stand_ins_leave_nothing_that_a_real_run_could_take_for_real(planned, tmp_path):
    experiment = planned(**ABSENT, dry_run=True)
    written = [*(shard.manifest for shard in experiment.shards.values()), experiment.pretraining_pool, experiment.evaluation_pool]
    assert all(path.is_file() and experiment.inputs in path.parents for path in [*written, experiment.report_file])
    assert not (tmp_path / "results").exists() and tmp_path not in experiment.inputs.parents
    assert experiment.run_folder("x").parent == tmp_path / "results" / "runs"
    script = (
        "import sys; from pathlib import Path; from nemesis.experiment import plan\n"
        "print(plan([Path(sys.argv[1])], results=Path('none'), dry_run=True).inputs)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "config.yaml"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    passing = done.stdout.strip()
    assert "nemesis-plan-" in passing
    assert not Path(passing).exists() and not (tmp_path / "none").exists()


def test_stand_ins_bear_the_names_that_the_configuration_calls_and_never_those_it_excludes(planned):
    pools = {"evaluation": ["judged/a", "judged/b", "judged/c"], "pretraining": {"bare": "all"}}
    top = {**ABSENT, "pools": pools, "exclude": ["bare/x", "bare/y"], "reconstruction": {"stitched": ["judged/c"]}}
    experiment = planned(**top, dry_run=True)
    assert [case.case for case in experiment.evaluation] == ["a", "b", "c"]
    assert len(experiment.pretraining) == 38 and not {"x", "y"} & {case.case for case in experiment.pretraining}


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [(["partial", "exhaustive"], "exhaustive"), (["pseudo", "partial"], "partial"), (["pseudo"], "pseudo"), ([], "none")],
)
def test_stand_ins_have_the_best_labels_that_their_dataset_can_have(planned, kinds, kind):
    labels = {each: f"{{case}}/{each}.nii.gz" for each in kinds}
    more = {"reader": "files", "name": "more", "root": "more", "labels": labels, "expected": 2}
    experiment = planned(
        datasets=[*BASE["datasets"], more], pools={"evaluation": {"phantom": 3}, "pretraining": {"more": "all"}}, dry_run=True
    )
    assert [case.kind for case in experiment.pretraining] == [kind] * 2


def test_a_dry_run_lists_what_is_there_and_refuses_what_it_cannot_stand_in_for(planned, tmp_path):
    drawn = nnunet(tmp_path / "ct", {case: ["liver", "spleen"] for case in "abcdef"})
    there = {"datasets": [{**drawn, "expected": 99}], "organs": ["liver"], "dry_run": True}
    experiment = planned(**there)
    assert len(experiment.pretraining) + len(experiment.evaluation) == 6 and experiment.inputs == tmp_path / "results"
    assert experiment.report_file.is_file()
    with pytest.raises(NemesisError, match="does not exist"):
        planned(datasets=[{"reader": "files", "name": "ct", "root": "no/such"}], dry_run=True)
    with pytest.raises(NemesisError, match="is a file"):
        planned(datasets=[{**drawn, "root": str(tmp_path / "config.yaml"), "expected": 9}], dry_run=True)


def test_how_many_scans_are_expected_changes_no_run_and_no_report(planned, tmp_path):
    drawn = nnunet(tmp_path / "ct", {case: ["liver", "spleen"] for case in "abcdef"})
    one, other = (planned(datasets=[{**drawn, **more}], organs=["liver"]) for more in ({}, {"expected": 99}))
    assert ids(one) == ids(other) and one.report_file == other.report_file
    assert "expected" not in other.shards["ct/0"].manifest.read_text()


def test_a_root_lies_inside_data_root(planned, tmp_path):
    nnunet(tmp_path / "all" / "ct", {case: ["liver", "spleen"] for case in "abcdef"})
    experiment = planned(
        datasets=[{"reader": "nnunet", "name": "ct", "root": "ct"}], data_root=str(tmp_path / "all"), organs=["liver"]
    )
    assert experiment.datasets[0].root == tmp_path / "all" / "ct"
    absolute = {"reader": "nnunet", "name": "ct", "root": str(tmp_path / "all" / "ct")}
    assert planned(datasets=[absolute], data_root="elsewhere", organs=["liver"]).datasets[0].root == tmp_path / "all" / "ct"


def test_a_single_dataset_that_is_absent_has_the_patients_that_are_named_without_it(planned):
    alone = {**ABSENT["datasets"][0], "expected": 6}
    experiment = planned(datasets=[alone], pools={"evaluation": ["x", "y", "judged/z"]}, dry_run=True)
    assert [case.case for case in experiment.evaluation] == ["x", "y", "z"]


VARIED = {"sweep": {"embed_dims": [64, 128], "mask_ratios": [0.25, 0.5]},
          "ablations": {"variants": [{"group": "noise", "label": "no noise", "settings": {"noise": [0.0]}}]}}  # fmt: skip


def test_a_fault_of_what_is_varied_is_told_once(planned):
    misspelt = {"name": "nemesis", "settings": {"embed_dim": 64, "deptth": 1}}
    with pytest.raises(NemesisError) as error:
        planned(methods=[misspelt, AE], **VARIED)
    assert [fault.where for fault in error.value.faults] == ["methods[0]"]
    with pytest.raises(NemesisError) as error:
        planned(methods=["nemessis", AE], **{**VARIED, "sweep": {**VARIED["sweep"], "method": "AE"}})
    faults = [(fault.where, fault.what) for fault in error.value.faults]
    assert [where for where, _ in faults] == ["methods[0]", *["sweep: E 64, r 0.25"] * 3, "ablations.method"]
    assert len(set(faults)) == len(faults)


def test_the_same_share_of_a_superpatch_of_another_size_makes_it_positive(planned):
    variants = [{"group": "superpatch", "label": str(edge), "superpatch": edge, "settings": {"patch": 4}} for edge in (16, 64)]
    experiment = planned(superpatch=32, ablations={"variants": variants}, probe={"folds": 3, "positive_voxels": 20})
    found = {run.label: experiment.evaluate_spec(run.id)["probe"]["positive_voxels"] for run in experiment.runs}
    assert found == {"NEMESIS": 20, "Random ViT": 20, "AE": 20, "as configured": 20, "16": 2, "64": 160}


def many(folder, names):
    """A folder of scans that are only listed."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.nii.gz").write_text(name)
    labelled = {"reader": "phantom", "subjects": 8, "base_spacing_mm": 12.0}
    return [labelled, {"reader": "files", "name": "many", "root": str(folder), "image": "{case}.nii.gz"}]


POOLS = {"evaluation": {"phantom": 3}}


def test_cases_are_ingested_in_shards_and_one_more_changes_one_manifest(planned, tmp_path):
    top = {"datasets": many(tmp_path / "many", [f"s{n:03d}" for n in range(90)]), "pools": POOLS, "ingest_shard": 25}
    before = planned(**top)
    of_many = {name: shard for name, shard in before.shards.items() if name.startswith("many/")}
    assert set(before.shards) == {"phantom/0", *(f"many/{n}" for n in range(4))}
    assert sorted(case.case for shard in of_many.values() for case in shard.cases) == [f"s{n:03d}" for n in range(90)]
    assert max(len(shard.cases) for shard in of_many.values()) < 40
    written = {name: shard.manifest.read_text() for name, shard in before.shards.items()}
    many(tmp_path / "many", ["t"])
    after = planned(**top)
    changed = [name for name, shard in after.shards.items() if shard.manifest.read_text() != written[name]]
    assert len(changed) == 1 and "t" in [case.case for case in after.shards[changed[0]].cases]
    assert ids(planned(**{**top, "ingest_shard": 7})) == ids(after)


def test_a_larger_superpatch_of_a_variant_leaves_the_store_where_it_is(planned):
    variant = {"variants": [{"label": "large", "group": "superpatch", "superpatch": 32}]}
    one, other = planned(), planned(ablations=variant)
    assert one.datasets[0].folder == other.datasets[0].folder
    specs = [experiment.ingest_spec(experiment.shards["phantom/0"]) for experiment in (one, other)]
    assert [(spec["superpatch"], spec["largest_superpatch"]) for spec in specs] == [(16, 16), (16, 32)]
    assert planned(preparation={"hu_window": [-100, 200]}).datasets[0].folder == one.datasets[0].folder
    assert planned(preparation={"spacing_mm": [9, 9, 9]}).datasets[0].folder != one.datasets[0].folder


def test_keys_that_came_later_change_no_run_at_their_defaults(planned):
    run = planned().runs[0]
    assert not {"sampling", "augmentation"} & set(run.identity["pretraining"]) and "spacing_mm" not in run.identity
    before, flips = ids(planned()), {"flip": 0.5}
    assert ids(planned(pretraining={"sampling": "scan", "augmentation": {"flip": 0}})) == before
    for recipe in ({"sampling": "size"}, {"augmentation": flips}):
        after = planned(pretraining=recipe)
        assert ids(after)["NEMESIS"] != before["NEMESIS"] and ids(after)["Random ViT"] == before["Random ViT"]
    assert after.runs[0].identity["pretraining"]["augmentation"] == {"flip": 0.5, "rotate": 0.0, "shift": 0.0, "shift_size": 0.1}


def test_a_voxel_size_of_its_own_is_part_of_a_run_which_learns_from_views(planned):
    own = {**AE, "label": "Fine AE", "spacing_mm": [6, 6, 6]}
    control = {"name": "random_vit", "settings": {"embed_dim": 64, "depth": 1}, "spacing_mm": [6, 6, 6]}
    experiment = planned(methods=[AE, own, control])
    plain, fine, untrained = experiment.runs
    assert plain.id == ids(planned())["AE"] and len({plain.id, fine.id, untrained.id}) == 3
    assert experiment.views == [(6.0, 6.0, 6.0)]
    assert experiment.index_of(plain) == experiment.index
    assert experiment.index_of(fine) == experiment.index_of(untrained) == experiment.folder / "data" / "index@6x6x6.parquet"
    spec = experiment.evaluate_spec(fine.id)
    assert spec["view"] == str(experiment.index_of(fine)) and "reconstruction" not in spec
    assert "view" not in experiment.evaluate_spec(plain.id) and "reconstruction" in experiment.evaluate_spec(plain.id)
    shard = experiment.shards["phantom/0"]
    view = experiment.ingest_spec(shard, (6.0, 6.0, 6.0))
    assert view["view"] == (6.0, 6.0, 6.0) and view["largest_superpatch"] == 16
    assert Path(view["verdicts"]).name == "0@6x6x6.verdicts.json" and view["volumes"] == str(shard.dataset.folder)
    same = planned(methods=[{**AE, "spacing_mm": [9, 9, 9]}], preparation={"spacing_mm": [9, 9, 9]})
    assert not same.views and same.runs[0].spacing is None


def test_fine_tuning_has_more_folds_than_there_are(planned):
    with pytest.raises(NemesisError, match="folds_held_out"):
        planned(finetune={"folds_held_out": 4})


def test_what_a_control_is_asked_says_nothing_of_the_checkpoint_nor_of_the_other_arms(planned):
    one, both = (planned(finetune={"controls": arms}) for arms in (["scratch"], ["scratch", "scratch_matched"]))
    name = next(name for name in one.tunings if "/scratch-" in name)
    assert one.finetune_spec(name) == both.finetune_spec(name)
    assert "checkpoint" not in one.finetune_spec(name)
    assert {arm for run, arm in both.tunings.values() if run.method == "random_vit"} == {"pretrained"}


def test_two_experiments_share_a_fine_tuning_until_something_it_depends_on_differs(planned, monkeypatch):
    def asked(**top):
        return set(planned(**{"finetune": {"steps": 5}} | top).tunings)

    one, controls = asked(), {"steps": 5, "controls": ["scratch"]}
    assert one and one < asked(experiment="other", finetune=controls, quality_every=3)
    for change in (
        {"finetune": {"steps": 6}},
        {"probe": {"folds": 3, "positive_voxels": 7}},
        {"probe": {"folds": 3, "split_seed": 1}},
        {"preparation": {"foreground_floor": 0.1}},
        {"pools": {"evaluation": 4}},
        {"organs": ["liver"]},
    ):
        assert not asked(**change) & one, change
    monkeypatch.setattr("nemesis.data.VERSION", 1000)
    assert not asked() & one, "other stored volumes, also of a network that is not trained"


def test_published_weights_have_a_control_from_scratch_but_none_at_a_compute_that_nobody_says(planned, tmp_path):
    (tmp_path / "resnet_50.pth").write_bytes(b"weights")
    entry = {"name": "resnet3d", "weights": str(tmp_path / "resnet_50.pth")}
    found = planned(methods=[AE, entry], finetune={"controls": ["scratch", "scratch_matched"]}).tunings
    assert {arm for run, arm in found.values() if run.weights} == {"pretrained", "scratch"}
    assert {arm for run, arm in found.values() if not run.weights} == {"pretrained", "scratch", "scratch_matched"}
