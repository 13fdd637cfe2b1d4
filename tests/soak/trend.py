"""Tells a leak from noise. Pure: series in, a trend out.

A process is one life, from its start to its end. A life grows while it warms up, jumps
when it is under a fault, and comes back; a leak is what goes on growing. So of each life
only the second half counts, and of that the floor: the lowest value in each stretch of
some seconds. Each life gives one slope, and the mean of the slopes is what is judged. Values
that follow each other are not independent: a fault moves several. So the error of a slope
counts each deviation together with those shortly after it (Newey and West's estimate). It
is a leak if the mean is above what is tolerated even at the low end of its error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Series = Sequence[tuple[float, float]]  # (age of the process in seconds, value)

WARM_UP = 20.0  # seconds of a life that never count
STRETCH = 5.0  # seconds of which only the lowest value counts
_FEWEST = 6  # stretches a life must give to have a slope
_TOGETHER = 5  # stretches that one fault may move
_ERRORS = 3.0  # standard errors: more than 99 %, as estimates from few points are too small


@dataclass(frozen=True, slots=True)
class Trend:
    """How something grows in the processes of one kind.

    Attributes:
        lives: how many processes lived long enough to tell.
        minutes: that they were watched for, after their warming up.
        per_minute: the slope.
        at_least: what it is with 99 % confidence.
        lowest: the least value that counted.
        highest: the greatest value that counted.
    """

    lives: int
    minutes: float
    per_minute: float
    at_least: float
    lowest: float
    highest: float

    def exceeds(self, tolerated: float) -> bool:
        """Whether it grows by more than ``tolerated`` a minute, noise set aside."""
        return self.at_least > tolerated


def trend(series: Sequence[Series]) -> Trend | None:
    """The common slope of all lives, or ``None`` if none was long enough."""
    floors = [floor for floor in map(_floor, series) if len(floor) >= _FEWEST]
    if not floors:
        return None
    slopes = [_slope(floor) for floor in floors]
    total = sum(slope.weight for slope in slopes)
    mean = sum(slope.weight * slope.value for slope in slopes) / total
    error = math.sqrt(sum(slope.spread for slope in slopes)) / total
    values = [value for floor in floors for _, value in floor]
    return Trend(
        lives=len(floors),
        minutes=sum(floor[-1][0] - floor[0][0] for floor in floors) / 60,
        per_minute=60 * mean,
        at_least=60 * (mean - _ERRORS * error),
        lowest=min(values),
        highest=max(values),
    )


def _floor(life: Series) -> list[tuple[float, float]]:
    """The lowest value of each stretch in the second half of a life."""
    if not life:
        return []
    begins = max(life[-1][0] / 2, WARM_UP)
    lowest: dict[int, float] = {}
    for age, value in life:
        if age >= begins:
            stretch = int((age - begins) / STRETCH)
            lowest[stretch] = min(value, lowest.get(stretch, value))
    return [(begins + (stretch + 0.5) * STRETCH, value) for stretch, value in lowest.items()]


@dataclass(frozen=True, slots=True)
class _Slope:
    """Least squares over one life; ``spread / weight²`` is the square of its error."""

    value: float
    weight: float
    spread: float


def _slope(points: Series) -> _Slope:
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    weight = sum((x - mean_x) ** 2 for x, _ in points)
    value = sum((x - mean_x) * (y - mean_y) for x, y in points) / weight
    pulls = [(x - mean_x) * (y - mean_y - value * (x - mean_x)) for x, y in points]
    spread = sum(pull * pull for pull in pulls)
    for lag in range(1, min(_TOGETHER, count - 1) + 1):
        shared = sum(a * b for a, b in zip(pulls, pulls[lag:], strict=False))
        spread += 2 * (1 - lag / (_TOGETHER + 1)) * shared
    return _Slope(value, weight, max(spread, 0.0) * count / (count - 2))
