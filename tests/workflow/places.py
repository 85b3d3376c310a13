"""Places: a place is what a user has, a folder with the Snakefile, the profile and the sources, in which commands are typed.

The sources are copied, so tests may edit them, and `PYTHONPATH` makes them the ones that run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
SOURCES = ("Snakefile", "workflow", "profiles", "config", "nemesis", "baselines", "notebooks", "environment.yml")
SIZE = {"embed_dim": 64, "depth": 1}
CONFIG = {
    "experiment": "tiny",
    "datasets": [{"reader": "phantom", "subjects": 8, "base_spacing_mm": 12.0}],
    "pools": {"evaluation": 4},
    "superpatch": 16,
    "pretraining": {"steps": 60, "batch_size": 4},
    "methods": [
        {"name": "random_vit", "settings": SIZE},
        {"name": "nemesis", "settings": {**SIZE, "decoder_depth": 1, "decoder_dim": 32}},
    ],
    "probe": {"folds": 3, "label_fractions": [0.5, 1.0], "draws": 1, "bootstrap": 100, "positive_voxels": 5},
    "state_every": 10,
    "device": "cpu",
}
REPORT = {  # rule → jobs
    "collect_rows": 1, "print_tables": 1, "draw_figures": 1, "write_page": 1, "run_notebook": 3, "log_tracking": 1,
}  # fmt: skip


@dataclass
class Done:
    """A finished command: its exit code and all it printed."""

    rc: int
    text: str

    @property
    def jobs(self):
        """Rule → number of jobs, from the table that Snakemake prints of a plan; empty where nothing is to be done."""
        assert self.rc == 0, self.text
        if "Nothing to be done" in self.text:
            return {}
        table = self.text.split("Job stats:")[1].split("total")[0]
        return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if rule != "all"}


@dataclass
class Place:
    """A folder in which a user types commands."""

    folder: Path
    config: dict = field(default_factory=lambda: CONFIG)
    python_path: tuple[Path, ...] = ()

    @property
    def results(self):
        return self.folder / "results"

    def write_config(self, **top):
        """The shared configuration with other top-level keys."""
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump({**self.config, **top}, sort_keys=False))

    @property
    def env(self):
        path = os.pathsep.join(map(str, (self.folder, *self.python_path)))
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "SNAKEMAKE"))}
        bin_folder = str(Path(sys.executable).parent)
        others = os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if p != bin_folder)  # no environment is active
        return env | {"PYTHONPATH": path, "PATH": others, "OMP_NUM_THREADS": "1"}

    def start(self, *words):
        """Snakemake in the background, the leader of a process group of its own."""
        command = [sys.executable, "-m", "snakemake", "--configfile", "tiny.yaml", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.env, start_new_session=True, **pipes)

    def snakemake(self, *words, cores=2):
        return self.run(sys.executable, "-m", "snakemake", "--configfile", "tiny.yaml", "--cores", str(cores), *words)

    def plan(self, *words):
        return self.snakemake("--dry-run", *words)

    def run(self, *command):
        if command[0] == "nemesis":
            command = (str(Path(sys.executable).with_name("nemesis")), *command[1:])
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return Done(done.returncode, done.stdout)

    def run_folder(self, method):
        """results/runs/<run> of a method's only run."""
        (folder,) = (self.results / "runs").glob(f"{method}-s0-*")
        return folder

    def forget_training(self, method):
        """As if the run had never been trained nor evaluated, and the report never made."""
        run = self.run_folder(method)
        shutil.rmtree(run)
        shutil.rmtree(self.results / "tiny" / "evaluation" / run.name)
        for name in ("collected", "tables", "figures", "notebooks", "report"):
            shutil.rmtree(self.results / "tiny" / name)
        return run


def trainer_of(place, popen, timeout=60.0):
    """Process id of the running `nemesis pretrain` of this place."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"pretrain" in words and b"--folder" in words and (entry / "cwd").resolve() == place.folder.resolve():
                    return int(entry.name)
            except OSError:  # it has just ended
                continue
        assert popen.poll() is None, popen.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("no training was started")


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def copy_sources(target):
    target.mkdir()
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(REPO / name, target / name)
