"""The script that `helm test` runs in a pod, run here on real mounts and on what only looks like one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.unit.chart.rendering import CHART

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 64 << 20
MOUNT = shutil.which("mount") or "/bin/mount"
UMOUNT = shutil.which("umount") or "/bin/umount"


def run_script(volume: Path, *, size: str = "64Mi", quota: str = "required") -> subprocess.CompletedProcess[str]:
    script = (CHART / "files" / "volume_test.py").read_text()
    arguments = [sys.executable, "-c", script, str(volume), "moorage", size, quota]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    subprocess.run([MOUNT, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run([UMOUNT, tmp_path], check=True)


@pytest.mark.kernel
def test_a_volume_of_the_right_size_passes_and_is_left_empty(mounted: Path) -> None:
    done = run_script(mounted)
    assert done.returncode == 0, done.stderr
    assert [line.split(": ")[1:3] for line in done.stdout.splitlines()] == [
        ["mount", "ok"],
        ["write", "ok"],
        ["size", "ok"],
    ]
    assert list(mounted.iterdir()) == []


@pytest.mark.kernel
def test_a_volume_of_another_size_fails_unless_the_class_promises_none(mounted: Path) -> None:
    done = run_script(mounted, size="1Gi")
    assert done.returncode == 1
    assert f"size: FAILED: the class promises {1 << 30} bytes, the filesystem has {SIZE}" in done.stderr
    assert run_script(mounted, size="1Gi", quota="best-effort").returncode == 0


@pytest.mark.kernel
def test_a_volume_that_takes_no_writes_fails_at_writing(mounted: Path) -> None:
    subprocess.run([MOUNT, "-o", "remount,ro", mounted], check=True)
    done = run_script(mounted)
    assert done.returncode == 1
    assert "mount: ok" in done.stdout
    assert "write: FAILED" in done.stderr


def test_a_plain_folder_is_no_volume(tmp_path: Path) -> None:
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert "mount: FAILED" in done.stderr
    assert list(tmp_path.iterdir()) == []
