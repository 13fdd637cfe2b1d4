"""A private RabbitMQ node: which script runs one, and the environment it is to have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Debian's script on PATH changes to the system's user and directories; this one does not.
_DEBIAN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def rabbitmq_binary() -> str | None:
    """The script that runs a node in the foreground; ``None`` without it or Erlang's ``epmd``."""
    if shutil.which("epmd") is None:
        return None
    return str(_DEBIAN) if _DEBIAN.exists() else shutil.which("rabbitmq-server")


def port_mapper(port: int) -> list[str]:
    """The command that runs Erlang's port mapper in the foreground.

    A node that finds none starts one itself, which nobody ends.
    """
    return ["epmd", "-address", "127.0.0.1", "-port", str(port)]


def node_environment(
    directory: Path, *, port: int, distribution_port: int, mapper_port: int
) -> dict[str, str]:
    """The environment of a node that listens on 127.0.0.1 and keeps all it has in ``directory``."""
    no_plugins = directory / "plugins"
    no_plugins.write_text("[].\n")
    return {
        **os.environ,
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(mapper_port),
        "RABBITMQ_NODENAME": f"celery-leader-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(no_plugins),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
        "RABBITMQ_CONFIG_FILE": str(directory / "none"),
    }
