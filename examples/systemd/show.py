"""``make example-systemd``: does systemd understand these units? Starts and installs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = "/srv/proj"  # where the units expect it; it need not be there to check them
INSTANCES = ("celery-worker@1.service", "celery-beat@1.service", "celery.target")
NO_SYSTEMD = "error: this needs systemd-analyze, and there is none here:  apt-get install systemd"


def laid_out(directory: Path) -> Path:
    """The units, for a project in ``directory`` whose Celery is the one that runs this."""
    celery = directory / "proj" / ".venv" / "bin" / "celery"
    celery.parent.mkdir(parents=True)
    celery.symlink_to(Path(sys.executable).with_name("celery"))
    units = directory / "units"
    units.mkdir()
    for unit in HERE.glob("celery*"):
        text = unit.read_text().replace(PROJECT, str(directory / "proj"))
        (units / unit.name).write_text(text)
    return units


def verify(units: Path) -> list[str]:
    """What systemd-analyze has to say against them."""
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(units / name) for name in INSTANCES)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (said.stdout + said.stderr).splitlines()
    # It also speaks of other units of this machine.
    ours = [line for line in lines if "celery" in line]
    return ours or (lines if said.returncode else [])


def main() -> int:
    """Check every unit; the exit code says what came of it."""
    if shutil.which("systemd-analyze") is None:
        print(NO_SYSTEMD, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="celery-leader-show-") as directory:
        said = verify(laid_out(Path(directory)))
    print(*said, sep="\n")
    print(*(f"{name}: {'see above' if said else 'verified'}" for name in INSTANCES), sep="\n")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
