"""Tables for people: drawn by rich at a terminal, plain lines everywhere else.

Guaranteed: both forms have the same words, and neither breaks a node name or another word. If the
terminal is too narrow for a table, the table is shown as plain lines. Nothing in a cell is taken
for markup. rich is imported only when it draws, because every ``celery`` command imports the
command line.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import click

from .printing import safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_INDENT, _GAP = "    ", "  "


@dataclass(frozen=True, slots=True)
class Table:
    """A title, rows, and remarks below them.

    Attributes:
        title: one line.
        columns: the heads of the columns. Only a terminal shows them: each cell says what it is.
        rows: one text for each column. A column without any text is left out.
        remarks: lines below the rows.
        style: the style of the title at a terminal.
        styles: the styles of rows, by the first character of their first cell.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    remarks: Sequence[str] = ()
    style: str = "bold"
    styles: dict[str, str] = field(default_factory=dict)

    def in_lines(self) -> str:
        """The table as plain lines."""
        table = _shown(self)
        below = [*_lines(table.rows), *table.remarks]
        return "\n".join([table.title, *(_INDENT + line for line in below)])


def show(tables: Sequence[Table], *, color: bool = True) -> None:
    """Print ``tables``."""
    if at_a_terminal():
        console = _console(color)
        console.print(drawn(tables, console))
        return
    for table in tables:
        click.echo(table.in_lines())


def at_a_terminal() -> bool:
    """Whether the output goes to a terminal and rich is there to draw on it."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


@contextmanager
def live(*, color: bool = True) -> Iterator[Callable[[Sequence[Table]], None]]:
    """The whole terminal, for tables that are drawn again and again."""
    from rich.live import Live

    console = _console(color)
    with Live(console=console, auto_refresh=False, screen=True) as picture:
        yield lambda tables: picture.update(drawn(tables, console), refresh=True)


def drawn(tables: Sequence[Table], console: Console) -> RenderableType:
    """``tables``, as rich draws them on ``console``."""
    from rich.console import Group

    return Group(*[part for table in tables for part in _parts(_shown(table), console)])


def _console(color: bool) -> Console:
    from rich.console import Console

    return Console(no_color=not color or None, highlight=False)


def _shown(table: Table) -> Table:
    """``table`` with safe text only, and without its empty columns."""
    used = [i for i, cells in enumerate(zip(*table.rows, strict=True)) if any(cells)]
    return replace(
        table,
        title=safe(table.title),
        columns=[table.columns[i] for i in used if table.columns],
        rows=[[safe(row[i]) for i in used] for row in table.rows],
        remarks=safe(list(table.remarks)),
    )


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """``rows`` as lines whose columns stand below each other."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _parts(table: Table, console: Console) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(table.title, style=table.style)
    if table.rows:
        grid = _grid(table)
        lines = console.render_lines(grid)
        text = "\n".join("".join(segment.text for segment in line) for line in lines)
        words = {word for row in (table.columns, *table.rows) for word in " ".join(row).split()}
        too_narrow = any(word not in text for word in words)
        yield Text("\n".join(_INDENT + line for line in _lines(table.rows))) if too_narrow else grid
    for remark in table.remarks:
        yield Text(f"  {remark}", style="yellow")
    yield Text()


def _grid(table: Table) -> RenderableType:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, show_header=any(table.columns))
    for i, column in enumerate(table.columns):
        # A node name that is wrapped cannot be copied into the next command.
        grid.add_column(column, no_wrap=i == 0)
    for row in table.rows:
        style = table.styles.get(row[0][:1], "")
        grid.add_row(*(Text(cell, style=style) for cell in row))
    return grid
