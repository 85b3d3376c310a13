"""A finished experiment as the notebooks see it: tables as data frames, figures as pictures, the study of the sweep.

Everything is read from ``results/<experiment>/``, nothing is computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.errors import Fault, NemesisError
from nemesis.report.collect import as_collected, collected_spec, with_best

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image
    from matplotlib.figure import Figure
    from optuna import Study

VARIABLE = "NEMESIS_EXPERIMENT"
DEMO = "results/demo"


@dataclass(frozen=True)
class Results:
    """An experiment's folder, and the specification that the jobs of its report took."""

    folder: Path
    spec: dict[str, Any]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(self.spec["versions"].items()))
        return f"{self.spec['experiment']}: configuration {self.spec['config_hash']}; versions: {versions}"

    def path(self, named: str) -> Path:
        """A path of the specification; relative ones start where the folder ``results`` lies."""
        return self.folder.parents[1] / named

    def table(self, name: str) -> pd.DataFrame:
        """A printed table, unrounded; see ``nemesis.report.TABLES`` for the names."""
        import pandas as pd

        return pd.read_csv(_existing(self.folder / "tables" / f"{name}.csv"))

    def collected(self, name: str) -> pd.DataFrame:
        """What :mod:`nemesis.report.collect` gathered; see ``nemesis.report.COLLECTED`` for the names."""
        import pandas as pd

        return pd.read_parquet(_existing(self.folder / "collected" / f"{name}.parquet"))

    def figure(self, name: str) -> Image:
        """A figure as the report shows it; see ``nemesis.report.FIGURES`` for the names."""
        path = _existing(self.folder / "figures" / f"{name}.png")
        return _shown(path.read_bytes(), name.replace("_", " "))

    def study(self) -> Study | None:
        """The sweep as an Optuna study: that of the grid, or of the search in which the best run was found; None without a sweep.

        Raises:
            NemesisError: its file was deleted.
        """
        section = self.spec["config"].get("sweep")
        if section is None:
            return None
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in a notebook, progress bars ask for widgets
            import optuna

        folder = self.folder / "sweep"
        path = folder / "study.db"
        if section["search"] is not None:
            best = _existing(folder / "best.json")
            path = folder / json.loads(best.read_text(encoding="utf-8"))["study"]
            if not path.is_file():
                remedy = f"Delete {best} and run the workflow again: it repeats the search, and trains no run a second time."
                raise NemesisError(Fault(str(path), "does not exist", remedy))
        _existing(path)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # a warning tells the time: no two pages would be the same
        return optuna.load_study(study_name=None, storage=f"sqlite:///{path}")

    def study_plots(self) -> list[Image]:
        """What Optuna draws of the study: every trial's value in turn and while it was trained, then the value by width, by
        ratio and by both; none without a sweep, or where no trial has a value.
        """
        study = self.study()
        trials = [] if study is None else study.get_trials(deepcopy=False)
        if study is None or all(trial.value is None for trial in trials):
            return []
        import warnings

        from matplotlib import pyplot
        from optuna.visualization import matplotlib as plots

        from nemesis.report.figures.style import defaults

        drawn: dict[str, Callable[[Study], Any]] = {"optimization history": plots.plot_optimization_history}
        if any(trial.intermediate_values for trial in trials):
            drawn["intermediate values"] = plots.plot_intermediate_values
        drawn |= {"slice": plots.plot_slice, "contour": plots.plot_contour}
        pictures = []
        with defaults(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these plots are "experimental"
            for name, plot in drawn.items():
                plot(study)
                pictures.append(picture(pyplot.gcf(), f"Optuna's {name}"))
                pyplot.close()
        return pictures


def open_results(where: str | Path | None = None) -> Results:
    """The experiment that ``where`` names or, without it, the environment variable ``NEMESIS_EXPERIMENT``, else the demo.

    Args:
        where: folder of the experiment, with the configuration that was collected last, whatever has been planned since; or one
            of the ``experiment-….json`` in it, with no other. A relative path is looked for in the working folder and in
            those above it, so that notebooks find it wherever they were started.

    Raises:
        NemesisError: there is no such experiment, it is not finished, or the folder holds another configuration's results.
    """
    wanted = Path(where or os.environ.get(VARIABLE) or DEMO)
    here = Path.cwd()
    found = next((base / wanted for base in (here, *here.parents) if (base / wanted).exists()), None)
    if found is None:
        remedy = f"Run the workflow first, or name the folder of another experiment in the variable {VARIABLE}."
        raise NemesisError(Fault(str(wanted), f"does not exist in {here} nor above it", remedy))
    folder = found.parent if found.is_file() else found
    if found.is_dir():
        return Results(folder, collected_spec(folder / "collected"))
    asked = with_best(json.loads(found.read_text(encoding="utf-8")), folder.parents[1])
    return Results(folder, as_collected(asked, folder / "collected"))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NemesisError(Fault(str(path), "does not exist", "Run the workflow again: it repeats the job that makes it."))
    return path


def picture(figure: Figure, what: str) -> Image:
    """A Matplotlib figure without blank margins, described by ``what``; the same bytes from the same numbers."""
    import io

    from nemesis.report.figures.style import DPI

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return _shown(buffer.getvalue(), what)


def _shown(png: bytes, what: str) -> Image:
    from IPython.display import Image

    from nemesis.report.page import shown_width

    return Image(png, width=shown_width(png), alt=what)
