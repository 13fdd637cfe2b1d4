"""The picture of a soak: each quantity over time, one line per process."""

from __future__ import annotations

from pathlib import Path

from tests.soak.sampler import METRICS, Life, Sample

UNITS = {
    "rss": "RSS, MiB",
    "pss": "PSS, MiB",
    "descriptors": "file descriptors",
    "threads": "threads",
    "connections": "connections",
}


def draw(lives: dict[Life, list[Sample]], begun: float, title: str, files: list[Path]) -> None:
    """Write the picture into ``files``, each in the form its suffix names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    roles = sorted({life.role for life in lives})
    figure, axes = pyplot.subplots(
        len(METRICS),
        len(roles),
        figsize=(4.5 * len(roles), 2.2 * len(METRICS)),
        sharex=True,
        squeeze=False,
    )
    for column, role in enumerate(roles):
        for row, metric in enumerate(METRICS):
            plot = axes[row][column]
            for life, samples in lives.items():
                if life.role == role:
                    minutes = [(life.born + s.age - begun) / 60 for s in samples]
                    plot.plot(minutes, [getattr(s, metric) for s in samples], linewidth=0.8)
            plot.set_ylim(bottom=0)
            plot.grid(alpha=0.3)
            if column == 0:
                plot.set_ylabel(UNITS[metric])
        axes[0][column].set_title(f"{role}: one line per process")
        axes[-1][column].set_xlabel("minutes")
    figure.suptitle(title)
    figure.tight_layout()
    for file in files:
        figure.savefig(file)
    pyplot.close(figure)
