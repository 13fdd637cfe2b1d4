"""Helpers that tests share: servers, processes, proxies, fleets, fixtures."""

from __future__ import annotations

from pathlib import Path

#: The directory of the whole project.
ROOT = Path(__file__).resolve().parents[2]
