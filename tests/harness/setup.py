"""`make setup`: everything that the other commands need, from a machine with Python and Go and nothing else.

Runs under the system's Python before anything is installed, so it uses the standard library alone. Each part does
nothing where its result is there already, and a part that was interrupted is done again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

from tests.harness import binaries, debian, locks
from tests.harness.errors import CommandError, HarnessError
from tests.harness.places import ROOT, cache_dir
from tests.harness.progress import Progress

VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.txt"
STAMP = VENV / ".moorage"
PYTHON = (3, 11)


def main() -> int:
    """Set everything up and say what was done."""
    progress = Progress()
    if sys.version_info < PYTHON:
        progress.say(f"failed: Python {sys.version.split()[0]} is too old, 3.11 or newer is needed")
        return 1
    try:
        debian.install(progress=progress)
        make_venv(progress=progress)
        binaries.build_all(progress=progress)
    except HarnessError as error:
        progress.say(f"failed: {error}")
        return 1
    progress.say(f"everything is set up; the cache is {cache_dir()}")
    return 0


def make_venv(*, progress: Progress) -> None:
    """Make the virtualenv from the lock file, anew only when the lock, the project's metadata or Python changed.

    Raises:
        CommandError: pip failed.
    """
    with locks.hold(ROOT / ".venv.lock", wait=True):
        wanted = _fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted:
            progress.say("virtualenv: up to date")
            return
        with progress.step("making the virtualenv .venv from requirements/dev.txt", usually="1 min"):
            STAMP.unlink(missing_ok=True)
            if not (VENV / "bin" / "python").exists() or not _same_python():
                shutil.rmtree(VENV, ignore_errors=True)
                _run([sys.executable, "-m", "venv", str(VENV)])
            pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
            _run([*pip, "--require-hashes", "-r", str(LOCK)])
            # The build backend comes from its own lock; isolated it would be fetched without hashes.
            _run([*pip, "--require-hashes", "-r", str(ROOT / "requirements" / "build.txt")])
            _run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
            STAMP.write_text(wanted)


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{sys.version}\0{sys.base_prefix}\0{ROOT}".encode())
    for file in (LOCK, ROOT / "requirements" / "build.txt", ROOT / "pyproject.toml"):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _same_python() -> bool:
    """Tell whether the virtualenv was made by this Python, in this place."""
    shown = subprocess.run(
        [VENV / "bin" / "python", "-c", "import sys; print(sys.version, sys.base_prefix, sys.prefix, sep='\\n')"],
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.returncode == 0 and shown.stdout.split("\n")[:-1] == [sys.version, sys.base_prefix, str(VENV)]


def _run(argv: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise CommandError(f"`{' '.join(argv)}` failed with exit code {done.returncode}; its messages stand above")


if __name__ == "__main__":
    raise SystemExit(main())
