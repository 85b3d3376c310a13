"""One checkpoint, or its random start → fine-tuned networks: rows, predictions and segmentations; state is kept beside them."""

TUNINGS = list(EXPERIMENT.tunings)
TUNED = expand(
    f"{FOLDER}/finetune/{{tuning}}/{{name}}.parquet",
    tuning=TUNINGS,
    name=["rows", "predictions", "segmentations"],
)


rule finetune_encoder:
    input:
        # a control starts from random weights: it waits for no training
        checkpoint=lambda wc: (
            EXPERIMENT.finetune_spec(wc.tuning).get("checkpoint") or []
        ),
        index=EXPERIMENT.index,
        view=lambda wc: EXPERIMENT.index_of(EXPERIMENT.tunings[wc.tuning][0]),
    output:
        rows=f"{FOLDER}/finetune/{{tuning}}/rows.parquet",
        predictions=f"{FOLDER}/finetune/{{tuning}}/predictions.parquet",
        segmentations=f"{FOLDER}/finetune/{{tuning}}/segmentations.parquet",
        timing=f"{FOLDER}/finetune/{{tuning}}/timing.json",
    log:
        f"{FOLDER}/logs/finetune_encoder/{{tuning}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/finetune_encoder/{{tuning}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wc: CONFIG.finetune.threads
    resources:
        gpu=GPU,
        device=CONFIG.device,  # not in params: no verdict depends on it
    params:
        spec=lambda wc: as_json(EXPERIMENT.finetune_spec(wc.tuning)),
    shell:
        "nemesis finetune {params.spec:q} --device {resources.device} 2>&1 | tee {log:q}"
