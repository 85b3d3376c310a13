"""One checkpoint → features, probes, reconstructions: rows, and the predictions they came from."""


rule evaluate_encoder:
    input:
        checkpoint="results/runs/{run}/checkpoint.safetensors",
        index=EXPERIMENT.index,
        view=lambda wc: EXPERIMENT.index_of(EXPERIMENT.run(wc.run)),
    output:
        rows=f"{FOLDER}/evaluation/{{run}}/rows.parquet",
        predictions=f"{FOLDER}/evaluation/{{run}}/predictions.parquet",
        reconstructions=f"{FOLDER}/evaluation/{{run}}/reconstructions.parquet",
        reconstruction=f"{FOLDER}/evaluation/{{run}}/reconstruction.npz",
        timing=f"{FOLDER}/evaluation/{{run}}/timing.json",
    log:
        f"{FOLDER}/logs/evaluate_encoder/{{run}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/evaluate_encoder/{{run}}.tsv"
    priority: lambda wc: priority(EXPERIMENT, "evaluate_encoder", wc.run, TIMINGS)
    conda:
        "../../environment.yml"
    threads: CONFIG.probe.threads
    resources:
        gpu=GPU,
        device=CONFIG.device,  # not in params: no verdict depends on it
    params:
        spec=lambda wc: as_json(EXPERIMENT.evaluate_spec(wc.run)),
    shell:
        "nemesis evaluate {params.spec:q} --device {resources.device} 2>&1 | tee {log:q}"
