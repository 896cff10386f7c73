"""Whether a volume that is there answers what is asked: pure comparisons of a record with a request."""

from collections.abc import Iterator, Mapping
from typing import Final

from moorage_csi import contract
from moorage_csi.contract import Context, Parameter
from moorage_csi.errors import AlreadyExistsError, InvalidArgumentError, PreconditionError, UnavailableError
from moorage_csi.host.mountoptions import parse_options
from moorage_csi.rpc.validation import Access, Creation
from moorage_csi.volumes.record import Mode, Record, State
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState

_ACCEPTED_QUOTAS: Final = {
    contract.QUOTA_REQUIRED: (contract.QUOTA_ENFORCED,),
    contract.QUOTA_BEST_EFFORT: (contract.QUOTA_ENFORCED, contract.QUOTA_BEST_EFFORT),
    contract.QUOTA_NONE: (contract.QUOTA_ENFORCED, contract.QUOTA_BEST_EFFORT, contract.QUOTA_NONE),
}
"""What a volume may say of its limit to be what a class asks for."""


def context_of(record: Record) -> dict[str, str]:
    """What the PersistentVolume is to say of the volume: the same for as long as it lives, modified or not.

    CSI, Volume.volume_context: "SHALL NOT be mutable".
    """
    context = {
        Context.BACKEND: record.backend,
        Context.POOL: record.pool,
        Context.QUOTA: record.quota,
        Context.ON_DELETE: record.made_on_delete,
    }
    if record.filesystem:
        context[Context.FILESYSTEM] = record.filesystem
    return context


def refuse_unusable(record: Record, access: Access, *, shared: bool) -> None:
    """Refuse a use that the volume is not made for.

    Raises:
        InvalidArgumentError: it is of the other mode, or has another filesystem.
        PreconditionError: it is for one node at a time.

    Another filesystem, and mount options that only a filesystem of its own could have, are refused by the same rule when it
    is asked whether a use is possible and when the volume is published. What no rule can tell before is what the kernel
    says of the words of a filesystem.
    """
    if access.block is not (record.mode is Mode.BLOCK):
        raise InvalidArgumentError(
            f"volume {record.id} is of mode {record.mode} and cannot be used as {'block' if access.block else 'mount'}"
        )
    if not access.block and record.filesystem and access.filesystem not in ("", record.filesystem):
        raise InvalidArgumentError(
            f"volume {record.id} has {record.filesystem}, and {access.filesystem} is asked for; it is never formatted again"
        )
    if access.many_nodes and not shared:
        raise PreconditionError(
            f"volume {record.id} lies on one node's own disk; allowed are the single-node access modes"
        )
    refuse_options(access, own_filesystem=bool(record.filesystem), what=f"volume {record.id}")


def refuse_options(access: Access, *, own_filesystem: bool, what: str) -> None:
    """Refuse mount options that cannot be; ``own_filesystem`` says whether there is one that they could be for.

    Raises:
        InvalidArgumentError: they are none, or none for this.
    """
    try:
        options = parse_options(access.options)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
    if options.filesystem and not own_filesystem:
        raise InvalidArgumentError(
            f"mount options {','.join(options.filesystem)} are for a filesystem of the volume's own, and {what} has none; "
            "allowed are those of a mount, such as noexec, nosuid, noatime"
        )


def refuse_unready(record: Record) -> None:
    """Refuse a volume that is being made, wiped or deleted, or whose making, wiping or deleting stopped half way.

    Raises:
        UnavailableError: it is none to use yet, or no more.
    """
    if record.state is not State.READY:
        raise UnavailableError(f"volume {record.id} is {record.state}: ask again when that has ended")


def refuse_unmodifiable(record: Record) -> None:
    """Refuse to modify a volume that cannot be.

    Raises:
        InvalidArgumentError: it ends with its pod, whatever is wished.
    """
    if record.ephemeral:
        raise InvalidArgumentError(
            f"volume {record.id} stands in a pod and is deleted with it: its {Parameter.ON_DELETE} cannot change; for a volume "
            "that is kept make a claim"
        )


def refuse_unready_snapshot(snapshot: Snapshot) -> None:
    """Refuse a snapshot that is being made or deleted.

    Raises:
        UnavailableError: it is none to use yet, or no more.
    """
    if snapshot.state is not SnapshotState.READY:
        raise UnavailableError(f"snapshot {snapshot.id} is {snapshot.state}: ask again when that has ended")


def refuse_other_context(given: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Refuse a context that contradicts the record; keys that are not ours, as on static volumes, are let be."""
    for key, value in ours.items():
        if given.get(key, value) != value:
            raise InvalidArgumentError(f"volume_context {key} is {given[key]!r}, and the volume's is {value!r}")


def refuse_different(existing: Record, wish: Creation) -> None:
    """Refuse a request that the volume of its name does not answer.

    CSI, CreateVolume: the same name with other arguments is ALREADY_EXISTS; with compatible ones, the
    existing volume is the answer. One that was modified since answers the request that it was made by, which may be
    repeated, and one that asks for what it is now. It never becomes again what it was: that is for ControllerModifyVolume.
    """
    parameters = wish.parameters
    differences = []
    if wish.access.block is not (existing.mode is Mode.BLOCK):
        differences.append(f"it is of mode {existing.mode}")
    elif wish.access.filesystem not in ("", existing.filesystem or wish.access.filesystem):
        differences.append(f"it has {existing.filesystem}, not {wish.access.filesystem}")
    if not wish.range.holds(existing.size):
        differences.append(f"it has {existing.size} bytes")
    if parameters.backend not in (contract.BACKEND_AUTO, existing.backend):
        differences.append(f"it is of backend {existing.backend}")
    if existing.quota not in _ACCEPTED_QUOTAS[parameters.quota]:
        differences.append(f"its quota is {existing.quota}")
    if parameters.on_delete not in (existing.on_delete, existing.made_on_delete):
        differences.append(f"its onDelete is {existing.on_delete}")
    if parameters.permissions not in (None, existing.permissions):
        differences.append(f"its permissions are {existing.permissions:04o}")
    differences.extend(_differences_of_origin(existing, wish))
    if differences:
        raise AlreadyExistsError(
            f"volume {existing.name} was made from other arguments: {'; '.join(differences)}; "
            "delete it, or ask for what it is"
        )


def _differences_of_origin(existing: Record, wish: Creation) -> Iterator[str]:
    """In what it was made of, and for whom."""
    if wish.source != existing.source:
        yield f"it is a copy of {existing.source}" if existing.source else "it is made empty"
    if wish.ephemeral_at != existing.ephemeral_at:
        yield f"it ends with the pod that has it at {existing.ephemeral_at}" if existing.ephemeral else "it stays"
