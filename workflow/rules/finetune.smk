"""One checkpoint, or its random start → fine-tuned networks: rows, predictions and segmentations; state is kept beside them.

The folder is shared by all experiments that ask for the same fine-tuning.
"""

TUNED = {
    name: f"results/finetuned/{{tuning}}/{name}.parquet"
    for name in ("rows", "predictions", "segmentations")
} | {"timing": "results/finetuned/{tuning}/timing.json"}
TUNED_FILES = expand(
    [path for path in TUNED.values() if path.endswith(".parquet")],
    tuning=EXPERIMENT.tunings,
)


rule finetune_encoder:
    input:
        # a control starts from random weights: it waits for no training
        checkpoint=lambda wc: (
            unless_done("finetune_encoder", TUNED, wc, checkpoint)
            if (checkpoint := EXPERIMENT.finetune_spec(wc.tuning).get("checkpoint"))
            else []
        ),
        index=lambda wc: unless_done("finetune_encoder", TUNED, wc, EXPERIMENT.index),
        view=lambda wc: unless_done(
            "finetune_encoder",
            TUNED,
            wc,
            EXPERIMENT.index_of(EXPERIMENT.tunings[wc.tuning][0]),
        ),
    output:
        **TUNED,
    log:
        f"{FOLDER}/logs/finetune_encoder/{{tuning}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/finetune_encoder/{{tuning}}.tsv"
    priority: lambda wc: priority(EXPERIMENT, "finetune_encoder", wc.tuning, TIMINGS)
    conda:
        "../../environment.yml"
    threads: lambda wc: CONFIG.finetune.threads
    resources:
        gpu=GPU,
        device=CONFIG.device,  # not in params: no verdict depends on it
    params:
        spec=lambda wc: as_json(EXPERIMENT.finetune_spec(wc.tuning)),
    shell:
        "nemesis finetune {params.spec:q} --index {input.index:q} --view {input.view:q}"
        " --device {resources.device} 2>&1 | tee {log:q}"
