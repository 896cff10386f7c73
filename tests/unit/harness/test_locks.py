"""A name is held by one process, and let go of by its death."""

import subprocess
import sys
from pathlib import Path

from tests.harness import locks

ROOT = Path(__file__).parents[3]


def test_only_one_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locks.hold(file, wait=False) as first, locks.hold(file, wait=False) as second:
        assert (first, second) == (True, False)
    assert not file.exists()
    with locks.hold(file, wait=False) as again:
        assert again


def test_the_loser_takes_nothing_away(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locks.hold(file, wait=False):
        with locks.hold(file, wait=False) as second:
            assert not second
        with locks.hold(file, wait=False) as third:
            assert not third


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    program = (
        "import sys; from pathlib import Path; from tests.harness import locks\n"
        "with locks.hold(Path(sys.argv[1]), wait=True):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with locks.hold(file, wait=False) as mine:
            assert not mine
        holder.kill()
    with locks.hold(file, wait=True) as mine:
        assert mine
