"""Why a claim waits, in a sentence for a person and as data for programs.

Each case of ``decide.judging`` has its own sentence: what is the matter, and what would help. The events that the
in-tree binder makes too carry its reasons and types (binding.md 1.12), so that people and alerts find what they know.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from moorage_operator.decide import matching
from moorage_operator.decide.census import Census, Miss, census, describe
from moorage_operator.decide.judging import Case, Judgement
from moorage_operator.decide.matching import Mismatch
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.quantity import format_bytes
from moorage_operator.model.rules import IN_TREE
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume

NO_PROVISIONER: Final = "kubernetes.io/no-provisioner"


class WaitsFor(enum.StrEnum):
    """Whose move it is."""

    VOLUME = "volume"
    """A volume that fits, or a class that makes one: an administrator's."""
    CONSUMER = "consumer"
    """A pod that uses the claim."""
    SCHEDULER = "scheduler"
    """A node for the pod that uses the claim."""
    CLASS = "class"
    """The storage class that the claim names."""
    DRIVER = "driver"
    """Moorage's node plugin."""
    PROVISIONER = "provisioner"
    """Another provisioner."""
    BINDER = "binder"
    """The in-tree binder."""
    CHANGE = "change"
    """Somebody who changes what was written: it cannot become true as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Why one claim waits.

    Attributes:
        reason: of the event.
        message: what people read.
        key: what makes two answers the same although their figures differ.
        warning: the event is a Warning.
        binder: the in-tree binder makes an event here too.
        census: what was wrong with each volume; None where volumes do not matter.
    """

    waits_for: WaitsFor
    reason: str
    message: str
    key: str
    warning: bool = False
    binder: bool = False
    census: Census | None = None


def answer(ledger: Ledger, claim: Claim, judgement: Judgement) -> Answer | None:
    """Why the claim waits; None when it does not, or only for ourselves."""
    build = _BUILDERS.get(judgement.case)
    found = None if build is None else build(ledger, claim, judgement)
    if found is None:
        return None
    unfit = "" if found.census is None else _kept_unfit(ledger, claim)
    if unfit:
        found = replace(found, message=f"{unfit}. {found.message}", key=f"{found.key}/kept unfit")
    defaults = ledger.default_classes()
    if len(defaults) > 1 and claim.class_name in {None, *(cls.name for cls in defaults)}:
        found = replace(found, message=f"{found.message}. {_several_defaults(defaults)}")
    return found


def _kept_unfit(ledger: Ledger, claim: Claim) -> str:
    """What is wrong with a volume that is kept for the claim; its class does not matter. Empty when none is kept."""
    for volume in sorted(ledger.volumes_for(claim.key), key=lambda volume: volume.name):
        wrong = matching.mismatch(ledger, volume, replace(claim, class_name=volume.class_name))
        if wrong is not None and volume.claim is not None and volume.claim.means(claim):
            return f"Volume {volume.name} is reserved for the claim (its spec.claimRef), but {wrong}" + _details(
                wrong, volume, claim
            )
    return ""


def _several_defaults(defaults: tuple[Class, ...]) -> str:
    names = ", ".join(sorted(cls.name for cls in defaults))
    return (
        f"{len(defaults)} classes are marked as default ({names}): a claim that names none gets the newest, "
        f"{defaults[0].name}. Unmark all but one"
    )


def _none_fits(ledger: Ledger, claim: Claim, _: Judgement) -> Answer:
    found = census(ledger, claim)
    classless = (
        "asks for no storage class" if claim.class_name == "" else "names no storage class and none is the default"
    )
    return Answer(
        waits_for=WaitsFor.VOLUME,
        reason="FailedBinding",
        message=f"No volume fits, and the claim {classless}: {describe(found, claim)}. {_help(found, claim)}",
        key=f"none fits/{found.nearest}",
        binder=True,
        census=found,
    )


def _help(found: Census, claim: Claim) -> str:
    """What would help, by what came nearest."""
    size, name = format_bytes(claim.requested), found.example
    match found.nearest:
        case Miss.SELECTOR:
            return f"Label a volume so that the selector matches it ({name} would fit otherwise), or drop the selector"
        case Miss.RELEASED:
            return (
                f"{name} would fit but is Released, and may hold the data of its last claim: to use it again remove its "
                "spec.claimRef, or annotate it moorage.dev/reuse: same-claim or after-wipe"
            )
        case Miss.RESERVED:
            return f"{name} would fit but is reserved for another claim: see its spec.claimRef"
        case Miss.SIZE:
            return f"Make a volume of at least {size}, or ask for {format_bytes(found.largest)} or less"
        case Miss.ACCESS_MODES:
            return f"Make a volume with access modes {', '.join(claim.access_modes)}, or ask for fewer"
        case Miss.VOLUME_MODE:
            return f"Make a volume with volumeMode {claim.volume_mode} ({name} has the other one)"
        case Miss.ATTRIBUTES_CLASS:
            return f"Make claim and volume ({name}) agree on volumeAttributesClassName"
        case Miss.NAMESPACE:
            return f"{name} is reserved for another namespace by moorage.dev/reserved-for"
        case Miss.CLASS:
            return f"Make claim and volume ({name}) agree on storageClassName"
        case _:
            return f"Make a volume of at least {size}, or name a storage class that makes one"


def _provision(ledger: Ledger, claim: Claim, judgement: Judgement) -> Answer | None:
    cls = judgement.cls
    if cls is None:
        known, found = ", ".join(ledger.classes()) or "none", census(ledger, claim)
        return Answer(
            waits_for=WaitsFor.CLASS,
            reason="ProvisioningFailed",
            message=f"Storage class {claim.class_name!r} does not exist (there is: {known}). Make it, or make a volume "
            f"with that class name by hand; {describe(found, claim)}",
            key="class missing",
            warning=True,
            binder=True,
            census=found,
        )
    if cls.ours:
        return _ours(ledger, claim)
    if cls.provisioner not in ledger.rules.migrated and cls.provisioner.startswith(IN_TREE):
        return _nobody_makes(ledger, claim, cls)
    selects = ""
    if claim.selector is not None:
        selects = f". The claim has a selector, which picks among volumes that exist: {cls.provisioner} may refuse it"
    return Answer(
        waits_for=WaitsFor.PROVISIONER,
        reason="ExternalProvisioning",
        message=f"Waiting for provisioner {cls.provisioner} of class {cls.name} to make a volume{_where(judgement)}: if it "
        f"does not, see whether its pods run and what they log{selects}",
        key="external",
        binder=True,
    )


def _where(judgement: Judgement) -> str:
    return f" on node {judgement.node}" if judgement.node else ""


def _ours(ledger: Ledger, claim: Claim) -> Answer:
    """Provisioning tells its own troubles; here only what it told last."""
    told = ledger.notes.last_told(claim.uid)
    return Answer(
        waits_for=WaitsFor.DRIVER,
        reason="Provisioning",
        message=told or "Moorage is making the volume",
        key="ours",
    )


def _nobody_makes(ledger: Ledger, claim: Claim, cls: Class) -> Answer:
    found = census(ledger, claim)
    if cls.provisioner == NO_PROVISIONER:
        why = f"Class {cls.name} makes no volumes ({NO_PROVISIONER}): one made by hand has to fit"
    else:
        why = f"Nothing here runs {cls.provisioner!r}, the provisioner of class {cls.name}"
    return Answer(
        waits_for=WaitsFor.VOLUME,
        reason="ProvisioningFailed",
        message=f"{why}; {describe(found, claim)}. {_help(found, claim)}",
        key=f"nobody makes/{found.nearest}",
        warning=True,
        binder=True,
        census=found,
    )


def _consumer(ledger: Ledger, claim: Claim, judgement: Judgement) -> Answer:
    unscheduled = ", ".join(pod.name for pod in judgement.pods if not pod.node)
    if unscheduled:
        return Answer(
            waits_for=WaitsFor.SCHEDULER,
            reason="WaitForPodScheduled",
            message=f"Class {claim.class_name} binds once a pod has a node: waiting for the scheduler to place {unscheduled}. "
            "If it stays Pending, kubectl describe pod says why",
            key="scheduler",
            binder=True,
        )
    placed = next((pod for pod in judgement.pods if pod.node), None)
    if placed is None:
        return Answer(
            waits_for=WaitsFor.CONSUMER,
            reason="WaitForFirstConsumer",
            message=f"Class {claim.class_name} binds when the first pod uses the claim, and none does yet: "
            "that is as it should be until you start one",
            key="consumer",
            binder=True,
        )
    if ledger.node(placed.node) is None:
        why = f"and there is no node {placed.node}"
    else:
        why = f"so the scheduler, which chooses the node for volumes of class {claim.class_name}, never sees it"
    return Answer(
        waits_for=WaitsFor.CHANGE,
        reason="WaitForFirstConsumer",
        message=f"Pod {placed.name} names its node itself (spec.nodeName: {placed.node}), {why}. Use a nodeSelector or node "
        "affinity instead of nodeName",
        key="node name",
        binder=True,
    )


def _named_missing(_: Ledger, claim: Claim, __: Judgement) -> Answer:
    return Answer(
        waits_for=WaitsFor.VOLUME,
        reason="FailedBinding",
        message=f"The claim names volume {claim.volume_name!r} (spec.volumeName), which does not exist. Make it, or make the "
        "claim anew without volumeName",
        key="named missing",
        warning=True,
    )


def _named_unfit(_: Ledger, claim: Claim, judgement: Judgement) -> Answer:
    volume, wrong = judgement.volume, judgement.mismatch
    details = "" if volume is None or wrong is None else _details(wrong, volume, claim)
    return Answer(
        waits_for=WaitsFor.CHANGE,
        reason="VolumeMismatch",
        message=f"The claim names volume {claim.volume_name}, but {wrong}{details}. Change the volume, or make the claim anew",
        key=f"mismatch/{wrong and wrong.name}",
        warning=True,
        binder=True,
    )


def _details(wrong: Mismatch, volume: Volume, claim: Claim) -> str:
    """The two values that do not fit, in brackets."""
    match wrong:
        case Mismatch.SIZE:
            has, asks = format_bytes(volume.capacity), format_bytes(claim.requested)
        case Mismatch.CLASS:
            has, asks = repr(volume.class_name), repr(claim.class_name or "")
        case Mismatch.VOLUME_MODE:
            has, asks = volume.volume_mode, claim.volume_mode
        case Mismatch.ATTRIBUTES_CLASS:
            has, asks = repr(volume.attributes_class), repr(claim.attributes_class)
        case Mismatch.ACCESS_MODES:
            has, asks = " and ".join(volume.access_modes), " and ".join(claim.access_modes)
        case _:
            return ""
    return f" ({has}, {asks} asked for)"


def _named_taken(_: Ledger, claim: Claim, judgement: Judgement) -> Answer:
    held = judgement.volume.claim if judgement.volume else None
    holder = f"{held.namespace}/{held.name}" if held else "another claim"
    again = " (an earlier claim of the same name)" if held and held.key == claim.key else ""
    return Answer(
        waits_for=WaitsFor.CHANGE,
        reason="FailedBinding",
        message=f"The claim names volume {claim.volume_name}, which belongs to claim {holder}{again}. Name another volume, or "
        "once that claim is gone remove the volume's spec.claimRef",
        key="named taken",
        warning=True,
        binder=True,
    )


def _lost(_: Ledger, claim: Claim, judgement: Judgement) -> Answer:
    name = claim.volume_name
    messages = {
        Case.NAME_LOST: "The claim was bound and its spec.volumeName is gone: which volume has its data is not known any more",
        Case.VOLUME_LOST: f"Volume {name}, which the claim was bound to, does not exist any more: unless its storage is "
        "kept elsewhere the data is lost. To attach kept storage make the volume anew under that name",
        Case.MISBOUND: f"Volume {name}, which the claim was bound to, belongs to another claim now",
    }
    return Answer(
        waits_for=WaitsFor.CHANGE,
        reason="ClaimMisbound" if judgement.case is Case.MISBOUND else "ClaimLost",
        message=messages[judgement.case],
        key=judgement.case.value,
        warning=True,
        binder=True,
    )


def _binder(ledger: Ledger, claim: Claim, judgement: Judgement) -> Answer | None:
    """Beside the in-tree binder: what is left to it."""
    if ledger.rules.instead or (judgement.case is Case.CHOOSE and judgement.choice_is_ours):
        return None
    cls, volume = judgement.cls, judgement.volume
    if judgement.case is Case.BIND and volume is not None:
        if volume.claim is not None and volume.claim.uid:
            return None
        what = f"volume {volume.name} has to be reserved for the claim by its uid"
    elif judgement.case is Case.CHOOSE and volume is not None:
        what = f"volume {volume.name} fits and is free"
    elif judgement.case is Case.DEFAULT and cls is not None:
        what = f"the claim names no class, and gets {cls.name}, the default"
    else:
        what = f"volume {claim.volume_name} has to be reserved for the claim again"
    return Answer(
        waits_for=WaitsFor.BINDER,
        reason="WaitForBinder",
        message=f"Waiting for the in-tree binder of kube-controller-manager: {what}. If that binder is switched off, install "
        "Moorage with binder.mode=instead",
        key=f"binder/{judgement.case.value}",
    )


def _unreadable(_: Ledger, __: Claim, judgement: Judgement) -> Answer:
    return Answer(
        waits_for=WaitsFor.CHANGE,
        reason="FailedBinding",
        message=f"Nothing can be decided for the claim: {judgement.problem}",
        key="unreadable",
        warning=True,
    )


_BUILDERS: Final[Mapping[Case, Callable[[Ledger, Claim, Judgement], Answer | None]]] = MappingProxyType(
    {
        Case.BIND: _binder,
        Case.CHOOSE: _binder,
        Case.DEFAULT: _binder,
        Case.REPAIR: _binder,
        Case.CONSUMER: _consumer,
        Case.PROVISION: _provision,
        Case.NONE_FITS: _none_fits,
        Case.NAMED_MISSING: _named_missing,
        Case.NAMED_UNFIT: _named_unfit,
        Case.NAMED_TAKEN: _named_taken,
        Case.NAME_LOST: _lost,
        Case.VOLUME_LOST: _lost,
        Case.MISBOUND: _lost,
        Case.UNREADABLE: _unreadable,
    }
)
