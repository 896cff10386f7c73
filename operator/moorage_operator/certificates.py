"""The certificates between operator and node plugins: two Secrets, made and renewed by the leader.

``moorage-ca`` holds the authority and the operator's client certificate and is read by the operator
alone; ``moorage-node-tls`` is mounted by every node plugin, which reads it anew when it changes.
What they should hold is decided by ``authority.plan``; here it is read, written, and kept in memory
for ``act.driver``.

Only the leader writes, each write is conditional, and a refused one is followed by reading and
planning anew: two replicas that both think they lead end with one authority. Crash safety: the
authority is written first. A crash between the two writes leaves a node Secret that does not fit,
which the next look sees and makes anew; a crash before both leaves nothing.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from moorage_operator.act.recorder import Recorder
from moorage_operator.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from moorage_operator.model.reference import Reference

if TYPE_CHECKING:
    from moorage_operator.authority import Contents

logger = logging.getLogger(__name__)

AUTHORITY_SECRET: Final = "moorage-ca"  # noqa: S105 (a Secret's name)
NODE_SECRET: Final = "moorage-node-tls"  # noqa: S105
AUTHORITY_TYPE: Final = "Opaque"
NODE_TYPE: Final = "kubernetes.io/tls"

CHECK_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 10.0
ROUNDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ClientTls:
    """What the operator shows a node plugin, and whom it trusts; all PEM.

    Another object after each change, so that a connection can be compared by identity with what it
    was made from.
    """

    authorities: bytes
    certificate: bytes
    key: bytes


class Store(Protocol):
    """What is needed of the API server; ``act.api.Api`` has it."""

    async def get(self, path: str) -> dict[str, Any]:
        """Read one object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object of the body's resourceVersion."""
        ...

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> bool:
        """Delete the object of this uid and version."""
        ...


class Leadership(Protocol):
    """Whether we lead; ``lease.Lease`` has it."""

    @property
    def is_leader(self) -> bool:
        """Whether this replica may write."""
        ...

    async def wait(self) -> None:
        """Return when this replica leads."""
        ...

    async def wait_lost(self) -> None:
        """Return when this replica does not lead."""
        ...


class Certificates:
    """Keeps the Secrets good and the client certificate at hand.

    Args:
        store: the API server.
        namespace: of the Secrets.
        recorder: told when a Secret was made or made anew; None tells the log only.
        now: the wall clock, aware of its time zone.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str,
        recorder: Recorder | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._collection = f"/api/v1/namespaces/{namespace}/secrets"
        self._recorder = recorder
        self._now = now
        self._one = asyncio.Lock()
        self.client: ClientTls | None = None
        """What to connect with; None until the Secrets have been read."""
        self.problem: str | None = "the certificates have not been read yet"
        """Why there is nothing to connect with, or why it is not renewed; None when all is well."""

    async def load(self) -> None:
        """Read the client certificate as it is stored; writes nothing, and may find nothing yet.

        Raises:
            ApiError: the Secret cannot be read.
        """
        secret = await self._get(AUTHORITY_SECRET)
        self._keep(_data(secret))

    async def ensure(self) -> None:
        """Look at both Secrets and write what has to change; for the leader. Writes nothing when all is well.

        Raises:
            ConflictError: somebody else kept changing them.
            ApiError: they cannot be read or written.
        """
        async with self._one:
            for remaining in reversed(range(ROUNDS)):
                try:
                    self._keep(await self._settle())
                except (AlreadyExistsError, ConflictError, NotFoundError) as error:
                    if remaining:
                        continue
                    raise ConflictError(
                        f"Secrets {AUTHORITY_SECRET} and {NODE_SECRET} in {self._namespace} could not be written in "
                        f"{ROUNDS} tries, is something else writing them? Last: {error}",
                        status=error.status,
                        reason=error.reason,
                    ) from error
                return

    async def run(self, leadership: Leadership) -> None:
        """Look at start, every hour, and whenever leadership changes, until cancelled."""
        while True:
            leading = leadership.is_leader
            wait = CHECK_SECONDS
            try:
                await (self.ensure() if leading else self.load())
            except ApiError as error:
                self.problem = f"the certificates cannot be kept: {error}"
                logger.warning("Certificates cannot be kept leading=%s error=%s", leading, error)
                wait = RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait if self.client is not None else RETRY_SECONDS):
                    await (leadership.wait_lost() if leading else leadership.wait())

    async def _settle(self) -> dict[str, bytes]:
        """One round: read, plan, write. Returns what the authority's Secret holds afterwards."""
        # Judging certificates takes a library of 10 MB, which a standby never needs.
        from moorage_operator import authority  # noqa: PLC0415

        stored = {name: await self._get(name) for name in (AUTHORITY_SECRET, NODE_SECRET)}
        held = authority.Contents(authority=_data(stored[AUTHORITY_SECRET]), node=_data(stored[NODE_SECRET]))
        plan = authority.plan(held, now=self._now())
        wanted = plan.contents
        for reason in plan.reasons:
            logger.warning("Certificates change namespace=%s why=%s", self._namespace, reason)
        await self._write(AUTHORITY_SECRET, AUTHORITY_TYPE, wanted.authority, stored[AUTHORITY_SECRET])
        await self._write(NODE_SECRET, NODE_TYPE, wanted.node, stored[NODE_SECRET])
        self._tell(plan.reasons, held)
        return dict(wanted.authority)

    async def _get(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._store.get(f"{self._collection}/{name}")
        except NotFoundError:
            return None

    async def _write(self, name: str, kind: str, data: Mapping[str, bytes], stored: dict[str, Any] | None) -> None:
        """Make the Secret hold ``data``, and keep what others wrote into its metadata.

        A Secret of another type, or an immutable one, cannot be changed, only removed and made anew.
        """
        changeable = stored is None or (stored.get("type") == kind and not stored.get("immutable"))
        if stored is not None and changeable and _data(stored) == data:
            return
        encoded = {key: base64.b64encode(value).decode("ascii") for key, value in data.items()}
        if stored is not None and changeable:
            await self._store.replace(f"{self._collection}/{name}", {**stored, "data": encoded})
            return
        if stored is not None:
            metadata = stored["metadata"]
            await self._store.delete(
                f"{self._collection}/{name}", uid=metadata["uid"], resource_version=metadata["resourceVersion"]
            )
        await self._store.create(
            self._collection,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "labels": {
                        "app.kubernetes.io/name": "moorage",
                        "app.kubernetes.io/component": "certificates",
                        "app.kubernetes.io/managed-by": "moorage-operator",
                    },
                },
                "type": kind,
                "data": encoded,
            },
        )

    def _keep(self, data: Mapping[str, bytes]) -> None:
        parts = (data.get("ca.crt"), data.get("client.crt"), data.get("client.key"))
        if not all(parts):
            self.problem = f"Secret {self._namespace}/{AUTHORITY_SECRET} has not been made yet; the leader makes it"
            return
        client = ClientTls(authorities=parts[0] or b"", certificate=parts[1] or b"", key=parts[2] or b"")
        if client != self.client:
            self.client = client
        self.problem = None

    def _tell(self, reasons: tuple[str, ...], held: "Contents") -> None:
        if not reasons or self._recorder is None:
            return
        self._recorder.event(
            Reference(api_version="v1", kind="Secret", namespace=self._namespace, name=AUTHORITY_SECRET),
            type="Normal",
            reason="CertificatesRenewed" if held.authority else "CertificatesMade",
            message="; ".join(reasons),
        )


def _data(secret: Mapping[str, Any] | None) -> dict[str, bytes]:
    if secret is None:
        return {}
    return {key: base64.b64decode(value or "") for key, value in (secret.get("data") or {}).items()}
