"""Reads from the README the text that people are to type, for tests that use it."""

from __future__ import annotations

import re
from pathlib import Path

_README = Path(__file__).parents[2] / "README.md"


def acl_rules(user: str) -> list[str]:
    """The rules that the README gives the Redis user called ``user``, after its password."""
    found = re.search(rf"ACL SETUSER {user} on >password (.*)\n", _README.read_text())
    assert found is not None, f"the README has no ACL for {user}"
    return found.group(1).split()


def acl_commands(user: str) -> list[str]:
    """The commands that it may use."""
    return [rule[1:] for rule in acl_rules(user) if rule.startswith("+")]


def settings() -> set[str]:
    """The ``leader_*`` settings of the README's table."""
    section = _README.read_text().partition("\n## Settings\n")[2].partition("\n### ")[0]
    return set(re.findall(r"^\| `(leader_\w+)` \|", section, re.MULTILINE))
