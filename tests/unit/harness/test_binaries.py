"""The pinned programs: a folder by version and pins, so that a changed pin is never served by an old build."""

import shutil
from pathlib import Path

import pytest

from tests.harness import binaries
from tests.harness.errors import MissingError
from tests.harness.progress import Silent

NAMES = [group.name for group in binaries.GROUPS]


@pytest.mark.parametrize("group", binaries.GROUPS, ids=NAMES)
def test_a_group_is_pinned_in_a_module_that_names_its_packages(group: binaries.Group) -> None:
    pins = (group.source / "go.mod").read_text()
    assert all(package in pins for package in group.packages)
    assert group.version[0].isdigit()
    assert f"{group.module} v{group.version}" in (group.source / "go.sum").read_text()


@pytest.mark.parametrize("group", binaries.GROUPS, ids=NAMES)
def test_no_pin_is_replaced_by_a_folder_of_this_machine(group: binaries.Group) -> None:
    replaced = [line for line in (group.source / "go.mod").read_text().splitlines() if "=>" in line]
    assert [line for line in replaced if "=> ." in line or "=> /" in line] == []


def test_a_changed_pin_changes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = binaries.GROUPS[0]
    before = group.directory
    shutil.copytree(binaries.TOOLCHAIN, tmp_path / "toolchain")
    monkeypatch.setattr(binaries, "TOOLCHAIN", tmp_path / "toolchain")
    assert group.directory == before
    with (group.source / "go.sum").open("a") as pins:
        pins.write("another line\n")
    assert group.directory != before


def test_a_program_that_is_not_built_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match=r"etcd .* is not built yet: run `make setup`"):
        binaries.program("etcd")
    with pytest.raises(MissingError, match="no-such"):
        binaries.program("no-such")


def test_without_go_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="install Go"):
        binaries.build_all(["etcd"], progress=Silent())


def test_a_build_is_whole_or_absent_and_what_a_killed_one_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path / "cache"))
    left_over = tmp_path / "cache" / "bin" / ".building-x"
    left_over.mkdir(parents=True)
    go = tmp_path / "go"
    # A stand-in for the compiler: it makes the file that `go build -o FOLDER/ PACKAGE` would make.
    go.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo built > "$2/server"\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    binaries.build_all(["etcd"], progress=Silent())
    assert binaries.program("etcd").read_text() == "built\n"
    assert not left_over.exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path / "cache"))
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\nexit 3\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Exception, match="exit code 3"):
        binaries.build_all(["etcd"], progress=Silent())
    assert [entry.name for entry in (tmp_path / "cache" / "bin").iterdir()] == [".lock"]
