"""What a backend has to know of a volume, which knows nothing of records."""

from moorage_csi.backends.backend import Shape
from moorage_csi.volumes.record import Mode, Record


def shape_of(record: Record) -> Shape:
    """The storage of the volume."""
    return Shape(
        uuid=record.uuid,
        size=record.size,
        block=record.mode is Mode.BLOCK,
        filesystem=record.filesystem,
        permissions=record.permissions,
        quota=record.quota,
    )
