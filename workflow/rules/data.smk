"""Raw scans → store, verdicts, index."""


rule ingest_scans:
    input:
        manifest=lambda wc: DATASETS[wc.dataset].manifest,
    output:
        verdicts=f"{FOLDER}/data/{{dataset}}.verdicts.json",
    log:
        f"{FOLDER}/logs/ingest_scans/{{dataset}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/ingest_scans/{{dataset}}.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1
    params:
        spec=lambda wc: as_json(EXPERIMENT.ingest_spec(DATASETS[wc.dataset])),
    shell:
        "nemesis data ingest {params.spec:q} --workers {threads} 2>&1 | tee {log:q}"


rule check_cohort:
    input:
        expand(f"{FOLDER}/data/{{dataset}}.verdicts.json", dataset=DATASETS),
    output:
        f"{FOLDER}/data/index.parquet",
    log:
        f"{FOLDER}/logs/check_cohort.log",
    benchmark:
        f"{FOLDER}/benchmarks/check_cohort.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        datasets=sorted(DATASETS),
    shell:
        "nemesis data check {input:q} --out {output:q} 2>&1 | tee {log:q}"
