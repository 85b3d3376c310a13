"""Rows: fixed columns, nulls where nothing is said, the same bytes for the same rows."""

from pathlib import Path

import pytest

from nemesis.evaluation.rows import ROW_COLUMNS, read_rows, write_rows

ROWS = [
    {"run": "a", "metric": "auroc", "value": 0.5, "fold": 3, "protocol": "linear", "n_patients": 7},
    {"run": "a", "metric": "psnr", "value": 20.0, "input_masked": False, "region": "whole"},
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", ROWS)
    frame = read_rows(tmp_path / "rows.parquet")
    assert list(frame.columns) == ROW_COLUMNS
    assert frame["value"].tolist() == [0.5, 20.0]
    assert frame["fold"].isna().tolist() == [False, True]
    assert frame["input_masked"].tolist() == [None, False]


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", [])
    assert list(read_rows(tmp_path / "rows.parquet").columns) == ROW_COLUMNS


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "1.parquet", ROWS)
    write_rows(tmp_path / "2.parquet", ROWS)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_a_misspelt_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrik"):
        write_rows(tmp_path / "rows.parquet", [{"metrik": "auroc"}])
