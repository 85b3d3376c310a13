"""Pretraining pool → one checkpoint per run. A run's folder is shared by all experiments that ask for it."""

from nemesis.tracking.store import experiment_name, label_of

REPORTED = EXPERIMENT.report_spec()
TRAINED = {
    "checkpoint": "results/runs/{run}/checkpoint.safetensors",
    "run": "results/runs/{run}/run.json",
    "curve": "results/runs/{run}/curve.jsonl",
    "timing": "results/runs/{run}/timing.json",
}


rule pretrain_method:
    input:
        index=lambda wc: unless_done(
            "pretrain_method", TRAINED, wc, EXPERIMENT.index_of(EXPERIMENT.run(wc.run))
        ),
        maps=lambda wc: unless_done(
            "pretrain_method",
            TRAINED,
            wc,
            EXPERIMENT.index_of(EXPERIMENT.run(wc.run)).with_suffix(".maps"),
        ),
        pool=lambda wc: ancient(EXPERIMENT.pool_of(EXPERIMENT.run(wc.run))),
        # nothing is trained before the pools are known to share nothing
        audit=lambda wc: unless_done("pretrain_method", TRAINED, wc, EXPERIMENT.audit),
    output:
        **TRAINED,
    log:
        f"{FOLDER}/logs/pretrain_method/{{run}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/pretrain_method/{{run}}.tsv"
    priority: lambda wc: priority(EXPERIMENT, "pretrain_method", wc.run, TIMINGS)
    conda:
        "../../environment.yml"
    threads: lambda wc: EXPERIMENT.run(wc.run).threads
    resources:
        gpu=lambda wc: GPU * EXPERIMENT.run(wc.run).trains,
        # no number depends on these; as params, a change of them would repeat the training
        device=CONFIG.device,
        loader_workers=CONFIG.loader_workers,
        state_every=CONFIG.state_every,
        track=experiment_name(REPORTED),
        label=lambda wc: label_of(REPORTED, wc.run),
        weights=lambda wc: str(EXPERIMENT.run(wc.run).weights or ""),
    params:
        identity=lambda wc: as_json(EXPERIMENT.run(wc.run).identity),
    shell:
        "nemesis pretrain {params.identity:q} --folder results/runs/{wildcards.run}"
        " --pool {input.pool:q} --index {input.index:q} --device {resources.device}"
        " --workers {resources.loader_workers} --state-every {resources.state_every}"
        " --track {resources.track:q} --label {resources.label:q}"
        " --weights={resources.weights:q}"
        " 2>&1 | tee {log:q}"
