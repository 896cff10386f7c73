"""The one layer that takes the place of many has room for what they show, however many files that are, and is no larger."""

from pathlib import Path

import pytest

from moorage_csi.backends import layers
from moorage_csi.host import overlay
from tests.kernel.rpc_driver import MIB, SIZE, running
from tests.kernel.test_rpc_layered import chain, clone, create, published

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

FILES = 6000
"""More than an image of the least size has inodes."""


@pytest.mark.skipif(overlay.overlay_supported() is not None, reason="the kernel has no overlay")
async def test_many_small_files_fit_into_one_layer(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST", 1)
    size = 16 * SIZE
    async with running(area) as driver:
        volume = await create(driver, size=size)
        async with published(driver, volume) as target:
            for number in range(FILES):
                (target / str(number)).touch()
        first = await clone(driver, "first", volume=volume, size=size)
        async with published(driver, first) as target:
            (target / "own").write_bytes(b"x" * 4 * MIB)
        second = await clone(driver, "second", volume=first, size=size)
        (flat,) = chain(driver, second)
        assert flat.stat().st_size < size
        async with published(driver, second) as target:
            assert len(list(target.iterdir())) == FILES + 1
            assert (target / "own").read_bytes() == b"x" * 4 * MIB
