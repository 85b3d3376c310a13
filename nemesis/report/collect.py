"""Gather what the jobs measured into tidy tables, from which everything that is printed follows.

runs.parquet          one row per run and part that asks for it: run, part, label, method, seed, identity_json and the
                      identity flattened
rows.parquet          every measured number (nemesis.evaluation.rows)
predictions.parquet   what probes and fine-tuned networks predicted for every superpatch, with the run; a row group per run
peeking.parquet       the same of the released head, whose epoch is chosen on test patients, too (nemesis.evaluation.peeking):
                      neither its predictions nor its rows are in the two files above, so that nothing else is made of them
segmentations.parquet   Dice and surface distances of every organ and scan by fine-tuned networks (nemesis.evaluation.finetune),
                      with the run
reconstructions.parquet   how well every superpatch was reconstructed, with the run; a row group per run
curves.parquet        run, step, monitor, value: the training curves
timings.parquet       run, stage, name, value, text: wall-clock and memory, which no table but that of cost ever sees
audit.parquet         pairs of scans that are one, or of one patient (nemesis.data.audit): pools, first, second, why, score
trials.parquet        of an adaptive sweep alone: its trials, as nemesis.sweep.search left them
experiment.json       the specification of all these: plans of other configurations may lie beside them in the experiment's
                      folder
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.errors import Fault, NemesisError
from nemesis.evaluation import RELEASED_HEAD, RELEASED_HEAD_PEEKED
from nemesis.files import digest, replacing, write_bytes, write_parquet, write_text

if TYPE_CHECKING:
    import pyarrow as pa

    from nemesis.runs import Part

REFERENCE_METHOD = "nemesis"
JUDGED = ("rows.parquet", "predictions.parquet", "reconstructions.parquet", "timing.json")
TUNED = ("rows.parquet", "predictions.parquet", "segmentations.parquet", "timing.json")
SPECIFICATION = "experiment.json"
RELEASED_HEADS = (RELEASED_HEAD, RELEASED_HEAD_PEEKED)


def collect(spec: Mapping[str, Any], out: Path) -> None:
    """Job: the files above, in ``out``; the same inputs give the same bytes (timings apart).

    Args:
        spec: what every job of the report takes:
            ``experiment`` (name); ``runs``: a list, in the order of the configuration, of mappings with ``run`` (id),
            ``part`` (methods, sweep or ablations: what asks for it), ``label`` (as printed), ``method`` (registered name),
            ``trained_on`` (data sets whose scans its published weights saw; None: it has none), ``learns_labels`` (it was
            pretrained on label maps), ``seed``, ``evaluation``
            (folder with rows.parquet, predictions.parquet, reconstructions.parquet, timing.json and reconstruction.npz) and
            ``finetune`` (arm → folder with rows.parquet, predictions.parquet, segmentations.parquet and timing.json; empty
            where nothing is fine-tuned), ``folder`` (run directory with run.json, checkpoint.safetensors, timing.json and perhaps
            curve.jsonl), of the sweep ``embed_dim`` and ``mask_ratio``, of an ablation its ``group``;
            ``config`` (the resolved configuration as a mapping, shown to readers); ``config_hash``; ``versions`` (name
            → version); ``datasets`` (names of the evaluated datasets); ``data``: a list of mappings with ``dataset``, ``pool``,
            ``patients``, ``scans`` (numbers) and ``kinds`` (of labels → number of scans); ``pools`` (``pretraining`` and
            ``evaluation``: a file each); ``audit`` (file); ``transductive`` (number of evaluation patients that were pretrained
            on, too); ``lpips`` (``network``, and the ``sha256`` of its weights, or None: it is not measured); ``bootstrap``
            (resamples); ``seed`` (of the bootstrap); of an adaptive sweep ``search``, the folder of its trials and its best run.

    Raises:
        NemesisError: files that are missing, all at once.
    """
    import pyarrow as pa

    _require(spec)
    out.mkdir(parents=True, exist_ok=True)
    (out / SPECIFICATION).unlink(missing_ok=True)  # of no use to what is replaced now
    evaluations = _evaluations(spec)
    write_parquet(out / "runs.parquet", pa.Table.from_pylist(_runs(spec)))
    tables = [_read(folder / "rows.parquet") for folders in evaluations.values() for folder in folders]
    write_parquet(out / "rows.parquet", _of_released_head(pa.concat_tables(tables, promote_options="permissive"), False))
    first = {run: folders[:1] for run, folders in evaluations.items()}
    _merge(evaluations, "predictions.parquet", out / "predictions.parquet", lambda table: _of_released_head(table, False))
    _merge(first, "predictions.parquet", out / "peeking.parquet", lambda table: _of_released_head(table, True))
    _merge(first, "reconstructions.parquet", out / "reconstructions.parquet")
    tuned = {run: folders[1:] for run, folders in evaluations.items()}
    _merge(tuned, "segmentations.parquet", out / "segmentations.parquet")
    curves = pa.schema([("run", pa.string()), ("step", pa.int64()), ("monitor", pa.string()), ("value", pa.float64())])
    write_parquet(out / "curves.parquet", pa.Table.from_pylist(list(_curves(spec)), schema=curves))
    timings = pa.schema(
        [(name, pa.string()) for name in ("run", "stage", "name")] + [("value", pa.float64()), ("text", pa.string())]
    )
    write_parquet(out / "timings.parquet", pa.Table.from_pylist(list(_timings(spec)), schema=timings))
    write_parquet(out / "audit.parquet", _audit(Path(spec["audit"])))
    if "search" in spec:
        write_bytes(out / "trials.parquet", (Path(spec["search"]) / "trials.parquet").read_bytes())
    write_text(out / SPECIFICATION, json.dumps(spec, indent=1, ensure_ascii=False) + "\n")


def collected_spec(collected: Path) -> dict[str, Any]:
    """The specification of what ``collect`` wrote into this folder.

    Raises:
        NemesisError: it wrote nothing, or was not done.
    """
    path = collected / SPECIFICATION
    if not path.is_file():
        raise NemesisError(Fault(str(collected), "holds no finished experiment", "Run the workflow with its configuration."))
    return dict(json.loads(path.read_text(encoding="utf-8")))


def as_collected(spec: Mapping[str, Any], collected: Path) -> dict[str, Any]:
    """The specification, if it is the one of what lies collected in this folder.

    Raises:
        NemesisError: the folder holds what another configuration of the experiment measured, or nothing.
    """
    found = collected_spec(collected)
    if digest(found) != digest(spec):
        theirs, ours = found["config_hash"], spec["config_hash"]
        what = "holds the results of the same configuration with other data, versions or runs"
        if theirs != ours:
            what = f"holds the results of configuration {theirs}, not of {ours}"
        remedy = "Run the workflow with the configuration you want: what is measured already is not measured again."
        raise NemesisError(Fault(str(collected), what, remedy))
    return found


def with_best(spec: Mapping[str, Any], root: Path = Path()) -> dict[str, Any]:
    """The specification with the run that an adaptive sweep found best: part of the sweep, though no plan could know it.

    Args:
        spec: see :func:`collect`.
        root: where its relative paths start.

    Raises:
        NemesisError: the sweep has not ended.
    """
    if "search" not in spec:
        return dict(spec)
    path = root / spec["search"] / "best.json"
    if not path.is_file():
        raise NemesisError(Fault(str(path), "does not exist", "Run the workflow again: it repeats the job that makes it"))
    best = json.loads(path.read_text(encoding="utf-8"))
    for entry in spec["runs"]:
        if entry["run"] == best["run"]:  # another part asks for it too, and judges it by more
            best["evaluation"] = entry["evaluation"]
    return {**spec, "runs": [*spec["runs"], best]}


def of_part(spec: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """The specification with the runs of one part alone: methods, sweep or ablations."""
    return {**spec, "runs": [entry for entry in spec["runs"] if entry["part"] == part]}


def labels_in_order(spec: Mapping[str, Any]) -> list[str]:
    """The labels of the experiment, in the order of the configuration."""
    return list(dict.fromkeys(entry["label"] for entry in spec["runs"]))


def reference_label(spec: Mapping[str, Any]) -> str | None:
    """The row that the others are compared with: the first label of the method NEMESIS, or None."""
    return next((entry["label"] for entry in spec["runs"] if entry["method"] == REFERENCE_METHOD), None)


def first_seed(spec: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """The entry of a label's first seed: the one that figures show."""
    return next(entry for entry in spec["runs"] if entry["label"] == label)


def tuned_folders(entry: Mapping[str, Any]) -> dict[str, str]:
    """Arm → folder of what was fine-tuned of a run, as far as this part asks for it."""
    return dict(entry.get("finetune", {}))


def _require(spec: Mapping[str, Any]) -> None:
    wanted = [Path(e["evaluation"]) / name for e in spec["runs"] for name in JUDGED]
    wanted += [Path(tuned) / name for e in spec["runs"] for tuned in tuned_folders(e).values() for name in TUNED]
    wanted += [Path(e["folder"]) / "run.json" for e in spec["runs"]] + [Path(spec["audit"])]
    faults = [
        Fault(str(path), "does not exist", "Run the workflow again: it repeats the job that makes it")
        for path in dict.fromkeys(wanted)
        if not path.is_file()
    ]
    if faults:
        raise NemesisError(faults)


def _audit(path: Path) -> pa.Table:
    import pyarrow as pa

    text = pa.string()
    columns = {"pools": text, "first": text, "second": text, "why": pa.list_(text), "score": pa.float64()}
    return pa.Table.from_pylist(json.loads(path.read_text(encoding="utf-8"))["pairs"], schema=pa.schema(list(columns.items())))


def _evaluations(spec: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Run → the folder of its evaluation, then those of what was fine-tuned of it, whichever part asks for them."""
    found = {entry["run"]: [Path(entry["evaluation"])] for entry in spec["runs"]}
    for entry in spec["runs"]:
        found[entry["run"]] += [path for name in tuned_folders(entry).values() if (path := Path(name)) not in found[entry["run"]]]
    return found


def _runs(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in spec["runs"]:
        identity = json.loads((Path(entry["folder"]) / "run.json").read_text(encoding="utf-8"))
        row = {name: entry.get(name) for name in ("run", "part", "label", "method", "seed")}
        row["identity_json"] = json.dumps(identity, sort_keys=True)
        rows.append(row | flatten(identity, "identity"))
    # Arrow takes the columns from the first row, but methods have different settings.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def flatten(value: Any, prefix: str) -> dict[str, str]:
    """Nested mappings as ``prefix.key.key`` → text; lists as JSON."""
    if isinstance(value, Mapping):
        return {name: text for key in sorted(value) for name, text in flatten(value[key], f"{prefix}.{key}").items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value)}


def _read(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path).replace_schema_metadata(None)


def _of_released_head(table: pa.Table, wanted: bool) -> pa.Table:
    """Rows or predictions of the released head alone, or all others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    heads = pc.fill_null(pc.is_in(table["protocol"], pa.array(RELEASED_HEADS)), False)
    return table.filter(heads if wanted else pc.invert(heads))


def _merge(
    evaluations: Mapping[str, Sequence[Path]], name: str, out: Path, of: Callable[[pa.Table], pa.Table] = lambda table: table
) -> None:
    """What ``of`` takes of the files of this name. One run in memory at a time: a real experiment has millions of predictions.
    Without any folder there is an empty file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    with replacing(out) as temporary:
        for run, folders in evaluations.items():
            if not folders:
                continue
            table = of(pa.concat_tables([_plain(_read(folder / name)) for folder in folders]))
            table = table.add_column(0, "run", pa.array([run] * len(table), pa.string()))
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema, compression="zstd", use_dictionary=True)
            writer.write_table(table.cast(writer.schema), row_group_size=max(1, len(table)))
        if writer is None:
            pq.write_table(pa.schema([("run", pa.string())]).empty_table(), temporary)
        else:
            writer.close()


def _plain(table: pa.Table) -> pa.Table:
    """Without the run, which is told anew, and with words as plain text."""
    import pyarrow as pa

    if "run" in table.column_names:
        table = table.drop_columns("run")
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) or pa.types.is_large_string(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.string()))
    return table


def _curves(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for run, folder in {e["run"]: Path(e["folder"]) for e in spec["runs"]}.items():
        path = folder / "curve.jsonl"
        if not path.exists():  # a network that stays as built has no curve
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            point = json.loads(line)
            step = point.pop("step")
            yield from ({"run": run, "step": step, "monitor": name, "value": float(value)} for name, value in point.items())


def _timings(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    stages = {
        (e["run"], stage): Path(e[key])
        for e in spec["runs"]
        for stage, key in (("pretrain", "folder"), ("evaluate", "evaluation"))
    }
    stages |= {(e["run"], f"finetune/{arm}"): Path(path) for e in spec["runs"] for arm, path in tuned_folders(e).items()}
    for (run, stage), folder in stages.items():
        path = folder / "timing.json"
        if not path.exists():
            continue
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            number = float(value) if isinstance(value, (int, float)) else None
            yield {
                "run": run,
                "stage": stage,
                "name": name,
                "value": number,
                "text": None if number is not None else json.dumps(value),
            }
