"""What a person asks of the driver of one node, by its unix socket: `moorage-csi deleted`, `restore ID`, `shrink ID SIZE`.

In a cluster: ``kubectl exec -n NAMESPACE POD -- moorage-csi deleted``, where the pod is the node's. The driver runs meanwhile,
and it alone touches the pools.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import grpc

from moorage_csi import contract, quantity
from moorage_csi.proto import moorage_pb2 as moorage
from moorage_csi.proto import moorage_pb2_grpc

COMMANDS: Final = ("deleted", "restore", "shrink")

SECONDS: Final = 60.0
"""For which an answer is waited for."""

_ENDPOINT: Final = "unix:///csi/csi.sock"


def run(arguments: Sequence[str], environment: Mapping[str, str], *, out: TextIO, err: TextIO) -> int:
    """Do one command. Returns the exit code: 0 for done, 1 for refused, with the reason on ``err``.

    Raises:
        SystemExit: the command line is wrong, or ``--help`` was asked for (argparse has said so).
    """
    chosen = _parser(environment.get("MOORAGE_ENDPOINT", _ENDPOINT)).parse_args(arguments)
    with grpc.insecure_channel(chosen.endpoint) as channel:
        try:
            chosen.work(moorage_pb2_grpc.VolumesStub(channel), chosen, out)
        except grpc.RpcError as error:
            # A call that fails is both an RpcError and a Call; the library's types do not say so.
            details = error.details() if isinstance(error, grpc.Call) else str(error)
            err.write(f"moorage-csi {chosen.command}: {details}\n")
            return 1
    return 0


def _parser(endpoint: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moorage-csi", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    deleted = commands.add_parser("deleted", help="what was deleted on this node and can be had back")
    deleted.set_defaults(work=_list)
    restore = commands.add_parser("restore", help="take back a deleted volume or snapshot, under its id")
    restore.add_argument("id", help="as `deleted` lists it")
    restore.add_argument(
        "--storage-class", default="moorage", help="of the PersistentVolume that is printed (default: %(default)s)"
    )
    restore.set_defaults(work=_restore)
    shrink = commands.add_parser("shrink", help="make a volume smaller whose size is held by a quota")
    shrink.add_argument("id", help="the PersistentVolume's volumeHandle")
    shrink.add_argument("size", type=_size, help="as Kubernetes writes it: 10Gi")
    shrink.set_defaults(work=_shrink)
    for each in (deleted, restore, shrink):
        each.add_argument("--endpoint", default=endpoint, help="the driver's socket (default: %(default)s)")
        each.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return parser


def _list(volumes: "moorage_pb2_grpc.VolumesStub", chosen: argparse.Namespace, out: TextIO) -> None:
    answer = volumes.ListDeleted(moorage.ListDeletedRequest(), timeout=SECONDS)
    if chosen.output == "json":
        items = [
            _document(entry.item) | {"where": entry.where, "deletedAt": entry.deleted_at} for entry in answer.entries
        ]
        _dump({"items": items}, out)
        return
    if not answer.entries:
        out.write("nothing that was deleted can be had back here; pools keep it for their trashRetention\n")
        return
    rows = [("ID", "POOL", "IN", "DELETED (UTC)", "SIZE", "CLAIM", "NAME")]
    for entry in answer.entries:
        item = entry.item
        rows.append(
            (
                item.id,
                item.pool,
                entry.where,
                time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.deleted_at)),
                quantity.text(item.size_bytes),
                f"{item.claim_namespace}/{item.claim_name}" if item.claim_name else "-",
                item.name,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out.writelines(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _restore(volumes: "moorage_pb2_grpc.VolumesStub", chosen: argparse.Namespace, out: TextIO) -> None:
    item = volumes.RestoreDeleted(moorage.RestoreDeletedRequest(id=chosen.id), timeout=SECONDS).item
    if item.source_volume_id:
        if chosen.output == "json":
            _dump(_document(item), out)
        else:
            out.write(
                f"snapshot {item.id} is back; make a VolumeSnapshotContent with source.snapshotHandle: {item.id}\n"
            )
        return
    if chosen.output == "text":
        out.write(f"# Volume {item.id} is back. This makes it known to the cluster: kubectl apply -f -\n")
    _dump(persistent_volume(item, storage_class=chosen.storage_class), out)


def _shrink(volumes: "moorage_pb2_grpc.VolumesStub", chosen: argparse.Namespace, out: TextIO) -> None:
    request = moorage.ShrinkVolumeRequest(volume_id=chosen.id, size_bytes=chosen.size)
    size = volumes.ShrinkVolume(request, timeout=SECONDS).size_bytes
    if chosen.output == "json":
        _dump({"id": chosen.id, "sizeBytes": size}, out)
    else:
        out.write(
            f"volume {chosen.id} has {quantity.text(size)} now; its claim keeps the size that it was bound with\n"
        )


def _size(text: str) -> int:
    try:
        return quantity.parse(text)
    except quantity.QuantityError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def persistent_volume(item: moorage.Item, *, storage_class: str) -> dict[str, Any]:
    """The PersistentVolume of a volume that is back: kept when it is released, and for the claim that it was made for."""
    claim = {"namespace": item.claim_namespace, "name": item.claim_name}
    csi: dict[str, Any] = {
        "driver": contract.DRIVER_NAME,
        "volumeHandle": item.id,
        "volumeAttributes": dict(item.context),
    }
    if item.filesystem:
        csi["fsType"] = item.filesystem
    term = {"matchExpressions": [{"key": contract.TOPOLOGY_KEY, "operator": "In", "values": [item.node]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"restored-{item.id}"},
        "spec": {
            "capacity": {"storage": str(item.size_bytes)},
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block" if item.block else "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "csi": csi,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        }
        | ({"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim}} if item.claim_name else {}),
    }


def _document(item: moorage.Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "pool": item.pool,
        "node": item.node,
        "name": item.name,
        "claim": {"namespace": item.claim_namespace, "name": item.claim_name} if item.claim_name else None,
        "sizeBytes": item.size_bytes,
        "block": item.block,
        "filesystem": item.filesystem,
        "sourceVolumeId": item.source_volume_id or None,
    }


def _dump(document: Mapping[str, Any], out: TextIO) -> None:
    json.dump(document, out, indent=2)
    out.write("\n")
