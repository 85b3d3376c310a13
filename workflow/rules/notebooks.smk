"""What was measured → executed notebooks, with their text."""

from nemesis.report import NOTEBOOKS

NOTEBOOK_FILES = expand(f"{FOLDER}/notebooks/{{name}}.html", name=NOTEBOOKS)


rule run_notebook:
    input:
        experiment=EXPERIMENT.report_file,
        notebook="notebooks/{notebook}.ipynb",
        index=EXPERIMENT.index,
        collected=COLLECTED_FILES,
        tables=TABLE_FILES,
        figures=FIGURE_FILES,
        study=GRID_FILES + BEST_FILE,
    output:
        report(
            f"{FOLDER}/notebooks/{{notebook}}.html",
            caption="../report/notebooks.rst",
            category="Notebooks",
        ),
    log:
        f"{FOLDER}/logs/run_notebook/{{notebook}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/run_notebook/{{notebook}}.tsv"
    conda:
        "../../environment.yml"
    params:
        experiment=EXPERIMENT.report_file.stem,
        version=REPORT_VERSION,
    shell:
        "nemesis report notebook {input.experiment:q} {input.notebook:q} {output:q} 2>&1 | tee {log:q}"
