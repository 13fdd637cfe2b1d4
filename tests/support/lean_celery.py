"""``python -m celery`` without two imports that no worker and no beat uses.

They take a third of the time that it needs to start. They are Flower, which adds a command to
``celery`` where it is installed, and the prompt of ``celery amqp repl``.
"""

from __future__ import annotations

import sys
from types import ModuleType

from celery.__main__ import main

if __name__ == "__main__":
    if "flower" not in sys.argv:
        sys.modules["flower"] = None  # type: ignore[assignment]
    prompt = ModuleType("click_repl")
    prompt.register_repl = lambda group: None  # type: ignore[attr-defined]
    sys.modules["click_repl"] = prompt
    main()
