"""What a candidate says of itself in the register, and how that is read back.

One short JSON text per candidate. Whoever can write to Redis can write anything there,
so reading is forgiving: a value that is not as expected is left out, and nothing is ever
evaluated. It holds no secrets: no address, no password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

#: Bytes; a longer text of one candidate is not kept.
MOST_BYTES = 2048

_FAR = 1e11  # seconds since 1970; some three thousand years

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class CandidateInfo:
    """Where a candidate runs, what it runs, and the settings that all should share.

    Attributes:
        host: the machine's name.
        pid: the process.
        role: ``worker``, ``beat`` or ``process``.
        app: the app's identity; see ``kinship``.
        scheduler: the scheduler class of a beat; empty for others.
        fenced: whether a beat sends only while it leads; true for others.
        versions: of ``celery_leader``, ``celery``, ``redis`` and ``python``.
        settings: the ``leader_*`` settings that matter to other candidates, by name.
        unfit: why it does not campaign at present, in words; empty if it does.
        steps_down_since: since when it is about to give its lease up, in seconds since 1970 by its
            own clock; 0 if it is not.
        waits_for: the id of a task whose body it waits for before it does.
    """

    host: str = ""
    pid: int = 0
    role: str = ""
    app: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    scheduler: str = ""
    fenced: bool = True
    unfit: str = ""
    steps_down_since: float = 0.0
    waits_for: str = ""

    @property
    def place(self) -> str:
        """Its role, process and host; empty if they are not known."""
        return f"{self.role}, pid {self.pid} on {self.host}" if self.host else ""

    def text(self) -> str:
        """The JSON text for the register; empty if it would be too long."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        return text if len(text) <= MOST_BYTES else ""


def read_candidate_info(text: str) -> CandidateInfo | None:
    """Read what ``CandidateInfo.text`` wrote; ``None`` if it cannot be read."""
    try:
        said = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    return CandidateInfo(
        host=_string(said.get("host")),
        pid=_whole(said.get("pid")),
        role=_string(said.get("role")),
        app=_string(said.get("app")),
        versions={k: v for k, v in _items(said, "versions") if isinstance(v, str)},
        settings={k: v for k, v in _items(said, "settings") if _is_setting(v)},
        scheduler=_string(said.get("scheduler")),
        fenced=said.get("fenced") is not False,
        unfit=_string(said.get("unfit")),
        steps_down_since=_moment(said.get("steps_down_since")),
        waits_for=_string(said.get("waits_for")),
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _moment(value: Any) -> float:
    sound = isinstance(value, float) and isfinite(value) and 0 < value < _FAR
    return value if sound else 0.0


def _is_setting(value: Any) -> bool:
    # 1e400 is JSON, and becomes a float that is infinite.
    return isinstance(value, Setting) and not (isinstance(value, float) and not isfinite(value))


def _items(said: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    value = said.get(name)
    return list(value.items()) if isinstance(value, dict) else []
