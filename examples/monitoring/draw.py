"""Draws the dashboard's panels from a running Prometheus into one picture, without a Grafana.

    python examples/monitoring/draw.py http://localhost:9090 picture.png [minutes]

Needs matplotlib.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import dates, pyplot

DASHBOARD = json.loads(Path(__file__).with_name("dashboard.json").read_text())
POINTS = 300


def series(url: str, query: str, minutes: float) -> list[dict[str, Any]]:
    """What a range query answers, as Grafana would ask it."""
    end = time.time()
    query = query.replace("$election", ".*").replace("$__rate_interval", "20s")
    asked = urllib.parse.urlencode(
        {
            "query": query,
            "start": end - 60 * minutes,
            "end": end,
            "step": max(1.0, 60 * minutes / POINTS),
        }
    )
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def named(pattern: str, labels: dict[str, str]) -> str:
    """A legend, as Grafana would write it."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern)


def draw(url: str, picture: str, minutes: float) -> None:
    """Every panel of the dashboard, two beside each other."""
    panels = DASHBOARD["panels"]
    rows = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(rows, 2, figsize=(15, 2.6 * rows), layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.set_title(panel["title"], fontsize=10, loc="left")
        offset = 0.0
        for target in panel["targets"]:
            for each in series(url, target["expr"], minutes):
                moments = [datetime.datetime.fromtimestamp(at) for at, _ in each["values"]]
                values = [float(value) for _, value in each["values"]]
                label = named(target["legendFormat"], each["metric"])
                if panel["type"] == "state-timeline":
                    top = [offset + 0.8 * value for value in values]
                    axis.fill_between(moments, offset, top, step="post", label=label)
                    offset += 1.0
                else:
                    axis.plot(moments, values, linewidth=1.2, label=label)
        if panel["type"] == "state-timeline":
            axis.set_yticks([])
        axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    draw(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) == 4 else 5.0)
