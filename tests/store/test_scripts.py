"""The Lua files are Lua, each says what it is given, and so are those with a deliberate bug."""

from __future__ import annotations

from pathlib import Path

import pytest

import celery_leader.store
from tests.mutants.mutants import MUTANTS, Mutant
from tests.support.redis_server import RedisServer

LUA = Path(celery_leader.store.__file__).parent / "lua"
OF_LUA = [mutant for mutant in MUTANTS if mutant.file.endswith(".lua")]


@pytest.mark.parametrize("mutant", OF_LUA, ids=lambda mutant: mutant.name)
def test_a_lua_file_with_a_deliberate_bug_is_still_lua(
    mutant: Mutant, redis_server: RedisServer
) -> None:
    package = LUA.parents[1]
    text = (package / mutant.file).read_text(encoding="utf-8")
    with redis_server.client() as client:
        client.script_load(mutant.applied_to(text))


@pytest.mark.parametrize("path", sorted(LUA.glob("*.lua")), ids=lambda path: path.stem)
def test_a_lua_file_says_which_keys_it_is_given(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("--") for line in head.splitlines())
    assert "KEYS" in head
