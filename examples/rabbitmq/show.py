"""``make example-rabbitmq``: messages through RabbitMQ, leases in Redis, and leaders that go."""

from __future__ import annotations

import sys
from pathlib import Path

from kombu import Connection

from examples.machine import free_port
from examples.processes import ShowError
from examples.rabbitmq.server import node_environment, port_mapper, rabbitmq_binary
from examples.show import Fleet, Show, main

NO_RABBITMQ = """\
This needs rabbitmq-server, and there is none here:  apt-get install rabbitmq-server  |  brew install rabbitmq
With a RabbitMQ and a Redis of your own, run the app as README.md says."""  # noqa: E501


def start_rabbitmq(show: Show) -> str:
    """Run a node; its URL."""
    binary = rabbitmq_binary()
    if binary is None:
        raise ShowError(NO_RABBITMQ)
    directory = show.directory / "rabbitmq"
    directory.mkdir()
    # The node may drop to a user of its own, who must get there.
    for each in (show.directory, directory):
        each.chmod(0o777)
    port, mapper_port = free_port(), free_port()
    show.processes.serve("epmd", port_mapper(mapper_port))
    environment = node_environment(
        directory, port=port, distribution_port=free_port(), mapper_port=mapper_port
    )
    show.processes.serve("rabbitmq", [binary], environment)
    url = f"amqp://guest:guest@127.0.0.1:{port}//"

    def answers() -> bool:
        try:
            with Connection(url, connect_timeout=5) as connection:
                connection._establish_connection().close()
        except OSError:
            return False
        return True

    show.wait(answers, "RabbitMQ to answer")
    return url


def story(show: Show) -> None:
    """What is shown."""
    show.say("starting RabbitMQ for the messages and Redis for the leases")
    amqp_url, redis_url = start_rabbitmq(show), show.redis().url
    fleet = Fleet(
        show,
        Path(__file__).resolve().parent,
        "proj",
        env={"AMQP_URL": amqp_url, "REDIS_URL": redis_url},
        broker_url=amqp_url,
        leader_url=redis_url,
    )
    fleet.start()
    fleet.ran("proj.count", 3)
    fleet.hand_over("beat")
    fleet.ran("proj.count", 3)
    fleet.hand_over("worker")
    fleet.ran("proj.count", 3)


if __name__ == "__main__":
    sys.exit(main("example-rabbitmq", story))
