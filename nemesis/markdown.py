"""Markdown's pipe tables, aligned so that they read as text too."""

from __future__ import annotations

from collections.abc import Sequence


def pipe_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> list[str]:
    """The lines of a table; its first ``text_columns`` are words, aligned left, the others figures, aligned right."""
    cells = [[text.replace("|", "\\|") for text in row] for row in (columns, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    rule = [("-" * w if i < text_columns else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    sides = [str.ljust] * text_columns + [str.rjust] * (len(columns) - text_columns)
    return [
        f"| {' | '.join(pad(cell, width) for pad, cell, width in zip(sides, row, widths, strict=True))} |"
        for row in (cells[0], rule, *cells[1:])
    ]
