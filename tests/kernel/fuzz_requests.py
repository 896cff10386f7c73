"""Requests for every RPC, made from the protocol's own descriptors: mostly right, with something nasty in some fields.

A field that is wrong in a request that is otherwise right gets further than one in a request of which nothing is. So each
field is drawn right or nasty, by chance; what is right for a field follows from its name, and a field that nobody thought
of, of an RPC that is new, is drawn as what its type is.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from moorage_csi.contract import TOPOLOGY_KEY, Metadata, Parameter
from moorage_csi.proto import csi_pb2, moorage_pb2
from moorage_csi.rpc import imports
from moorage_csi.rpc.ephemeral import EPHEMERAL
from moorage_csi.rpc.ephemeral import SIZE as SIZE_KEY
from moorage_csi.volumes.ids import group_id_for, snapshot_id_for
from tests.kernel.rpc_driver import MIB, SIZE

NAMES = tuple(f"pvc-{number}" for number in range(4))
SNAPSHOTS = tuple(f"snap-{number}" for number in range(3))
GROUPS = ("group-0", "group-1")
INLINE = f"csi-{'5' * 64}"
IMPORTED = "an-old-directory"
SECRET = "open-sesame-7b1d"  # noqa: S105 - to be looked for

Right = dict[str, st.SearchStrategy[Any]]
Draw = Callable[[st.SearchStrategy[Any]], Any]

_MODES = csi_pb2.VolumeCapability.AccessMode
_RARE = frozenset({"volume_content_source", "accessibility_requirements", "accessible_topology"})
"""Message fields that a right request leaves out more often than not, as most callers do."""

_ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_NASTY_NUMBERS = (-(1 << 63), -1, 1, 4095, 4097, (1 << 31) - 1, (1 << 62) + 1, (1 << 63) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where the requests are about to arrive: ``others`` are things that they must not reach, by path and by id."""

    kubelet: Path
    pool: Path
    imports: Path
    others: Sequence[str]

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths as the kubelet gives them."""
        return tuple(f"{self.kubelet}/pods/pod-{number}/volumes/mount" for number in range(3))


def volume_id_of(name: str) -> str:
    return f"vol-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


VOLUME_IDS = tuple(map(volume_id_of, NAMES))
SNAPSHOT_IDS = tuple(map(str, map(snapshot_id_for, SNAPSHOTS)))


OFTEN = (
    *("CreateVolume", "CreateVolume", "CreateVolume", "CreateSnapshot", "GetSnapshot", "ControllerExpandVolume"),
    *("NodePublishVolume", "NodePublishVolume", "NodeGetVolumeStats"),
)
"""RPCs that are called more often than others, so that there is something for those to meet."""


def methods() -> tuple[MethodDescriptor, ...]:
    """Every RPC of every service that the driver has a protocol for."""
    files: tuple[FileDescriptor, ...] = (csi_pb2.DESCRIPTOR, moorage_pb2.DESCRIPTOR)
    return tuple(method for file in files for service in file.services_by_name.values() for method in service.methods)


_WORDS = (  # noqa: SIM905 - a list of that many words would be a page
    ". .. / // ../../victim ..\\victim %2e%2e%2fvictim %00 ~ * - --help 0 -1 NaN null {} [] ${PATH} $(id) ;id ' ,,, = =x "
    "/etc/passwd /dev/null /dev/loop0 /proc/self/fd/3 /proc/self/root /proc/1/mem /sys/fs "
    'ro rw bind remount loop=/dev/loop0 noload data=journal data=nonsense sb=2 nonsense size=1 context="a,b" '
    "x-nothing journal_path=/etc/passwd user_xattr=1 "
    "auto image directory btrfs layered retain archive none required ext4 xfs ext3 ntfs second default node-2 "
    "0777 7777 0o7 99999999999999999999 65534 4294967295 4294967296"
).split()
_STRANGE = (
    *(
        "",
        " ",
        "a\0b",
        "a\nb",
        "a\rb",
        "\x1b[2J",
        "\x7f",
        "\ufeff",
        "\u202e",
        "\u2025/\u2025",
        "\uff0e\uff0e/",
        "\u0301",
    ),
    *("\U0001f4a9", "x" * 128, "x" * 129, "x" * 5000, "\u00e9" * 100),
)


def nasty_texts(scene: Scene) -> tuple[str, ...]:
    """Text that has hurt somebody somewhere."""
    volume, snapshot = VOLUME_IDS[0], SNAPSHOT_IDS[0]
    absent = (f"vol-{'0' * 32}", f"snap-{'0' * 32}")
    near = (f"{volume}/", f"{volume}\n", f"{volume}\0", f" {volume}", volume.upper(), volume[:-1], f"{volume}0")
    known = (volume, snapshot, NAMES[0], SNAPSHOTS[0], INLINE, IMPORTED)
    detours = (f"{snapshot}/..", f"{volume}/../{VOLUME_IDS[1]}")
    return (*_STRANGE, *_WORDS, *known, *near, *absent, *detours, *scene.others, *_nasty_paths(scene))


def _nasty_paths(scene: Scene) -> tuple[str, ...]:
    below = (  # noqa: SIM905
        "/ /.. /../victim //config.yaml /./pods /config.yaml /config.yaml/below /plugins /plugins/other.sock /link /link/deep "
        "/link/new /file-link /pods /pods/pod-0 /nowhere/mount /pods/pod-0/volumes/mount/inside x/mount /\u00fc"
    ).split()
    long = (f"/{'n' * 300}", f"/{'d/' * 1500}mount", f"/{'n' * 200}/m", "/ ", "")
    pool = ("", "/pool.json", "/volumes", f"/volumes/{VOLUME_IDS[0]}/data", "/trash")
    return (
        *(f"{scene.kubelet}{path}" for path in (*below, *long)),
        *(f"{scene.pool}{path}" for path in pool),
        *(f"{scene.imports}{path}" for path in ("", "/old/link", "/../victim")),
    )


class Requests:
    """Strategies for the requests that arrive in one scene."""

    def __init__(self, scene: Scene) -> None:
        self._nasty_texts = st.sampled_from(nasty_texts(scene)) | _ANYTHING
        self._right = _right(scene)
        self._kinds = _kinds(scene)

    def of(self, method: MethodDescriptor) -> st.SearchStrategy[Message]:
        """A request of that RPC. In many of them everything is right, and in some hardly anything is."""

        @st.composite
        def request(draw: Draw) -> Message:
            spice = draw(st.sampled_from((0, 0, 8, 20, 60)))
            kind = draw(st.sampled_from(self._kinds)) if "volume_id" in method.input_type.fields_by_name else {}
            return self._message(draw, method.input_type, spice, self._right | kind)

        return request()

    def _message(self, draw: Draw, what: Descriptor, spice: int, right: Right) -> Message:
        made: Message = message_factory.GetMessageClass(what)()
        for field in _fields(draw, what):
            nasty = _chance(draw, spice)
            if field.is_repeated and _map_of(field) is not None:
                getattr(made, field.name).update(self._map(draw, field, right, nasty=nasty))
            elif field.is_repeated and field.message_type is not None:
                parts = draw(st.integers(0, 3)) if nasty else 1
                getattr(made, field.name).extend(
                    self._message(draw, field.message_type, spice, right) for _ in range(parts)
                )
            elif field.is_repeated:
                getattr(made, field.name).extend(draw(self._many(field, right, nasty=nasty)))
            elif field.message_type is not None:
                if draw(st.integers(0, 3)) == 0 if field.name in _RARE else not nasty:
                    getattr(made, field.name).CopyFrom(self._message(draw, field.message_type, spice, right))
            else:
                setattr(made, field.name, draw(self._value(field, right, nasty=nasty)))
        return made

    def _map(self, draw: Draw, field: FieldDescriptor, right: Right, *, nasty: bool) -> dict[str, str]:
        given: dict[str, str] = dict(draw(right.get(field.name, st.just({}))))
        if nasty:
            keys = st.sampled_from((*_keys(field.name), *given)) if _keys(field.name) else self._nasty_texts
            for _ in range(draw(st.integers(1, 2))):
                given[draw(keys | self._nasty_texts)] = draw(self._nasty_texts)
        if field.name == "secrets" and (nasty or draw(st.booleans())):
            given["token"] = SECRET
        return given

    def _many(self, field: FieldDescriptor, right: Right, *, nasty: bool) -> st.SearchStrategy[Any]:
        if nasty:
            return st.lists(self._value(field, right, nasty=True), max_size=3)
        return right.get(field.name, st.just([]))

    def _value(self, field: FieldDescriptor, right: Right, *, nasty: bool) -> st.SearchStrategy[Any]:
        if not nasty and not field.is_repeated and (known := _right_of(field, right)) is not None:
            return known
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return st.binary(max_size=64)
            case FieldDescriptor.CPPTYPE_STRING:
                return self._nasty_texts
            case FieldDescriptor.CPPTYPE_BOOL:
                return st.booleans()
            case FieldDescriptor.CPPTYPE_ENUM:
                return st.sampled_from((-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 99, (1 << 31) - 1))
            case FieldDescriptor.CPPTYPE_INT32:
                return st.sampled_from((-(1 << 31), -1, 0, 1, 2, (1 << 31) - 1))
            case _:
                return st.sampled_from(_NASTY_NUMBERS)


def _right_of(field: FieldDescriptor, right: Right) -> st.SearchStrategy[Any] | None:
    within = field.containing_type
    exactly = f"{within.name}.{field.name}" if within is not None else ""
    return right.get(exactly, right.get(field.name))


def _chance(draw: Draw, percent: int) -> bool:
    """Small numbers are drawn more often than others."""
    return bool(percent and draw(st.integers(0, 99)) >= 100 - percent)


def _fields(draw: Draw, what: Descriptor) -> Iterator[FieldDescriptor]:
    """All fields but those that exclude each other, of which one; the last is the usual one."""
    for one in what.oneofs:
        *others, usual = one.fields
        yield draw(st.sampled_from((usual, usual, usual, *others)))
    yield from (field for field in what.fields if field.containing_oneof is None)


def _map_of(field: FieldDescriptor) -> Descriptor | None:
    kind = field.message_type
    return kind if kind is not None and kind.GetOptions().map_entry else None


def _keys(field: str) -> tuple[str, ...]:
    """Keys of a map that the driver looks at."""
    match field:
        case "parameters" | "volume_context" | "mutable_parameters":
            constants = (*vars(Parameter).items(), *vars(Metadata).items())
            return (*(value for name, value in constants if name.isupper()), EPHEMERAL, SIZE_KEY, imports.PATH)
        case "segments":
            return (TOPOLOGY_KEY, TOPOLOGY_KEY.upper())
        case _:
            return ()


def _kinds(scene: Scene) -> tuple[Right, ...]:
    """What goes together where a volume is named: one in a pool, one that stands in a pod, a directory that is imported."""
    inline = ({EPHEMERAL: "true", SIZE_KEY: "64Mi"}, {EPHEMERAL: "true", SIZE_KEY: "64Mi", "backend": "image"})
    imported = {imports.PATH: f"{scene.imports}/old"}
    return (
        *({}, {}, {}, {}),
        {"volume_id": st.just(INLINE), "volume_context": st.sampled_from(inline), "secrets": st.just({})},
        {"volume_id": st.just(IMPORTED), "volume_context": st.just(imported)},
    )


def _right(scene: Scene) -> Right:
    """What is right for a field of this name."""
    volumes, snapshots = st.sampled_from(VOLUME_IDS), st.sampled_from(SNAPSHOT_IDS)
    classes: tuple[dict[str, str], ...] = (
        {},
        {"backend": "image"},
        {"backend": "layered"},
        {"backend": "directory", "quota": "best-effort"},
        {"pool": "second"},
    )
    return {
        "name": st.sampled_from(NAMES),
        "CreateSnapshotRequest.name": st.sampled_from(SNAPSHOTS),
        "CreateVolumeGroupSnapshotRequest.name": st.sampled_from(GROUPS),
        "volume_id": volumes,
        "source_volume_id": volumes,
        "source_volume_ids": st.lists(volumes, min_size=1, max_size=3, unique=True),
        "snapshot_id": snapshots,
        "group_snapshot_id": st.sampled_from(tuple(map(group_id_for, GROUPS))),
        "id": volumes | snapshots,
        "snapshot_ids": st.lists(snapshots, max_size=3, unique=True),
        "target_path": st.sampled_from(scene.targets),
        "volume_path": st.sampled_from(scene.targets),
        "staging_target_path": st.just(""),
        "parameters": st.sampled_from(classes),
        "mutable_parameters": st.sampled_from(
            ({}, {"onDelete": "delete"}, {"onDelete": "delete"}, {"onDelete": "archive"})
        ),
        "segments": st.just({TOPOLOGY_KEY: "node-1"}),
        "required_bytes": st.sampled_from((SIZE, SIZE, SIZE, 65 * MIB, 96 * MIB)),
        "limit_bytes": st.sampled_from((0, 0, 0, 1 << 30)),
        "max_entries": st.sampled_from((0, 0, 1, 3)),
        "starting_token": st.sampled_from(("", "", VOLUME_IDS[0], SNAPSHOT_IDS[0])),
        "fs_type": st.sampled_from(("", "", "", "", "ext4")),
        "mount_flags": st.sampled_from(([], [], [], ["noatime"], ["nosuid", "ro"])),
        "volume_mount_group": st.sampled_from(("", "", "1000")),
        "mode": st.sampled_from(
            (_MODES.SINGLE_NODE_WRITER, _MODES.SINGLE_NODE_SINGLE_WRITER, _MODES.SINGLE_NODE_MULTI_WRITER)
        ),
        "released_uid": st.sampled_from(("uid-1", "uid-2")),
    }
