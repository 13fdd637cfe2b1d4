"""The figures of one run as one Markdown page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.peers.contenders import LEADER, LOCK, Contender
from benchmarks.peers.faults import FAILOVERS, KILL, KINDS, LONGER_THAN_LEASE, OUTAGE, TERM
from benchmarks.peers.figures import Figures
from benchmarks.peers.judge import Findings
from celery_leader.core.timing import DEFAULT_LEASE, Timing

_CLEARLY = 1.1  # times better before it is called better
_MAXCLIENTS = 10_000  # of a Redis that was not told otherwise


def page(figures: Figures) -> str:
    """All of it."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    yield from (
        "# Measured beside its peers",
        "",
        f"Written by `make bench-peers` on {figures.when}; it measures again.",
        f"{figures.versions}.",
        f"{figures.repeats}.",
        "",
        "One run on a machine of two cores that others used too: compare within a table, not with",
        "other machines. All contenders run at the same time, each with a Redis and a network of its",
        "own; starting a process waits for its turn. What was sent is judged by a reader of the queue",
        "in Redis alone, and a finding counts only if it holds wherever between two looks the message",
        "came. [How each was set up](#how-each-was-set-up).",
        "",
        "![The figures below as a plot](benchmarks.svg)",
        "",
        *_failover(figures),
        *_faults(figures),
        *_rates(figures),
        *_idle(figures),
        *_growth(figures),
        *_questions(figures),
        *_where_it_loses(figures),
        *_scale(figures),
        *_setup(figures),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---|" + "---:|" * (len(head) - 1)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _failover(figures: Figures) -> Iterator[str]:
    yield from (
        "## Failover",
        "",
        "Seconds from the signal until another node's first message: median, and from the shortest",
        "to the longest. The node that was signalled does not come back before. Some entry is due",
        "about every 50 ms. Stock beat has no other node: it is the same one, started again by its",
        "supervisor half a second after it ended, and with its machine gone there is nothing.",
        "",
    )
    rows = []
    for result in figures.results:
        spreads = [_spread(result.failovers.get(kind, [])) for kind in FAILOVERS]
        restarted = " (restarted)" if result.contender.nodes == 1 else ""
        rows.append([result.contender.name + restarted, *spreads])
    yield from _table(["", f"after {TERM}", f"after {KILL}"], rows)


def _faults(figures: Figures) -> Iterator[str]:
    yield from (
        "## Under faults",
        "",
        "Forty entries with intervals of 1.6 to 2.4 s. Due times sent twice / missed / longest time",
        f"without any message. Paused (SIGSTOP) and cut off (a silent network) for {LONGER_THAN_LEASE:g} s,",
        f"a lease and three seconds; Redis keeps its data and is away for {OUTAGE:g} s. SIGKILL ends all processes",
        "of a node, as the end of its container does; of one process alone it is as from an out-of-memory",
        "killer. What has ended is started again after half a second, and what it has left behind goes on until",
        "the fault is over, as under supervisord by default. *Missed* is a due time that passed before the entry's next",
        "message: with a leader killed some must be late, and whoever sends one message for all that",
        'fell due in between has missed the others. `leader_beat_catch_up = "all"` sends each of them.',
        "",
    )
    rows = [
        [result.contender.name]
        + [_cell(result.findings.get(kind, []), result.unrecovered.get(kind, 0)) for kind in KINDS]
        + [str(sum(result.deaths.values()))]
        for result in figures.results
    ]
    yield from _table(["", *KINDS, "ended by itself"], rows)


def _cell(findings: Sequence[Findings], unrecovered: int) -> str:
    total = sum(findings, Findings())
    cell = f"{total.duplicates} / {total.missed} / {total.longest_gap:.1f} s"
    return cell + (f"; {unrecovered} x did not come back" if unrecovered else "")


def _rates(figures: Figures) -> Iterator[str]:
    yield from (
        "## Dispatch rate",
        "",
        "Messages a second when so many entries are due at once, each scheduler's own `tick` in one",
        "process, the best of the rounds. single-beat and a hand-written lock run stock beat.",
        "",
    )
    sizes = list(figures.rates[0].by_size)
    rows = [
        [rates.name, *(f"{rate:,.0f}" for rate in rates.by_size.values())]
        for rates in figures.rates
    ]
    yield from _table(["", *(f"{size:,} entries" for size in sizes)], rows)


def _idle(figures: Figures) -> Iterator[str]:
    yield from (
        "## Idle",
        "",
        "Leader / standby, real processes, one entry every two seconds: private memory, share of one",
        "CPU, connections to Redis; and the commands a second of the whole pair.",
        "",
    )
    rows = []
    for idle in figures.idle:
        costs = [cost for cost in (idle.leader, idle.standby) if cost is not None]
        rows.append(
            [
                idle.contender.name,
                " / ".join(f"{cost.memory:.0f}" for cost in costs) + " MiB",
                " / ".join(f"{cost.cpu:.2%}" for cost in costs),
                " / ".join(str(cost.connections) for cost in costs),
                f"{idle.commands:.1f}",
            ]
        )
    yield from _table(["", "memory", "CPU", "connections", "commands/s"], rows)


def _growth(figures: Figures) -> Iterator[str]:
    yield from (
        "## A growing fleet",
        "",
        "Candidates as threads of one process that run what a node runs (single-beat's two loops are",
        "written down in `benchmarks/peers/candidates.py`). Per candidate and second: commands of",
        "clients, and microseconds of Redis's CPU in brackets (with few candidates mostly its own",
        "housekeeping); then connections per candidate.",
        "",
    )
    sizes = list(dict.fromkeys(load.candidates for load in figures.loads))
    rows = []
    for name in dict.fromkeys(load.contender.name for load in figures.loads):
        loads = [load for load in figures.loads if load.contender.name == name]
        cells = [f"{load.commands:.2f} ({load.cpu * 1e6:.0f})" for load in loads]
        rows.append([name, *cells, f"{loads[-1].connections:.1f}"])
    yield from _table(["", *(f"{size} candidates" for size in sizes), "connections"], rows)


def _questions(figures: Figures) -> Iterator[str]:
    asked = figures.questions
    yield from (
        '## "Do I lead?"',
        "",
        f"`is_leader()` takes {asked.is_leader:.0f} ns in a pool process: a look at shared memory and a clock, no",
        f"network. redis-py's `Lock.owned()` takes {asked.lock_owned / 1000:,.0f} µs, a question to Redis on the same machine.",
        "celery-leased-beat keeps a flag that does not end with its lease; the others have nothing to ask.",
        "",
    )


def _where_it_loses(figures: Figures) -> Iterator[str]:
    yield "## Where celery_leader is not the best"
    yield ""
    losses = [loss for measured in _measured(figures) for loss in _losses(*measured)]
    yield from (f"- {loss}" for loss in losses or ["Nowhere in this run."])
    yield ""


def _measured(figures: Figures) -> Iterator[tuple[str, dict[str, float], str, bool]]:
    """What, value by contender, its unit, and whether more is better."""
    for kind in FAILOVERS:
        medians = {
            result.contender.name: statistics.median(result.failovers[kind])
            for result in figures.results
            if result.failovers.get(kind)
        }
        yield f"failover after {kind}", medians, "{:.2f} s", False
    for what in ("duplicates", "missed"):
        for kind in KINDS:
            counts = {
                result.contender.name: float(
                    sum(getattr(found, what) for found in result.findings.get(kind, []))
                )
                for result in figures.results
            }
            yield f"{what}, {kind}", counts, "{:.0f}", False
    for size in figures.rates[0].by_size:
        rates = {each.name: each.by_size[size] for each in figures.rates}
        yield f"dispatches a second, {size:,} entries", rates, "{:,.0f}", True
    leaders = {idle.contender.name: idle.leader for idle in figures.idle}
    standbys = {
        idle.contender.name: idle.standby for idle in figures.idle if idle.standby is not None
    }
    for role, costs in (("leader", leaders), ("standby", standbys)):
        memory = {name: cost.memory for name, cost in costs.items()}
        connections = {name: float(cost.connections) for name, cost in costs.items()}
        yield f"memory of an idle {role}", memory, "{:.0f} MiB", False
        yield f"connections of a {role}", connections, "{:.0f}", False
    pairs = {idle.contender.name: idle.commands for idle in figures.idle}
    yield "commands a second of an idle pair", pairs, "{:.1f}", False
    for size in dict.fromkeys(load.candidates for load in figures.loads):
        asked = {
            load.contender.name: load.commands for load in figures.loads if load.candidates == size
        }
        yield f"commands a candidate and second, {size} candidates", asked, "{:.2f}", False
    biggest = max(load.candidates for load in figures.loads)
    cpu = {load.contender.name: load.cpu for load in figures.loads if load.candidates == biggest}
    micros = {name: 1e6 * value for name, value in cpu.items()}
    yield f"Redis's CPU a candidate and second, {biggest} candidates", micros, "{:.0f} µs", False


def _losses(what: str, values: dict[str, float], unit: str, more: bool) -> Iterator[str]:
    ours = values.get(LEADER.name)
    if ours is None:
        return
    better = {
        name: value
        for name, value in values.items()
        if (value > ours * _CLEARLY if more else value * _CLEARLY < ours)
    }
    if better:
        others = ", ".join(f"{name} {unit.format(value)}" for name, value in better.items())
        yield f"{what}: {unit.format(ours)}; better: {others}"


def _scale(figures: Figures) -> Iterator[str]:
    scale, timing = figures.scale, Timing()
    sizes = scale.sizes
    asks = sizes.candidates / timing.renew_interval
    load = asks * scale.ask_cpu
    herd = sizes.candidates * scale.ask_cpu
    memory = sizes.candidates * (scale.candidate_memory + scale.connection_memory)
    ours = next(rates for rates in figures.rates if rates.name == LEADER.name)
    largest = max(ours.by_size)
    rate = ours.by_size[largest]
    renewals = sizes.elections / timing.renew_interval
    yield from (
        "## What one Redis carries",
        "",
        f"Reckoned from figures of this run, measured at these sizes, with the default lease of {DEFAULT_LEASE:g} s.",
        "",
        f"**{sizes.candidates:,} candidates of one election.** A follower asks about once per renew interval",
        f"({timing.renew_interval:g} s) and waits in a blocking read between: {asks:,.0f} questions a second at",
        f"{scale.ask_cpu * 1e6:.0f} µs of Redis's CPU each, {load:.0%} of its one core. A renewal costs {scale.renew_cpu * 1e6:.0f} µs.",
        f"The register takes {scale.candidate_memory:.0f} bytes a candidate and a connection {scale.connection_memory / 1024:.0f} KiB:",
        f"{memory / 2**20:,.0f} MiB together. An announcement wakes all of them, and their questions keep Redis busy for",
        f"{herd:.1f} s, while one answer may take {timing.operation_timeout:g} s.",
        f"*First to break:* `maxclients`, {_MAXCLIENTS:,} by default, as a candidate holds a connection for the election"
        " beside Celery's own;",
        _herd_verdict(herd, timing.operation_timeout),
        "",
        f"**{sizes.elections:,} elections.** A record with a full history takes {scale.election_memory / 1024:.0f} KiB,",
        f"{sizes.elections * scale.election_memory / 2**20:.0f} MiB together. Leading all of them is {renewals:,.0f} renewals a second,",
        f"one round trip of {scale.pipeline_seconds * 1000:.0f} ms for a process that leads them all and has them due at once.",
        f"*First to break:* that round trip, when it takes as long as an answer may ({timing.operation_timeout:g} s): at some",
        f"{sizes.elections * timing.operation_timeout / scale.pipeline_seconds:,.0f} elections in one process. Spread over processes they share only Redis's core.",
        "",
        f"**{sizes.entries:,} entries of one schedule.** Their state takes {scale.entry_memory:.0f} bytes an entry,",
        f"{sizes.entries * scale.entry_memory / 2**20:.0f} MiB together. A new leader is ready {scale.takeover_seconds:.1f} s after its election, and one with",
        f"nothing due uses {scale.idle_cpu:.1%} of a CPU. A dispatch costs Redis {scale.dispatch_cpu * 1e6:.0f} µs, so Redis would carry",
        f"{1 / scale.dispatch_cpu:,.0f} a second; one beat sends {rate:,.0f} a second with {largest:,} entries due.",
        f"*First to break:* the beat, one Python process: with every entry due once in {sizes.entries / rate:,.0f} s it does nothing else.",
        "",
    )


def _herd_verdict(herd: float, timeout: float) -> str:
    if herd > timeout:
        return (
            "raised, the wave of questions after an announcement: the last of them give up and ask"
            " again. Leave most of such a fleet out of the race (`leader_candidate = False`)."
        )
    return (
        f"raised, the wave of questions after an announcement, at some"
        f" {timeout / herd:.1f} times as many candidates."
    )


def _setup(figures: Figures) -> Iterator[str]:
    yield from (
        "## How each was set up",
        "",
        "As its own documentation says, with the lease that can be set. Where a contender has other",
        "durations too, they have the proportions of its own defaults. `URL` is the Redis of all, behind",
        "the proxy of the node; all have `broker_connection_retry_on_startup=True`. Every node runs under a",
        "supervisor that starts it again.",
        "",
        "| | command | settings | by |",
        "|---|---|---|---|",
    )
    for result in figures.results:
        yield _how(result.contender)
    yield ""
    yield f"{LOCK.name}: [locked_beat.py](../benchmarks/peers/locked_beat.py)."


def _how(contender: Contender) -> str:
    command = " ".join(
        "python" if "/python" in part else part.rpartition("/")[2] if part.startswith("/") else part
        for part in contender.command("FILE")
    ).replace("python -m celery -A benchmarks.peers.app", "celery -A …")
    given = contender.settings("URL") | contender.variables("URL")
    settings = ", ".join(f"`{name}={value}`" for name, value in given.items()) or "none"
    return f"| {contender.name} | `{command}` | {settings} | {contender.documented} |"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "nobody came"
    return (
        f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f},"
        f" {len(seconds)} times)"
    )
