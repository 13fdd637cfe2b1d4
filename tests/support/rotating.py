"""A credential provider that reads the password from a file, where it changes from time to time."""

from __future__ import annotations

import os
from pathlib import Path

from redis import CredentialProvider

#: Names the file.
VARIABLE = "ROTATING_PASSWORD"
USER = "rotating"


class FileProvider(CredentialProvider):  # type: ignore[misc]
    """Gives the password that the file holds at this moment."""

    def get_credentials(self) -> tuple[str, str]:
        """The user and the password."""
        return USER, Path(os.environ[VARIABLE]).read_text()
