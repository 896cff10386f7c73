"""The Debian kernel in the cache: which one, under what name, and its modules in the order of their needs."""

import lzma
import platform
from pathlib import Path

import pytest

from tests.harness import debian, kernel_image
from tests.harness.errors import MissingError
from tests.harness.kernel_image import KernelImage, Package
from tests.harness.progress import Silent

DEPENDS = """linux-image-amd64
  Depends: linux-image-6.1.0-56-amd64
  Suggests: linux-doc
"""
SHOWN = """Package: linux-image-6.1.0-56-amd64
Version: 6.1.192-2
SHA256: 0123456789abcdef0123456789abcdef
Description: Linux 6.1 for 64-bit PCs
"""


def test_the_newest_kernel_is_what_the_package_of_it_depends_on() -> None:
    assert kernel_image.parse_newest(DEPENDS) == "linux-image-6.1.0-56-amd64"
    assert kernel_image.parse_newest("") is None
    assert kernel_image.parse_newest("  Depends: linux-image-amd64\n") is None


def test_a_kernel_s_folder_tells_its_package_and_content() -> None:
    package = kernel_image.parse_package(SHOWN)
    assert package == Package("linux-image-6.1.0-56-amd64", "0123456789abcdef0123456789abcdef")
    assert package.key.startswith("linux-image-6.1.0-56-amd64-0123456789ab-")
    assert package.key != Package(package.name, "f" * 32).key
    assert kernel_image.parse_package("Package: linux-image-6.1.0-56-amd64\n") is None


def test_what_is_not_needed_changes_the_folder_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("linux-image-6.1.0-56-amd64", "0" * 64)
    before = package.key
    monkeypatch.setattr(kernel_image, "UNUSED", ("sound",))
    assert package.key != before


def test_modules_come_once_and_after_those_they_need() -> None:
    listed = """insmod /lib/a.ko
insmod /lib/b.ko option=1
builtin crc32
insmod /lib/a.ko
insmod /lib/c.ko
"""
    assert kernel_image.insertion_order(listed) == [Path("/lib/a.ko"), Path("/lib/b.ko"), Path("/lib/c.ko")]
    assert kernel_image.insertion_order("builtin ext4\n") == []
    assert kernel_image.insertion_order("insmod /my lib/a.ko.xz \n") == [Path("/my lib/a.ko.xz")]


def test_a_packed_module_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"plain")
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"packed"))
    (tmp_path / "a.ko.br").touch()
    assert kernel_image.module_content(tmp_path / "a.ko") == b"plain"
    assert kernel_image.module_content(tmp_path / "a.ko.xz") == b"packed"
    with pytest.raises(MissingError, match=r"a\.ko\.br"):
        kernel_image.module_content(tmp_path / "a.ko.br")


def test_a_tree_knows_its_release(tmp_path: Path) -> None:
    image = KernelImage(tmp_path)
    with pytest.raises(MissingError, match="no kernel"):
        _ = image.release
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "vmlinuz-6.1.0-56-amd64").touch()
    assert image.release == "6.1.0-56-amd64"
    assert image.program.exists()


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt that knows of one kernel and notes what it is asked; whatever it downloads is empty."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {
        "apt-cache": f'[ "$1" = depends ] && cat <<EOF || cat <<END\n{DEPENDS}EOF\n{SHOWN}END\n',
        "apt-get": f'echo "$@" >> {tmp_path}/asked\n[ "$1" = download ] && touch "$3.deb" || true\n',
        "dpkg-deb": "mkdir -p $3/boot $3/usr/lib/modules/6.1/kernel/sound; touch $3/boot/vmlinuz-6.1\n",
        "depmod": f'echo depmod "$@" >> {tmp_path}/asked\n',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(debian, "SEARCHED", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def test_a_kernel_is_downloaded_once_and_what_a_killed_run_left_goes(apt: Path) -> None:
    left_over = apt / "cache" / "kernels" / ".making-x"
    left_over.mkdir(parents=True)
    image = kernel_image.ensure(progress=Silent())
    asked = (apt / "asked").read_text().splitlines()
    assert "download -q linux-image-6.1.0-56-amd64" in asked
    assert image.release == "6.1"
    assert image.modules.is_dir(), "found at lib/modules where the package has usr/lib/modules"
    assert not list(image.modules.rglob("sound"))
    assert not left_over.exists()
    assert kernel_image.ensure(progress=Silent()) == image
    assert (apt / "asked").read_text().splitlines() == asked
    assert [entry.name for entry in (apt / "cache" / "kernels").iterdir()] == [image.tree.name]


def test_only_the_kernels_used_last_are_kept(apt: Path) -> None:
    for number in range(4):
        (apt / "cache" / "kernels" / f"linux-image-old-{number}").mkdir(parents=True)
    image = kernel_image.ensure(progress=Silent())
    left = {entry.name for entry in (apt / "cache" / "kernels").iterdir()}
    assert image.tree.name in left
    assert len(left) == kernel_image.KEPT


def test_where_apt_knows_no_kernel_it_says_so(apt: Path) -> None:
    (apt / "bin" / "apt-cache").write_text("#!/bin/sh\n")
    with pytest.raises(MissingError, match="apt knows of no package linux-image-amd64"):
        kernel_image.ensure(progress=Silent())


def test_other_processors_are_refused(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(MissingError, match="x86_64, and this machine is aarch64"):
        kernel_image.ensure(progress=Silent())
