"""A method added by one file and one line: exactly its own jobs are planned, and it is covered by the contract's tests."""

import shutil
import sys

import pytest
from places import CONFIG, REPO, REPORT

pytestmark = pytest.mark.workflow
OWN_JOBS = {"pretrain_method": 1, "evaluate_encoder": 1, **REPORT}
METHOD = '''
"""Thumbnail: predicts the mean of a superpatch from its coarse look."""

from nemesis.method import Method, MethodCard, PretextLoss, Settings, register


@register
class Thumbnail(Method[Settings]):
    """One linear layer on 4³ means."""

    card = MethodCard(
        name="thumbnail", title="Thumbnail", paper="none", licence="MIT", version=1, pretext=True, reconstructs=False,
        smallest_input=8, native_input="any",
    )
    settings_type = Settings

    def build(self):
        from torch import nn

        return nn.Sequential(nn.AdaptiveAvgPool3d(4), nn.Flatten(), nn.Linear(64, 8))

    def pretext_loss(self, network, batch):
        aim = batch.voxels.mean(dim=(1, 2, 3, 4))
        loss = (network(batch.voxels).mean(dim=1) - aim).square().mean()
        return PretextLoss(loss, {})

    def encode(self, network, voxels):
        return network(voxels)
'''


def package(folder):
    """An installed package from outside: a module, and the metadata that pip would have written."""
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "__init__.py").write_text("")
    (folder / "outside" / "thumbnail.py").write_text(METHOD)
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nemesis.methods]\noutside = outside\n")
    return folder


def test_one_file_among_the_baselines_and_one_line(place):
    (place.folder / "baselines" / "thumbnail.py").write_text(METHOD)
    assert place.plan().jobs == {}
    place.write_config(methods=[*CONFIG["methods"], "thumbnail"])
    assert place.plan().jobs == OWN_JOBS


def test_a_method_of_an_outside_package_is_planned_run_printed_and_taken_out_again(place, tmp_path):
    others = {p: p.stat().st_mtime_ns for p in place.run_folder("nemesis").rglob("*")}
    place.write_config(methods=[*CONFIG["methods"], "thumbnail"])
    unknown = place.plan()
    assert unknown.rc != 0 and "no method is called 'thumbnail'" in unknown.text
    place.python_path = (package(tmp_path / "site"),)
    assert place.plan().jobs == OWN_JOBS

    done = place.snakemake("print_tables")
    assert done.rc == 0, done.text
    assert "Thumbnail" in (place.results / "tiny" / "tables" / "main.csv").read_text()
    assert {p: p.stat().st_mtime_ns for p in place.run_folder("nemesis").rglob("*")} == others

    place.write_config()
    assert place.plan().jobs == REPORT
    place.write_config(methods=[*CONFIG["methods"][::-1], "thumbnail"])
    assert not {"pretrain_method", "evaluate_encoder"} & set(place.plan().jobs)


def test_the_tests_of_the_contract_cover_it(fresh, tmp_path):
    fresh.python_path = (package(tmp_path / "site"),)
    shutil.copytree(REPO / "tests" / "contract", fresh.folder / "tests" / "contract")
    shutil.copy2(REPO / "tests" / "conftest.py", fresh.folder / "tests" / "conftest.py")
    done = fresh.run(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/contract", "-k", "thumbnail")
    assert done.rc == 0, done.text
    assert done.text.count("[thumbnail-") >= 3 and "FAILED" not in done.text


def test_its_author_is_told_what_it_does_not_keep(fresh, tmp_path):
    folder = package(tmp_path / "site")
    fresh.python_path = (folder,)
    done = fresh.run("nemesis", "check-method", "thumbnail")
    assert done.rc == 0 and "ok     encodes each superpatch by itself" in done.text, done.text
    over_the_batch = METHOD.replace("return network(voxels)", "return network(voxels) - network(voxels).mean(dim=0)")
    (folder / "outside" / "thumbnail.py").write_text(over_the_batch)
    done = fresh.run("nemesis", "check-method", "thumbnail")
    assert done.rc == 1 and "BROKEN encodes each superpatch by itself" in done.text, done.text
    assert "when others are in the batch" in done.text and "Traceback" not in done.text
