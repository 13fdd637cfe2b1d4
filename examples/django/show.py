"""``make example-django``: two beats over one database, and the leader of them goes."""

from __future__ import annotations

import contextlib
import sys
import urllib.request
from pathlib import Path

from examples.show import Fleet, Show, main

HERE = Path(__file__).resolve().parent
WRITERS = """\
from sales.models import Report
print(*Report.objects.values_list("worker", flat=True))
"""
PASSWORD = "admin"  # of a database that is thrown away at the end


def page(url: str) -> str | None:
    """What is served at ``url``; ``None`` while nothing is."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
    return None


def story(show: Show) -> None:
    """What is shown."""
    port = show.port()
    url = show.redis().url
    fleet = Fleet(
        show,
        HERE,
        "shop",
        env={
            "REDIS_URL": url,
            "SHOP_DB": str(show.directory / "db.sqlite3"),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        },
        broker_url=url,
    )
    manage = [sys.executable, str(HERE / "manage.py")]
    show.say("migrating a SQLite database; the periodic tasks are rows in it")
    show.run("migrate", [*manage, "migrate", "--no-input"], fleet.env)
    superuser = ["createsuperuser", "--no-input", "--username", "admin", "--email", "a@example.org"]
    show.run("createsuperuser", [*manage, *superuser], fleet.env)
    fleet.start(scheduler="leader-django")
    fleet.ran("sales.tasks.write_report", 2)
    fleet.hand_over("beat")
    fleet.ran("sales.tasks.greet", 2)
    fleet.hand_over("worker")
    fleet.ran("sales.tasks.write_report", 2)
    shell = [*manage, "shell", "--verbosity", "0", "--command", WRITERS]
    writers = show.run("shell", shell, fleet.env).split()
    by_each = ", ".join(f"{writers.count(each)} by {each}" for each in sorted(set(writers)))
    show.say(f"{len(writers)} reports in the database: {by_each}")
    admin = f"http://127.0.0.1:{port}/admin/"
    show.processes.start(
        "web", [*manage, "runserver", "--noreload", f"127.0.0.1:{port}"], fleet.env
    )
    show.wait(lambda: "Django administration" in (page(admin) or ""), "the admin to answer")
    show.say(f"the admin answers at {admin}")
    show.stay(f"Log in as admin, password {PASSWORD}, and change an entry of Periodic tasks.")


if __name__ == "__main__":
    sys.exit(main("example-django", story))
