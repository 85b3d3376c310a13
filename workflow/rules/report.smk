"""Rows → tables, figures, page, MLflow."""

from nemesis.report import COLLECTED, FIGURES, TABLES
from nemesis.report import VERSION as REPORT_VERSION
from nemesis.tracking import VERSION as TRACKING_VERSION
from nemesis.tracking.store import server

COLLECTED_FILES = [
    f"{FOLDER}/collected/experiment.json",
    *expand(
        f"{FOLDER}/collected/{{name}}.parquet",
        name=[*COLLECTED, *(["trials"] if CONFIG.search else [])],
    ),
]
TABLE_FILES = expand(
    f"{FOLDER}/tables/{{name}}.{{format}}",
    name=TABLES,
    format=["csv", "md", "tex", "html"],
)
FIGURE_FILES = expand(
    f"{FOLDER}/figures/{{name}}.{{format}}", name=FIGURES, format=["png", "svg"]
)


rule collect_rows:
    input:
        experiment=EXPERIMENT.report_file,
        audit=EXPERIMENT.audit,
        rows=expand(f"{FOLDER}/evaluation/{{run}}/rows.parquet", run=RUNS),
        predictions=expand(f"{FOLDER}/evaluation/{{run}}/predictions.parquet", run=RUNS),
        reconstructions=expand(
            f"{FOLDER}/evaluation/{{run}}/reconstructions.parquet", run=RUNS
        ),
        tuned=TUNED_FILES,
        search=SEARCH_FILES,
    output:
        COLLECTED_FILES,
    log:
        f"{FOLDER}/logs/collect_rows.log",
    benchmark:
        f"{FOLDER}/benchmarks/collect_rows.tsv"
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.experiment, parent=True),
        experiment=EXPERIMENT.report_file.stem,
        version=REPORT_VERSION,
    shell:
        "nemesis report collect {input.experiment:q} {params.folder}/collected 2>&1 | tee {log:q}"


rule print_tables:
    input:
        experiment=EXPERIMENT.report_file,
        collected=COLLECTED_FILES,
        best=BEST_FILE,
    output:
        report(TABLE_FILES, caption="../report/tables.rst", category="Tables"),
    log:
        f"{FOLDER}/logs/print_tables.log",
    benchmark:
        f"{FOLDER}/benchmarks/print_tables.tsv"
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.experiment, parent=True),
        experiment=EXPERIMENT.report_file.stem,
        version=REPORT_VERSION,
    shell:
        "nemesis report tables {input.experiment:q} {params.folder}/collected {params.folder}/tables 2>&1 | tee {log:q}"


rule draw_figures:
    input:
        experiment=EXPERIMENT.report_file,
        reconstructions=expand(
            f"{FOLDER}/evaluation/{{run}}/reconstruction.npz", run=RUNS
        ),
        collected=COLLECTED_FILES,
        tables=TABLE_FILES,
        best=DRAWN_OF_BEST,
    output:
        report(FIGURE_FILES, caption="../report/figures.rst", category="Figures"),
    log:
        f"{FOLDER}/logs/draw_figures.log",
    benchmark:
        f"{FOLDER}/benchmarks/draw_figures.tsv"
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.experiment, parent=True),
        experiment=EXPERIMENT.report_file.stem,
        version=REPORT_VERSION,
    shell:
        "nemesis report figures {input.experiment:q} {params.folder}/collected {params.folder}/tables {params.folder}/figures"
        " 2>&1 | tee {log:q}"


rule write_page:
    input:
        experiment=EXPERIMENT.report_file,
        tables=TABLE_FILES,
        figures=FIGURE_FILES,
        best=BEST_FILE,
    output:
        report(
            f"{FOLDER}/report/index.html",
            caption="../report/page.rst",
            category="Page",
        ),
    log:
        f"{FOLDER}/logs/write_page.log",
    benchmark:
        f"{FOLDER}/benchmarks/write_page.tsv"
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.experiment, parent=True),
        experiment=EXPERIMENT.report_file.stem,
        version=REPORT_VERSION,
    shell:
        "nemesis report page {input.experiment:q} {params.folder}/tables {params.folder}/figures {output:q}"
        " 2>&1 | tee {log:q}"


rule log_tracking:
    input:
        experiment=EXPERIMENT.report_file,
        collected=COLLECTED_FILES,
        tables=TABLE_FILES,
        figures=FIGURE_FILES,
        notebooks=lambda wc: NOTEBOOK_FILES,
        page=f"{FOLDER}/report/index.html",
        best=BEST_FILE,
    output:
        f"{FOLDER}/tracking.json",
    log:
        f"{FOLDER}/logs/log_tracking.log",
    benchmark:
        f"{FOLDER}/benchmarks/log_tracking.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.experiment, parent=True),
        experiment=EXPERIMENT.report_file.stem,
        version=TRACKING_VERSION,
        server=server(),
    shell:
        "nemesis report track {input.experiment:q} {params.folder}/collected {params.folder}/tables {params.folder}/figures"
        " {params.folder}/notebooks {params.folder}/report {output:q} 2>&1 | tee {log:q}"
