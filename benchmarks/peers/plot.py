"""The figures of one run as one SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import ALL, LEASE
from benchmarks.peers.faults import FAILOVERS, KINDS
from benchmarks.peers.figures import Figures

_COLOURS = dict(
    zip(
        (contender.name for contender in ALL),
        ("#888888", "#c44e52", "#dd8452", "#8172b3", "#937860", "#1f6fb4"),
        strict=True,
    )
)
_SHORT = {kind: kind for kind in KINDS} | {"SIGKILL of the main process alone": "SIGKILL alone"}


def draw(figures: Figures, file: Path) -> None:
    """Write it to ``file``."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "celery-leader", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 9))
    _failovers(axes[0][0], figures)
    _findings(axes[0][1], figures)
    _gaps(axes[0][2], figures)
    _rates(axes[1][0], figures)
    _commands(axes[1][1], figures)
    _memory(axes[1][2], figures)
    for plot in axes.flat:
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25)
        plot.set_axisbelow(True)
    figure.suptitle(f"One run, {figures.when}, lease {LEASE} s; {figures.versions}", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _legend_below(plot: Any, columns: int) -> None:
    plot.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, fontsize=8, frameon=False
    )


def _failovers(plot: Any, figures: Figures) -> None:
    results = [result for result in figures.results if result.contender.nodes > 1]
    for row, result in enumerate(results):
        colour = _COLOURS[result.contender.name]
        for kind, marker, shift in zip(FAILOVERS, ("o", "x"), (-0.15, 0.15), strict=True):
            seconds = result.failovers.get(kind, [])
            plot.plot(seconds, [row + shift] * len(seconds), marker, color=colour, alpha=0.7)
    plot.axvline(LEASE, color="black", linewidth=0.8, linestyle=":")
    plot.set_yticks(range(len(results)), [result.contender.name for result in results])
    plot.invert_yaxis()
    plot.set_xscale("log")
    plot.set_xlabel("seconds, log; dotted: one lease")
    plot.set_title("Failover: o after SIGTERM, x after SIGKILL")


def _findings(plot: Any, figures: Figures) -> None:
    names = [result.contender.name for result in figures.results]
    total = [
        [each for found in result.findings.values() for each in found] for result in figures.results
    ]
    duplicates = [sum(each.duplicates for each in found) for found in total]
    missed = [sum(each.missed for each in found) for found in total]
    for shift, values, colour, label in (
        (-0.2, duplicates, "#c44e52", "sent twice"),
        (0.2, missed, "#8c8c8c", "missed"),
    ):
        bars = plot.barh(
            [i + shift for i in range(len(names))], values, 0.38, color=colour, label=label
        )
        plot.bar_label(bars, padding=2, fontsize=8)
    plot.set_yticks(range(len(names)), names)
    plot.invert_yaxis()
    plot.margins(x=0.12)
    _legend_below(plot, 2)
    plot.set_xlabel("due times")
    plot.set_title("Due times sent twice and missed, all faults")


def _gaps(plot: Any, figures: Figures) -> None:
    width = 0.8 / len(figures.results)
    for i, result in enumerate(figures.results):
        gaps = [
            max((found.longest_gap for found in result.findings.get(kind, [])), default=0)
            for kind in KINDS
        ]
        plot.bar(
            [x + i * width - 0.4 + width / 2 for x in range(len(KINDS))],
            gaps,
            width,
            color=_COLOURS[result.contender.name],
            label=result.contender.name,
        )
    plot.axhline(LEASE, color="black", linewidth=0.8, linestyle=":")
    plot.set_xticks(range(len(KINDS)), [_SHORT[kind].replace(" ", "\n") for kind in KINDS])
    _legend_below(plot, 3)
    plot.set_ylabel("seconds; dotted: one lease")
    plot.set_title("Longest time without any message")


def _rates(plot: Any, figures: Figures) -> None:
    for rates in figures.rates:
        plot.plot(
            list(rates.by_size),
            list(rates.by_size.values()),
            marker="o",
            color=_COLOURS[rates.name],
            label=rates.name,
        )
    plot.set_xscale("log")
    plot.set_ylim(bottom=0)
    plot.legend()
    plot.set_xlabel("entries due at once")
    plot.set_ylabel("dispatches a second")
    plot.set_title("Dispatch rate")


def _commands(plot: Any, figures: Figures) -> None:
    for name in dict.fromkeys(load.contender.name for load in figures.loads):
        loads = [load for load in figures.loads if load.contender.name == name]
        plot.plot(
            [load.candidates for load in loads],
            [load.commands * load.candidates for load in loads],
            marker="o",
            color=_COLOURS[name],
            label=name,
        )
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.legend()
    plot.set_xlabel("candidates")
    plot.set_ylabel("Redis commands a second, all together")
    plot.set_title("What a growing fleet asks of Redis")


def _memory(plot: Any, figures: Figures) -> None:
    names = [idle.contender.name for idle in figures.idle]
    for shift, label, colour, costs in (
        (-0.2, "leader", "#4c72b0", [idle.leader for idle in figures.idle]),
        (0.2, "standby", "#a8c0dd", [idle.standby for idle in figures.idle]),
    ):
        values = [cost.memory if cost is not None else 0 for cost in costs]
        bars = plot.barh(
            [i + shift for i in range(len(names))], values, 0.38, color=colour, label=label
        )
        plot.bar_label(bars, [f"{value:.0f}" if value else "" for value in values], padding=2)
    plot.set_yticks(range(len(names)), names)
    plot.invert_yaxis()
    plot.margins(x=0.12)
    _legend_below(plot, 2)
    plot.set_xlabel("private memory, MiB")
    plot.set_title("Idle memory of a node")
