"""Tests the proxy that counts commands, between a real client and a real Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from tests.support.counting_proxy import Command, CountingProxy, Cut
from tests.support.redis_server import RedisServer


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[CountingProxy]:
    with CountingProxy(redis_server.port) as proxy:
        yield proxy


@contextlib.contextmanager
def client_of(proxy: CountingProxy, protocol: int = 2) -> Iterator[redis.Redis]:
    client = redis.Redis(
        port=proxy.port,
        protocol=protocol,
        socket_timeout=0.5,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )
    try:
        yield client
    finally:
        client.close()


def incr(command: Command) -> bool:
    return command.name == "INCRBY"


def number(server: RedisServer) -> int:
    with server.client() as direct:
        return int(direct.get("n") or 0)


@pytest.mark.parametrize("protocol", [2, 3])
def test_counts_commands_and_not_packets(proxy: CountingProxy, protocol: int) -> None:
    with client_of(proxy, protocol) as client:

        def a_transaction_and_a_large_value() -> None:
            client.set("large", b"\r\n*1\r\n" * 50_000)
            with client.pipeline() as pipe:
                pipe.incr("n").hset("h", mapping={"a": 1}).hgetall("h").execute()
            assert client.get("large") == b"\r\n*1\r\n" * 50_000

        client.ping()
        seen = proxy.during(a_transaction_and_a_large_value)
    names = [command.name for command in seen]
    assert names == ["SET", "MULTI", "INCRBY", "HSET", "HGETALL", "EXEC", "GET"]
    assert len({command.connection for command in seen}) == 1


@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.value)
@pytest.mark.parametrize("protocol", [2, 3])
def test_cuts_at_the_one_that_was_named(
    proxy: CountingProxy, redis_server: RedisServer, cut: Cut, protocol: int
) -> None:
    with client_of(proxy, protocol) as client:
        proxy.cut(cut, 3, of=incr)
        assert [client.incr("n"), client.get("n"), client.incr("n")] == [1, b"1", 2]
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)) as failure:
            client.incr("n")
        assert isinstance(failure.value, redis.TimeoutError) == cut.silent
        assert number(redis_server) == (3 if cut.executed else 2)
        assert proxy.cuts == 1
    with client_of(proxy) as client:
        assert client.ping()


@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.value)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_of_a_pipeline_the_commands_before_it_are_executed_and_those_behind_it_are_lost(
    proxy: CountingProxy, redis_server: RedisServer, cut: Cut, nth: int
) -> None:
    with client_of(proxy) as client:
        client.ping()
        proxy.cut(cut, nth, of=incr)
        with pytest.raises(redis.RedisError) as failure:
            client.pipeline(transaction=False).incr("n").incr("n").incr("n").execute()
        assert isinstance(failure.value, redis.TimeoutError) == cut.silent
        assert number(redis_server) == (nth if cut.executed else nth - 1)
        assert proxy.cuts == 1


def test_cuts_several_in_a_row(proxy: CountingProxy, redis_server: RedisServer) -> None:
    with client_of(proxy) as client:
        proxy.cut(Cut.AFTER, 2, of=incr, times=2)
        assert client.incr("n") == 1
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.incr("n")
        assert client.incr("n") == 4
        assert proxy.cuts == 2


def test_a_subscriber_hears_what_is_published(proxy: CountingProxy) -> None:
    with client_of(proxy) as client, client_of(proxy) as publisher:
        subscriber = client.pubsub(ignore_subscribe_messages=True)
        subscriber.subscribe("topic")
        subscriber.get_message(timeout=1)
        publisher.publish("topic", "hello")
        heard = subscriber.get_message(timeout=5)
        assert heard is not None
        assert heard["data"] == b"hello"
        subscriber.close()
