"""The container engine, and which images stand at the bottom of what is built and run on it."""

from __future__ import annotations

import os
import shutil
import subprocess

import docker
import pytest
from docker.errors import DockerException

#: As for docker-compose.yml: without them the ordinary images are pulled.
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE")
REDIS_IMAGE = os.environ.get("REDIS_IMAGE", "redis:8")
#: The locked packages, and so the Celery, that most tests run with.
NEWEST = os.environ.get("REQUIREMENTS", "requirements/image.txt")
OLDEST = "requirements/image-celery-5.5.txt"


def no_engine() -> str | None:
    """Why no container can be started here; ``None`` if one can."""
    try:
        client = docker.from_env(timeout=20)
    except DockerException as exc:
        return f"no container engine answers: {exc}"
    try:
        client.ping()
    except Exception as exc:
        return f"no container engine answers: {exc}"
    finally:
        client.close()
    return None


def compose() -> list[str] | None:
    """How Compose is called here, v2 before v1."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    standalone = shutil.which("docker-compose")
    return [standalone] if standalone else None


def unavailable(reason: str) -> None:
    """Skip on a laptop; fail where CI could have started an engine."""
    if os.environ.get("CI") == "true" and os.getuid() == 0:
        pytest.fail(reason)
    pytest.skip(reason)


def build_arguments(requirements: str) -> dict[str, str]:
    """The build arguments of the Dockerfile, for one of the locked sets of packages."""
    base = {} if PYTHON_IMAGE is None else {"PYTHON_IMAGE": PYTHON_IMAGE}
    return {"REQUIREMENTS": requirements, **base}
