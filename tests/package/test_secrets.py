"""A password in the wrong place, or with characters that a URL does not take, is never shown."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_leader import LeaderElection, LeaderError, install
from celery_leader.beat import LeaderScheduler
from celery_leader.runtime.settings import known_settings
from tests.support import command

#: Whatever a URL makes of what is between the two, one of them is in what it makes.
CANARY = "S3cret"
SPECIAL = "/#?@:;,&=%[]<> \\"
NOWHERE = "redis://127.0.0.1:1/0"
COMMANDS = (("status",), ("status", "--json"), ("doctor", "--json"), ("healthcheck",))

passwords = st.text(SPECIAL, max_size=2).map(lambda between: f"{CANARY}{between}{CANARY}")
schemes = st.sampled_from(
    [
        "redis://",
        "rediss://",
        "redis+socket://",
        "sentinel://",
        "amqp://",
        "sqs://",
        "http://",
        "//",
        "redis:",
        "redis:/",
    ]
)
whole_urls = st.builds(
    lambda scheme, user, password, rest: f"{scheme}{user}:{password}@{rest}",
    schemes | st.just(""),
    st.sampled_from(["", "user", "us/er"]),
    passwords,
    st.sampled_from(["127.0.0.1:1/0", "127.0.0.1", "[::1]:1/0", "127.0.0.1:1/abc", "/tmp/no.sock"]),
)
alone = st.builds(
    lambda scheme, word: f"{scheme}{word}@127.0.0.1:1", schemes | st.just(""), passwords
)
asked_for = st.builds(
    lambda word, name: f"{NOWHERE}?{name}={word}", passwords, st.sampled_from(["password", "x"])
)
urls = st.one_of(whole_urls, alone, asked_for)
lists = st.builds(lambda url: f"{NOWHERE};{url}", urls) | st.builds(
    lambda url: f"{url};{NOWHERE}", urls
)
texts = urls | lists
wrapped = st.one_of(
    texts.map(lambda text: [text]),
    texts.map(lambda text: (text, NOWHERE)),
    texts.map(lambda text: {"url": text}),
    texts.map(lambda text: text.encode()),
    texts.map(lambda text: {text}),
)
options = st.one_of(
    texts,
    wrapped,
    passwords.map(lambda word: f"password={word}"),
    passwords.map(lambda word: {"password": [word]}),
    passwords.map(lambda word: {"sentinel_kwargs": f"password={word}"}),
    passwords.map(lambda word: {"sentinel_kwargs": {"password": {word}}}),
    passwords.map(lambda word: {"db": word, "virtual_host": word}),
    passwords.map(lambda word: {"socket_keepalive": word, "max_connections": word}),
    passwords.map(lambda word: {"credential_provider": word}),
)
#: What is no secret itself: whoever has one in there has put it into the wrong setting.
OTHERS = sorted(
    known_settings()
    - {"leader_url", "leader_transport_options", "leader_queue", "leader_metrics_address"}
)


@contextlib.contextmanager
def all_that_is_said() -> Iterator[io.StringIO]:
    """Everything that is logged, with its tracebacks."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield said
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def said_with(**conf: Any) -> str:
    """What commands, a scheduler and an election of an app with this configuration say."""
    with all_that_is_said() as said:
        app = Celery("proj", set_as_current=False)
        app.conf.update({"broker_url": NOWHERE, **conf})
        install(app)
        try:
            for each in COMMANDS:
                ran = command.run(app, *each)
                said.write(ran.stdout + ran.stderr)
            for act in (lambda: LeaderScheduler(app, lazy=True), lambda: banner(app)):
                try:
                    said.write(str(act()))
                except LeaderError:
                    # As it stands in the log of whoever does not catch it.
                    said.write(traceback.format_exc())
        finally:
            app.close()
    return said.getvalue()


def banner(app: Celery) -> str:
    return LeaderElection(app, "reports")._runtime.redis.banner("reports")


FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(value=texts | wrapped)
def test_leader_url(value: Any) -> None:
    assert CANARY.lower() not in said_with(leader_url=value).lower()


@FUZZ
@given(value=options)
def test_transport_options(value: Any) -> None:
    said = said_with(leader_url="sentinel://127.0.0.1:1", leader_transport_options=value)
    assert CANARY.lower() not in said.lower()


@FUZZ
@given(value=whole_urls)
@pytest.mark.parametrize("setting", ["broker_url", "broker_write_url"])
def test_the_broker(setting: str, value: str) -> None:
    assert CANARY.lower() not in said_with(**{setting: value}).lower()


@FUZZ
@given(setting=st.sampled_from(OTHERS), value=whole_urls | wrapped)
def test_a_url_in_any_other_setting(setting: str, value: Any) -> None:
    assert CANARY.lower() not in said_with(**{setting: value}).lower()


@pytest.mark.parametrize("value", [[CANARY], {"e": CANARY}, {"e": [CANARY]}])
def test_a_schedule_that_is_none(value: Any) -> None:
    assert CANARY.lower() not in said_with(beat_schedule=value).lower()


def test_a_value_without_a_secret_is_still_shown() -> None:
    assert "leader_candidate is 'no': it must be True" in said_with(leader_candidate="no")
    said = said_with(leader_url="redis://user:word@127.0.0.1:1/abc")
    assert "127.0.0.1:1/abc) cannot be used: Database is int between 0" in said
