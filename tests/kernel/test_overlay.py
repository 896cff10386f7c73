"""Overlays of directories on mounts that nobody can reach, by both ways that kernels know."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import mounts, overlay, syscalls
from moorage_csi.host.overlay import Place, Writable
from tests.kernel.machine import descriptors, names, opened

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _able() -> None:
    try:
        os.close(syscalls.fsopen("overlay"))
    except OSError as error:
        pytest.skip(f"the kernel has no overlay: {error}")


@pytest.fixture(params=["of detached mounts", "in a table of its own"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second way, which kernels before 6.15 need, works on all."""
    if request.param == "in a table of its own":
        monkeypatch.setattr(overlay, "_directly", _refused)


def _refused(*_: object) -> int:
    raise OSError(errno.EINVAL, "as kernels before 6.15 say")


@contextmanager
def memory(*directories: str) -> Iterator[int]:
    """A filesystem in memory that is mounted nowhere, with these directories."""
    mount = mounts.filesystem_detached(source="test", filesystem="tmpfs", options=["size=1m"])
    try:
        for name in directories:
            os.mkdir(name, 0o755, dir_fd=mount)
        yield mount
    finally:
        os.close(mount)


def write(mount: int, name: str, text: str) -> None:
    Path(f"/proc/self/fd/{mount}/{name}").write_text(text)


@contextmanager
def shown(mount: int, target: Path) -> Iterator[Path]:
    """Move a detached mount to a target for the length of a block."""
    target.mkdir(exist_ok=True)
    with opened(target) as fd:
        syscalls.move_mount(mount, fd)
    os.close(mount)
    try:
        yield target
    finally:
        mounts.unmount(str(target))


@pytest.mark.usefixtures("way")
def test_what_is_written_over_layers_stays_above_them(area: Path) -> None:
    with ExitStack() as layers:
        below = layers.enter_context(memory("upper", "upper/before"))
        write(below, "upper/deleted", "base")
        write(below, "upper/changed", "base")
        write(below, "upper/before/inside", "base")
        own = layers.enter_context(memory("upper", "work", "base"))
        merged = overlay.detached(
            source="volume-1",
            lower=[Place(below, "upper"), Place(own, "base")],
            writable=Writable(upper=Place(own, "upper"), work=Place(own, "work")),
        )
        with shown(merged, area / "merged") as target:
            (found,) = (mount for mount in mounts.mounts() if mount.target == str(target))
            assert (found.filesystem, found.source, found.root) == ("overlay", "volume-1", "/")
            (target / "deleted").unlink()
            (target / "changed").write_text("own")
            (target / "before").rename(target / "after")
            assert (target / "after" / "inside").read_text() == "base"
            assert names(target) == ["after", "changed"]
        assert names(Path(f"/proc/self/fd/{below}/upper")) == ["before", "changed", "deleted"]
        assert Path(f"/proc/self/fd/{below}/upper/changed").read_text() == "base"


@pytest.mark.usefixtures("way")
def test_an_overlay_lives_without_the_descriptors_of_its_layers(area: Path) -> None:
    with ExitStack() as layers:
        own = layers.enter_context(memory("upper", "work", "base"))
        merged = overlay.detached(
            source="volume-1",
            lower=[Place(own, "base")],
            writable=Writable(upper=Place(own, "upper"), work=Place(own, "work")),
        )
    with shown(merged, area / "merged") as target:
        (target / "file").write_text("written")
        assert (target / "file").read_text() == "written"


@pytest.mark.usefixtures("way")
def test_many_layers_are_read_as_one_tree(area: Path) -> None:
    count = 17
    with ExitStack() as layers:
        every = [layers.enter_context(memory("upper")) for _ in range(count)]
        for number, mount in enumerate(every):
            write(mount, f"upper/{number:02d}", "own")
            write(mount, "upper/top", str(number))
        # High numbers make long names, of which older kernels take few.
        high = [os.dup2(mount, 900 + number, inheritable=False) for number, mount in enumerate(every)]
        try:
            merged = overlay.detached(source="all", lower=[Place(mount, "upper") for mount in reversed(high)])
        finally:
            for fd in high:
                os.close(fd)
        with shown(merged, area / "merged") as target:
            assert names(target) == [*(f"{number:02d}" for number in range(count)), "top"]
            assert (target / "top").read_text() == str(count - 1)
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").write_text("no")


@pytest.mark.usefixtures("way")
def test_nothing_is_left_of_one_that_cannot_be_mounted() -> None:
    before, open_before = mounts.mounts(), descriptors()
    with memory("upper") as own, pytest.raises(OSError, match="overlay on volume-1"):
        overlay.detached(
            source="volume-1",
            lower=[Place(own, "absent")],
            writable=Writable(upper=Place(own, "upper"), work=Place(own, "absent")),
        )
    assert mounts.mounts() == before
    assert descriptors() == open_before


@pytest.mark.usefixtures("way")
def test_nothing_is_seen_of_the_layers_meanwhile_or_afterwards(area: Path) -> None:
    before = mounts.mounts()
    with memory("upper", "work", "base") as own:
        merged = overlay.detached(
            source="volume-1",
            lower=[Place(own, "base")],
            writable=Writable(upper=Place(own, "upper"), work=Place(own, "work")),
        )
        assert mounts.mounts() == before
        with shown(merged, area / "merged"):
            assert len(mounts.mounts()) == len(before) + 1
    assert mounts.mounts() == before


def test_the_table_of_its_own_tells_nobody_of_its_mounts(in_namespace: Callable[..., str]) -> None:
    """The host's table is shared with all that are made of it."""
    script = """
        import errno, os
        from moorage_csi.host import mounts, overlay, syscalls

        def refused(*_):
            raise OSError(errno.EINVAL, "as kernels before 6.15 say")

        root = os.open("/", os.O_PATH)
        syscalls.mount_setattr(root, set_flags=0, clear_flags=0, propagation=1 << 20, recursive=True)
        overlay._directly = refused
        before = mounts.mounts()
        print(overlay.overlay_supported(), mounts.mounts() == before)
        """
    assert in_namespace(script) == "None True"


def test_a_kernel_that_cannot_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert overlay.overlay_supported() is None
    real: Callable[..., int] = mounts.filesystem_detached

    def without(*, filesystem: str, **more: object) -> int:
        if filesystem == "overlay":
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), filesystem)
        return real(filesystem=filesystem, **more)

    monkeypatch.setattr(mounts, "filesystem_detached", without)
    why = overlay.overlay_supported()
    assert why is not None
    assert "overlay" in why
    assert "No such device" in why


def test_directories_are_alike_in_all_but_an_overlays_marks(area: Path) -> None:
    one, other = area / "one", area / "other"
    one.mkdir(mode=0o750)
    other.mkdir(mode=0o750)
    flags = os.O_RDONLY | os.O_DIRECTORY
    with opened(one, flags) as first, opened(other, flags) as second:
        os.setxattr(first, "trusted.overlay.opaque", b"y")
        assert overlay.likeness(first) == overlay.likeness(second)
        os.setxattr(first, "user.kept", b"1")
        assert overlay.likeness(first) != overlay.likeness(second)
        os.setxattr(second, "user.kept", b"1")
        assert overlay.likeness(first) == overlay.likeness(second)
        other.chmod(0o770)
        assert overlay.likeness(first) != overlay.likeness(second)
        overlay.forget_marks(first)
        assert "trusted.overlay.opaque" not in os.listxattr(first)
        assert "user.kept" in os.listxattr(first)
