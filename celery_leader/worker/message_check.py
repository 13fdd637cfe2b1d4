"""Refuses a fetched message that would end the worker.

Celery reports many kinds of bad messages and goes on. Others end its worker, or make it connect
again for ever. A fetched message goes back when its worker ends, so it would end one leader after
the other. Not checked: arguments, which a task may refuse itself.
"""

from __future__ import annotations

from typing import Any

_NONE = type(None)

#: Headers of Celery's message protocol 2, and what they may be.
_HEADERS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "eta": (str, _NONE),
    "expires": (str, _NONE),
    "shadow": (str, _NONE),
    "timelimit": (list, _NONE),
    "stamped_headers": (list, _NONE),
}


def check_message(message: Any) -> None:
    """Refuse ``message`` if Celery's worker would not survive it.

    Its body is decoded, so ``message.accept`` must say which content types may be.

    Raises:
        ValueError: it would not; the error says why.
    """
    _demand("its content type", message.content_type, str)
    _demand("its content encoding", message.content_encoding, str, _NONE)
    _demand("its delivery_info", message.delivery_info, dict)
    _demand("its body", message.body, str, bytes)
    if "task" not in message.headers:
        return  # of message protocol 1, or of nobody: Celery looks into the body
    _demand("its header task", message.headers["task"], str)
    for name, allowed in _HEADERS.items():
        _demand(f"its header {name}", message.headers.get(name), *allowed)
    limits = message.headers.get("timelimit")
    if limits is not None and len(limits) != 2:
        raise ValueError("its header timelimit has not two values")
    _check_payload(message)


def _check_payload(message: Any) -> None:
    try:
        payload = message.payload  # Celery reads it too, and it is decoded once
    except Exception:
        return  # Celery reports it
    _demand("its decoded body", payload, list, tuple, dict)
    if "args" in payload if isinstance(payload, dict) else len(payload) == 3:
        return
    raise ValueError("its decoded body is not made of arguments, keywords and what follows")


def _demand(what: str, value: Any, *allowed: type) -> None:
    if not isinstance(value, allowed):
        raise ValueError(f"{what} is {type(value).__name__}")
