"""``make example-sentinel``: the master is killed, and the fleet goes on at the next."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from examples.sentinel.servers import MASTER_NAME, SentinelServers
from examples.show import Fleet, Show, main

TICK = re.compile(r"tick (\S+), term \d+")


def story(show: Show) -> None:
    """What is shown."""
    show.say("starting a Redis master, two replicas and three Sentinels")
    servers = SentinelServers(show)
    fleet = Fleet(
        show,
        Path(__file__).resolve().parent,
        "proj",
        env={"SENTINELS": servers.url, "MASTER_NAME": MASTER_NAME},
        broker_url=servers.url,
        broker_transport_options={"master_name": MASTER_NAME},
    )
    fleet.start()
    fleet.ran("proj.count", 3)
    show.say("SIGKILL to the Redis master")
    servers.kill_master()
    worker, beat = fleet.leader("worker"), fleet.leader("beat")
    show.say(f"{worker.name} leads the workers there, {beat.name} the beats")
    fleet.ran("proj.count", 5)
    ticks = [tick for worker in fleet.workers for tick in TICK.findall(worker.log)]
    show.say(f"{len(ticks)} ticks ran, {len(ticks) - len(set(ticks))} of them twice")


if __name__ == "__main__":
    sys.exit(main("example-sentinel", story))
