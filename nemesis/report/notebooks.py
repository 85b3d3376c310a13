"""A notebook executed on a finished experiment, as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from nemesis.errors import Fault, NemesisError
from nemesis.files import write_text
from nemesis.report.page import environment
from nemesis.report.results import VARIABLE, open_results

if TYPE_CHECKING:
    from nbformat import NotebookNode

INLINE = "module://matplotlib_inline.backend_inline"


def run_notebook(experiment: Path, notebook: Path, out: Path) -> None:
    """Job: ``out`` (HTML) from a notebook, executed in a kernel of this Python whatever other kernels the user has.

    Args:
        experiment: what :func:`nemesis.report.results.open_results` opens inside the notebook.
        notebook: an .ipynb file; its working folder is its own.

    Raises:
        NemesisError: there is no such experiment, or a cell failed: with the cell and its traceback. Nothing is written.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert.filters import strip_ansi

    results = open_results(experiment)
    content = nbformat.read(notebook, as_version=4)
    with TemporaryDirectory() as private:
        # Sockets instead of ports, which kernels that start at the same time take from each other; no kernels, profiles or
        # start-up files of the user's.
        kernel = AsyncKernelManager(
            transport="ipc",
            connection_file=f"{private}/kernel.json",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        )
        place = {"metadata": {"path": str(notebook.parent)}}
        client = NotebookClient(content, km=kernel, kernel_name="python3", timeout=None, record_timing=False, resources=place)
        settings = {VARIABLE: str(experiment.absolute()), "IPYTHONDIR": private, "MPLBACKEND": INLINE}
        try:
            client.execute(env=os.environ | settings, cleanup_kc=True)
        except CellExecutionError as error:
            said = strip_ansi(str(error)).strip()
            raise NemesisError(Fault(str(notebook), "a cell failed", f"Mend it, or what it reads.\n{said}")) from None
    write_text(out, _page(content, results.spec["experiment"], notebook.stem))


def _page(content: NotebookNode, experiment: str, name: str) -> str:
    from nbconvert import HTMLExporter

    # Only the cells are Jupyter's: its own page fetches scripts from elsewhere.
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True
    )
    body, _ = exporter.from_notebook_node(content)
    return environment().get_template("notebook.html").render(experiment=experiment, name=name, body=body)
