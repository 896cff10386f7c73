"""Claims that have to wait, one for every reason, and the words that a person has to find on each of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.cluster.manifests import claim, pod, static_volume, storage_class

NO_PROVISIONER = "kubernetes.io/no-provisioner"
SOMEBODY = "aaaaaaaa-0000-4000-8000-000000000000"
"""The uid of a claim that never was."""
HELD = "test.moorage.dev/held"
"""A finalizer that nobody but the test takes off."""
NOWHERE = {"test.moorage.dev/nowhere": "true"}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One claim that waits.

    Attributes:
        says: what its event must say, in parts.
        claim: the claim.
        never: what would be no help.
        around: what is there before it: classes and volumes.
        pod: what uses it.
        deleted: a volume to be deleted, and kept by a finalizer, before the claim is made.
    """

    says: tuple[str, ...]
    claim: Object
    never: tuple[str, ...] = ()
    around: tuple[Object, ...] = ()
    pod: Object | None = None
    deleted: str = ""


@dataclass(frozen=True, slots=True)
class Waits:
    """All of them in one namespace.

    Each case has a class of its own, that makes no volumes unless said otherwise, so that what is there for one case is
    of another class for every other one.
    """

    namespace: str
    found: dict[str, Wait] = field(default_factory=dict)

    @classmethod
    def of(cls, namespace: str) -> "Waits":
        """Return all cases for a namespace."""
        made = cls(namespace)
        made._classes()
        made._free()
        made._used()
        made._named()
        made._consumers()
        return made

    def _name(self, case: str) -> str:
        return f"{self.namespace}-{case}"

    def _class(self, case: str, *, provisioner: str = NO_PROVISIONER, mode: str = "Immediate", **more: Any) -> Object:
        made = storage_class(self._name(case), mode=mode) | {"provisioner": provisioner} | more
        made["metadata"] = {"labels": {"test": self.namespace}, **made["metadata"]}
        return made

    def _volume(self, case: str, *, suffix: str = "", **how: Any) -> Object:
        how = {"class_name": self._name(case), "size": "8Mi"} | how
        return static_volume(self._name(case) + suffix, test=self.namespace, **how)

    def _claim(self, case: str, **how: Any) -> Object:
        return claim(case, **({"class_name": self._name(case), "size": "4Mi"} | how))

    def _add(self, case: str, says: Iterable[str], *volumes: Object, **how: Any) -> None:
        """A claim of its own class, and these volumes."""
        wanted = {key: how.pop(key) for key in ("deleted", "never") if key in how}
        self.found[case] = Wait(
            says=tuple(says),
            claim=self._claim(case, **how),
            around=(self._class(case), *volumes),
            **wanted,
        )

    def _classes(self) -> None:
        """What is the matter with the class."""
        name = self._name("class-missing")
        self.found["class-missing"] = Wait(
            says=(f"Storage class '{name}' does not exist", "moorage-immediate", "Make it"),
            claim=self._claim("class-missing"),
        )
        default = {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
        both = tuple(self._class(f"default-{n}", mode="WaitForFirstConsumer") for n in "ab")
        for each in both:
            each["metadata"] |= default
        unnamed = self._claim("two-defaults")
        del unnamed["spec"]["storageClassName"]
        self.found["two-defaults"] = Wait(
            says=(
                f"2 classes are marked as default ({self._name('default-a')}, {self._name('default-b')})",
                "a claim that names none gets the newest",
                "Unmark all but one",
            ),
            claim=unnamed,
            around=both,
        )
        self.found["selector-dynamic"] = Wait(
            says=("has a selector, which picks among volumes that exist", "Remove the selector", "labels match"),
            claim=self._claim("selector-dynamic", class_name="moorage-immediate", selector=_selector("ssd")),
        )
        self.found["no-class"] = Wait(
            says=("No volume fits, and the claim asks for no storage class", "volumes were looked at"),
            never=("is reserved for another namespace",),
            claim=self._claim("no-class", class_name="", size="900Ti"),
        )
        other = "other.example.com"
        self.found["other-provisioner"] = Wait(
            says=(f"Waiting for provisioner {other} of class {self._name('other-provisioner')}", "its pods run"),
            claim=self._claim("other-provisioner"),
            around=(self._class("other-provisioner", provisioner=other),),
        )
        elsewhere = [{"matchLabelExpressions": [{"key": "topology.moorage.dev/node", "values": ["node-9"]}]}]
        self.found["no-node"] = Wait(
            says=("node plugin", f"allowedTopologies of class {self._name('no-node')}"),
            claim=self._claim("no-node"),
            around=(self._class("no-node", provisioner="csi.moorage.dev", allowedTopologies=elsewhere),),
        )

    def _free(self) -> None:
        """What is the matter with the free volumes."""
        volume = self._volume
        self._add(
            "too-small",
            ("3 too small (largest free 3Mi, 4Mi asked for)", "Make a volume of at least 4Mi, or ask for 3Mi or less"),
            *(volume("too-small", suffix=f"-{size}", size=f"{size}Mi") for size in (1, 2, 3)),
        )
        self._add(
            "access-mode",
            ("1 without access mode ReadWriteMany", "Make a volume with access modes ReadWriteMany, or ask for fewer"),
            volume("access-mode"),
            modes=("ReadWriteMany",),
        )
        self._add(
            "volume-mode",
            ("of another volume mode", "Make a volume with volumeMode Filesystem", self._name("volume-mode")),
            volume("volume-mode", volumeMode="Block"),
        )
        self._add(
            "selector",
            ("1 not matched by the claim's selector", f"{self._name('selector')} would fit otherwise"),
            volume("selector", labels={"disk": "hdd"}),
            selector=_selector("ssd"),
        )
        self._add(
            "attributes-class",
            ("of another volume attributes class", "agree on volumeAttributesClassName"),
            volume("attributes-class"),
            volumeAttributesClassName="gold",
        )

    def _used(self) -> None:
        """What is the matter with the volumes that are not free."""
        gone = {"namespace": self.namespace, "name": "gone", "uid": SOMEBODY}
        name = self._name("released")
        self._add(
            "released",
            (f"{name} would fit but is Released", "remove its spec.claimRef", "moorage.dev/reuse"),
            self._volume("released", claimRef=gone),
        )
        name = self._name("reserved")
        self._add(
            "reserved",
            (f"{name} would fit but is reserved for another claim", "see its spec.claimRef"),
            self._volume("reserved", claimRef={"namespace": self.namespace, "name": "somebody"}),
        )
        leaving = self._volume("deleting")
        leaving["metadata"]["finalizers"] = [HELD]
        self._add(
            "deleting",
            ("1 being deleted",),
            leaving,
            deleted=leaving["metadata"]["name"],
            never=("is reserved for another namespace",),
        )
        kept = self._volume("reserved-for")
        kept["metadata"]["annotations"] = {"moorage.dev/reserved-for": "another-namespace"}
        self._add(
            "reserved-for",
            (f"{self._name('reserved-for')} is reserved for another namespace by moorage.dev/reserved-for",),
            kept,
        )

    def _named(self) -> None:
        """What is the matter with the volume that the claim names."""
        self._add(
            "named-missing",
            (f"names volume '{self._name('nobody')}'", "which does not exist", "without volumeName"),
            volumeName=self._name("nobody"),
        )
        taken = partial(self._volume, "named-taken", claimRef={"namespace": self.namespace, "name": "somebody"})
        self._add(
            "named-taken",
            (f"names volume {self._name('named-taken')}, which belongs to claim {self.namespace}/somebody",),
            taken(),
            volumeName=self._name("named-taken"),
        )
        for case, detail, how in (
            ("named-too-small", "it is too small (2Mi, 4Mi asked for)", {"size": "2Mi"}),
            (
                "named-class",
                f"it has another storage class ('theirs', '{self._name('named-class')}' asked for)",
                _THEIRS,
            ),
            ("named-volume-mode", "it has another volume mode (Block, Filesystem asked for)", {"volumeMode": "Block"}),
            (
                "named-access-mode",
                "lacks an access mode that the claim asks for (ReadOnlyMany, ReadWriteOnce asked for)",
                _READ_ONLY,
            ),
        ):
            self._add(
                case,
                (f"names volume {self._name(case)}, but", detail, "Change the volume"),
                self._volume(case, **how),
                volumeName=self._name(case),
            )

    def _consumers(self) -> None:
        """What is the matter with the pods of a claim that waits for one."""
        late, ours = partial(self._class, mode="WaitForFirstConsumer"), "moorage-directory"
        self.found["unused"] = Wait(
            says=(f"Class {ours} binds when the first pod uses the claim, and none does yet",),
            claim=self._claim("unused", class_name=ours),
        )
        unscheduled = pod("unscheduled", claim_name="unscheduled")
        unscheduled["spec"]["nodeSelector"] = NOWHERE
        self.found["unscheduled"] = Wait(
            says=(f"Class {ours} binds once a pod has a node", "waiting for the scheduler to place unscheduled"),
            claim=self._claim("unscheduled", class_name=ours),
            pod=unscheduled,
        )
        placed = pod("node-name", claim_name="node-name")
        placed["spec"]["nodeName"] = "node-1"
        self.found["node-name"] = Wait(
            says=("Pod node-name names its node itself (spec.nodeName: node-1)", "never sees it", "nodeSelector"),
            claim=self._claim("node-name"),
            around=(late("node-name"),),
            pod=placed,
        )


_THEIRS: dict[str, Any] = {"class_name": "theirs"}
_READ_ONLY: dict[str, Any] = {"modes": ("ReadOnlyMany",)}


def _selector(disk: str) -> Object:
    return {"matchLabels": {"disk": disk}}


CASES = tuple(Waits.of("t").found)
