"""What the plugins inside a binder's process do, and what their answers mean (binding.md 1.9 and 1.10).

Which plugins there are is given (``Rules.plugins``): Kubernetes has moved nearly all of them into CSI drivers, and
Moorage's own deployment runs none. A volume whose plugin is not there is said so, and becomes Failed.
"""

from typing import Any, Final

from moorage_operator.decide import explaining, writing
from moorage_operator.decide.plan import Destroy, Emit, Fail, Plan, Provision, Scrub, Stop, Verb, Write
from moorage_operator.ledger import Ledger
from moorage_operator.model import claim as claims
from moorage_operator.model import volume as volumes
from moorage_operator.model.claim import Claim
from moorage_operator.model.quantity import format_bytes
from moorage_operator.model.rules import IN_TREE, Plugin, Rules
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume

RECYCLE_FAILED: Final = "VolumeFailedRecycle"
RECYCLED: Final = "VolumeRecycled"
CLEANUP_FAILED: Final = "ProvisioningCleanupFailed"

MOST_SAVES: Final = 5
SAVE_REST: Final = 10.0
"""Seconds between two tries to store the object of a volume that a plugin has made, and as many tries."""


def provision(claim: Claim, cls: Class, plugin: Plugin) -> Plan:
    """Have a plugin make the volume of a claim."""
    if cls.mount_options and not plugin.mount_options:
        message = f"Class {cls.name} has mount options, which plugin {cls.provisioner} cannot take: {cls.mount_options}"
        return _failed(claim, message), Fail(why=message)
    return (Provision(plugin=cls.provisioner, claim=claim, volume=_object(claim, cls)),)


def refuse_source(claim: Claim, cls: Class) -> Plan:
    """Only CSI drivers make copies."""
    message = f"Plugin {cls.provisioner} of class {cls.name} cannot make a copy of {claim.source}: only CSI drivers can"
    return _failed(claim, message), Fail(why=message)


def _object(claim: Claim, cls: Class) -> Write:
    """The object of a volume that a plugin has made; the plugin adds what it has made it of."""
    name = writing.volume_name(claim.uid)
    spec: dict[str, Any] = {
        "accessModes": list(claim.access_modes),
        "capacity": {"storage": format_bytes(claim.requested)},
        "claimRef": writing.claim_reference(claim),
        "mountOptions": list(cls.mount_options),
        "persistentVolumeReclaimPolicy": cls.reclaim_policy,
        "storageClassName": cls.name,
        "volumeMode": claim.volume_mode,
    }
    metadata: dict[str, Any] = {
        "name": name,
        "annotations": {claims.BOUND_BY_CONTROLLER: "yes", volumes.PROVISIONED_BY: cls.provisioner},
    }
    if cls.reclaim_policy == volumes.DELETE:
        metadata["finalizers"] = [volumes.IN_TREE_FINALIZER]
    body = {
        "apiVersion": volumes.API_VERSION,
        "kind": volumes.KIND,
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": volumes.BOUND},
    }
    target = writing.volume_named(name)
    return Write(verb=Verb.CREATE, target=target, path=writing.VOLUMES, body=body, blame=claim.reference)


def not_made(step: Provision, error: str) -> Plan:
    """The plugin could not make it: say so, and let the scheduler choose another node if it had chosen one."""
    told = _failed(step.claim, f"Plugin {step.plugin} could not make the volume: {error}")
    rescheduled = (writing.give_back_to_scheduler(step.claim),) if step.claim.selected_node else ()
    return told, *rescheduled, Fail(why=error)


def made(step: Provision) -> Plan:
    """The volume is made and its object stored; the rest of the bind begins with that object."""
    message = f"Volume {step.volume.target.key.name} was made by plugin {step.plugin}"
    return _event(step.claim, explaining.SUCCEEDED, message, warning=False), Stop()


def not_saved(step: Provision, error: str) -> Plan:
    """The object could not be stored, so its storage is destroyed again.

    The in-tree binder then looks for the object to take its finalizer off, and reports what that fails with although
    the storage is gone: it was recorded to say in every case that something may remain, and so do we.
    """
    name = step.volume.target.key.name
    told = _failed(step.claim, f"The object of volume {name} could not be stored: {error}")
    remains = f"Storage of volume {name} may remain with plugin {step.plugin}: look for it there and delete it by hand"
    return (
        told,
        Destroy(plugin=step.plugin, name=name, times=MOST_SAVES),
        _event(step.claim, CLEANUP_FAILED, remains, warning=True),
        Fail(why=error),
    )


def destroy(ledger: Ledger, volume: Volume) -> Plan:
    """Have the plugin of a released volume destroy its storage; then the object goes.

    Nothing for volumes that a program of its own deletes.
    """
    rules = ledger.rules
    if _is_external(volume):
        return ()
    name = volume.provisioned_by or _by_source(rules, volume)
    plugin = rules.plugins.get(name)
    if plugin is None or not plugin.deletes:
        what = f"plugin {volume.provisioned_by}" if volume.provisioned_by else f"a volume of kind {volume.source}"
        return _cannot(
            ledger,
            volume,
            explaining.DELETE_FAILED,
            f"Nothing here can delete the storage of {what}: delete it by hand, then the object; or set the reclaim "
            "policy to Retain",
        )
    return (Destroy(plugin=name, name=volume.name),)


def destroyed(volume: Volume) -> Plan:
    """The storage is gone: the object may go."""
    held = volumes.IN_TREE_FINALIZER in volume.finalizers
    freed: Plan = (writing.remove_finalizer(volume, volumes.IN_TREE_FINALIZER),) if held else ()
    return *freed, writing.delete_volume(volume), Stop()


def scrub(ledger: Ledger, volume: Volume) -> Plan:
    """Have a plugin empty the storage of a released volume, for the next claim."""
    name = _by_source(ledger.rules, volume)
    plugin = ledger.rules.plugins.get(name)
    if plugin is None or not plugin.recycles:
        return _cannot(
            ledger,
            volume,
            RECYCLE_FAILED,
            f"Nothing here can recycle a volume of kind {volume.source}: reclaim policy Recycle is deprecated. Use "
            "Retain, or a class that makes volumes and Delete",
        )
    return (Scrub(plugin=name, name=volume.name),)


def unbind(volume: Volume) -> Write:
    """Give a volume back that no claim has any more: to everybody, or to the name that a person keeps it for."""
    return writing.give_back(volume) if volume.bound_by_controller else writing.keep_by_name(volume)


def scrubbed(volume: Volume) -> Plan:
    """The storage is empty: the volume may be used again."""
    return recycled(volume, "The data of the last claim was removed: the volume can be used again"), unbind(volume)


def recycled(volume: Volume, message: str) -> Emit:
    """Tell that a volume was emptied, once for each claim that had it."""
    return Emit(regarding=volume.reference, reason=RECYCLED, message=message, key=f"{RECYCLED}:{volume.claim_uid}")


def failed(ledger: Ledger, volume: Volume, reason: str, error: str) -> Plan:
    """The plugin failed: the volume becomes Failed, and stays so while it is tried again."""
    return *_cannot(ledger, volume, reason, error), Fail(why=error)


def unknown_policy(ledger: Ledger, volume: Volume) -> Plan:
    """A reclaim policy that nobody knows."""
    return _cannot(
        ledger,
        volume,
        "VolumeUnknownReclaimPolicy",
        f"Reclaim policy {volume.reclaim_policy!r} is not known: use Retain, Delete or Recycle",
    )


def _cannot(ledger: Ledger, volume: Volume, reason: str, message: str) -> Plan:
    told = explaining.warn(ledger, volume.reference, reason, message)
    if volume.phase == volumes.FAILED:
        return told
    return writing.set_volume_phase(volume, volumes.FAILED, message=message), *told


def _is_external(volume: Volume) -> bool:
    """Another program deletes it: it has provisioned it, or it is the driver of a volume made by hand."""
    if volume.provisioned_by:
        return not volume.provisioned_by.startswith(IN_TREE)
    return bool(volume.driver)


def _by_source(rules: Rules, volume: Volume) -> str:
    return next((name for name, plugin in rules.plugins.items() if volume.source in plugin.sources), "")


def _failed(claim: Claim, message: str) -> Emit:
    return _event(claim, explaining.FAILED, message, warning=True)


def _event(claim: Claim, reason: str, message: str, *, warning: bool) -> Emit:
    return Emit(regarding=claim.reference, reason=reason, message=message, key=f"{reason}:{message}", warning=warning)
