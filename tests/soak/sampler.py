"""What each process of a fleet holds, over time: memory, descriptors, threads, connections."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from tests.chaos.supervised import Supervised

EVERY = 1.0  # seconds
POOL = "pool process"  # the role of a worker's children


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process; memory is in MiB.

    ``rss`` counts shared pages whole, ``pss`` divides them among those that share them.
    ``connections`` are those to Redis.
    """

    age: float
    rss: float
    pss: float
    descriptors: int
    threads: int
    connections: int


METRICS = tuple(field.name for field in fields(Sample) if field.name != "age")


@dataclass(frozen=True, slots=True)
class Life:
    """One process from its start to its end, and the place it was in."""

    role: str
    place: str
    pid: int
    born: float


class Sampler:
    """Looks at all processes of all places it was given, from ``with`` to its end."""

    def __init__(self) -> None:
        self.lives: dict[Life, list[Sample]] = defaultdict(list)
        self.begun = time.time()
        self.error: BaseException | None = None
        self._places: list[tuple[str, Supervised]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def watch(self, role: str, places: Sequence[Supervised]) -> None:
        """Look at these from now on."""
        self._places += [(role, place) for place in places]

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        try:
            while not self._over.wait(EVERY):
                for role, place in list(self._places):
                    self._look_at(role, place)
        except BaseException as exc:
            self.error = exc
            raise

    def _look_at(self, role: str, place: Supervised) -> None:
        pid = place.pid
        if not pid:
            return
        try:
            main = psutil.Process(pid)
            self._note(role, place.name, main)
            for child in main.children():
                self._note(POOL, place.name, child)
        except (psutil.Error, OSError):
            return  # it has ended meanwhile

    def _note(self, role: str, place: str, process: psutil.Process) -> None:
        born = process.create_time()
        rss, pss = _memory(process.pid)
        sample = Sample(
            age=time.time() - born,
            rss=rss,
            pss=pss,
            descriptors=len(os.listdir(f"/proc/{process.pid}/fd")),
            threads=process.num_threads(),
            connections=sum(
                each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp")
            ),
        )
        self.lives[Life(role, place, process.pid, born)].append(sample)


def _memory(pid: int) -> tuple[float, float]:
    """Resident and proportional memory in MiB."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount = line.split(":")
        kib[name] = int(amount.split()[0])
    return kib["Rss"] / 1024, kib["Pss"] / 1024
