"""A table as text: Markdown, LaTeX, CSV, TSV, and aligned for a terminal."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


@dataclass
class Table:
    """Cells as text. below : rows under a line (published), notes : numbered from 1, caption : under the table."""

    header: list[str]
    rows: list[list[str]]
    below: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    caption: str = ""

    def add_note(self, text: str) -> int:
        """Number a note; equal notes share one number."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1


def markdown(table: Table) -> str:
    """Format as a GitHub table; published rows follow in italics, notes below."""
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    lines += [[f"*{cell}*" if i == 0 else cell for i, cell in enumerate(row)] for row in table.below]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    notes = [f"[{i}] {note}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(
        [*text, *(["", table.caption] if table.caption else []), *(["", "  \n".join(notes)] if notes else [])]
    )


def latex(table: Table) -> str:
    """Format as a booktabs tabular; notes become comments above and a line below."""

    def line(cells: list[str]) -> str:
        return " & ".join(cell.replace("\\", r"\textbackslash{}").translate(LATEX) for cell in cells) + r" \\"

    body = [line(table.header), r"\midrule", *map(line, table.rows)]
    if table.below:
        body += [r"\midrule", *map(line, table.below)]
    notes = [rf"% [{i}] {note}" for i, note in enumerate(table.notes, 1)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}"
    caption = [f"% {table.caption}"] if table.caption else []
    return "\n".join([*caption, *notes, begin, r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])


def _separated(table: Table, delimiter: str) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    with_notes = bool(table.notes)
    writer.writerow(table.header + ["note"] * with_notes)
    writer.writerows(row + [""] * with_notes for row in table.rows)
    for row in table.below:
        name, _, number = row[0].rpartition(" [")
        writer.writerow([name, *row[1:], table.notes[int(number.rstrip("]")) - 1]])
    return buffer.getvalue().rstrip("\n")


def comma_separated(table: Table) -> str:
    """Format as CSV; published rows carry their note in a last column."""
    return _separated(table, ",")


def tab_separated(table: Table) -> str:
    """Format as TSV; published rows carry their note in a last column."""
    return _separated(table, "\t")


def aligned(table: Table) -> str:
    """Format for a terminal: first column left, the others right."""
    lines = [table.header, *table.rows, *table.below]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
    "tsv": tab_separated,
}
