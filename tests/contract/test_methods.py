"""What every method promises, tested because it is registered: adding one needs no new test."""

import subprocess
import sys

import pytest

from nemesis.contract import CHECKS, small_method
from nemesis.method import methods


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods())
def test_method(name, check):
    CHECKS[check](small_method(name))


def test_planning_imports_no_network_library():
    code = (
        "import sys; from nemesis.method import methods; methods(); import nemesis.experiment, nemesis.runs\n"
        "heavy = {'torch', 'monai', 'lightning', 'mlflow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
