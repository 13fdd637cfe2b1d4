"""The loggers of this package, whose lines harm no terminal.

Node names, reasons, entries, task names and errors come from Redis or the broker, and anybody who
can write there can put anything into them. Guaranteed: nothing in a line but the line's own text
can control a terminal or begin another line. Not guaranteed: that of a traceback.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_leader.core.names import printable

#: What the fields begin with that this package adds to log records.
_OWN_FIELD = "leader_"


def get_logger(module: str) -> logging.Logger:
    """The logger of ``module``."""
    logger = logging.getLogger(module)  # noqa: TID251
    logger.addFilter(_make_safe)
    return logger


def _make_safe(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(map(_safe, record.args))
    for name, value in vars(record).items():
        if name.startswith(_OWN_FIELD):
            setattr(record, name, _safe(value))
    return True


def _safe(value: Any) -> Any:
    return printable(str(value)) if isinstance(value, str | Exception) else value
