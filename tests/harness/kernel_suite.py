"""`make kernel-vm`: the kernel suite in a Debian kernel, which has what the kernel of this machine may lack.

They are the same tests with the same Python and the same tools as on the machine itself. What differs is the kernel:
it has project quotas for xfs and ext4 and lets ext4 grow while it is mounted, so that nothing need be skipped.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

from tests.harness import debian, kernel_image, suites, virtual_machine, watching
from tests.harness.places import ROOT, run_dir
from tests.harness.virtual_machine import MOUNT_POINT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.harness.progress import Progress
    from tests.harness.virtual_machine import Disk

TEST_SECONDS: Final = 300
"""A test's time where it does not say so itself: emulated processors are ten times slower."""


def run_in_virtual_machine(arguments: Sequence[str], *, disk: Disk, progress: Progress) -> int:
    """Run the kernel suite, or what of it further arguments of pytest select, in the guest.

    Args:
        arguments: further arguments of pytest.
        disk: what the tests' folders lie on.
        progress: told of each step; the tests' output goes to the standard output.

    Returns:
        The exit code of pytest.

    Raises:
        MissingError: the machine lacks something that cannot be installed from here.
        StartError: the guest hung or ended without a result.
    """
    debian.install_for_virtual_machine(progress=progress)
    kernel = kernel_image.ensure(progress=progress)
    folder = run_dir() / "tests" / f"kernel-vm-{os.getpid()}"
    folder.mkdir(parents=True)
    with watching.folder(folder):
        order = virtual_machine.Order(
            argv=pytest_command(arguments, colour=sys.stdout.isatty()),
            cwd=str(ROOT),
            environment=environment(os.environ, columns=shutil.get_terminal_size().columns),
            kernel_modules=str(kernel.modules),
            disk=disk,
        )
        progress.say(f"booting Linux {kernel.release}: its disk is {disk.filesystem}, its processors are emulated")
        began = time.monotonic()
        code = virtual_machine.run(order, kernel=kernel, folder=folder)
        progress.say(f"the guest's tests ended with exit code {code} after {time.monotonic() - began:.1f} s")
    return code


def pytest_command(arguments: Sequence[str], *, colour: bool) -> list[str]:
    """Return the command that runs the kernel suite; what is given as arguments comes last and wins."""
    selection = next(suite.selection for suite in suites.SUITES if suite.name == "kernel")
    argv = [sys.executable, "-m", "pytest", "-m", selection, f"--timeout={TEST_SECONDS}", "--durations=5"]
    argv += [
        "-o",
        f"testpaths={' '.join(marked_places(ROOT))}",
        "-p",
        "no:cacheprovider",
        f"--basetemp={MOUNT_POINT}/pytest",
        f"--color={'yes' if colour else 'no'}",
    ]
    return [*argv, *arguments]


def marked_places(root: Path) -> list[str]:
    """Return where the tests of the kernel lie, relative to the checkout: so that nothing else need be imported."""
    tests = root / "tests"
    marked = [file for file in tests.rglob("test_*.py") if "mark.kernel" in file.read_text()]
    alone = sorted(str(file.relative_to(root)) for file in marked if not file.is_relative_to(tests / "kernel"))
    return ["tests/kernel", *alone]


def environment(outside: Mapping[str, str], *, columns: int) -> dict[str, str]:
    """Return the environment of the guest's command: little of the one outside."""
    kept = {name: outside[name] for name in ("CI", "TERM") if name in outside}
    return kept | {
        "PATH": debian.SEARCHED,
        "HOME": f"{MOUNT_POINT}/home",
        "TMPDIR": f"{MOUNT_POINT}/scratch",
        "LANG": "C.UTF-8",
        "COLUMNS": str(columns),
        "PYTHONUNBUFFERED": "1",
    }
