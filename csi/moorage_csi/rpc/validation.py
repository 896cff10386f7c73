"""From a request to a checked value, or to INVALID_ARGUMENT: pure functions, nothing is looked up.

Whatever comes from outside is text that somebody may have chosen to hurt: an id, a path, a parameter.
What leaves this module has known keys, known words, sizes in bytes and paths without a way out. A
refusal names the key, the value and what is allowed, because it ends as an event on a claim.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from moorage_csi import contract, quantity
from moorage_csi.contract import Metadata, Parameter
from moorage_csi.errors import InvalidArgumentError, OutOfRangeError
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.ids import GroupId, SnapshotId, VolumeId
from moorage_csi.volumes.record import Claim

DEFAULT_SIZE: Final = 1 << 30
"""What a request without a capacity range gets, in bytes."""

SIZE_STEP: Final = 4096
"""Sizes are rounded up to whole blocks, so that no backend gives less than it says."""

LONGEST_NAME: Final = 128
"""Bytes in a name or an id; the CSI specification's "Size Limits"."""

LONGEST_PATH: Final = 4096

MOST_SOURCES: Final = 100
"""Volumes in a group snapshot: all of them are kept still at one time."""

MOST_WIPES: Final = 4096
"""Claims that a record remembers to have been wiped after: as many as it has room for with the longest uids."""

DEFAULT_PERMISSIONS: Final = 0o770

_INLINE_ID: Final = re.compile(r"csi-[0-9a-f]{64}")
"""What the kubelet calls a volume that stands in a pod: a sum of the pod's uid and the volume's name in it."""

_UID: Final = re.compile(rf"[0-9A-Za-z][-._0-9A-Za-z]{{0,{LONGEST_NAME - 1}}}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PERMISSIONS: Final = re.compile(r"0?[0-7]{3}")
_GROUP: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_MOST_GROUP: Final = (1 << 32) - 2
"""The kernel's largest group id: the one above means "no change" to it."""

_PARAMETERS: Final = (
    Parameter.BACKEND,
    Parameter.POOL,
    Parameter.QUOTA,
    Parameter.ON_DELETE,
    Parameter.MOUNT_PERMISSIONS,
    Parameter.FSTYPE,
)
_SNAPSHOT_METADATA: Final = (Metadata.SNAPSHOT_NAME, Metadata.SNAPSHOT_NAMESPACE, Metadata.SNAPSHOT_CONTENT)
_GROUP_METADATA: Final = (Metadata.GROUP_NAME, Metadata.GROUP_NAMESPACE, Metadata.GROUP_CONTENT)
_METADATA: Final = (Metadata.CLAIM_NAME, Metadata.CLAIM_NAMESPACE, Metadata.VOLUME_NAME)

_Mode = csi.VolumeCapability.AccessMode
_SINGLE_NODE: Final = frozenset(
    {
        _Mode.SINGLE_NODE_WRITER,
        _Mode.SINGLE_NODE_READER_ONLY,
        _Mode.SINGLE_NODE_SINGLE_WRITER,
        _Mode.SINGLE_NODE_MULTI_WRITER,
    }
)
_READER_ONLY: Final = frozenset({_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a volume is to be used: the sum of one or more capabilities.

    ``exclusive``: by one pod on one node. ``many_nodes``: by more than one node at a time. ``group``: the id of the group
    that is to own what is in it, None for no wish.
    """

    block: bool
    filesystem: str
    options: tuple[str, ...]
    many_nodes: bool
    reader_only: bool
    exclusive: bool
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Bytes asked for: at least ``required``, at most ``limit``; None is the absence of a wish."""

    required: int | None
    limit: int | None

    def holds(self, size: int) -> bool:
        """Whether a volume of ``size`` is what was asked for."""
        return (self.required is None or size >= self.required) and (self.limit is None or size <= self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """A class's parameters. ``pool`` None: the default one; ``permissions`` None: no wish."""

    backend: str
    pool: str | None
    quota: str
    on_delete: str
    permissions: int | None
    filesystem: str
    claim: Claim | None
    volume_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A volume to make; ``source`` is what it is to be a copy of, None for one that begins empty.

    ``ephemeral_at``: see ``Record``.
    """

    id: VolumeId
    name: str
    range: Range
    access: Access
    parameters: Parameters
    source: VolumeId | SnapshotId | None = None
    ephemeral_at: str | None = None


def creation(request: csi.CreateVolumeRequest, *, pools: Sequence[str]) -> Creation:
    """What the request asks for; ``pools`` are the names that this node has."""
    name = _text("name", request.name, longest=LONGEST_NAME)
    wished = parameters(request.parameters, pools=pools)
    # CSI, CreateVolume: they take precedence.
    wished = replace(wished, on_delete=mutable_parameters(request.mutable_parameters) or wished.on_delete)
    return Creation(
        id=volume_id_for(name),
        name=name,
        range=capacity_range(request.capacity_range if request.HasField("capacity_range") else None),
        access=access(request.volume_capabilities, default_filesystem=wished.filesystem),
        parameters=wished,
        source=_source(request.volume_content_source) if request.HasField("volume_content_source") else None,
    )


def volume_id_for(name: str) -> VolumeId:
    """The id of the volume of that name: the same for every retry, and nothing of the name in it."""
    return VolumeId("vol-" + hashlib.sha256(name.encode()).hexdigest()[:32])


def volume_id(value: str) -> VolumeId:
    """An id to look up. Also one that no pool could know passes; one that could be a path does not."""
    return VolumeId(_id("volume_id", value))


def is_inline(value: str) -> bool:
    """Whether the kubelet calls a volume so that stands in a pod itself, without a claim; nothing else is called so."""
    return _INLINE_ID.fullmatch(value) is not None


def published_id(value: str) -> VolumeId:
    """Like ``volume_id``, for the node's calls, in which a volume that stands in a pod has the kubelet's id.

    That one gets an id of ours, the same for every retry, and one that no name of a create request leads to: a name has no
    control characters.
    """
    text = volume_id(value)
    return volume_id_for(f"inline\0{text}") if is_inline(text) else text


def snapshot_id(value: str) -> SnapshotId:
    """The same for a snapshot."""
    return SnapshotId(_id("snapshot_id", value))


def deleted_id(value: str) -> VolumeId | SnapshotId:
    """The id of a volume or a snapshot that was deleted."""
    return VolumeId(_id("id", value))


def source_volume_id(value: str) -> VolumeId:
    """The id of a volume to take a snapshot of."""
    return VolumeId(_id("source_volume_id", value))


def snapshot_name(request: csi.CreateSnapshotRequest) -> str:
    """The name of a snapshot to make, whose parameters are all understood."""
    for key in request.parameters:
        if key not in _SNAPSHOT_METADATA:
            raise InvalidArgumentError(f"parameter {key!r} is not known: a snapshot has none")
    return _text("name", request.name, longest=LONGEST_NAME)


def group_name(request: csi.CreateVolumeGroupSnapshotRequest) -> str:
    """The name of a group snapshot to make, whose parameters are all understood."""
    for key in request.parameters:
        if key not in _GROUP_METADATA:
            raise InvalidArgumentError(f"parameter {key!r} is not known: a group snapshot has none")
    return _text("name", request.name, longest=LONGEST_NAME)


def source_volume_ids(values: Sequence[str]) -> tuple[VolumeId, ...]:
    """The ids of the volumes to take a group snapshot of, each once."""
    if not values:
        raise InvalidArgumentError("source_volume_ids are missing: say of which volumes")
    if len(values) > MOST_SOURCES:
        raise InvalidArgumentError(f"source_volume_ids are {len(values)}; allowed are {MOST_SOURCES}")
    ids = tuple(VolumeId(_id("source_volume_ids", value)) for value in values)
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise InvalidArgumentError(f"source_volume_ids name {', '.join(twice)} twice")
    return ids


def group_id(value: str) -> GroupId:
    """The id of a group snapshot to look up."""
    return GroupId(_id("group_snapshot_id", value))


def member_ids(values: Iterable[str]) -> frozenset[SnapshotId]:
    """The ids that somebody takes for those of a group's snapshots."""
    return frozenset(SnapshotId(_id("snapshot_ids", value)) for value in values)


def _source(given: csi.VolumeContentSource) -> VolumeId | SnapshotId:
    match given.WhichOneof("type"):
        case "snapshot":
            return snapshot_id(given.snapshot.snapshot_id)
        case "volume":
            return volume_id(given.volume.volume_id)
        case _:
            raise InvalidArgumentError("volume_content_source names neither a snapshot nor a volume")


def _id(key: str, value: str) -> str:
    text = _text(key, value, longest=LONGEST_NAME)
    if "/" in text or ".." in text:
        raise InvalidArgumentError(f"{key} {value!r} has the look of a path: an id is looked up by name")
    return text


def released_uid(value: str) -> str:
    """The uid of a claim, which is kept in a record: short, and of letters that need no escape there."""
    text = _text("released_uid", value, longest=LONGEST_NAME)
    if not _UID.fullmatch(text):
        raise InvalidArgumentError(
            f"released_uid {value!r} is not the uid of a claim; allowed are letters, digits, '-', '_' and '.'"
        )
    return text


def target_path(value: str, *, kubelet_dir: str) -> str:
    """A path for a volume to appear at: absolute, without detours, beneath the kubelet's folder."""
    path = _path("target_path", value)
    if not beneath(path, kubelet_dir):
        raise InvalidArgumentError(
            f"target_path {value!r} does not lie beneath {kubelet_dir}, the only place where volumes are published "
            "(--kubelet-dir)"
        )
    return path


def volume_path(value: str) -> str:
    """A path at which a volume may be published; one where none can be is for the caller to miss."""
    path = _text("volume_path", value, longest=LONGEST_PATH)
    if ".." in path.split("/"):
        raise InvalidArgumentError(f"volume_path {value!r} has '..' in it")
    return path


def beneath(path: str, folder: str) -> bool:
    """Whether the path lies below the folder, by its text; links are the business of who opens it."""
    return path.startswith(folder.rstrip("/") + "/")


def parameters(given: Mapping[str, str], *, pools: Sequence[str]) -> Parameters:
    """The class's parameters, each known and each value allowed."""
    for key in given:
        if key not in _PARAMETERS and key not in _METADATA:
            raise InvalidArgumentError(f"parameter {key!r} is not known; known are {', '.join(sorted(_PARAMETERS))}")
    for key in _METADATA:
        if key in given:
            _text(key, given[key], longest=LONGEST_PATH)
    name, namespace = given.get(Metadata.CLAIM_NAME, ""), given.get(Metadata.CLAIM_NAMESPACE, "")
    return Parameters(
        backend=_word(given, Parameter.BACKEND, contract.BACKENDS, default=contract.BACKEND_AUTO),
        pool=_word(given, Parameter.POOL, pools, default="") or None,
        quota=_word(given, Parameter.QUOTA, contract.QUOTAS, default=contract.QUOTA_REQUIRED),
        on_delete=_word(given, Parameter.ON_DELETE, contract.ON_DELETES, default=contract.ON_DELETE_DELETE),
        permissions=_permissions(given),
        filesystem=_word(given, Parameter.FSTYPE, contract.FILESYSTEMS, default=""),
        claim=Claim(namespace=namespace, name=name) if name and namespace else None,
        volume_name=given.get(Metadata.VOLUME_NAME, ""),
    )


def mutable_parameters(given: Mapping[str, str]) -> str | None:
    """The ``onDelete`` in the parameters that may change while a volume lives, of which it is the only one; None: no wish.

    The resizer may add for whom the volume is (``--extra-modify-metadata``), which changes nothing.
    """
    for key in given:
        if key in _METADATA:
            _text(key, given[key], longest=LONGEST_PATH)
        elif key != Parameter.ON_DELETE:
            raise InvalidArgumentError(
                f"mutable parameter {key!r} is not known; allowed is {Parameter.ON_DELETE} alone"
            )
    return _word(given, Parameter.ON_DELETE, contract.ON_DELETES, default="") or None


def modification(given: Mapping[str, str]) -> str:
    """The ``onDelete`` that a volume is to have from now on. CSI, ControllerModifyVolume: the map is required."""
    wished = mutable_parameters(given)
    if wished is None:
        raise InvalidArgumentError(
            f"mutable_parameters are missing: say {Parameter.ON_DELETE}, the one that can change; allowed are "
            f"{', '.join(contract.ON_DELETES)}"
        )
    return wished


def access(capabilities: Iterable[csi.VolumeCapability], *, default_filesystem: str = "") -> Access:
    """What all of these capabilities together ask of a volume."""
    each = [_one_access(capability) for capability in capabilities]
    if not each:
        raise InvalidArgumentError("volume_capabilities are missing: say whether block or mount, and who may use it")
    if len({one.block for one in each}) > 1:
        raise InvalidArgumentError("volume_capabilities ask for block and mount in one: a volume is one or the other")
    filesystems = {one.filesystem for one in each if one.filesystem}
    if default_filesystem and not each[0].block:
        filesystems.add(default_filesystem)
    if len(filesystems) > 1:
        raise InvalidArgumentError(f"two filesystems are asked for in one: {', '.join(sorted(filesystems))}")
    groups = {one.group for one in each if one.group is not None}
    if len(groups) > 1:
        raise InvalidArgumentError(f"two groups are asked for in one: {', '.join(map(str, sorted(groups)))}")
    return Access(
        block=each[0].block,
        filesystem=next(iter(filesystems), ""),
        options=tuple(dict.fromkeys(option for one in each for option in one.options)),
        many_nodes=any(one.many_nodes for one in each),
        reader_only=all(one.reader_only for one in each),
        exclusive=all(one.exclusive for one in each),
        group=next(iter(groups), None),
    )


def capacity_range(given: csi.CapacityRange | None) -> Range:
    """The range of bytes asked for; zero means "no wish", and an absent range the default size."""
    if given is None:
        return Range(required=None, limit=None)
    required, limit = given.required_bytes, given.limit_bytes
    for key, value in (("required_bytes", required), ("limit_bytes", limit)):
        if value < 0:
            raise InvalidArgumentError(f"capacity_range.{key} is {value}: a size in bytes cannot be negative")
    if 0 < limit < required:
        raise InvalidArgumentError(f"capacity_range asks for at least {required} and at most {limit} bytes")
    # A range that names no size is a size of zero, not the absence of a wish.
    return Range(required=0 if not (required or limit) else required or None, limit=limit or None)


def size_within(wish: Range, *, minimum: int, what: str) -> int:
    """The size to make, in whole steps.

    Raises:
        OutOfRangeError: no size is within the range, not below ``minimum`` and a whole number of steps.
    """
    wanted = wish.required
    if wanted is None:
        wanted = max(minimum, DEFAULT_SIZE if wish.limit is None else min(DEFAULT_SIZE, wish.limit))
        if wish.limit is not None and wanted == wish.limit:
            wanted -= wanted % SIZE_STEP
    if wanted < minimum or (wish.limit is not None and wish.limit < minimum):
        asked = wanted if wish.required is not None or wish.limit is None else wish.limit
        raise OutOfRangeError(
            f"{quantity.text(asked)} is too little for {what}: ask for at least {quantity.text(minimum)}"
        )
    size = -(-wanted // SIZE_STEP) * SIZE_STEP
    if size >= 1 << 63 or not wish.holds(size):
        raise OutOfRangeError(
            f"between {wish.required} and {wish.limit} bytes there is no multiple of {SIZE_STEP}: sizes are whole blocks"
        )
    return size


def _one_access(capability: csi.VolumeCapability) -> Access:
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise InvalidArgumentError("volume_capability has no access_type; allowed are block and mount")
    mode = capability.access_mode.mode
    if mode not in _Mode.Mode.values() or mode == _Mode.UNKNOWN:
        raise InvalidArgumentError(f"volume_capability.access_mode is {mode}, which is not known")
    if mode == _Mode.MULTI_NODE_SINGLE_WRITER:
        raise InvalidArgumentError(
            "volume_capability.access_mode is MULTI_NODE_SINGLE_WRITER, and no node can know that it is the only one that "
            "writes; allowed are the single-node modes and, in a pool that nodes share, MULTI_NODE_READER_ONLY and "
            "MULTI_NODE_MULTI_WRITER"
        )
    mount = capability.mount
    if mount.fs_type and mount.fs_type not in contract.FILESYSTEMS:
        raise InvalidArgumentError(
            f"filesystem {mount.fs_type!r} is not known; allowed are {', '.join(contract.FILESYSTEMS)}"
        )
    return Access(
        block=kind == "block",
        filesystem=mount.fs_type,
        options=tuple(_text("mount_flags", flag, longest=LONGEST_PATH) for flag in mount.mount_flags),
        many_nodes=mode not in _SINGLE_NODE,
        reader_only=mode in _READER_ONLY,
        exclusive=mode == _Mode.SINGLE_NODE_SINGLE_WRITER,
        group=_group(mount.volume_mount_group),
    )


def _group(value: str) -> int | None:
    if not value:
        return None
    if not _GROUP.fullmatch(value) or int(value) > _MOST_GROUP:
        raise InvalidArgumentError(f"volume_mount_group is {value!r}; allowed are the ids 0 to {_MOST_GROUP}")
    return int(value)


def _text(key: str, value: str, *, longest: int) -> str:
    if not value:
        raise InvalidArgumentError(f"{key} is missing")
    if len(value.encode()) > longest:
        raise InvalidArgumentError(f"{key} has {len(value.encode())} bytes; allowed are {longest}")
    if _CONTROL.search(value):
        raise InvalidArgumentError(f"{key} {value!r} has control characters in it")
    return value


def _path(key: str, value: str) -> str:
    path = _text(key, value, longest=LONGEST_PATH).rstrip("/")
    if not path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise InvalidArgumentError(f"{key} {value!r} is not an absolute path without '.', '..' and empty parts")
    return path


def _word(given: Mapping[str, str], key: str, allowed: Sequence[str], *, default: str) -> str:
    value = given.get(key, default)
    if key in given and value not in allowed:
        raise InvalidArgumentError(f"parameter {key} is {value!r}; allowed are {', '.join(allowed)}")
    return value


def _permissions(given: Mapping[str, str]) -> int | None:
    value = given.get(Parameter.MOUNT_PERMISSIONS)
    if value is None:
        return None
    if not _PERMISSIONS.fullmatch(value):
        raise InvalidArgumentError(
            f"parameter {Parameter.MOUNT_PERMISSIONS} is {value!r}; allowed are octal permissions such as '0770'"
        )
    return int(value, 8)
