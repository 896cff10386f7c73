"""The first filesystem: an archive that cpio reads, and a script that inserts the modules in their order."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import initramfs

BUSYBOX = shutil.which("busybox", path="/bin:/usr/bin")


def _built() -> bytes:
    return initramfs.build(busybox=b"program", modules=[b"first", b"second"], command=("/a b/python", "-I", "it"))


def test_the_same_input_gives_the_same_bytes() -> None:
    assert _built() == _built()


def test_modules_are_inserted_in_order_before_the_root_is_left() -> None:
    lines = initramfs.script(["modules/000.ko", "modules/001.ko"], command=("/a b/python", "-I", "it")).splitlines()
    inserted = [lines.index(f"insmod /modules/00{number}.ko") for number in range(2)]
    assert inserted == sorted(inserted)
    assert inserted[-1] < next(number for number, line in enumerate(lines) if "-t 9p" in line)
    assert lines[-1] == "exec switch_root /root '/a b/python' -I it"
    (share,) = [line for line in lines if "-t 9p" in line]
    assert ",ro," in share


@pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed")
def test_cpio_reads_it(tmp_path: Path) -> None:
    assert BUSYBOX is not None
    files = [name for name in _listed() if name != "dev/console"]
    subprocess.run([BUSYBOX, "cpio", "-id", *files], input=_built(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin" / "busybox").read_bytes() == b"program"
    assert (tmp_path / "modules" / "001.ko").read_bytes() == b"second"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "init").read_text().startswith("#!/bin/busybox sh\n")


@pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed")
def test_it_holds_the_console_and_every_folder_before_what_lies_in_it() -> None:
    names = _listed()
    assert "dev/console" in names
    for name in names:
        parent = str(Path(name).parent)
        assert parent == "." or names.index(parent) < names.index(name)


def _listed() -> list[str]:
    assert BUSYBOX is not None
    done = subprocess.run([BUSYBOX, "cpio", "-t"], input=_built(), check=True, capture_output=True)
    return done.stdout.decode().splitlines()
