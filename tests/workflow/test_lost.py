"""A sweep and ablations on top of a finished run: what they share with it, and what a lost file costs."""

import shutil

import pytest
from places import REPORT

pytestmark = pytest.mark.workflow

SWEEP = {"embed_dims": [64], "mask_ratios": [0.5, 0.75]}
ABLATIONS = {"variants": [{"label": "no noise", "group": "noise", "settings": {"noise": [0.0]}}]}
PRINTED = REPORT.keys() - {"collect_rows"}
LOST = {  # what is deleted, under results/tiny/ → rules that make it and what is made of it again
    "collected/rows.parquet": set(),  # what was printed from it is there
    "tables/sweep.csv": PRINTED,
    "figures/sweep.png": PRINTED - {"print_tables"},
    "notebooks/ablation_tables.html": {"run_notebook", "log_tracking"},
    "report/index.html": {"write_page", "log_tracking"},
    "tracking.json": {"log_tracking"},
}


def test_a_sweep_computes_only_what_is_new_and_a_lost_file_costs_only_itself(place):
    place.write_config(sweep=SWEEP, ablations=ABLATIONS)
    # one cell and the first row of the ablations are the method as it stands, which is computed already
    assert place.plan().jobs == {"pretrain_method": 2, "evaluate_encoder": 2, "rebuild_study": 1, **REPORT}
    done = place.snakemake()
    assert done.rc == 0, done.text
    assert place.plan().jobs == {}
    tiny = place.results / "tiny"
    for name, rules in LOST.items():
        (tiny / name).rename(tiny / "kept")
        assert place.plan().jobs.keys() == set(rules), name
        (tiny / "kept").rename(tiny / name)
    (place.run_folder("random_vit") / "checkpoint.safetensors").unlink()  # what was measured on it is there
    assert place.plan().jobs == {}

    tables = _tables(tiny)
    shutil.rmtree(tiny / "tables")
    assert place.snakemake().rc == 0
    assert _tables(tiny) == tables


def _tables(folder):
    """All but that of cost, which says what the clock said."""
    return {file.name: file.read_bytes() for file in (folder / "tables").iterdir() if file.stem != "cost"}
