"""The channels of a worker that fetches: they close in whatever order their connections are lost."""

from __future__ import annotations

import pytest
from kombu import Connection, Consumer, Queue
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_leader.compat.kombu import leave_out, run_command


class LostChannel:
    """Cannot unsubscribe, as the channel of Celery's remote control."""

    def close(self) -> None:
        raise RedisConnectionError("lost")


def test_a_worker_outlives_a_loss_that_another_channel_notices_first(redis_url: str) -> None:
    """Celery collects the connection, whatever that raises, and closes it then."""
    connection = Connection(redis_url)
    channel = connection.default_channel
    leave_out(channel, {"led"})
    received: list[object] = []
    queue = Queue("plain")
    consumer = Consumer(channel, [queue], on_message=received.append)
    consumer.consume()
    connection.Producer(channel).publish("body", routing_key="plain", declare=[queue])
    while not received:
        connection.drain_events(timeout=30)
    channel._brpop_start()  # a pop is under way, and a message is not acknowledged
    channel.client.connection._sock.close()
    connection.transport.channels.append(LostChannel())
    connection.collect()
    connection.close()
    assert channel.closed


def test_a_command_over_a_channel_that_is_closed_is_a_lost_connection(redis_url: str) -> None:
    with Connection(redis_url) as connection:
        channel = connection.default_channel
        assert run_command(channel, ["PING"])
    with pytest.raises(RedisConnectionError, match="not connected"):
        run_command(channel, ["PING"])


def test_a_channel_pops_no_message_of_a_queue_that_is_left_out(redis_url: str) -> None:
    with Connection(redis_url) as connection:
        channel = connection.default_channel
        leave_out(channel, {"led"})
        for name in ("plain", "led"):
            channel.basic_consume(name, no_ack=True, callback=print, consumer_tag=name)
        assert list(channel.active_queues) == ["plain"]
