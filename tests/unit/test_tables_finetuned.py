"""The tables of what was fine-tuned: which runs, against whom, and what they do not tell."""

import copy
import csv
from dataclasses import replace

import pandas as pd
import pytest

from nemesis.report.tables import read_measured, tables
from nemesis.report.tables.pieces import scaled
from nemesis.report.tables.segmentation import segmentation_table


def rows_of(report, name):
    with (report.tables / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def text_of(report, name):
    return (report.tables / f"{name}.md").read_text()


def test_fine_tuned_rows_stand_in_the_main_table_with_their_own_seeds_and_patients(report):
    rows = {(r["method"], r["protocol"]): r for r in rows_of(report, "main")}
    nemesis = rows["NEMESIS", "finetune"]
    assert (nemesis["seeds"], rows["NEMESIS", "linear"]["seeds"]) == ("1", "2")
    assert (nemesis["n_patients"], rows["NEMESIS", "linear"]["n_patients"]) == ("15", "24"), "three folds of five"
    assert float(rows["Random ViT", "finetune"]["difference"]) < 0
    text = text_of(report, "main")
    assert "| fine-tuned " in text and "3 folds of 5" in text
    assert "One seed was fine-tuned of NEMESIS" in text and "60 or 80 steps" not in text


def test_controls_are_compared_with_the_pretrained_network_of_the_same_runs(report):
    rows = {(r["task"], r["method"], r["arm"]): r for r in rows_of(report, "controls")}
    assert {(task, method) for task, method, _ in rows} == {
        ("presence", "NEMESIS"), ("presence", "Auto_encoder & co"), ("segmentation", "Auto_encoder & co"),
    }, "the random ViT has nothing to control"  # fmt: skip
    pretrained, scratch, matched = (rows["presence", "NEMESIS", a] for a in ("pretrained", "scratch", "scratch_matched"))
    assert pretrained["difference"] == ""
    assert float(scratch["difference"]) == pytest.approx(float(pretrained["score"]) - float(scratch["score"]), abs=1e-8)
    assert (scratch["downstream_steps"], matched["downstream_steps"]) == ("60", "80")
    assert (pretrained["pretraining_flop"], scratch["pretraining_flop"]) == ("4e+10", "0")
    dice = rows["segmentation", "Auto_encoder & co", "scratch"]
    assert float(dice["difference"]) == pytest.approx(0.9 * 0.5 * 0.1, abs=0.03)


def test_segmentation_is_compared_with_the_own_start_where_nemesis_does_not_segment(report):
    rows, organs = rows_of(report, "segmentation"), rows_of(report, "segmentation_organs")
    assert [r["arm"] for r in rows] == ["pretrained", "from scratch", "from scratch, matched compute"]
    first = rows[0]
    of_first = {r["organ"]: r for r in organs if r["arm"] == "pretrained"}
    assert set(of_first) == {"liver", "spleen", "left kidney"}, "nobody has a gallbladder"
    for figure in ("dice", "hd95", "surface_dice"):
        mean = sum(float(r[figure]) for r in of_first.values()) / 3
        assert float(first[figure]) == pytest.approx(mean, abs=1e-8)
        assert float(first[f"{figure}_low"]) <= float(first[figure]) <= float(first[f"{figure}_high"])
    assert first["n_patients"] == "15"
    for name in ("segmentation", "segmentation_organs"):
        assert "In no scan that was tested, and so in no mean: gallbladder." in text_of(report, name)
    assert first["against"] == "own from scratch" and float(first["difference_low"]) <= float(first["difference"])
    assert rows[1]["against"] == "" and rows[1]["difference"] == ""


def test_a_missed_organ_is_counted_and_its_distance_is_of_nobody(report):
    measured = read_measured(report.spec, report.collected)
    run = next(e["run"] for e in report.spec["runs"] if e["method"] == "ae")
    lines = measured.segmentations[run]
    (kidney,) = (r for r in rows_of(report, "segmentation_organs") if r["arm"] == "pretrained" and r["organ"] == "left kidney")
    own = lines[(lines["protocol"] == "segment") & (lines["organ"] == "left kidney")].set_index(["metric", "patient"])["value"]
    found = own["hd95"].dropna()
    assert len(found) == 14 and float(kidney["hd95"]) == pytest.approx(found.mean())
    assert float(kidney["dice"]) == pytest.approx(own["dice"].mean()) and (own["dice"] == 0).sum() == 1
    assert (kidney["missed"], kidney["cases"]) == ("1", "15")
    whole = rows_of(report, "segmentation")[0]
    assert (whole["missed"], whole["cases"], whole["invented"]) == ("1", "45", "1")
    assert "| 1 of 45 " in text_of(report, "segmentation") and "within 2 mm" in text_of(report, "segmentation")


def test_convergence_is_of_the_rate_that_was_taken_and_says_when_scratch_is_overtaken(report):
    rows = [r for r in rows_of(report, "convergence") if r["task"] == "segmentation"]
    arms = {arm: [r for r in rows if r["arm"] == arm] for arm in ("pretrained", "scratch", "scratch_matched")}
    assert [r["step"] for r in arms["pretrained"]] == ["20", "40", "60"]
    assert [r["step"] for r in arms["scratch_matched"]] == ["26", "53", "80"]
    skill = 0.9  # of the autoencoder; see the experiment
    taken = [0.1 + 0.5 * skill * 1.3 * step / (step + 20) + 0.01 for step in (20, 40, 60)]  # 0.01: the mean over three folds
    assert [float(r["validation"]) for r in arms["pretrained"]] == pytest.approx(taken)
    assert {r["trainings"] for r in rows} == {"3"} and float(arms["scratch"][0]["validation_lowest"]) < float(
        arms["scratch"][0]["validation"]
    )
    best = max(float(r["validation"]) for r in arms["scratch"])
    first = next(r["step"] for r in arms["pretrained"] if float(r["validation"]) >= best)
    assert {r["reaches_scratch_at"] for r in arms["pretrained"]} == {first} and int(first) < 60
    assert {r["reaches_scratch_at"] for r in arms["scratch"]} == {"60"}
    assert "| Random ViT        | not pretrained" in text_of(report, "convergence")


def test_notes_tell_the_recipe_that_all_share_and_rows_the_steps_of_the_matched_control(report):
    for name in ("controls", "segmentation"):
        assert "alike for all: 60 steps of 4" in text_of(report, name)


@pytest.mark.parametrize(
    ("identity", "printed"),
    [({}, "not pretrained"), ({"weights": {"file": "theirs.pt", "sha256": "0"}}, "published weights")],
)
def test_what_was_not_pretrained_here_is_not_called_so(report, identity, printed):
    measured = read_measured(report.spec, report.collected)
    run = next(e["run"] for e in report.spec["runs"] if e["method"] == "ae")
    other = {**measured.identities[run], "pretraining": None} | identity
    found = segmentation_table(replace(measured, identities={**measured.identities, run: other}))
    assert [row[1] for row in found.rows] == [printed, "from scratch", "from scratch, matched compute"]


def test_without_fine_tuning_the_tables_say_so_and_nothing_else_changes(report, tmp_path):
    from nemesis.report.collect import collect

    spec = copy.deepcopy(report.spec)
    for entry in spec["runs"]:
        entry["finetune"] = {}
    collect(spec, tmp_path)
    made = {table.name: table for table in tables(read_measured(spec, tmp_path))}
    assert "No control was fine-tuned" in made["controls"].markdown() and not made["controls"].rows
    assert "No network" in made["segmentation"].markdown()
    assert "Fine-tuning" not in made["main"].markdown() and made["main"].title.startswith("Frozen encoders")
    assert made["ablations"].markdown() == text_of(report, "ablations")
    # Holm's adjustment counts what stands in the table, and nothing else of a row depends on the others
    after = {(r.method, r.protocol): r for r in made["main"].data.itertuples()}
    for row in rows_of(report, "main"):
        if row["status"] == "measured" and row["protocol"] != "finetune":
            same = after[row["method"], row["protocol"]]
            assert float(row["auroc"]) == pytest.approx(same.auroc) and float(row["auroc_low"]) == pytest.approx(same.auroc_low)


def test_pretraining_says_what_was_spent_and_what_it_reached(report):
    measured = read_measured(report.spec, report.collected)
    table = next(table for table in tables(measured) if table.name == "pretraining")
    rows = table.data.set_index("method")
    recipe = measured.identities[next(e["run"] for e in report.spec["runs"] if e["label"] == "NEMESIS")]["pretraining"]
    samples = recipe["steps"] * recipe["batch_size"]
    assert rows.loc["NEMESIS", "voxels"] == samples * 16**3
    assert rows.loc["NEMESIS", "untrained"] == 5.0 < rows.loc["NEMESIS", "trained"]
    macs = measured.rows_of([e for e in report.spec["runs"] if e["label"] == "NEMESIS"], metric="pretext_macs")["value"]
    assert rows.loc["NEMESIS", "flop"] == pytest.approx(6 * macs.mean() * samples)
    assert rows.loc["Random ViT", "status"] == "not pretrained" and "not pretrained" in table.markdown()


def test_costs_of_encoder_and_whole_network_stand_per_superpatch_and_per_scan_with_what_others_counted(report):
    table = next(t for t in tables(read_measured(report.spec, report.collected)) if t.name == "cost")
    data = table.data.set_index("method")
    tiles = 25 * 32 * 32  # superpatches of 16³ in 400 × 512 × 512
    nemesis, vit = data.loc["NEMESIS"], data.loc["Random ViT"]
    assert nemesis["encode_macs_volume"] == tiles * nemesis["encode_macs"] == tiles * 1.6e8
    assert nemesis["reconstruct_macs_volume"] == tiles * 4.8e8 and nemesis["reconstruct_flop"] == 2 * 4.8e8
    assert pd.isna(vit["reconstruct_macs"]) and vit["encoder_parameters"] == 3e5
    shown = {row[0]: row for row in table.rows}
    fvcore, formula = (table.columns.index(name) for name in ("fvcore", "formula"))
    assert (shown["NEMESIS"][fvcore], shown["NEMESIS"][formula]) == ("−2.0 %", "+0.0 %")
    assert (shown["Random ViT"][fvcore], shown["Random ViT"][formula]) == ("+1.0 %", "–")


def test_costs_are_counted_beside_what_the_clock_said(report):
    measured = read_measured(report.spec, report.collected)
    found = {table.name: table for table in tables(measured)}
    rows = found["cost"].data.set_index("method")
    entries = [e["run"] for e in report.spec["runs"] if e["label"] == "NEMESIS"]
    clocks = measured.timings[measured.timings["run"].isin(entries) & (measured.timings["stage"] == "pretrain")]
    seconds = clocks[clocks["name"] == "seconds"]["value"]
    assert len(seconds) == len(entries) and rows.loc["NEMESIS", "pretraining_hours"] == pytest.approx(seconds.mean() / 3600)
    assert rows.loc["NEMESIS", "device"] == "cpu"
    spent = found["pretraining"].data.set_index("method").loc["NEMESIS"]
    assert rows.loc["NEMESIS", "pretraining_flop"] == spent["flop"] > 0
    main = found["main"].data[found["main"].data["method"] == "NEMESIS"]
    assert set(main["pretraining_flop"].dropna()) == {spent["flop"]}
    assert found["main"].rows[0][-1] == f"{scaled(spent['voxels'])} / {scaled(spent['flop'])}"
    assert "hours" not in " ".join(main.columns), "clocks stay out of tables of quality"
