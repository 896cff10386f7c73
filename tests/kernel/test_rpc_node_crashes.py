"""The driver is killed (SIGKILL) before and after every change of the disk while a pod's own volume comes and goes."""

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

from moorage_csi.host import mounts
from moorage_csi.rpc import validation
from tests.kernel.crash_points import areas_of
from tests.kernel.inline_victim import CONTEXT, GROUP, HANDLE, target_in
from tests.kernel.rpc_driver import Driver, capability, mounted_below, running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

KINDS = pytest.mark.parametrize(
    "attributes",
    [{"size": "64Mi", "backend": "directory", "quota": "none"}, {"size": "64Mi", "backend": "image"}],
    ids=["directory", "image"],
)


def _crashed(area: Path, attributes: dict[str, str]) -> list[Path]:
    return areas_of("-m", "tests.kernel.inline_victim", str(area), json.dumps(attributes))


def _folders(driver: Driver) -> list[str]:
    return [each.name for each in (driver.pool / "volumes").iterdir()]


@KINDS
async def test_a_pod_that_comes_again_has_one_volume_and_leaves_none(area: Path, attributes: dict[str, str]) -> None:
    found = set()
    for crashed in _crashed(area, attributes):
        target = target_in(crashed)
        try:
            async with running(crashed) as driver:
                found.add(len(_folders(driver)))
                wanted = capability(group=GROUP)
                await driver.publish(HANDLE, target, wanted=wanted, context={**attributes, **CONTEXT})
                assert _folders(driver) == [validation.published_id(HANDLE)], crashed
                (target / "file").write_text("x")
                assert (target / "file").stat().st_gid == GROUP, crashed
                await driver.unpublish(HANDLE, target)
                await driver.emptied()
                assert driver.left() == [], crashed
        finally:
            for left in mounted_below(crashed):
                mounts.unmount(left)
    assert found == {0, 1}


@KINDS
async def test_a_pod_that_never_comes_again_leaves_none(area: Path, attributes: dict[str, str]) -> None:
    """Its folder goes while the driver is down, as after a reboot: nothing is mounted."""
    for crashed in _crashed(area, attributes):
        for left in mounted_below(crashed):
            mounts.unmount(left)
        shutil.rmtree(crashed / "kubelet" / "pods" / "one")
        async with running(crashed) as driver:
            await _none_left(driver)
            await driver.emptied()
            assert driver.left() == [], crashed


async def _none_left(driver: Driver, *, within: float = 20) -> None:
    """Wait until the look that the driver takes at its start has deleted the volume."""
    deadline = time.monotonic() + within
    while left := _folders(driver):
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.01)
