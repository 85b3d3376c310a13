"""Configuration: complete or extended, every fault named at once, documentation that cannot drift."""

from pathlib import Path

import pytest
import yaml

from nemesis.config import SECTIONS, key_rows, merged, without_unknown_keys
from nemesis.errors import NemesisError
from nemesis.method import methods
from nemesis.schema import key_table, schema_text

CONFIGS = sorted(Path("config").glob("*.yaml"))
MINIMAL = {
    "experiment": "t",
    "datasets": [{"reader": "phantom"}],
    "pools": {"evaluation": 3},
    "methods": ["random_vit"],
}


def write(folder, name, content):
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path):
    config, faults = without_unknown_keys(merged([path]), str(path))
    assert not faults
    assert config.experiment


def test_generated_files_are_up_to_date():
    assert Path("config/schema.json").read_text() == schema_text(), "run `nemesis schema`"
    assert Path("config/README.md").read_text() == key_table(), "run `nemesis schema`"


def test_every_key_says_what_it_means_and_in_which_unit():
    sections = [*SECTIONS, *(method.settings_type for method in methods().values())]
    for section in sections:
        for name, info in section.model_fields.items():
            assert info.description or name == "reader", f"{section.__name__}.{name}"
            assert name == "reader" or "unit" in info.json_schema_extra, f"{section.__name__}.{name}"
        assert list(key_rows(section)) or not section.model_fields


def test_extends_merges_mappings_and_replaces_lists(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "base.yaml", {**MINIMAL, "seeds": [0, 1], "probe": {"folds": 3, "draws": 2}})
    top = write(tmp_path / "sub", "top.yaml", {"extends": "../base.yaml", "seeds": [5], "probe": {"draws": 4}})
    config, faults = without_unknown_keys(merged([top], {"data_root": "elsewhere"}), "top")
    assert not faults
    assert (config.seeds, config.probe.folds, config.probe.draws, config.data_root) == ([5], 3, 4, "elsewhere")


def test_a_circle_of_extends_is_named(tmp_path):
    write(tmp_path, "a.yaml", {"extends": "b.yaml"})
    with pytest.raises(NemesisError, match="extends itself"):
        merged([write(tmp_path, "b.yaml", {"extends": "a.yaml"})])


def test_misspelt_keys_are_told_all_at_once_with_what_was_meant():
    raw = {**MINIMAL, "superpach": 32, "probe": {"fold": 3}, "datasets": [{"reader": "phantom", "subject": 4}]}
    config, faults = without_unknown_keys(raw, "my.yaml")
    text = "\n".join(map(str, faults))
    assert config is not None and config.superpatch == 128  # the rest is understood, to check folders in the same breath
    assert len(faults) == 3
    for wrong, meant in (("superpach", "superpatch"), ("fold", "folds"), ("subject", "subjects")):
        assert wrong in text and f"Did you mean '{meant}'" in text
    assert text.count("my.yaml") == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"datasets": []}, "at least 1"),
        ({"superpatch": "big"}, "superpatch"),
        ({"experiment": "a/b"}, "experiment"),
        ({"preparation": {"hu_window": [250, -175]}}, "low < high"),
        ({"probe": {"label_fractions": [0.0]}}, r"\(0, 1\]"),
        ({"datasets": [{"reader": "phantom"}, {"reader": "phantom"}]}, "different names"),
        ({"datasets": [{"reader": "files", "name": "x", "image": "a.nii"}]}, "{case}"),
    ],
)
def test_wrong_values_are_sentences(change, said):
    import re

    config, faults = without_unknown_keys({**MINIMAL, **change}, "my.yaml")
    assert config is None
    assert any(re.search(said if "\\" in said else re.escape(said), str(fault)) for fault in faults), faults


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": [0, 0]}, "seeds"), ({"seeds": [-1]}, "seeds.0"), ({"seeds": [2**63]}, "seeds.0"),
        ({"methods": [{"name": "ae", "seeds": [1, 1]}]}, "methods.0.seeds"),
        ({"methods": [{"name": "ae", "seeds": [-1]}]}, "methods.0.seeds.0"),
        ({"organs": ["liver", "liver"]}, "organs"),
        ({"probe": {"protocols": ["knn", "knn"]}}, "probe.protocols"),
        ({"probe": {"label_fractions": [0.5, 0.5]}}, "probe.label_fractions"),
        ({"probe": {"regularisation": [0.1, 0.0]}}, "probe.regularisation.1"),
        ({"probe": {"regularisation": [float("inf")]}}, "probe.regularisation.0"),
        ({"preparation": {"spacing_mm": [1, 0, 1]}}, "preparation.spacing_mm.1"),
        ({"preparation": {"spacing_mm": [1, 1, float("inf")]}}, "preparation.spacing_mm.2"),
        ({"preparation": {"hu_window": [float("-inf"), 0]}}, "preparation.hu_window.0"),
        ({"pretraining": {"betas": [0.9, 1.0]}}, "pretraining.betas.1"),
        ({"pretraining": {"betas": [-0.1, 0.9]}}, "pretraining.betas.0"),
        ({"pretraining": {"learning_rate": float("inf")}}, "pretraining.learning_rate"),
    ],
)  # fmt: skip
def test_elements_that_make_no_sense_are_refused_by_key(change, named):
    _, faults = without_unknown_keys({**MINIMAL, **change}, "my.yaml")
    assert [str(fault).startswith(f"my.yaml: {named}: ") for fault in faults] == [True], faults


def test_extends_is_one_file(tmp_path):
    with pytest.raises(NemesisError, match=r"top\.yaml.*not the name of a file"):
        merged([write(tmp_path, "top.yaml", {"extends": ["a.yaml", "b.yaml"]})])


def test_broken_files_are_named(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(NemesisError, match=r"broken\.yaml.*not valid YAML"):
        merged([broken])
    with pytest.raises(NemesisError, match=r"none\.yaml.*cannot be read"):
        merged([tmp_path / "none.yaml"])
