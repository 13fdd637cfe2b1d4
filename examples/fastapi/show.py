"""``make example-fastapi``: two web processes, two workers; leader-only work on request."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from examples.machine import free_port
from examples.processes import Process, ShowError
from examples.show import Fleet, Show, main


def ask(port: int, path: str, method: str = "GET") -> Any:
    """The answer of one web process; ``None`` while it does not serve."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())
    return None


def serve(show: Show, fleet: Fleet, name: str, port: int) -> Process:
    """Start one web process, and wait until it answers."""
    command = ["-m", "uvicorn", "web:web", "--host", "127.0.0.1", "--port", str(port)]
    process = show.processes.start(name, [sys.executable, *command], fleet.env)
    show.wait(lambda: ask(port, "/me"), f"{name} to answer")
    return process


def build(show: Show, port: int, name: str) -> None:
    """Ask for a report, wait for it, and say who built it."""
    accepted = ask(port, f"/reports?name={name}", "POST")
    if accepted is None:
        raise ShowError(f"POST /reports was not answered\n{show.processes.epitaphs()}")
    task_id = accepted["id"]
    show.say(f"POST /reports?name={name} -> {task_id[:8]}…")
    done = show.wait(lambda: (ask(port, f"/reports/{task_id}") or {}).get("report"), "the report")
    show.say(f"GET /reports/{task_id[:8]}… -> built by {done['worker']}, term {done['term']}")


def story(show: Show) -> None:
    """What is shown."""
    first, second = show.port(), free_port()
    url = show.redis().url
    here = Path(__file__).resolve().parent
    fleet = Fleet(show, here, "proj", env={"REDIS_URL": url}, broker_url=url)
    fleet.start()
    show.say("starting two web processes")
    web = {port: serve(show, fleet, f"web-{port}", port) for port in (first, second)}
    leads = show.wait(
        lambda: next((port for port in web if (ask(port, "/me") or {}).get("leads")), None),
        "a web process to lead",
    )
    show.say(f"GET /leaders -> {json.dumps(ask(first, '/leaders'))}")
    build(show, first, "sales")
    build(show, second, "stock")
    fleet.hand_over("worker")
    build(show, first, "sales")
    follows = first if leads == second else second
    show.say(f"SIGTERM to {web[leads].name}, which leads the web processes")
    web[leads].terminate()
    mine = show.wait(
        lambda: (answer := ask(follows, "/me")) and answer["leads"] and answer,
        "the other one to lead",
    )
    show.say(f"GET /me of the other -> {json.dumps(mine)}")
    show.wait(lambda: not web[leads].alive, "the first to end")
    serve(show, fleet, f"web-{leads}-again", leads)
    show.stay(f"Look at http://127.0.0.1:{first}/docs and /leaders.")


if __name__ == "__main__":
    sys.exit(main("example-fastapi", story))
