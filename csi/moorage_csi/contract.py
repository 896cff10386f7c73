"""What both programs must agree on: names, keys and allowed words.

The operator imports this module and ``proto`` from the driver, and nothing else (an import-linter
contract). Everything here is a constant, so that agreeing costs no code.
"""

from typing import Final

DRIVER_NAME: Final = "csi.moorage.dev"

TOPOLOGY_KEY: Final = "topology.moorage.dev/node"
"""Its value is the name of the Kubernetes node that holds the volume."""

NODE_SERVER_NAME: Final = "node.csi.moorage.dev"
"""The one DNS name in every node plugin's certificate; a pod's address is never in one."""

OPERATOR_CLIENT_NAME: Final = "operator.csi.moorage.dev"
"""The DNS name in the only client certificate that a node plugin answers on TCP."""

CSI_PORT: Final = 9740
"""TCP: Identity and Controller over mutual TLS."""


class Parameter:
    """Keys of ``StorageClass.parameters`` that the driver understands; any other is refused."""

    BACKEND: Final = "backend"
    POOL: Final = "pool"
    QUOTA: Final = "quota"
    ON_DELETE: Final = "onDelete"
    MOUNT_PERMISSIONS: Final = "mountPermissions"
    FSTYPE: Final = "csi.storage.k8s.io/fstype"
    """Read by the operator and sent as the capability's fs_type, as the sidecars do."""


class Metadata:
    """Keys that say for whom a volume is made; the sidecar's ``--extra-create-metadata`` names."""

    CLAIM_NAME: Final = "csi.storage.k8s.io/pvc/name"
    CLAIM_NAMESPACE: Final = "csi.storage.k8s.io/pvc/namespace"
    VOLUME_NAME: Final = "csi.storage.k8s.io/pv/name"
    SNAPSHOT_NAME: Final = "csi.storage.k8s.io/volumesnapshot/name"
    SNAPSHOT_NAMESPACE: Final = "csi.storage.k8s.io/volumesnapshot/namespace"
    SNAPSHOT_CONTENT: Final = "csi.storage.k8s.io/volumesnapshotcontent/name"
    GROUP_NAME: Final = "csi.storage.k8s.io/volumegroupsnapshot/name"
    GROUP_NAMESPACE: Final = "csi.storage.k8s.io/volumegroupsnapshot/namespace"
    GROUP_CONTENT: Final = "csi.storage.k8s.io/volumegroupsnapshotcontent/name"


class Context:
    """Keys of the volume context, which become ``PersistentVolume.spec.csi.volumeAttributes``."""

    BACKEND: Final = "backend"
    POOL: Final = "pool"
    FILESYSTEM: Final = "filesystem"
    QUOTA: Final = "quota"
    """``enforced``: the kernel holds the size. ``best-effort`` or ``none``: it does not."""
    ON_DELETE: Final = "onDelete"


BACKEND_AUTO: Final = "auto"
BACKEND_IMAGE: Final = "image"
BACKEND_DIRECTORY: Final = "directory"
BACKEND_BTRFS: Final = "btrfs"
BACKEND_LAYERED: Final = "layered"
BACKENDS: Final = (BACKEND_AUTO, BACKEND_IMAGE, BACKEND_DIRECTORY, BACKEND_BTRFS, BACKEND_LAYERED)

FILESYSTEMS: Final = ("ext4", "xfs")
"""What is made in an image; the others may be asked for where the pool's own is that."""

QUOTA_REQUIRED: Final = "required"
QUOTA_BEST_EFFORT: Final = "best-effort"
QUOTA_NONE: Final = "none"
QUOTAS: Final = (QUOTA_REQUIRED, QUOTA_BEST_EFFORT, QUOTA_NONE)

QUOTA_ENFORCED: Final = "enforced"
"""What a volume's context says when its limit is held by the kernel."""

ON_DELETE_DELETE: Final = "delete"
ON_DELETE_RETAIN: Final = "retain"
ON_DELETE_ARCHIVE: Final = "archive"
ON_DELETES: Final = (ON_DELETE_DELETE, ON_DELETE_RETAIN, ON_DELETE_ARCHIVE)
