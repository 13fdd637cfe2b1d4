"""Which messages a leader refuses to receive, because its worker would not survive them."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import disable_insecure_serializers, enable_insecure_serializers
from kombu.serialization import prepare_accept_content
from kombu.transport.redis import Channel
from kombu.transport.virtual import Message

from celery_leader.worker.fetching import Fetcher
from celery_leader.worker.message_check import check_message

EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
SOUND: Any = [[], {}, EMBED]


class Encoding:
    """The part of a channel that decodes bodies."""

    decode_body = Channel.decode_body
    codecs = Channel.codecs


def message(body: Any = SOUND, **changes: Any) -> Message:
    """A sound message of Celery's, with some changes: ``headers__id=7`` changes one header."""
    raw: dict[str, Any] = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "report", "id": "1", "timelimit": [None, None], "eta": None},
        "properties": {
            "delivery_tag": "1",
            "delivery_info": {"exchange": "", "routing_key": "q"},
            "body_encoding": "base64",
        },
    }
    for path, value in changes.items():
        *parents, name = path.split("__")
        at = raw
        for parent in parents:
            at = at[parent]
        at[name.replace("_", "-") if name.startswith("content") else name] = value
    made = Message(raw, channel=Encoding())
    made.accept = prepare_accept_content(["json"])
    return made


@pytest.mark.parametrize(
    "sound",
    [
        message(),
        message(headers__timelimit=None),
        message(headers__timelimit=[300, 200]),
        message(headers__eta="2030-01-01T00:00:00", headers__expires="2030-01-02T00:00:00"),
        message(headers__stamped_headers=["project"], headers__shadow="another"),
        message(content_encoding=None),
        message(["a", {"b": 1}, None]),
        message({"args": [], "kwargs": {}, "id": "1", "task": "report"}),
        message({"task": "report", "id": "1"}, headers={}),
        message(17, headers={}),  # Celery reports it
        message(headers={"mine": 1}),
    ],
)
def test_a_message_that_celery_can_read_is_let_through(sound: Message) -> None:
    check_message(sound)


NAMES = ["id", "task", "timelimit", "stamped_headers", "eta", "expires", "shadow"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [7, 1.5, True, {}, {"a": 1}])
def test_a_header_of_a_wrong_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"its header {name} is {type(value).__name__}"):
        check_message(message(**{f"headers__{name}": value}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"headers": {"task": "report"}}, "its header id is NoneType"),
        ({"headers__timelimit": [1]}, "its header timelimit has not two values"),
        ({"properties__delivery_info": "x"}, "its delivery_info is str"),
        ({"content_type": None}, "its content type is NoneType"),
        ({"content_encoding": 7}, "its content encoding is int"),
        ({"body": None}, "its decoded body is NoneType"),
        ({"body": 5}, "its decoded body is int"),
        ({"body": "text"}, "its decoded body is str"),
        ({"body": []}, "its decoded body is not made of"),
        ({"body": {"a": 1}}, "its decoded body is not made of"),
    ],
)
def test_a_message_that_would_end_the_worker_is_refused_and_the_error_says_why(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        check_message(message(**changes))


def test_a_body_that_is_no_text_is_refused() -> None:
    made = message()
    made.body = 7
    with pytest.raises(ValueError, match="its body is int"):
        check_message(made)


class Harmful:
    """Does harm when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def insecure() -> Iterator[None]:
    """An app whose owner lets kombu unpickle; its workers may still not accept that."""
    enable_insecure_serializers()
    yield
    disable_insecure_serializers()


@pytest.mark.usefixtures("insecure")
def test_a_body_of_a_type_that_the_worker_does_not_accept_is_not_decoded(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    made = message(content_type="application/x-python-serialize", content_encoding="binary")
    made._raw["body"] = base64.b64encode(pickle.dumps(Harmful(harm))).decode()
    received: list[Any] = []
    fetcher = Fetcher.__new__(Fetcher)
    fetcher._held = {}
    fetcher._task_consumer = SimpleNamespace(
        accept=prepare_accept_content(["json"]), _receive_callback=received.append
    )
    channel: Any = Encoding()
    channel.Message = Message
    fetcher._deliver(channel, json.dumps(made._raw).encode())
    assert len(received) == 1, "Celery reports that it is not accepted"
    assert not harm.exists()
