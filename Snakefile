"""The whole comparison, from raw scans to the report: `snakemake --cores all`."""

from snakemake.utils import min_version

min_version("9.3")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/notebooks.smk"


wildcard_constraints:
    run="[a-z0-9_]+-s[0-9]+-[0-9a-f]{12}",
    tuning="[a-z0-9_]+-s[0-9]+-[0-9a-f]{12}/[a-z_]+-[0-9a-f]{12}",
    shard="[A-Za-z0-9_-]+/[0-9]+",
    view="@[0-9.ex+-]+",
    notebook="[a-z_]+",


rule all:
    default_target: True
    input:
        TABLE_FILES,
        FIGURE_FILES,
        NOTEBOOK_FILES,
        GRID_FILES,
        QUALITY_PAGE,
        f"{FOLDER}/report/index.html",
        f"{FOLDER}/tracking.json",


rule pretrain_all:
    input:
        expand("results/runs/{run}/checkpoint.safetensors", run=RUNS),
        # where a job is run again, Snakemake passes over what takes its output as ancient, though that may be missing altogether
        EXPERIMENT.audit,


rule ingest_all:
    input:
        f"{FOLDER}/data/index.parquet",
        QUALITY_PAGE,
        EXPERIMENT.audit,
