"""What the kernel refused at a target, in the driver's own errors and for a person."""

import errno
from typing import Final

from moorage_csi.errors import DriverError, InvalidArgumentError, PreconditionError, UnavailableError
from moorage_csi.host.mounts import RefusedOptionError

_LINKS: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EXDEV})

ABSENT: Final = _LINKS | {errno.ENOENT, errno.ENAMETOOLONG}
"""What the kernel says where nothing that could be a volume is at a path."""


def explained(error: OSError, what: str) -> DriverError:
    """What the kernel refused, for a person; nothing was begun, or the next call finds it."""
    if isinstance(error, RefusedOptionError):
        return InvalidArgumentError(f"{what} with these mount options: {error}")
    if error.errno == errno.ENAMETOOLONG:
        return InvalidArgumentError(f"{what}: a part of that path is longer than a file's name can be ({error})")
    if error.errno in _LINKS:
        return PreconditionError(f"{what}: there is a link or a file where a folder belongs in that path ({error})")
    if error.errno == errno.ENOTEMPTY:
        return PreconditionError(f"{what}: something is there that a volume would hide; move it away ({error})")
    if error.errno == errno.EINVAL:
        return PreconditionError(f"{what}: the kernel refuses what the volume is or how it is asked for ({error})")
    if error.errno == errno.ENOENT:
        return PreconditionError(f"{what}: a file or folder that has to exist does not ({error})")
    return UnavailableError(f"{what}: {error}")
