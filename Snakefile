"""The whole comparison, from raw scans to the report: `snakemake --cores all`."""

from snakemake.utils import min_version

min_version("9.3")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/notebooks.smk"


wildcard_constraints:
    run="[a-z0-9_]+-s[0-9]+-[0-9a-f]{12}",
    dataset="[A-Za-z0-9_-]+",
    notebook="[a-z_]+",


rule all:
    default_target: True
    input:
        TABLE_FILES,
        FIGURE_FILES,
        NOTEBOOK_FILES,
        GRID_FILES,
        f"{FOLDER}/report/index.html",
        f"{FOLDER}/tracking.json",


rule pretrain_all:
    input:
        expand("results/runs/{run}/checkpoint.safetensors", run=RUNS),


rule ingest_all:
    input:
        f"{FOLDER}/data/index.parquet",
