"""Credentials that expire: a leader connects with the next ones and leads on."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.support import rotating
from tests.support.fleet import LASTING, Fleet
from tests.support.redis_server import RedisServer

TICK = {"tick": {"task": "lead", "every": 0.2, "args": ["tick"]}}


def rotate(server: RedisServer, file: Path, password: str) -> None:
    """Give the user another password, and end what is connected with the one before."""
    with redis.Redis(port=server.port) as admin:
        file.write_text(password)
        admin.execute_command("ACL", "SETUSER", rotating.USER, "resetpass", f">{password}", "on")
        admin.execute_command("ACL", "SETUSER", rotating.USER, "~*", "&*", "+@all")
        admin.execute_command("CLIENT", "KILL", "USER", rotating.USER)


@pytest.mark.parametrize("setting", ["leader_url", "broker_url"])
def test_leaders_lead_on_when_their_credentials_are_replaced(
    redis_binary_or_skip: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
) -> None:
    file = tmp_path / "password"
    monkeypatch.setenv(rotating.VARIABLE, str(file))
    with RedisServer() as server:
        rotate(server, file, "first-S3cret")
        provider = f"{rotating.__name__}.FileProvider"
        guarded = f"redis://127.0.0.1:{server.port}/0?credential_provider={provider}"
        conf = {"leader_url": guarded} if setting == "leader_url" else {}
        broker = {"broker": guarded, "record": redis_url} if setting == "broker_url" else {}
        with Fleet(
            tmp_path,
            broker.pop("broker", redis_url),
            conf={**LASTING, **conf},
            schedule=TICK,
            backend=redis_url,
            **broker,
        ) as fleet:
            fleet.look_for_leases_in(f"redis://127.0.0.1:{server.port}/0")
            worker, beat = fleet.worker("w1"), fleet.beat("b1")
            fleet.saw("ran", "tick", 2)
            led = {election: fleet.record(election)["term"] for election in ("worker", "beat")}
            for password in ("second-S3cret", "third-S3cret"):
                rotate(server, file, password)
                ran = len(fleet.saw("ran", "tick", 1))
                for election in led:
                    fleet.renewed(2, election)
                fleet.saw("ran", "tick", ran + 2)
            assert led == {election: fleet.record(election)["term"] for election in led}
            for process in (worker, beat):
                assert "deposed" not in process.log
                assert "S3cret" not in process.log
