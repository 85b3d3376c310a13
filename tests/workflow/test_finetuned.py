"""Fine-tuning in the workflow: what has to be computed for it, and what for a change of it."""

import csv

import pytest
from places import CONFIG

pytestmark = pytest.mark.workflow

FINETUNE = {
    "tasks": ["presence"], "steps": 6, "batch_size": 4, "checks": 2, "learning_rates": [1e-3], "folds_held_out": 1,
    "controls": ["scratch_matched"],
}  # fmt: skip
REPORT = {"collect_rows": 1, "print_tables": 1}


def test_fine_tuning_and_its_controls_repeat_nothing_and_are_repeated_by_nothing_else(place):
    place.write_config(finetune=FINETUNE)
    assert place.plan("print_tables").jobs == REPORT | {"finetune_encoder": 3}, "the random ViT has no control"
    done = place.snakemake("print_tables")
    assert done.rc == 0, done.text
    with (place.results / "tiny" / "tables" / "controls.csv").open() as file:
        arms = {row["arm"]: row for row in csv.DictReader(file) if row["method"] == "NEMESIS"}
    assert set(arms) == {"pretrained", "scratch_matched"}
    assert float(arms["scratch_matched"]["downstream_steps"]) > float(arms["pretrained"]["downstream_steps"]) == 6
    assert not list((place.results / "finetuned").rglob("state"))

    def jobs(**top):
        place.write_config(**{"finetune": FINETUNE} | top)
        return place.plan("print_tables").jobs

    assert jobs() == {}
    assert jobs(finetune={**FINETUNE, "controls": []}) == REPORT
    assert jobs(methods=CONFIG["methods"][1:]) == REPORT
    other = jobs(experiment="other", finetune={**FINETUNE, "controls": []})
    assert {"check_cohort", "evaluate_encoder"} <= other.keys()
    assert not {"pretrain_method", "finetune_encoder"} & other.keys(), "another experiment shares it"
    forced = place.plan("print_tables", "--forcerun", "ingest_scans").jobs
    assert not {"pretrain_method", "finetune_encoder"} & forced.keys(), "what is forced is something else"
    assert place.plan("print_tables", "--forcerun", "finetune_encoder").jobs["finetune_encoder"] == 2
    done = place.snakemake("print_tables")
    assert done.rc == 0 and (place.results / "other" / "tables" / "main.csv").is_file(), done.text
    assert place.plan("print_tables").jobs == {}
    assert jobs(finetune={**FINETUNE, "steps": 7}) == REPORT | {"finetune_encoder": 3}
    assert jobs(finetune={**FINETUNE, "controls": ["scratch", "scratch_matched"]}) == REPORT | {"finetune_encoder": 1}
    with (place.run_folder("nemesis") / "checkpoint.safetensors").open("ab") as file:
        file.write(b" ")
    assert "evaluate_encoder" in (again := jobs()) and "finetune_encoder" not in again, "the name says what it starts from"
