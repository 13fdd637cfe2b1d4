"""``make example-kubernetes``: are these manifests what Kubernetes takes? Needs no cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

HERE = Path(__file__).resolve().parent
VERSIONS = ("1.29", "1.32")  # of Kubernetes; the newest that the package knows is added


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object, with the file it is in."""
    kustomization = yaml.safe_load((HERE / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((HERE / name).read_text()):
            yield name, document


def complaint(document: dict[str, Any], version: str) -> str | None:
    """What that version of Kubernetes would say against it; a field it does not know, too."""
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as exc:
        return f"{exc.message} (at {'.'.join(map(str, exc.path))})"
    return None


def main() -> int:
    """Check every object; the exit code says what came of it."""
    bad = 0
    for version in (*VERSIONS, kubernetes_validate.latest_version()):
        for name, document in documents():
            what = f"{name}: {document['kind']} {document['metadata']['name']}"
            wrong = complaint(document, version)
            bad += wrong is not None
            print(f"{what}: {wrong or 'valid'} for Kubernetes {version}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
