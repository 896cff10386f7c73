"""`make check`: everything that can be told without running the product, each check with its time."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import processes, product
from tests.harness.errors import CommandError, HarnessError
from tests.harness.places import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.progress import Progress

PROTOS = ("csi.proto", "moorage.proto", "registration.proto")
STUBS = Path("moorage_csi/proto")
MANIFESTS = ROOT / "manifests" / "moorage.yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One check: it raises HarnessError with what is wrong."""

    name: str
    run: Callable[[], None]


def run_all(*, progress: Progress) -> int:
    """Run every check, all of them even after one failed.

    Returns:
        The exit code: 0 when all passed.
    """
    checks = (
        Check("ruff check", lambda: _tool("ruff", "check", ".")),
        Check("ruff format", lambda: _tool("ruff", "format", "--check", ".")),
        Check("mypy", lambda: _tool("mypy")),
        Check("import contracts", lambda: _tool("lint-imports")),
        Check("generated stubs", _stubs_are_current),
        Check("rendered manifests", _manifests_are_current),
        Check("helm lint", _lint_chart),
    )
    failed = []
    for check in checks:
        began = time.monotonic()
        try:
            check.run()
        except HarnessError as error:
            failed.append(check.name)
            progress.say(f"{check.name}: failed after {time.monotonic() - began:.1f} s\n{error}")
        else:
            progress.say(f"{check.name}: clean ({time.monotonic() - began:.1f} s)")
    if failed:
        progress.say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def generate_stubs(target: Path) -> None:
    """Generate the protocol's Python stubs below a folder; their paths are those below `csi/`.

    Raises:
        CommandError: protoc failed.
    """
    outputs = [f"--{kind}={target}" for kind in ("python_out", "grpc_python_out")]
    outputs += [f"--{kind}=quiet:{target}" for kind in ("mypy_out", "mypy_grpc_out")]
    argv = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *(str(STUBS / name) for name in PROTOS)]
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    processes.run(argv, cwd=ROOT / "csi", environment=environment)


def generate_manifests() -> None:
    """Write the rendered chart into manifests/."""
    MANIFESTS.write_text(product.rendered())


def _tool(name: str, *arguments: str) -> None:
    program = Path(sys.executable).parent / name
    done = processes.run([program, *arguments], check=False, cwd=ROOT, seconds=600)
    if done.returncode != 0:
        raise CommandError((done.stdout + done.stderr).strip())


def _stubs_are_current() -> None:
    with tempfile.TemporaryDirectory() as made:
        generate_stubs(Path(made))
        names = {file.relative_to(made) for file in Path(made).rglob("*_pb2*")}
        have = {file.relative_to(ROOT / "csi") for file in (ROOT / "csi" / STUBS).glob("*_pb2*.py*")}
        stale = [
            str(name)
            for name in sorted(names | have)
            if name not in names
            or name not in have
            or (Path(made) / name).read_bytes() != (ROOT / "csi" / name).read_bytes()
        ]
    if stale:
        raise CommandError(f"not what the protos say: {', '.join(stale)}. Run `make update`")


def _manifests_are_current() -> None:
    have = MANIFESTS.read_text() if MANIFESTS.exists() else ""
    wanted = product.rendered()
    if have != wanted:
        lines = difflib.unified_diff(have.splitlines(), wanted.splitlines(), "committed", "rendered", lineterm="", n=1)
        difference = "\n".join(list(lines)[:40])
        raise CommandError(f"{MANIFESTS.name} is not what the chart says. Run `make update`\n{difference}")


def _lint_chart() -> None:
    product.helm("lint", "--strict", product.CHART, f"--kube-version={product.OLDEST_KUBERNETES}")
