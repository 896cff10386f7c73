"""Running the plugins inside this process: call, store what was made, and destroy it again where that fails.

Every call may have been made before, by an earlier life of this process: plugins are asked by the volume's name, and
answer for what is done already as for what they have just done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from moorage_operator.decide import explaining, plugins
from moorage_operator.decide.plan import Destroy, Plan, Provision, Scrub, Stop
from moorage_operator.errors import AlreadyExistsError, ApiError, NotFoundError, PluginError
from moorage_operator.ledger import Ledger
from moorage_operator.model.volume import Volume


class Plugin(Protocol):
    """One plugin; each call raises PluginError when it fails."""

    async def provision(self, name: str) -> Mapping[str, Any]:
        """Make the storage of a volume; returns its source for the volume's spec."""
        ...

    async def destroy(self, name: str) -> None:
        """Destroy the storage of a volume; gone is a success."""
        ...

    async def scrub(self, name: str) -> None:
        """Empty the storage of a volume."""
        ...


class Objects(Protocol):
    """What is needed of the API server."""

    async def get(self, path: str) -> dict[str, Any]:
        """Read an object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...


class InTree:
    """Carries out the steps that are a plugin's; each comes back as what is to be done next.

    Args:
        ledger: what is known.
        objects: the API server.
        running: the plugins by name, the same as ``Rules.plugins`` has.
        rest: sleeps so many seconds.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        objects: Objects,
        running: Mapping[str, Plugin],
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._objects = objects
        self._running: Final = running
        self._rest = rest

    async def run(self, step: Provision | Destroy | Scrub) -> Plan:
        """Carry out a step.

        Raises:
            ApiError: a read failed, so that nothing was begun.
        """
        match step:
            case Provision():
                return await self._provision(step)
            case Destroy(times=0):
                return await self._destroy(step)
            case Destroy():
                return await self._clean(step)
            case Scrub():
                return await self._scrub(step)

    async def _provision(self, step: Provision) -> Plan:
        try:
            await self._objects.get(step.volume.target.path)
        except NotFoundError:
            pass
        else:
            return (Stop(),)
        try:
            source = await self._running[step.plugin].provision(step.volume.target.key.name)
        except PluginError as error:
            return plugins.not_made(step, str(error))
        return await self._save(step, source)

    async def _save(self, step: Provision, source: Mapping[str, Any]) -> Plan:
        """Store the object, a few times with a rest in between; one that exists was stored by an earlier try."""
        body = dict(step.volume.body or {})
        body["spec"] = {**body["spec"], **source}
        problem = ""
        for attempt in range(plugins.MOST_SAVES):
            if attempt:
                await self._rest(plugins.SAVE_REST)
            try:
                await self._objects.create(step.volume.path, body)
            except AlreadyExistsError:
                return plugins.made(step)
            except ApiError as error:
                problem = str(error)
            else:
                return plugins.made(step)
        return plugins.not_saved(step, problem)

    async def _destroy(self, step: Destroy) -> Plan:
        destroy = self._running[step.plugin].destroy
        return await self._reclaim(step.name, destroy, explaining.DELETE_FAILED, plugins.destroyed)

    async def _scrub(self, step: Scrub) -> Plan:
        return await self._reclaim(
            step.name, self._running[step.plugin].scrub, plugins.RECYCLE_FAILED, plugins.scrubbed
        )

    async def _reclaim(
        self, name: str, call: Callable[[str], Awaitable[None]], reason: str, done: Callable[[Volume], Plan]
    ) -> Plan:
        """Have a plugin do something to a volume; one that is gone meanwhile needs nothing."""
        volume = self._ledger.volume(name)
        if volume is None:
            return ()
        try:
            await call(name)
        except PluginError as error:
            return plugins.failed(self._ledger, volume, reason, str(error))
        return done(volume)

    async def _clean(self, step: Destroy) -> Plan:
        for attempt in range(step.times):
            if attempt:
                await self._rest(plugins.SAVE_REST)
            try:
                await self._running[step.plugin].destroy(step.name)
            except PluginError:
                continue
            break
        return ()
