"""Claims that have to wait, one for every reason: what there is, and the words that a person has to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moorage_operator.decide.reasons import WaitsFor
from moorage_operator.model.node import Node
from moorage_operator.model.pod import Pod
from moorage_operator.model.storage_class import Class
from tests.unit.operator.objects import claim, class_body, node_body, volume

if TYPE_CHECKING:
    from moorage_operator.model.volume import Volume

MARKS = {"pv.kubernetes.io/bind-completed": "yes"}
OTHERS = "example.com/theirs"


def hand(name: str = "v", **fields: Any) -> Volume:
    """A volume made by hand, of no class."""
    given = {"claim": None, "phase": "Available", "class_name": "", "policy": "Retain", "provisioned_by": ""}
    return volume(
        **{"name": name, "uid": f"uid-{name}", "driver": "csi.example/hand", "finalizers": ()} | given | fields
    )


def cls(name: str = "fast", **fields: Any) -> Class:
    return Class.from_api(class_body(name, **fields))


def default(name: str, created: str) -> Class:
    body = class_body(name, provisioner=OTHERS)
    body["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    body["metadata"]["creationTimestamp"] = created
    return Class.from_api(body)


def pod(name: str = "web", *, node: str = "", phase: str = "Pending") -> Pod:
    return Pod.from_api(
        {
            "metadata": {"name": name, "namespace": "ns", "uid": f"pod-{name}", "resourceVersion": "1"},
            "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}], "nodeName": node},
            "status": {"phase": phase},
        }
    )


CASES: dict[str, tuple[tuple[Any, ...], WaitsFor, str, bool, str]] = {
    "nothing there": (
        (claim(class_name=""),),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: there is no volume at all. "
            "Make a volume of at least 1Gi, or name a storage class that makes one"
        ),
    ),
    "no class and no default": (
        (claim(class_name=None),),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim names no storage class and none is the default: there is no volume at all. "
            "Make a volume of at least 1Gi, or name a storage class that makes one"
        ),
    ),
    "too small": (
        (claim(class_name="", size="10Gi"), hand(size="5Gi"), hand("w", size="2Gi")),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 2 volumes were looked at: "
            "2 too small (largest free 5Gi, 10Gi asked for). Make a volume of at least 10Gi, or ask for 5Gi or less"
        ),
    ),
    "modes": (
        (claim(class_name="", accessModes=["ReadWriteMany"]), hand()),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: "
            "1 without access mode ReadWriteMany (nearest: v). Make a volume with access modes ReadWriteMany, or ask for fewer"
        ),
    ),
    "volume mode": (
        (claim(class_name="", volumeMode="Block"), hand()),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: "
            "1 of another volume mode (nearest: v). Make a volume with volumeMode Block (v has the other one)"
        ),
    ),
    "attributes class": (
        (claim(class_name="", volumeAttributesClassName="gold"), hand()),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: 1 of another volume attributes "
            "class (nearest: v). Make claim and volume (v) agree on volumeAttributesClassName"
        ),
    ),
    "class": (
        (claim(class_name=""), hand(class_name="slow")),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: "
            "1 of another storage class (nearest: v). Make claim and volume (v) agree on storageClassName"
        ),
    ),
    "selector": (
        (claim(class_name="", selector={"matchLabels": {"tier": "gold"}}), hand()),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: 1 not matched by the claim's "
            "selector (nearest: v). Label a volume so that the selector matches it (v would fit otherwise), or drop the selector"
        ),
    ),
    "released": (
        (claim(class_name=""), hand(claim=("other", "u2"), phase="Released")),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: 1 Released (nearest: v). v would "
            "fit but is Released, and may hold the data of its last claim: to use it again remove its spec.claimRef, or "
            "annotate it moorage.dev/reuse: same-claim or after-wipe"
        ),
    ),
    "reserved": (
        (claim(class_name=""), hand(claim=("other", "u2"))),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: 1 reserved for a claim "
            "(nearest: v). v would fit but is reserved for another claim: see its spec.claimRef"
        ),
    ),
    "kept for it and too small": (
        (claim(class_name=""), hand(claim=("data", ""), size="1Mi")),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "Volume v is reserved for the claim (its spec.claimRef), but it is too small (1Mi, 1Gi asked for). No volume fits, "
            "and the claim asks for no storage class: 1 volume was looked at: 1 reserved for a claim. Make a volume of at "
            "least 1Gi, or name a storage class that makes one"
        ),
    ),
    "being deleted": (
        (claim(class_name=""), hand(deleting=True)),
        WaitsFor.VOLUME,
        "FailedBinding",
        False,
        (
            "No volume fits, and the claim asks for no storage class: 1 volume was looked at: 1 being deleted. "
            "Make a volume of at least 1Gi, or name a storage class that makes one"
        ),
    ),
    "class missing": (
        (claim(), cls("slow"), cls("other")),
        WaitsFor.CLASS,
        "ProvisioningFailed",
        True,
        (
            "Storage class 'fast' does not exist (there is: other, slow). Make it, or make a volume with that class name by "
            "hand; there is no volume at all"
        ),
    ),
    "other provisioner": (
        (claim(), cls(provisioner=OTHERS)),
        WaitsFor.PROVISIONER,
        "ExternalProvisioning",
        False,
        (
            "Waiting for provisioner example.com/theirs of class fast to make a volume: if it does not, see whether its pods run "
            "and what they log"
        ),
    ),
    "other provisioner on a node": (
        (claim(marks={"volume.kubernetes.io/selected-node": "n1"}), cls(provisioner=OTHERS, late=True)),
        WaitsFor.PROVISIONER,
        "ExternalProvisioning",
        False,
        (
            "Waiting for provisioner example.com/theirs of class fast to make a volume on node n1: if it does not, see whether "
            "its pods run and what they log"
        ),
    ),
    "selector with a dynamic class": (
        (claim(selector={"matchLabels": {"tier": "gold"}}), cls(provisioner=OTHERS)),
        WaitsFor.PROVISIONER,
        "ExternalProvisioning",
        False,
        (
            "Waiting for provisioner example.com/theirs of class fast to make a volume: if it does not, see whether its pods run "
            "and what they log. The claim has a selector, which picks among volumes that exist: example.com/theirs may refuse it"
        ),
    ),
    "class that makes none": (
        (claim(), cls(provisioner="kubernetes.io/no-provisioner")),
        WaitsFor.VOLUME,
        "ProvisioningFailed",
        True,
        (
            "Class fast makes no volumes (kubernetes.io/no-provisioner): one made by hand has to fit; there is no volume at all. "
            "Make a volume of at least 1Gi, or name a storage class that makes one"
        ),
    ),
    "plugin that is not there": (
        (claim(), cls(provisioner="kubernetes.io/nothing")),
        WaitsFor.VOLUME,
        "ProvisioningFailed",
        True,
        (
            "Nothing here runs 'kubernetes.io/nothing', the provisioner of class fast; there is no volume at all. "
            "Make a volume of at least 1Gi, or name a storage class that makes one"
        ),
    ),
    "ours": ((claim(), cls()), WaitsFor.DRIVER, "Provisioning", False, "Moorage is making the volume"),
    "nobody uses it": (
        (claim(), cls(late=True)),
        WaitsFor.CONSUMER,
        "WaitForFirstConsumer",
        False,
        "Class fast binds when the first pod uses the claim, and none does yet: that is as it should be until you start one",
    ),
    "pod that has finished": (
        (claim(), cls(late=True), pod(phase="Succeeded")),
        WaitsFor.CONSUMER,
        "WaitForFirstConsumer",
        False,
        "Class fast binds when the first pod uses the claim, and none does yet: that is as it should be until you start one",
    ),
    "pods without a node": (
        (claim(), cls(late=True), pod("web"), pod("api")),
        WaitsFor.SCHEDULER,
        "WaitForPodScheduled",
        False,
        (
            "Class fast binds once a pod has a node: waiting for the scheduler to place api, web. If it stays Pending, kubectl "
            "describe pod says why"
        ),
    ),
    "pod that names its node": (
        (
            claim(),
            cls(late=True, provisioner=OTHERS),
            pod(node="n1"),
            Node.from_api(node_body("n1")),
        ),
        WaitsFor.CHANGE,
        "WaitForFirstConsumer",
        False,
        (
            "Pod web names its node itself (spec.nodeName: n1), so the scheduler, which chooses the node for volumes of class "
            "fast, never sees it. Use a nodeSelector or node affinity instead of nodeName"
        ),
    ),
    "pod that names a node that is not there": (
        (claim(), cls(late=True), pod(node="n9")),
        WaitsFor.CHANGE,
        "WaitForFirstConsumer",
        False,
        (
            "Pod web names its node itself (spec.nodeName: n9), and there is no node n9. Use a nodeSelector or node affinity "
            "instead of nodeName"
        ),
    ),
    "named and not there": (
        (claim(volumeName="v"),),
        WaitsFor.VOLUME,
        "FailedBinding",
        True,
        (
            "The claim names volume 'v' (spec.volumeName), which does not exist. Make it, or make the claim anew without "
            "volumeName"
        ),
    ),
    "named and too small": (
        (claim(class_name="", volumeName="v"), hand(size="1Mi")),
        WaitsFor.CHANGE,
        "VolumeMismatch",
        True,
        "The claim names volume v, but it is too small (1Mi, 1Gi asked for). Change the volume, or make the claim anew",
    ),
    "named and of another class": (
        (claim(volumeName="v"), hand(class_name="slow")),
        WaitsFor.CHANGE,
        "VolumeMismatch",
        True,
        (
            "The claim names volume v, but it has another storage class ('slow', 'fast' asked for). Change the volume, or make "
            "the claim anew"
        ),
    ),
    "named and of another volume mode": (
        (claim(class_name="", volumeName="v", volumeMode="Block"), hand()),
        WaitsFor.CHANGE,
        "VolumeMismatch",
        True,
        (
            "The claim names volume v, but it has another volume mode (Filesystem, Block asked for). Change the volume, or make "
            "the claim anew"
        ),
    ),
    "named and without a mode": (
        (claim(class_name="", volumeName="v", accessModes=["ReadWriteMany"]), hand()),
        WaitsFor.CHANGE,
        "VolumeMismatch",
        True,
        (
            "The claim names volume v, but it lacks an access mode that the claim asks for (ReadWriteOnce, ReadWriteMany asked "
            "for). Change the volume, or make the claim anew"
        ),
    ),
    "named and of another attributes class": (
        (claim(class_name="", volumeName="v", volumeAttributesClassName="gold"), hand()),
        WaitsFor.CHANGE,
        "VolumeMismatch",
        True,
        (
            "The claim names volume v, but it has another volume attributes class ('', 'gold' asked for). Change the volume, or "
            "make the claim anew"
        ),
    ),
    "named and being deleted": (
        (claim(class_name="", volumeName="v"), hand(deleting=True)),
        WaitsFor.CHANGE,
        "VolumeMismatch",
        True,
        "The claim names volume v, but it is being deleted. Change the volume, or make the claim anew",
    ),
    "named and somebody else's": (
        (claim(class_name="", volumeName="v"), hand(claim=("other", "u2"))),
        WaitsFor.CHANGE,
        "FailedBinding",
        True,
        (
            "The claim names volume v, which belongs to claim ns/other. Name another volume, or once that claim is gone remove "
            "the volume's spec.claimRef"
        ),
    ),
    "named and an earlier claim's": (
        (claim(class_name="", volumeName="v"), hand(claim=("data", "u0"), phase="Released")),
        WaitsFor.CHANGE,
        "FailedBinding",
        True,
        (
            "The claim names volume v, which belongs to claim ns/data (an earlier claim of the same name). Name another volume, "
            "or once that claim is gone remove the volume's spec.claimRef"
        ),
    ),
    "lost its name": (
        (claim(marks=MARKS, phase="Bound"),),
        WaitsFor.CHANGE,
        "ClaimLost",
        True,
        "The claim was bound and its spec.volumeName is gone: which volume has its data is not known any more",
    ),
    "lost its volume": (
        (claim(marks=MARKS, phase="Bound", volumeName="v"),),
        WaitsFor.CHANGE,
        "ClaimLost",
        True,
        (
            "Volume v, which the claim was bound to, does not exist any more: unless its storage is kept elsewhere the data is "
            "lost. To attach kept storage make the volume anew under that name"
        ),
    ),
    "misbound": (
        (claim(marks=MARKS, phase="Bound", volumeName="v"), hand(claim=("other", "u2"), phase="Bound")),
        WaitsFor.CHANGE,
        "ClaimMisbound",
        True,
        "Volume v, which the claim was bound to, belongs to another claim now",
    ),
    "unreadable": (
        (claim(), cls(volumeBindingMode="")),
        WaitsFor.CHANGE,
        "FailedBinding",
        True,
        (
            "Nothing can be decided for the claim: class 'fast' has no volumeBindingMode: Immediate or WaitForFirstConsumer is "
            "expected"
        ),
    ),
}
