"""Which object is meant: enough to name it in an event, a path or a log line."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One Kubernetes object, by name and uid.

    Attributes:
        api_version: e.g. ``v1``.
        kind: e.g. ``PersistentVolumeClaim``.
        namespace: empty for objects without one.
        name: the object's name.
        uid: the object's uid; another object of the same name is another object.
        resource_version: the version it was seen at; empty when it does not matter.
    """

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
