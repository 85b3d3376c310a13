"""What the report prints of a small fixed experiment: figures change only with ``nemesis.report.VERSION``, words on purpose."""

import re

from golden_files import FOLDER, takes_new

import nemesis.report

GOLDEN = FOLDER / "report"


def _printed(report) -> dict[str, str]:
    texts = {file.name: file.read_text(encoding="utf-8") for file in report.tables.iterdir()}
    page = report.page.read_text(encoding="utf-8")
    return texts | {"index.html": re.sub(r"data:(image|text)/[^\"]*", r"data:\1", page)}  # pixels differ between platforms


def test_what_is_printed_changes_only_with_the_version(report):
    printed, version = _printed(report), f"{nemesis.report.VERSION}\n"
    golden = {file.name: file.read_text(encoding="utf-8") for file in GOLDEN.iterdir()} if GOLDEN.is_dir() else {}
    known = golden.pop("VERSION", None)
    differing = sorted(name for name in printed.keys() | golden.keys() if printed.get(name) != golden.get(name))
    figures = [name for name in differing if name.endswith(".csv") and name in golden]
    if takes_new("nemesis.report.VERSION", known != version, figures, [name for name in differing if name not in figures]):
        GOLDEN.mkdir(exist_ok=True)
        for name in golden.keys() - printed.keys():
            (GOLDEN / name).unlink()
        for name, text in (printed | {"VERSION": version}).items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
