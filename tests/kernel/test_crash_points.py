"""Nothing that the driver does to the disk or the kernel is missing from the crash points: its source is read for that."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import moorage_csi
from tests.kernel import crash_points

PACKAGE: Final = Path(next(iter(moorage_csi.__path__)))
FOLDERS: Final = ("backends", "host", "rpc", "volumes")
SOURCES: Final = sorted(path for folder in FOLDERS for path in (PACKAGE / folder).glob("*.py"))

HARMLESS_OS: Final = frozenset(
    {
        # Looking, and what the process alone knows of.
        *(
            "DirEntry",
            "PathLike",
            "_ScandirIterator",
            "stat_result",
            "fsdecode",
            "fsencode",
            "fspath",
            "major",
            "makedev",
        ),
        *("minor", "strerror", "urandom", "access", "fstat", "fstatvfs", "getxattr", "listxattr", "lseek", "path"),
        *("pread", "read", "readlink", "scandir", "stat", "statvfs", "chdir", "eventfd", "eventfd_write", "pidfd_open"),
        # What a descriptor holds goes with the process too.
        *("close", "dup", "fdopen"),
        # Ends a program that the driver would have to wait for otherwise.
        "killpg",
    }
)
HARMLESS_SYSCALLS: Final = frozenset(
    {"Statx", "filesystem_magic", "fsopen", "open_by_handle", "statx", "unshare_mounts"}
)
HARMLESS_IOCTLS: Final = frozenset(
    {
        *("_FS_IOC_FSGETXATTR", "_GETFLAGS", "_GETVERSION", "_GET_SUBVOL_INFO", "_LOOP_GET_STATUS64"),
        *("_QUOTA_RESCAN_STATUS", "_SUBVOL_GETFLAGS", "_TREE_SEARCH_V2", "_WAIT_SYNC", "_XFS_GEOMETRY"),
        # A number for a device, which is made where all are taken, and is anybody's until it is attached.
        "_LOOP_CTL_GET_FREE",
    }
)
CALLS: Final = ("fcntl.ioctl", "syscalls.ioctl")
PARAMETER: Final = "command"
"""Of ``btrfs._create``, whose callers give it numbers of their own."""
PROGRAMS: Final = "commands.py"
WRITING: Final = frozenset({"write_text", "write_bytes", "touch", "shutil", "sendfile", "mmap", "tempfile"})
"""What writes without a call that is watched: nothing of it is used."""


def _attributes(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """What is taken from a module by its name, and in which line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr, node.lineno


def _sometimes(module: str) -> set[str]:
    return {name.partition(".")[2] for name in crash_points.SOMETIMES if name.startswith(f"{module}.")}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_call_is_a_point_or_changes_nothing(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    constants = {name for name, _ in _attributes(tree, "os") if name.isupper()}
    known = crash_points.OS | HARMLESS_OS | _sometimes("os") | constants
    assert [found for found in _attributes(tree, "os") if found[0] not in known] == []
    known = crash_points.SYSCALLS | HARMLESS_SYSCALLS | _sometimes("syscalls")
    unknown = [found for found in _attributes(tree, "syscalls") if found[0] not in known and not found[0].isupper()]
    assert unknown == []
    if source.name != PROGRAMS:
        assert list(_attributes(tree, "subprocess")) == [], "a program is begun elsewhere than in commands"
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not WRITING & (named | imported)
    opened = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "open"]
    assert opened == [], "a file is opened in a way that is not watched"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_ioctl_is_a_point_or_changes_nothing(source: Path) -> None:
    module = importlib.import_module(f"moorage_csi.{source.parent.name}.{source.stem}")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS):
            continue
        name = ast.unparse(node.args[1])
        if name in HARMLESS_IOCTLS or name == PARAMETER:
            continue
        assert getattr(module, name) in crash_points.IOCTLS, f"{source.name}:{node.lineno}: {name}"


def test_every_system_call_that_there_is_is_known() -> None:
    tree = ast.parse((PACKAGE / "host" / "syscalls.py").read_text(encoding="utf-8"))
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known = crash_points.SYSCALLS | HARMLESS_SYSCALLS | _sometimes("syscalls")
    assert {name for name in public if not name.startswith("_")} == known


def test_whatever_is_to_be_watched_is_there() -> None:
    """Each name is one that the driver uses: one that it does not use any more is not counted for nothing."""
    used = {found[0] for source in SOURCES for found in _attributes(ast.parse(source.read_text("utf-8")), "os")}
    assert crash_points.OS - used == {"chmod"}, "only pathlib calls that one"


_DEATHS = """
import os, sys
from tests.kernel.crash_points import die_at
from moorage_csi.host.paths import Directory
folder = Directory.open(sys.argv[1])
die_at(int(sys.argv[2]), distinct=sys.argv[3] == "distinct", told=lambda name: print(name, flush=True))
folder.make_directory("made", 0o700)
"""


@pytest.mark.parametrize(
    ("which", "points"),
    [
        ("all", [f"{when} {call}" for call in ("mkdir", "fchmod", "fsync", "fsync") for when in ("before", "after")]),
        ("distinct", ["after mkdir", "after fchmod"]),
    ],
)
def test_a_process_dies_at_each_point_in_turn(tmp_path: Path, which: str, points: list[str]) -> None:
    told = []
    for fatal in range(1, 20):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _DEATHS, folder, str(fatal), which],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        told.append(done.stdout.strip())
        assert (folder / "made").exists() is (told[-1] != "before mkdir")
    assert told == points
