"""``make example-quickstart``: two workers, two beats, and a leader of each that goes."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.show import Fleet, Show, main


def story(show: Show) -> None:
    """What is shown."""
    url = show.redis().url
    here = Path(__file__).resolve().parent
    fleet = Fleet(show, here, "quickstart", env={"REDIS_URL": url}, broker_url=url)
    fleet.start()
    fleet.ran("quickstart.greet", 3)
    fleet.ran("quickstart.close_the_books", 1)
    fleet.hand_over("beat")
    fleet.ran("quickstart.greet", 2)
    fleet.hand_over("worker")
    fleet.ran("quickstart.close_the_books", 1)


if __name__ == "__main__":
    sys.exit(main("example-quickstart", story))
