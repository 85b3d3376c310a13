"""The sweep as an Optuna study: a grid's is rebuilt from the rows of its cells, an adaptive one is searched by a job of its own."""

from nemesis.sweep import VERSION as SWEEP_VERSION

SWEEP = str(EXPERIMENT.search_folder)
STUDY = f"{SWEEP}/study.db"
BEST = f"{SWEEP}/best.json"
FOUND = [
    f"{SWEEP}/trials.parquet",
    BEST,
    f"{SWEEP}/best/rows.parquet",
    f"{SWEEP}/best/predictions.parquet",
    f"{SWEEP}/best/reconstructions.parquet",
    f"{SWEEP}/best/reconstruction.npz",
    f"{SWEEP}/best/timing.json",
]
GRID_FILES = [STUDY] if CONFIG.sweep and not CONFIG.search else []
SEARCH_FILES = FOUND if CONFIG.search else []
BEST_FILE = [BEST] if CONFIG.search else []
DRAWN_OF_BEST = [BEST, f"{SWEEP}/best/reconstruction.npz"] if CONFIG.search else []


rule search_sweep:
    input:
        index=EXPERIMENT.index,
        maps=EXPERIMENT.index.with_suffix(".maps"),
        view=lambda wc: EXPERIMENT.search_index,
        # ancient, as in pretrain_method
        pool=ancient(EXPERIMENT.pretraining_pool),
        # what pretrain_method trains of the same runs is there before: a job that waits deletes its outputs when it starts,
        # though a trial may have written them meanwhile; ancient, as it does not matter when they were
        runs=ancient(
            expand(
                "results/runs/{run}/checkpoint.safetensors",
                run=EXPERIMENT.searched_runs,
            )
        ),
        audit=ancient(EXPERIMENT.audit),
    output:
        FOUND,
    log:
        EXPERIMENT.search_log,
    benchmark:
        f"{FOLDER}/benchmarks/search_sweep.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wc: EXPERIMENT.search_threads
    resources:
        # a GPU for each worker, or as many as Snakemake may hand out: the workers take turns
        gpu=lambda wc, threads: GPU * EXPERIMENT.search_processes(threads),
        # no number depends on these; as params, a change of them would repeat the job
        processes=lambda wc, threads: EXPERIMENT.search_processes(threads),
        device=CONFIG.device,
        loader_workers=CONFIG.loader_workers,
        state_every=CONFIG.state_every,
    params:
        spec=lambda wc: as_json(EXPERIMENT.search_spec()),
    shell:
        "nemesis sweep search {params.spec:q} --processes {resources.processes} --device {resources.device}"
        " --workers {resources.loader_workers} --state-every {resources.state_every}"
        " 2>&1 | tee {log:q}"


rule rebuild_study:
    input:
        experiment=EXPERIMENT.report_file,
        collected=expand(
            f"{FOLDER}/collected/{{name}}", name=["experiment.json", "rows.parquet"]
        ),
    output:
        STUDY,
    log:
        f"{FOLDER}/logs/rebuild_study.log",
    benchmark:
        f"{FOLDER}/benchmarks/rebuild_study.tsv"
    conda:
        "../../environment.yml"
    params:
        folder=subpath(input.experiment, parent=True),
        experiment=EXPERIMENT.report_file.stem,
        version=SWEEP_VERSION,
    shell:
        "nemesis sweep study {input.experiment:q} {params.folder}/collected {output:q} 2>&1 | tee {log:q}"
