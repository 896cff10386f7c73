"""Carrying out plans: each step done, each answer put into the ledger.

A plan is given up at the first step that does not succeed. What the answer says goes into the ledger
first, so the decision that follows sees it; what a failure means is decided in ``decide.answers``, and
that plan is carried out in the same way. A write that was refused is never sent again as it was: the
object is read, and the key is decided anew.

Crash safety: before a call to the driver it is noted as running; before anything is destroyed the
objects are read live. Everything else is conditional, so an operator that dies between any two steps
leaves a state that the next one decides from.
"""

import asyncio
import enum
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, assert_never

from moorage_operator.act.intree import InTree
from moorage_operator.decide import answers, reclaiming, volumes, writing
from moorage_operator.decide.plan import (
    Action,
    ConfirmGone,
    ConfirmLives,
    ConfirmReclaimable,
    ConfirmReleased,
    ConfirmUnowned,
    CreateVolume,
    DeleteVolume,
    Destroy,
    Emit,
    Fail,
    ForgetAttempt,
    MeasureRoom,
    Note,
    Plan,
    Provision,
    Reach,
    Refresh,
    Remember,
    RememberWait,
    Requeue,
    Scrub,
    Settled,
    Stop,
    Target,
    Together,
    Verb,
    WipeVolume,
    Write,
)
from moorage_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    DriverCallError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from moorage_operator.ledger import Keys, Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid
from moorage_operator.model.provisioning import Created, CreateRequest
from moorage_operator.model.reference import Reference
from moorage_operator.model.volume import Volume
from moorage_operator.notes import Rooms

logger = logging.getLogger(__name__)

Object = dict[str, Any]

CAPACITY_SECONDS: Final = 2.0
REFUSED: Final = "WriteRefused"


class Objects(Protocol):
    """What is needed of the API server; ``act.api.Api`` has it."""

    async def get(self, path: str) -> Object:
        """Read an object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> Object:
        """Create an object."""
        ...

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Object:
        """Patch an object of which the tests hold."""
        ...

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> bool:
        """Delete the object of this uid."""
        ...


class Plugins(Protocol):
    """What is needed of the driver; ``act.driver.Driver`` has it."""

    async def create_volume(self, node: str, request: CreateRequest) -> Created:
        """Make a volume, or find the one made before."""
        ...

    async def delete_volume(self, node: str, volume_id: str) -> None:
        """Delete a volume; gone is a success."""
        ...

    async def reach(self, node: str) -> None:
        """Connect to a node, so that the next call is sent at once."""
        ...

    async def wipe_volume(self, node: str, volume_id: str, *, released_uid: str) -> None:
        """Replace a volume's data by nothing, once for each claim that had it."""
        ...

    async def capacity(self, node: str, parameters: Mapping[str, str]) -> int:
        """Bytes a volume could still have."""
        ...


class Tellers(Protocol):
    """What is needed to tell people; ``act.recorder.Recorder`` has it."""

    def event(self, regarding: Reference, *, type: str, reason: str, message: str) -> None:  # noqa: A002 (the field's name)
        """Record an event."""
        ...


class Verdict(enum.Enum):
    """What is to become of a key after a plan."""

    AGAIN = "again"
    """Something was done or learned: decide anew, at once."""
    CONFLICT = "conflict"
    """Somebody else had changed the object: decide anew, at once, but not for ever."""
    WAIT = "wait"
    """Decide anew after ``Outcome.after`` seconds, or when something happens."""
    STOP = "stop"
    """At rest, until the change that was just made comes back."""
    RETRY = "retry"
    """It failed in a way that the plan did not foresee: decide anew after the queue's back-off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A verdict; ``after`` is in seconds."""

    verdict: Verdict
    after: float = 0.0


AGAIN: Final = Outcome(verdict=Verdict.AGAIN)
CONFLICT: Final = Outcome(verdict=Verdict.CONFLICT)
RETRY: Final = Outcome(verdict=Verdict.RETRY)
STOP: Final = Outcome(verdict=Verdict.STOP)

_GRAVITY: Final = (Verdict.RETRY, Verdict.CONFLICT, Verdict.AGAIN, Verdict.WAIT, Verdict.STOP)


class Performer:
    """Carries out plans, for any number of keys at a time; belongs to one event loop.

    Args:
        ledger: takes every answer.
        objects: the API server.
        plugins: the driver.
        tellers: events.
        wake: told which other keys an answer concerns.
        bound: told how many seconds a claim took from its creation to being bound.
        intree: runs the plugins inside this process; None where there are none.
        clock: monotonic seconds.
        wall: seconds since the epoch.
        gather: runs awaitables beside each other.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        objects: Objects,
        plugins: Plugins,
        tellers: Tellers,
        wake: Callable[[Keys], None],
        bound: Callable[[float], None],
        intree: InTree | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        gather: Callable[..., Awaitable[Collection[Any]]] = asyncio.gather,
    ) -> None:
        self._ledger = ledger
        self._objects = objects
        self._plugins = plugins
        self._tellers = tellers
        self._wake = wake
        self._bound = bound
        self._intree = intree or InTree(ledger=ledger, objects=objects, running={})
        self._clock = clock
        self._wall = wall
        self._gather = gather
        self._measuring: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def perform(self, plan: Plan) -> Outcome:
        """Carry out a plan that is not empty, as far as it goes."""
        for step in plan:
            match step:
                case Requeue():
                    return Outcome(verdict=Verdict.WAIT, after=step.after)
                case Fail():
                    logger.info("Not possible, trying again later why=%s", step.why)
                    return RETRY
                case Stop():
                    return STOP
                case Emit() | Remember() | ForgetAttempt() | Settled() | RememberWait():
                    self._note(step)
                case _:
                    outcome = await self._act(step)
                    if outcome is not None:
                        return outcome
        return AGAIN

    async def _act(self, step: Action) -> Outcome | None:
        """Carry out a step that talks to others; None goes on with the next."""
        match step:
            case Write():
                return await self._write(step)
            case Together():
                return _gravest(await self._gather(*(self._write(write) for write in step.writes)))
            case CreateVolume():
                return await self._create(step)
            case DeleteVolume() | Reach():
                return await self._destroy(step)
            case MeasureRoom():
                return await self._measure(step)
            case WipeVolume():
                return await self._wipe(step)
            case Provision() | Destroy() | Scrub():
                return await self._run_plugin(step)
            case (
                Refresh() | ConfirmUnowned() | ConfirmReleased() | ConfirmGone() | ConfirmLives() | ConfirmReclaimable()
            ):
                return await self._read(step)
        assert_never(step)

    def _note(self, step: Note) -> None:
        notes = self._ledger.notes
        match step:
            case Remember():
                notes.remember(step.attempt)
            case ForgetAttempt():
                notes.forget_attempt(step.uid)
            case RememberWait():
                notes.remember_wait(step.uid, step.wait)
            case Settled():
                notes.settle(step.uid)
                self._bound(max(self._wall() - step.created, 0.0))
            case Emit():
                notes.tell(Uid(step.regarding.uid), step.key, step.message)
                self._tell(step.regarding, step.reason, step.message, warning=step.warning)

    async def _write(self, write: Write) -> Outcome | None:
        if not write.holds:
            return await self._try(write)
        self._ledger.hold(write.holds)
        try:
            return await self._try(write)
        finally:
            self._wake(self._ledger.let_go(write.holds))

    async def _try(self, write: Write) -> Outcome | None:
        try:
            await self._send(write)
        except (ConflictError, AlreadyExistsError, NotFoundError) as error:
            logger.debug("Write came too late path=%s error=%s", write.path, error)
            return await self._read(Refresh(target=write.target)) or CONFLICT
        except (ForbiddenError, InvalidError) as error:
            logger.warning("Write was refused path=%s error=%s", write.path, error)
            self._tell(write.blame, REFUSED, f"The API server refused: {error}", warning=True)
            return RETRY
        except ApiError as error:
            # It may have been carried out: the next decision finds out by a conflict.
            logger.warning("Write failed path=%s error=%s", write.path, error)
            return RETRY
        return None

    async def _send(self, write: Write) -> None:
        match write.verb:
            case Verb.CREATE:
                self._learn(write.target, await self._objects.create(write.path, write.body or {}))
            case Verb.PATCH:
                self._learn(write.target, await self._objects.json_patch(write.path, write.ops))
            case Verb.DELETE:
                await self._objects.delete(write.path, uid=write.target.uid)
            case _:
                assert_never(write.verb)

    async def _read(
        self, step: Refresh | ConfirmUnowned | ConfirmReleased | ConfirmGone | ConfirmLives | ConfirmReclaimable
    ) -> Outcome | None:
        try:
            match step:
                case Refresh():
                    await self._look(step.target)
                    return None
                case ConfirmUnowned():
                    return None if await self._is_unowned(step) else AGAIN
                case ConfirmReleased():
                    return None if await self._is_released(step) else AGAIN
                case ConfirmGone():
                    return None if await self._is_gone(step.target) else AGAIN
                case ConfirmLives():
                    return AGAIN if await self._is_gone(step.target) else None
                case ConfirmReclaimable():
                    return None if await self._is_reclaimable(step.volume) else AGAIN
        except ApiError as error:
            logger.warning("Read failed error=%s", error)
            return RETRY
        assert_never(step)

    async def _is_unowned(self, step: ConfirmUnowned) -> bool:
        volume = await self._look(step.target)
        return not isinstance(volume, Volume) or volume.node not in {"", step.node}

    async def _is_released(self, step: ConfirmReleased) -> bool:
        volume = await self._look(step.volume)
        claim = None if step.claim is None else await self._look(step.claim)
        if not isinstance(volume, Volume) or volume.uid != step.volume.uid:
            return False
        living = claim if isinstance(claim, Claim) and claim.uid == volume.claim_uid else None
        return volumes.may_destroy(volume, living)

    async def _is_gone(self, target: Target) -> bool:
        found = await self._look(target)
        return found is None or (bool(target.uid) and found.uid != target.uid)

    async def _is_reclaimable(self, decided: Volume) -> bool:
        volume = await self._look(writing.volume_target(decided))
        if not isinstance(volume, Volume) or volume.claim is None:
            return False
        claim = await self._look(writing.claim_named(volume.claim))
        living = claim if isinstance(claim, Claim) and claim.uid == volume.claim.uid else None
        # As the in-tree binder has it for the volumes of plugins; what is ours is never emptied while that claim lives.
        elsewhere = living is not None and living.volume_name not in {"", volume.name} and not volume.ours
        same = (volume.uid, volume.claim, volume.reclaim_policy) == (decided.uid, decided.claim, decided.reclaim_policy)
        return same and (living is None or elsewhere)

    async def _look(self, target: Target) -> Claim | Volume | None:
        """Read the target live; what is seen, or that it is gone, is known from then on."""
        try:
            return self._learn(target, await self._objects.get(target.path))
        except NotFoundError:
            known = self._ledger.claim(target.key) if target.kind is Claim else self._ledger.volume(target.key.name)
            if known is not None:
                self._wake(self._ledger.forget(target.kind, known.uid))
            return None

    def _learn(self, target: Target, body: Object) -> Claim | Volume:
        record = target.kind.from_api(body)
        if record.deleting and not record.finalizers:
            # The answer to the write that removed the last finalizer: the object is gone with it.
            self._wake(self._ledger.forget(target.kind, record.uid))
        else:
            self._wake(self._ledger.apply(record, assumed=True))
        return record

    async def _create(self, step: CreateVolume) -> Outcome:
        attempt = step.attempt
        if attempt.request is None:
            raise ValueError(f"attempt for {attempt.claim} has no request")
        notes = self._ledger.notes
        notes.call(attempt.uid)
        try:
            answer = await self._plugins.create_volume(attempt.node, attempt.request)
        except DriverCallError as error:
            logger.info("Volume was not made claim=%s node=%s error=%s", attempt.claim, attempt.node, error)
            plan = answers.create_failed(self._ledger, attempt, error, again=step.again, now=self._clock())
        else:
            notes.take_room(attempt.node, answer.capacity_bytes or attempt.request.required_bytes)
            plan = answers.created(self._ledger, attempt, answer, now=self._clock())
        finally:
            notes.called(attempt.uid)
        return await self.perform(plan)

    async def _destroy(self, step: DeleteVolume | Reach) -> Outcome | None:
        deletion = step.deletion if isinstance(step, Reach) else step
        try:
            if isinstance(step, Reach):
                await self._plugins.reach(deletion.node)
                return None
            await self._plugins.delete_volume(deletion.node, deletion.volume_id)
        except DriverCallError as error:
            logger.info("Volume was not deleted volume=%s node=%s error=%s", deletion.volume_id, deletion.node, error)
            await self.perform(answers.delete_failed(self._ledger, deletion, error))
            return RETRY
        if deletion.regarding is not None:
            self._ledger.notes.destroy(Uid(deletion.regarding.uid))
        await self.perform(answers.deleted(deletion))
        return None

    async def _wipe(self, step: WipeVolume) -> Outcome | None:
        volume = step.volume
        try:
            await self._plugins.wipe_volume(step.node, volume.handle, released_uid=volume.claim_uid)
        except DriverCallError as error:
            logger.info("Volume was not wiped volume=%s node=%s error=%s", volume.name, step.node, error)
            await self.perform(reclaiming.not_wiped(self._ledger, volume, str(error)))
            return RETRY
        return await self.perform(reclaiming.wiped(volume))

    async def _run_plugin(self, step: Provision | Destroy | Scrub) -> Outcome | None:
        try:
            plan = await self._intree.run(step)
        except ApiError as error:
            logger.warning("Read failed error=%s", error)
            return RETRY
        return await self.perform(plan) if plan else None

    async def _measure(self, step: MeasureRoom) -> Outcome | None:
        """Ask every node at the same time; who asks while others ask gets their answer."""
        asked = self._clock()
        async with self._measuring[step.class_name]:
            rooms = self._ledger.notes.rooms(step.class_name)
            if rooms is not None and rooms.measured >= asked:
                return None
            found = await self._gather(*(self._capacity(node, step.parameters) for node in step.nodes))
            free = {node: size for node, size in zip(step.nodes, found, strict=True) if size is not None}
            self._ledger.notes.measure(step.class_name, Rooms(measured=self._clock(), free=free))
        return None

    async def _capacity(self, node: str, parameters: Mapping[str, str]) -> int | None:
        try:
            async with asyncio.timeout(CAPACITY_SECONDS):
                return await self._plugins.capacity(node, parameters)
        except (DriverCallError, TimeoutError) as error:
            logger.info("Room is not known node=%s error=%s", node, error)
            return None

    def _tell(self, regarding: Reference, reason: str, message: str, *, warning: bool) -> None:
        self._tellers.event(regarding, type="Warning" if warning else "Normal", reason=reason, message=message)


def _gravest(outcomes: Collection[Outcome | None]) -> Outcome | None:
    """The outcome that matters most; None when all went well."""
    found = [outcome for outcome in outcomes if outcome is not None]
    return min(found, key=lambda outcome: _GRAVITY.index(outcome.verdict), default=None)
