"""A fleet whose app is ``tests.beat.proj``, with what beats of several kinds need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fleet import fleet as fleets
from tests.fleet.fleet import Fleet, Process


class BeatProcess(Process):
    """A process of ``tests.beat.proj``."""

    app = "tests.beat.proj"


class BeatFleet(Fleet):
    """Beats and workers of ``tests.beat.proj``; see there for its configuration."""

    process = BeatProcess

    def _start(self, name: str, node: str, command: Sequence[str], config: Any) -> Process:
        log = self.directory / f"{name}.{len(self.processes)}.log"
        merged = {**self.config, **config}
        merged["conf"] = {**self.config["conf"], **config.get("conf", {})}
        process = BeatProcess(name, node, command, merged, log)
        self.processes.append(process)
        return process

    def beats_of(self, scheduler: str, *names: str, **config: Any) -> list[Process]:
        """Start beats of one scheduler, and wait until each takes part and one leads."""
        started = [self.beat(name, "-S", scheduler, **config) for name in names]
        for process in started:
            self.takes_part(process, "beat")
        self.leader("beat")
        return started

    def more(self, count: int, task: str | None = None) -> None:
        """Wait until ``count`` further messages were dispatched, of ``task`` if it is named."""
        self.had(len(self.of(task)) + count, task)

    def had(self, count: int, task: str | None = None) -> None:
        """Wait until ``count`` messages were dispatched, of ``task`` if it is named."""
        fleets.wait_until(
            lambda: len(self.of(task)) >= count, what=f"{count} messages of {task or 'any'}"
        )

    def of(self, task: str | None = None) -> list[dict[str, Any]]:
        """The headers of the messages in the default queue, of one task if it is named."""
        return [m for m in self.messages() if task in (None, m["task"])]

    def senders(self, task: str | None = None) -> list[int]:
        """The pids of who sent them."""
        return [int(m["origin"].removeprefix("gen").split("@")[0]) for m in self.of(task)]

    def ticks(self, task: str | None = None) -> list[str]:
        """Their due times, no two of which may be alike."""
        ticks = [message["leader_tick"] for message in self.of(task)]
        assert len(set(ticks)) == len(ticks), ticks
        return ticks
