"""A real Prometheus, as a subprocess on a free port, that scrapes the targets of a test."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.launching import kill_group, launch
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

BINARY = shutil.which("prometheus")


class Prometheus:
    """One Prometheus server, with its data and log in ``directory``.

    Args:
        directory: for its configuration, data and log.
        targets: ``host:port`` of each process to scrape.
        rules: a file of rules to evaluate.
    """

    def __init__(self, directory: Path, targets: Sequence[str], rules: Path) -> None:
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "celery", "static_configs": [{"targets": targets}]}],
        }
        file = directory / "prometheus.json"  # JSON is YAML
        file.write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        assert BINARY is not None
        self._process = launch(
            [
                BINARY,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            self._log,
        )

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *exc: object) -> None:
        kill_group(self._process)

    def get(self, path: str, **parameters: str) -> Any:
        """The data that the API answers; ``None`` while it does not."""
        query = urllib.parse.urlencode(parameters)
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
        url = f"{self.url}/api/v1/{path}?{query}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except (urllib.error.URLError, ConnectionError):
            return None

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The values of ``expression`` at this moment, by their labels."""
        data = self.get("query", query=expression)
        return {
            tuple(sorted(sample["metric"].items())): float(sample["value"][1])
            for sample in (data or {"result": ()})["result"]
        }

    def wait_for(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The values of ``expression``, once it has any."""
        return wait_until(lambda: self.query(expression), what=f"a value of {expression}")

    def firing(self) -> set[str]:
        """The alerts that fire."""
        alerts = (self.get("alerts") or {"alerts": ()})["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}
