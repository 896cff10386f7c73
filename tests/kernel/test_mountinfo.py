"""What the kernel escapes in mountinfo comes back as it was."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.host import mounts
from moorage_csi.host.mountinfo import parse_mountinfo
from tests.kernel.machine import mounted, opened

pytestmark = pytest.mark.kernel

ESCAPED = b" \t\n\\#"


def escaped(text: bytes) -> bytes:
    """As the kernel's seq_file does it."""
    return b"".join(b"\\%03o" % byte if byte in ESCAPED else bytes([byte]) for byte in text)


words = st.binary(min_size=1, max_size=30).filter(lambda raw: b"\0" not in raw)
numbers = st.integers(0, 2**31 - 1)


@given(
    root=words,
    target=words,
    source=words,
    mount_id=numbers,
    major=st.integers(0, 4095),
    minor=st.integers(0, 2**20 - 1),
    shared=st.none() | numbers,
    master=st.none() | numbers,
    unbindable=st.booleans(),
)
def test_every_field_comes_back(
    *,
    root: bytes,
    target: bytes,
    source: bytes,
    mount_id: int,
    major: int,
    minor: int,
    shared: int | None,
    master: int | None,
    unbindable: bool,
) -> None:
    tags = [b"shared:%d" % shared] if shared is not None else []
    tags += [b"master:%d" % master] if master is not None else []
    tags += [b"unbindable"] if unbindable else []
    line = b" ".join(
        [
            *(b"%d 1 %d:%d" % (mount_id, major, minor), escaped(root), escaped(target), b"rw,nosuid", *tags),
            *(b"-", b"ext4", escaped(source), b"rw,errors=continue\n"),
        ]
    )
    (mount,) = parse_mountinfo(line)
    assert (mount.mount_id, mount.major, mount.minor) == (mount_id, major, minor)
    assert os.fsencode(mount.root) == root
    assert os.fsencode(mount.target) == target
    assert os.fsencode(mount.source) == source
    assert (mount.peer_group, mount.master_group) == (shared, master)
    assert mount.options == {"rw", "nosuid"}
    assert mount.filesystem_options == {"rw", "errors=continue"}


def test_this_machine_parses() -> None:
    seen = mounts.mounts()
    assert "/" in {mount.target for mount in seen}
    assert len(seen) == len(Path("/proc/self/mountinfo").read_bytes().splitlines())


@pytest.mark.parametrize(
    "name", ["a b", "tab\tbed", "line\nbreak", "back\\slash", "num#ber", "\\040", "ü\udcff", "- x"]
)
def test_a_real_mount_with_an_odd_name_is_found(area: Path, name: str) -> None:
    target = area / name
    target.mkdir()
    with mounted(target, "-t", "tmpfs", "a source"):
        with opened(target) as fd:
            mount = mounts.mount_of_fd(fd)
        assert mount is not None
        assert mount.target == str(target)
        assert mount.source == "a source"


def test_read_only_is_told_of_the_mount_and_of_the_filesystem() -> None:
    line = b"1 0 8:1 / /a %b - ext4 /dev/a %b"
    for mount_option, filesystem_option, expected in (
        (b"ro", b"rw", True),
        (b"rw", b"ro", True),
        (b"rw", b"rw", False),
    ):
        (mount,) = parse_mountinfo(line % (mount_option, filesystem_option))
        assert mount.read_only is expected
