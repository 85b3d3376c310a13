"""Raw scans → store, verdicts, index; and the same for the views of methods with a voxel size of their own."""

QUALITY_PAGE = f"{FOLDER}/data/quality.html"


rule ingest_scans:
    input:
        manifest=lambda wc: SHARDS[wc.shard].manifest,
    output:
        verdicts=f"{FOLDER}/data/{{shard}}.verdicts.json",
        maps=f"{FOLDER}/data/{{shard}}.verdicts.maps",
    log:
        f"{FOLDER}/logs/ingest_scans/{{shard}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/ingest_scans/{{shard}}.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1
    params:
        spec=lambda wc: as_json(EXPERIMENT.ingest_spec(SHARDS[wc.shard])),
    shell:
        "nemesis data ingest {params.spec:q} --workers {threads} 2>&1 | tee {log:q}"


rule check_cohort:
    input:
        verdicts=expand(f"{FOLDER}/data/{{shard}}.verdicts.json", shard=SHARDS),
        maps=expand(f"{FOLDER}/data/{{shard}}.verdicts.maps", shard=SHARDS),
    output:
        index=f"{FOLDER}/data/index.parquet",
        maps=f"{FOLDER}/data/index.maps",
    log:
        f"{FOLDER}/logs/check_cohort.log",
    benchmark:
        f"{FOLDER}/benchmarks/check_cohort.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        shards=sorted(SHARDS),
        accept=expand("--accept={case}", case=sorted(CONFIG.accept)),
    shell:
        "nemesis data gate {input.verdicts:q} --out {output.index:q} {params.accept:q} 2>&1 | tee {log:q}"


rule write_quality:
    input:
        # not the index: the page is there when the gate refuses scans
        verdicts=expand(f"{FOLDER}/data/{{shard}}.verdicts.json", shard=SHARDS),
    output:
        report(QUALITY_PAGE, caption="../report/quality.rst", category="Data"),
    log:
        f"{FOLDER}/logs/write_quality.log",
    benchmark:
        f"{FOLDER}/benchmarks/write_quality.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=as_json(EXPERIMENT.quality_spec()),
    shell:
        "nemesis data quality {params.spec:q} {input.verdicts:q} --out {output:q} 2>&1 | tee {log:q}"


rule audit_pools:
    input:
        index=EXPERIMENT.index,
        pretraining=EXPERIMENT.pretraining_pool,
        evaluation=EXPERIMENT.evaluation_pool,
    output:
        EXPERIMENT.audit,
    log:
        f"{FOLDER}/logs/audit_pools.log",
    benchmark:
        f"{FOLDER}/benchmarks/audit_pools.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=as_json(EXPERIMENT.audit_spec()),
    shell:
        "nemesis data audit {params.spec:q} 2>&1 | tee {log:q}"


rule resample_scans:
    input:
        index=f"{FOLDER}/data/index.parquet",
        manifest=lambda wc: SHARDS[wc.shard].manifest,
    output:
        verdicts=f"{FOLDER}/data/{{shard}}{{view}}.verdicts.json",
        maps=f"{FOLDER}/data/{{shard}}{{view}}.verdicts.maps",
    log:
        f"{FOLDER}/logs/resample_scans/{{shard}}{{view}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/resample_scans/{{shard}}{{view}}.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1
    params:
        spec=lambda wc: as_json(
            EXPERIMENT.ingest_spec(SHARDS[wc.shard], VIEWS[wc.view])
        ),
    shell:
        "nemesis data ingest {params.spec:q} --workers {threads} 2>&1 | tee {log:q}"


rule check_views:
    input:
        verdicts=expand(
            f"{FOLDER}/data/{{shard}}{{{{view}}}}.verdicts.json", shard=SHARDS
        ),
        maps=expand(f"{FOLDER}/data/{{shard}}{{{{view}}}}.verdicts.maps", shard=SHARDS),
    output:
        index=f"{FOLDER}/data/index{{view}}.parquet",
        maps=f"{FOLDER}/data/index{{view}}.maps",
    log:
        f"{FOLDER}/logs/check_views/{{view}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/check_views/{{view}}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        shards=sorted(SHARDS),
    shell:
        "nemesis data gate {input.verdicts:q} --out {output.index:q} 2>&1 | tee {log:q}"
