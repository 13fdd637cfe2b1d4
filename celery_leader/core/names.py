"""Which names are allowed, and how any text is shown without harm."""

from __future__ import annotations

import re

from celery_leader.errors import LeaderError, shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


_LONGEST_NODE = 255  # bytes


def check_node(node: str) -> str:
    """Return ``node`` if it can be a node name.

    Raises:
        LeaderError: it cannot.
    """
    if not isinstance(node, str) or not node.isprintable() or not node.strip():
        raise LeaderError(f"node name {node!r} is not allowed: it must be text that can be printed")
    if len(node.encode()) > _LONGEST_NODE:
        raise LeaderError(
            f"node name {node[:40]!r}... is not allowed: it must have {_LONGEST_NODE} bytes at most"
        )
    return node


def check_name(name: str, what: str = "election name") -> str:
    """Return ``name`` if it can be part of a key, a queue name and a log line.

    Raises:
        LeaderError: it cannot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LeaderError(
            f"{what} {shown(name)} is not allowed: use 1 to 64 letters, digits,"
            " '_', '.' or '-', and begin with a letter or digit"
        )
    return name


def printable(text: str) -> str:
    """``text`` with a mark for each character that could harm a terminal or not be encoded."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
