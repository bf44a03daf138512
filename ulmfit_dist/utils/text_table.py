"""Tables of texts for terminals and notebooks: fastai's `show_batch`, without pandas.

`print` renders them with `rich`, a notebook as HTML. A cell is data, never markup, and is shown on one line without control
characters. The trade-off: line breaks of a text are not visible.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TextTable:
    """Named columns and rows of cells.

    Attributes:
        title: title of the table.
        columns: names of the columns.
        rows: one cell per column each.
        show_lines: whether to draw a line between rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    show_lines: bool = True

    def __str__(self) -> str:
        """Render the table at the width of the terminal."""
        rendered = io.StringIO()
        console = Console(file=rendered)
        width = Console().width
        console.print(self.__rich__(), width=width)
        return "\n".join(line.rstrip() for line in rendered.getvalue().splitlines())

    __repr__ = __str__

    def __rich__(self) -> Table:
        table = Table(title=Text(self.title), title_justify="left", show_lines=self.show_lines)
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        return table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(column)}</th>" for column in ("", *self.columns))
        body = "".join(
            f"<tr><th>{number}</th>{''.join(f'<td>{escape(plain(cell))}</td>' for cell in row)}</tr>"
            for number, row in enumerate(self.rows)
        )
        caption = f"<caption>{escape(self.title)}</caption>"
        return f'<table class="dataframe">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def plain(cell: str) -> str:
    """Return the text of a cell on one line, without non-printable characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in cell).split())


class Shown(list[TextTable]):
    """List of tables, rendered below each other."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self)
