"""Rows: one line per measured number, with explicit nullable columns.

Every printed table follows from the runs, the rows and the predictions.

run             run id
dataset         name of the dataset; several joined by "+" where a number is over all of them
protocol        linear, knn, finetune, segment; linear_official; null for what needs no probe
selection       how hyper-parameters of the row were chosen: "inner validation" or "fixed"; "test (optimistic)" of linear_official
                alone
label_fraction  share of the training patients whose labels were used
draw, fold      which draw of the fraction, which fold was tested
organ           the organ probed
unit            unit of the value (dB, patients, superpatches, MAC, parameters); null: a share or a score without unit
scope           superpatch (measured per superpatch, then averaged) or stitched (on the volume put together from them)
region          voxels that count: masked, visible, whole
easy_negatives  whether superpatches under the foreground floor count: in, out
input_masked    whether the network saw its input under the mask
step            training step, where a number belongs to one
learning_rate   peak learning rate of the training, where a number belongs to one of several
metric, value   what was measured
n_patients, n_superpatches   behind the value
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nemesis.files import write_parquet

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run", "dataset", "protocol", "selection")]
    + [("label_fraction", pa.float64()), ("draw", pa.int64()), ("fold", pa.int64())]
    + [(name, pa.string()) for name in ("organ", "unit", "scope", "region", "easy_negatives")]
    + [
        ("input_masked", pa.bool_()),
        ("step", pa.int64()),
        ("learning_rate", pa.float64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
    + [("n_patients", pa.int64()), ("n_superpatches", pa.int64())]
)
ROW_COLUMNS: list[str] = SCHEMA.names
TRAINED, UNTRAINED = "trained_", "untrained_"  # before a monitor of the pretext: the metric of the trained, or untrained, network


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet, atomically; columns a row leaves out are null, and the same rows give the same bytes.

    Raises:
        ValueError: a row has a column that is not in :data:`ROW_COLUMNS`.
    """
    unknown = sorted({name for row in rows for name in row} - set(ROW_COLUMNS))
    if unknown:
        raise ValueError(f"rows have no such columns: {unknown}")
    write_parquet(path, pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA))


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a file as a data frame with the columns :data:`ROW_COLUMNS`."""
    frame: pd.DataFrame = pq.read_table(path, schema=SCHEMA).to_pandas()
    return frame
