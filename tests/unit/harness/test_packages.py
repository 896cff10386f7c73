"""What the machine lacks is found by looking, and said with the command that helps."""

from pathlib import Path

import pytest

from tests.harness import debian
from tests.harness.errors import MissingError
from tests.harness.progress import Silent


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(debian, "SEARCHED", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_every_program_has_its_package(empty_machine: Path) -> None:
    assert set(debian.PROGRAMS.values()) <= set(debian.missing_packages())


def test_without_root_it_names_the_command(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_machine / "apt-get").write_text("#!/bin/sh\n")
    (empty_machine / "apt-get").chmod(0o755)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MissingError, match=r"sudo apt-get install -y --no-install-recommends .*runc"):
        debian.install(progress=Silent())


def test_on_another_distribution_it_names_the_packages(empty_machine: Path) -> None:
    with pytest.raises(MissingError, match="no apt-get here"):
        debian.install(progress=Silent())


def test_nothing_is_installed_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "missing_packages", list)
    monkeypatch.setenv("PATH", "")
    debian.install(progress=Silent())
