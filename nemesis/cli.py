"""``nemesis <verb>``: what the workflow's expensive rules call, and what a person types.

A verb that computes takes its specification as JSON, or as the path of a JSON file (each run's folder keeps its own as
``run.json``). Imports of torch and its kin happen inside the verbs that need them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from nemesis.errors import Fault, NemesisError
from nemesis.models.architecture import Size, triple

if TYPE_CHECKING:
    from nemesis.models.released import Told

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n\n")[0])
data_app = typer.Typer(no_args_is_help=True, help="Raw scans: get them, check them, ingest them.")
report_app = typer.Typer(no_args_is_help=True, help="Tables, figures, the page, MLflow: from what the jobs measured.")
app.add_typer(data_app, name="data")
sweep_app = typer.Typer(no_args_is_help=True, help="Embedding width × mask ratio: search it, or show a grid to Optuna.")
app.add_typer(report_app, name="report")
app.add_typer(sweep_app, name="sweep")

Spec = Annotated[str, typer.Argument(help="JSON text, or a JSON file", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
LoaderWorkers = Annotated[int, typer.Option(help="Processes that cut crops")]
StateEvery = Annotated[int, typer.Option(help="Steps between saved states")]
Weights = Annotated[
    Path, typer.Option(help="Released checkpoint (.pt), run folder (results/runs/<run>), or folder or hub name of `export`")
]
Superpatch = Annotated[
    str | None, typer.Option(help="Edge in voxels, or three as D,H,W, where a released checkpoint's is not 128")
]
PrecisionOption = Annotated[
    Literal["32-true", "bf16-mixed", "auto"], typer.Option(help="auto is bf16 where the device computes it")
]
Patch = Annotated[str | None, typer.Option(help="The same of its patches, where its tensors do not tell them")]
Heads = Annotated[int | None, typer.Option(help="Attention heads, where a released checkpoint's are not 8")]
DecoderHeads = Annotated[int | None, typer.Option(help="The same of its decoder")]
MaskRatio = Annotated[float | None, typer.Option(help="On either axis, where neither its file nor its name says it")]
ConfigFiles = Annotated[list[Path] | None, typer.Option("--configfile", help="Configuration; default config/config.yaml")]
Overrides = Annotated[list[str] | None, typer.Option("--config", help="A key to override, as key=value")]


def main() -> None:
    """Entry point: faults are printed as sentences, everything else keeps its traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("nemesis").setLevel(logging.INFO)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # says the precision, which timing.json holds
    try:
        app()
    except NemesisError as error:
        print(f"nemesis: {error}", file=sys.stderr)
        sys.exit(1)


def read_spec(text: str) -> dict[str, Any]:
    """The specification in ``text``, which is JSON or the path of a JSON file."""
    is_file = not text.lstrip().startswith("{")
    try:
        return dict(json.loads(Path(text).read_text(encoding="utf-8") if is_file else text))
    except (OSError, ValueError) as error:
        raise NemesisError(Fault(text[:200], f"is neither JSON nor a readable JSON file ({error})", "Pass a run.json")) from None


@app.command()
def plan(
    configfile: ConfigFiles = None,
    config: Overrides = None,
    cores: Annotated[int, typer.Option(help="Cores to plan for")] = os.cpu_count() or 1,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="TFLOP/s that a GPU sustains, for jobs that nothing recorded covers")
    ] = 20.0,
    record: Annotated[bool, typer.Option("--record", help="Keep what this finished experiment took, for later plans")] = False,
) -> None:
    """What will run, about how long, and how much disk and memory it takes; nothing is computed, and scans may be missing yet."""
    from nemesis import planning

    paths, overrides = configfile or [Path("config/config.yaml")], parse_overrides(config or [])
    if record:
        planning.record(paths, overrides)
    else:
        planning.print_plan(paths, overrides, cores, tflops)


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Show one method's card and keys")] = None) -> None:
    """The methods that can be named in a configuration."""
    from nemesis.method import find
    from nemesis.method import methods as known
    from nemesis.schema import settings_table

    if name is None:
        for each, method in known().items():
            print(f"{each:16} {method.card.title}: {method.card.paper}")
        return
    method = find(name)
    for field, value in method.card.model_dump().items():
        print(f"{field:16} {value}")
    print(f"\n{settings_table(method.settings_type)}", end="")


@app.command("check-method")
def check_method(name: Annotated[str, typer.Argument(help="Registered name of the method")]) -> None:
    """Whether a method keeps the contract: what is broken, and what to do about it."""
    from nemesis.contract import run_checks, small_method

    faults = []
    for promise, broken in run_checks(small_method(name)):
        print(f"{'ok    ' if broken is None else 'BROKEN'} {promise.replace('_', ' ')}", flush=True)
        if broken is not None:
            faults.append(Fault(f"{name}: {promise.replace('_', ' ')}", broken, "Mend it and check again."))
    if faults:
        raise NemesisError(faults)


@app.command()
def schema(folder: Path = Path("config")) -> None:
    """Write the JSON schema and the key table of the configuration."""
    from nemesis.schema import write_schema

    write_schema(folder)


@data_app.command()
def ingest(
    spec: Spec,
    workers: Annotated[int, typer.Option(help="Scans read at the same time, each by a process", min=1)] = 1,
) -> None:
    """Read, check and store the scans of a manifest, or their views; what is wrong with a scan becomes its verdict."""
    from nemesis.config import Preparation
    from nemesis.data.ingest import ingest as run

    s = read_spec(spec)
    preparation = Preparation.model_validate(s["preparation"])
    root = None if s["root"] is None else Path(s["root"])
    places = (Path(s["manifest"]), root, Path(s["volumes"]), Path(s["verdicts"]))
    view = None if s["view"] is None else tuple(s["view"])
    run(*places, preparation, s["superpatch"], workers, s["largest_superpatch"], view)


@data_app.command()
def gate(
    verdicts: list[Path],
    out: Annotated[Path, typer.Option(help="Index to write")],
    accept: Annotated[list[str] | None, typer.Option(help="Case (dataset/case) whose labels may contradict anatomy")] = None,
) -> None:
    """The gate: every fault of every scan at once, or the index of all."""
    from nemesis.data.gate import write_index as run

    run(verdicts, out, accept or [])


@data_app.command()
def audit(spec: Spec) -> None:
    """What the pretraining and the evaluation pool share under different names: nothing, or every pair at once."""
    from nemesis.data.audit import audit as run

    run(read_spec(spec))


@data_app.command()
def quality(spec: Spec, verdicts: list[Path], out: Annotated[Path, typer.Option(help="HTML file to write")]) -> None:
    """The page that shows what was read of the raw scans, and what was refused and why."""
    from nemesis.report.quality import write_quality as run

    run(read_spec(spec), verdicts, out)


@data_app.command()
def cards(name: Annotated[str | None, typer.Argument(help="Show one card")] = None) -> None:
    """The published sets that a configuration can name: what they are, and how to get them."""
    from nemesis.data.cards import cards as known
    from nemesis.data.cards import find_card
    from nemesis.data.check import describe

    if name is not None:
        print("\n".join(describe(find_card(name, "nemesis data cards"))))
        return
    for each, card in known().items():
        print(f"{each:18} {card.title} ({card.licence})")


@data_app.command()
def check(
    name: Annotated[str, typer.Argument(help="A card (`nemesis data cards`), or files, nnunet, dicom for a folder of your own")],
    root: Annotated[Path, typer.Argument(help="Folder of the scans")],
    scans: Annotated[bool, typer.Option("--scans", help="Read every scan as ingestion would, and name all it refuses")] = False,
    workers: Annotated[int, typer.Option(help="Scans read at the same time")] = os.cpu_count() or 1,
    config: Annotated[list[str] | None, typer.Option("--config", help="A key of the dataset's section, as key=value")] = None,
) -> None:
    """What a folder holds against what its set should hold, and every fault of it."""
    from nemesis.data.check import check as run

    lines, faults = run(name, root, parse_overrides(config or []), Path("results/data"), workers if scans else None)
    print("\n".join(lines))
    if faults:
        raise NemesisError(faults)


@data_app.command()
def fetch(
    what: Annotated[Literal["sample"], typer.Argument(help="sample: three real scans with organ labels, 38 MB")],
    to: Annotated[Path | None, typer.Option(help="Folder to put them into; default: where config/real_ct.yaml looks")] = None,
) -> None:
    """Download real CT to try everything with."""
    from nemesis.data.fetch import fetch_sample
    from nemesis.datasets import SAMPLE

    folder = to or SAMPLE
    print(f"{folder}: {'fetched' if fetch_sample(folder) else 'is there already'}")


@app.command()
def pretrain(
    identity: Spec,
    folder: Annotated[Path, typer.Option(help="Run folder, results/runs/<run>")],
    pool: Annotated[Path, typer.Option(help="Pretraining pool")],
    index: Annotated[Path, typer.Option(help="Table of the checked scans")],
    device: Device = "auto",
    workers: LoaderWorkers = 0,
    state_every: StateEvery = 100,
    track: Annotated[str | None, typer.Option(help="MLflow experiment that shows the curve while it grows")] = None,
    label: Annotated[str | None, typer.Option(help="What the run is called there")] = None,
    weights: Annotated[str, typer.Option(help="File of the published weights that it starts from")] = "",
) -> None:
    """Train one run, or go on where it was interrupted; IDENTITY is what its weights depend on."""
    from nemesis.training.pretrain import pretrain as run

    run(
        read_spec(identity),
        folder,
        pool,
        index,
        device,
        workers,
        state_every,
        track=track,
        label=label,
        weights=Path(weights) if weights else None,
    )


@app.command()
def evaluate(spec: Spec, device: Device = "auto") -> None:
    """Encode, probe and reconstruct with one trained run."""
    from nemesis.evaluation.evaluate import evaluate as run

    run(read_spec(spec), device)


@app.command()
def finetune(
    spec: Spec,
    index: Annotated[Path, typer.Option(help="Table of the checked scans")],
    view: Annotated[Path, typer.Option(help="The same at the voxel size that the method sees")],
    device: Device = "auto",
) -> None:
    """Fine-tune one run's network in one arm, or go on where it was interrupted, and judge it."""
    from nemesis.evaluation.finetune import finetune as run

    run(read_spec(spec), index, view, device)


@app.command()
def cost(
    count: Annotated[bool, typer.Option("--count", help="Run PyTorch's and fvcore's counters beside the formula")] = False,
) -> None:
    """What the NEMESIS presets cost in multiply–accumulates, beside the paper's figure: a Markdown table."""
    from nemesis.evaluation.presets import cost_table
    from nemesis.report.tables import load_published

    published = {row["model"]: row["gflops"] for row in load_published()["figure5_efficiency"]}
    print(cost_table(published["NEMESIS"], published["VAE"], count))


@app.command()
def embed(
    scan: Annotated[Path, typer.Argument(help="CT scan: NIfTI, NRRD, MetaImage, or a folder of DICOM", show_default=False)],
    weights: Weights,
    out: Annotated[Path, typer.Option(help="vectors.parquet or vectors.npz")],
    device: Device = "auto",
    precision: PrecisionOption = "32-true",
    superpatch: Superpatch = None,
    patch: Patch = None,
    heads: Heads = None,
    decoder_heads: DecoderHeads = None,
    mask_ratio: MaskRatio = None,
) -> None:
    """A vector per superpatch of a scan, with its position in millimetres."""
    from nemesis.pretrained import embed as run

    n = run(scan, weights, out, device, precision, **_told(superpatch, patch, heads, decoder_heads, mask_ratio))
    print(f"{n} superpatches → {out}")


@app.command()
def reconstruct(
    scan: Annotated[Path, typer.Argument(help="CT scan: NIfTI, NRRD, MetaImage, or a folder of DICOM", show_default=False)],
    weights: Weights,
    out: Annotated[Path, typer.Option(help="reconstruction.nii.gz")],
    device: Device = "auto",
    precision: PrecisionOption = "32-true",
    masked: Annotated[bool, typer.Option(help="Hide what the pretext hides; or show the network everything")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the mask")] = 0,
    superpatch: Superpatch = None,
    patch: Patch = None,
    heads: Heads = None,
    decoder_heads: DecoderHeads = None,
    mask_ratio: MaskRatio = None,
) -> None:
    """A scan as the network reconstructs it, stitched, in HU, with the scan's affine."""
    from nemesis.pretrained import reconstruct as run

    run(scan, weights, out, device, precision, masked, seed, **_told(superpatch, patch, heads, decoder_heads, mask_ratio))
    print(out)


@app.command()
def export(
    weights: Weights,
    out: Annotated[Path, typer.Option(help="A folder (safetensors and a JSON card), or a .pt file in the released layout")],
    superpatch: Superpatch = None,
    patch: Patch = None,
    heads: Heads = None,
    decoder_heads: DecoderHeads = None,
    mask_ratio: MaskRatio = None,
) -> None:
    """A NEMESIS network for use elsewhere."""
    from nemesis.files import check_writable
    from nemesis.models.released import export_released
    from nemesis.pretrained import load

    released = out.suffix in (".pt", ".pth")
    check_writable(out if released else out / "card.json")
    model = load(weights, **_told(superpatch, patch, heads, decoder_heads, mask_ratio))
    if released:
        export_released(model, out)
    else:
        model.save_pretrained(out, {"source": str(weights)})
    print(out)


def _told(
    superpatch: str | None, patch: str | None, heads: int | None, decoder_heads: int | None, mask_ratio: float | None
) -> Told:
    return {
        "superpatch_size": _size("--superpatch", superpatch),
        "patch_size": _size("--patch", patch),
        "num_heads": heads,
        "decoder_num_heads": decoder_heads,
        "spatial_mask_ratio": mask_ratio,
        "depth_mask_ratio": mask_ratio,
    }


def _size(option: str, text: str | None) -> Size | None:
    if text is None:
        return None
    numbers = [int(n) if n.strip().isdecimal() else 0 for n in text.split(",")]
    try:
        return triple(numbers * 3 if len(numbers) == 1 else numbers)
    except ValueError:
        raise NemesisError(Fault(option, f"'{text}' is no size", "Give one number of voxels, or three as D,H,W.")) from None


@sweep_app.command()
def search(
    spec: Spec,
    processes: Annotated[int, typer.Option(help="Trials at the same time, each a process")] = 1,
    device: Device = "auto",
    workers: LoaderWorkers = 0,
    state_every: StateEvery = 100,
) -> None:
    """Run an adaptive sweep to its end, or go on with it, and evaluate its best run."""
    from nemesis.sweep.search import search_sweep as run

    run(read_spec(spec), processes, device, workers, state_every)


@sweep_app.command()
def work(spec: Spec, device: Device = "auto", workers: LoaderWorkers = 0, state_every: StateEvery = 100) -> None:
    """Take trials of an adaptive sweep until all have ended: one of the processes that `search` starts."""
    from nemesis.sweep.search import Search

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: its trial is left to others and not held against it
    Search(read_spec(spec), device, workers, state_every).work()


@sweep_app.command()
def study(spec: Spec, collected: Path, out: Path) -> None:
    """Rebuild the Optuna study of a grid from its rows."""
    from nemesis.sweep.study import rebuild_study as run

    run(read_report_spec(spec, collected), collected, out)


def read_report_spec(text: str, collected: Path | None = None) -> dict[str, Any]:
    """:func:`read_spec` for the jobs of the report, with what no plan could know; those that read what was ``collected`` take
    nothing else for it.
    """
    from nemesis.report.collect import as_collected, with_best

    spec = with_best(read_spec(text))
    return spec if collected is None else as_collected(spec, collected)


@report_app.command()
def collect(spec: Spec, out: Path) -> None:
    """Gather rows, predictions, curves and timings."""
    from nemesis.report.collect import collect as run

    run(read_report_spec(spec), out)


@report_app.command()
def tables(spec: Spec, collected: Path, out: Path) -> None:
    """Print the tables as CSV, Markdown, LaTeX and HTML."""
    from nemesis.report.tables import print_tables as run

    run(read_report_spec(spec, collected), collected, out)


@report_app.command()
def figures(spec: Spec, collected: Path, printed: Path, out: Path) -> None:
    """Draw the figures."""
    from nemesis.report.figures import draw_figures as run

    run(read_report_spec(spec, collected), collected, printed, out)


@report_app.command()
def page(spec: Spec, printed: Path, drawn: Path, out: Path) -> None:
    """Write the self-contained page."""
    from nemesis.report.page import write_page as run

    run(read_report_spec(spec), printed, drawn, out)


@report_app.command()
def notebook(
    experiment: Annotated[Path, typer.Argument(help="results/<experiment>, or an experiment-….json in it")],
    notebook: Annotated[Path, typer.Argument(help="notebooks/<name>.ipynb")],
    out: Annotated[Path, typer.Argument(help="HTML file to write")],
) -> None:
    """Execute a notebook on a finished experiment; text, code and results as one self-contained page."""
    from nemesis.report.notebooks import run_notebook as run

    run(experiment, notebook, out)


@report_app.command()
def track(spec: Spec, collected: Path, printed: Path, drawn: Path, notebooks: Path, page: Path, out: Path) -> None:
    """Replay everything into MLflow."""
    from nemesis.tracking.replay import log_tracking as run

    artifacts = {"tables": printed, "figures": drawn, "notebooks": notebooks, "page": page}
    run(read_report_spec(spec, collected), collected, artifacts, Path("results"), out)


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs, the values read as YAML."""
    faults = [Fault("--config", f"'{pair}' is not key=value", "Write key=value") for pair in pairs if "=" not in pair]
    if faults:
        raise NemesisError(faults)
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in pairs)}
