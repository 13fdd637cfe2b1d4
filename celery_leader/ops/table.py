"""Tables for people: with rich at a terminal, in plain lines anywhere else.

Guaranteed: the same words in both forms, that nothing in a cell is taken for markup or makes a
line of its own, and that no table breaks a word: a terminal that is too narrow for that gets
the plain lines.
rich is only ever imported here, when something is shown on a terminal: whoever imports the
command line, as every ``celery`` command does, does not wait for it.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from celery_leader.core.names import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_GAP = "  "
_PADDING = 3  # what a drawn column takes beside its text


@dataclass(frozen=True, slots=True)
class Sheet:
    """A title, the rows below it, and what is to be said of them.

    Attributes:
        title: one line.
        columns: what the columns hold; said at a terminal only, since cells explain themselves.
        rows: one text for each column.
        remarks: lines below the rows.
        style: how the title looks at a terminal.
        styles: how rows look, by the mark that their first cell begins with.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    remarks: Sequence[str] = ()
    style: str = "bold"
    styles: dict[str, str] = field(default_factory=dict)


def _safe(sheet: Sheet) -> Sheet:
    """``sheet`` without what could harm a terminal, or forge a line."""
    return replace(
        sheet,
        title=printable(sheet.title),
        rows=[[printable(cell) for cell in row] for row in sheet.rows],
        remarks=[printable(remark) for remark in sheet.remarks],
    )


def in_lines(sheet: Sheet) -> str:
    """``sheet`` in plain lines, its columns below each other."""
    sheet = _safe(sheet)
    widths = [max(map(len, cells)) for cells in zip(*sheet.rows, strict=True)]
    lines = [sheet.title] if sheet.title else []
    for row in sheet.rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        lines.append(("    " + _GAP.join(cells)).rstrip())
    return "\n".join([*lines, *(f"    {remark}" for remark in sheet.remarks)])


def show(sheets: Sequence[Sheet], *, color: bool = True) -> None:
    """Print ``sheets``."""
    if at_a_terminal():
        _console(color).print(_drawn(sheets))
        return
    for sheet in sheets:
        click.echo(in_lines(sheet))


def at_a_terminal() -> bool:
    """Whether what is printed goes to a terminal, and rich is there to draw on it."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


@contextmanager
def live(*, color: bool = True) -> Iterator[Callable[[Sequence[Sheet]], None]]:
    """The terminal, for one picture that is drawn again and again."""
    from rich.live import Live

    with Live(console=_console(color), auto_refresh=False, screen=True) as picture:
        yield lambda sheets: picture.update(_drawn(sheets), refresh=True)


def _console(color: bool) -> Console:
    from rich.console import Console

    return Console(no_color=not color or None, highlight=False, width=_width())


def _width() -> int:
    return shutil.get_terminal_size().columns


def _drawn(sheets: Sequence[Sheet]) -> RenderableType:
    from rich.console import Group

    return Group(*[part for sheet in sheets for part in _parts(_safe(sheet))])


def _parts(sheet: Sheet) -> Iterator[Any]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if sheet.title:
        yield Text(sheet.title, style=sheet.style)
    used = [i for i, _ in enumerate(sheet.columns) if any(row[i] for row in sheet.rows)]
    widths = _widths(sheet, used, _width())
    if widths is None:
        yield Text(in_lines(Sheet("", rows=sheet.rows)))
    elif used:
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            show_header=any(sheet.columns),
            padding=(0, 1),
        )
        for i, width in zip(used, widths, strict=True):
            table.add_column(sheet.columns[i], width=width)
        for row in sheet.rows:
            style = sheet.styles.get(row[0][:1], "")
            table.add_row(*(Text(row[i], style=style) for i in used))
        yield table
    for remark in sheet.remarks:
        yield Text(f"  {remark}", style="yellow")
    yield Text()


def _widths(sheet: Sheet, used: Sequence[int], room: int) -> list[int] | None:
    """How wide each column is, so that no word is broken; ``None`` where there is no room."""
    cells = [[sheet.columns[i], *(row[i] for row in sheet.rows)] for i in used]
    # A node name that is wrapped or cut off cannot be copied into the next command.
    whole = [
        each if i == 0 else " ".join(each).split() for i, each in zip(used, cells, strict=True)
    ]
    widths = [max(map(len, each), default=0) for each in whole]
    wanted = [max(map(len, each)) - width for each, width in zip(cells, widths, strict=True)]
    spare = room - sum(widths) - len(used) * _PADDING
    if spare < 0:
        return None
    # Those that want least come first, so that what they leave is for the others.
    waiting = sorted(range(len(used)), key=wanted.__getitem__)
    for served, i in enumerate(waiting):
        more = min(wanted[i], spare // (len(waiting) - served))
        widths[i] += more
        spare -= more
    return widths
