"""The virtual machine: what it is told, and that one which hangs or says nothing is ended and reported."""

import io
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.harness import debian, guest, kernel_suite, virtual_machine
from tests.harness.errors import MissingError, StartError
from tests.harness.places import ROOT
from tests.harness.processes import ProcessIdentity
from tests.harness.progress import Silent
from tests.harness.virtual_machine import DISKS, Order, Patience


def _values(argv: Sequence[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(argv) if name == option]


def test_the_machine_cannot_write_our_files_nor_reach_a_network() -> None:
    argv = virtual_machine.machine_command(Path("/kernel"), folder=Path("/run/one"), processors=2)
    (share,) = _values(argv, "-virtfs")
    assert {"path=/", "readonly=on"} <= set(share.split(","))
    assert _values(argv, "-nic") == ["none"]
    assert _values(argv, "-accel") == ["tcg,thread=multi"]
    assert _values(argv, "-smp") == ["2"]
    written = [*_values(argv, "-drive"), *_values(argv, "-serial"), *_values(argv, "-chardev")]
    files = [part.partition("=")[2] for value in written for part in value.split(",") if part[:5] in {"file=", "path="}]
    assert files == ["/run/one/disk", "/dev/stdout", "/run/one/result"]
    assert "file:/run/one/console.log" in written


def test_a_comma_in_a_path_separates_nothing() -> None:
    argv = virtual_machine.machine_command(Path("/kernel"), folder=Path("/run/a,b"), processors=1)
    assert _values(argv, "-drive")[0].startswith("file=/run/a,,b/disk,format=raw,")


def test_the_order_is_what_the_guest_reads() -> None:
    order = Order(argv=["true"], cwd="/", environment={}, kernel_modules="/modules", disk=DISKS["xfs-quota"])
    assert json.loads(virtual_machine.written(order)) == {
        "argv": ["true"],
        "cwd": "/",
        "environment": {},
        "kernel_modules": "/modules",
        "disk": {
            "filesystem": "xfs",
            "make": ["mkfs.xfs", "-q", "-f"],
            "mount_options": ["-o", "prjquota"],
        },
        "mount_point": "/disk",
        "load": list(virtual_machine.LOAD),
    }


def _speaker(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)


def test_output_is_passed_on_until_its_end() -> None:
    output = io.BytesIO()
    with _speaker("print('one'); print('two')") as machine:
        virtual_machine.relay(machine, output=output, patience=Patience())
    assert output.getvalue() == b"one\ntwo\n"


SILENT = "import time; print('one', flush=True); time.sleep(60)"
TALKATIVE = "import time\nwhile True: print('on', flush=True); time.sleep(0.01)"
MUTE = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("script", "patience"),
    [
        (MUTE, Patience(boot=0.1)),
        (SILENT, Patience(boot=30, silence=0.1)),
        (TALKATIVE, Patience(boot=30, silence=30, whole=0.5)),
    ],
    ids=["boot", "silence", "whole"],
)
def test_waiting_has_an_end(script: str, patience: Patience) -> None:
    with _speaker(script) as machine:
        try:
            with pytest.raises(StartError, match="hung"):
                virtual_machine.relay(machine, output=io.BytesIO(), patience=patience)
        finally:
            machine.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "console.log").write_text("Kernel panic: no root\n")
    return tmp_path


def test_a_machine_that_ends_without_a_result_shows_its_console(folder: Path) -> None:
    argv = ["sh", "-c", "echo hello; echo no such processor >&2"]
    with pytest.raises(StartError, match=r"without a result(.|\n)*no such processor\nKernel panic: no root"):
        virtual_machine.operate(argv, folder=folder, output=io.BytesIO(), patience=Patience())


def test_the_result_is_the_command_s_exit_code(folder: Path) -> None:
    argv = ["sh", "-c", f"echo hello; printf 3 > {folder}/result"]
    output = io.BytesIO()
    assert virtual_machine.operate(argv, folder=folder, output=output, patience=Patience()) == 3
    assert output.getvalue() == b"hello\n"


def test_a_machine_that_hangs_is_killed_and_shows_its_console(folder: Path) -> None:
    argv = ["sh", "-c", f"echo $$ > {folder}/pid; exec sleep 60"]
    with pytest.raises(StartError, match=r"hung(.|\n)*Kernel panic: no root"):
        virtual_machine.operate(argv, folder=folder, output=io.BytesIO(), patience=Patience(boot=1))
    identity = ProcessIdentity.of(int((folder / "pid").read_text()))
    assert identity is None or not identity.alive()


def test_the_kernel_s_tests_are_those_of_the_suite_and_arguments_come_last() -> None:
    argv = kernel_suite.pytest_command(["-k", "quotas"], colour=False)
    assert argv[:3] == [sys.executable, "-m", "pytest"]
    assert _values(argv, "-m")[1:] == ["kernel and not sanity and not cluster"]
    assert argv[-2:] == ["-k", "quotas"]


def test_marked_tests_outside_of_their_folder_are_found(tmp_path: Path) -> None:
    for name, text in {
        "tests/kernel/test_one.py": "pytestmark = pytest.mark.kernel",
        "tests/unit/b/test_two.py": "@pytest.mark.kernel",
        "tests/unit/a/test_three.py": "pytestmark = [pytest.mark.kernel]",
        "tests/unit/test_four.py": "nothing",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert kernel_suite.marked_places(tmp_path) == [
        "tests/kernel",
        "tests/unit/a/test_three.py",
        "tests/unit/b/test_two.py",
    ]
    assert all((ROOT / place).exists() for place in kernel_suite.marked_places(ROOT))


def test_little_of_our_environment_goes_in() -> None:
    outside: Mapping[str, str] = {"CI": "1", "PIP_CERT": "secret", "PATH": "/home/me"}
    inside = kernel_suite.environment(outside, columns=90)
    assert inside["CI"] == "1"
    assert inside["COLUMNS"] == "90"
    assert "PIP_CERT" not in inside
    assert "/home/me" not in inside["PATH"]


def test_the_guest_returns_the_code_of_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_port", lambda name: tmp_path / name)
    assert guest._carry_out(["sh", "-c", "echo said; exit 4"], cwd="/") == 4
    assert (tmp_path / "output").read_text() == "said\n"
    assert guest._carry_out(["sh", "-c", "kill -9 $$"], cwd="/") == 128 + 9


def test_what_only_a_virtual_machine_needs_is_asked_for_by_its_name_and_of_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "SEARCHED", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"kmod .*qemu-system-x86"):
        debian.install_for_virtual_machine(progress=Silent())
    assert not {"qemu-system-x86", "kmod"} & set(debian.missing_packages())
