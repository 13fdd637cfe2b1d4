"""Two projects are told apart, and two parts or versions of one are not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_leader.core.kinship import Kin, called, identity, kinship


def tasks(project: str, count: int, first: int = 0) -> list[str]:
    return [f"{project}.tasks.t{number}" for number in range(first, first + count)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # One project.
        (("app", tasks("a", 300)), ("app", tasks("a", 300)), Kin.SAME),
        (("app", tasks("a", 300)), ("app", tasks("a", 340, first=30)), Kin.SAME),
        (("app", tasks("a", 10)), ("app", tasks("a", 10, first=4)), Kin.SAME),
        (("app", tasks("a", 300)), ("app", tasks("a", 5)), Kin.SAME),
        (("app", tasks("a", 300)), ("web", tasks("a", 20, first=100)), Kin.SAME),
        (("app", tasks("a", 300)), ("app", []), Kin.SAME),
        (("app", []), ("app", []), Kin.SAME),
        (("app", tasks("a", 3)), ("app", [*tasks("b", 9), *tasks("a", 1)]), Kin.SAME),
        (("app", tasks("a", 3)), ("", []), Kin.SAME),
        # Two.
        (("app", tasks("a", 300)), ("app", tasks("b", 300)), Kin.OTHER),
        (("app", tasks("a", 2)), ("app", tasks("b", 2)), Kin.OTHER),
        (("app", tasks("a", 150)), ("app", tasks("b", 2)), Kin.OTHER),
        (("a", tasks("a", 1)), ("b", tasks("b", 1)), Kin.OTHER),
        (("a", []), ("b", []), Kin.OTHER),
        (("a", tasks("a", 300)), ("b", []), Kin.OTHER),
        (
            ("app", tasks("a", 300) + tasks("common", 10)),
            ("app", tasks("b", 300) + tasks("common", 10)),
            Kin.OTHER,
        ),
        (("a", tasks("a", 20) + tasks("c", 5)), ("b", tasks("b", 20) + tasks("c", 5)), Kin.OTHER),
        # Nobody knows.
        (("app", tasks("a", 150)), ("app", tasks("b", 1)), Kin.UNKNOWN),
        (("app", ["old.name"]), ("app", ["new.name"]), Kin.UNKNOWN),
    ],
)
def test_how_two_apps_are_related(
    one: tuple[str, list[str]], other: tuple[str, list[str]], expected: Kin
) -> None:
    ours, theirs = identity(*one), identity(*other)
    assert kinship(ours, theirs) is kinship(theirs, ours) is expected


def test_celerys_own_tasks_make_nobody_kin() -> None:
    shared = ["celery.map", "celery.chord"]
    ours, theirs = (
        identity("a", [*tasks("a", 3), *shared]),
        identity("b", [*tasks("b", 3), *shared]),
    )
    assert kinship(ours, theirs) is Kin.OTHER


def test_an_identity_of_an_earlier_version_is_compared_by_name_and_digest() -> None:
    ours = identity("app", tasks("a", 3))
    name, digest, _ = ours.split("|")
    assert kinship(ours, f"{name}|000000000000") is Kin.SAME
    assert kinship(ours, f"other|{digest}") is Kin.SAME
    assert kinship(ours, "other|000000000000") is Kin.OTHER


@settings(deadline=None)  # a busy machine takes as long as it takes
@given(st.text(max_size=400), st.lists(st.text(max_size=40), max_size=200))
def test_an_identity_fits_into_a_field_and_is_its_own_kin(name: str, names: list[str]) -> None:
    own = identity(
        name.encode(errors="ignore").decode(), [n.encode(errors="ignore").decode() for n in names]
    )
    assert len(own.encode()) <= 1000
    assert kinship(own, own) is Kin.SAME
    assert called(own).isprintable()


@settings(deadline=None)  # a busy machine takes as long as it takes
@given(st.text(max_size=2000))
def test_whatever_stands_in_a_record_is_compared(written: str) -> None:
    assert kinship(identity("app", tasks("a", 300)), written) in Kin
