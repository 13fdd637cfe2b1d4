"""``python -m celery`` without two imports that no worker and no beat uses.

They take half of the time that it needs to start. They are Flower, which adds a command to
``celery`` where it is installed, and the prompt of ``celery amqp repl``.
"""

from __future__ import annotations

import sys
from types import ModuleType


def leave_out_what_none_uses() -> None:
    """Have Celery find neither; before it is imported."""
    if "flower" not in sys.argv:
        sys.modules["flower"] = None  # type: ignore[assignment]
    prompt = ModuleType("click_repl")
    prompt.register_repl = lambda group: None  # type: ignore[attr-defined]
    sys.modules["click_repl"] = prompt


if __name__ == "__main__":
    leave_out_what_none_uses()
    from celery.__main__ import main

    main()
