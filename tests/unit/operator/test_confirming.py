"""The live look before anything is emptied, given away or bound again: whatever a lagging watch has not told counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from moorage_operator.decide.claims import GRACE
from moorage_operator.decide.plan import NOTHING, Write
from moorage_operator.decide.volumes import decide_volume
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import claim_key, volume_key
from moorage_operator.model.rules import Rules
from tests.unit.operator.model_binder import HandmadeCluster
from tests.unit.operator.model_life import Life
from tests.unit.operator.objects import claim_body, volume_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.operator.model_api import Body

PATH = "/api/v1/persistentvolumes/v"
CLAIM = "/api/v1/namespaces/ns/persistentvolumeclaims/data"
BOTH = pytest.mark.parametrize("instead", [True, False], ids=["instead", "beside"])


def life_that_knows(reuse: str, *, instead: bool, **fields: Any) -> Life:
    """One that knows of a Released volume of our driver, whose claim is gone as far as it knows."""
    cluster = HandmadeCluster()
    given = {"uid": "uid-v", "phase": "Released", "policy": "Retain", "provisioned_by": "", "finalizers": ()}
    body = volume_body("v", **given | fields)
    body["metadata"]["annotations"] = {"moorage.dev/reuse": reuse}
    cluster.nodes.tables["n1"].add("v")
    cluster.api.store(PATH, body)
    return Life(cluster, "ours", Rules(instead=instead))


def works(life: Life) -> None:
    """It works on the volume, without news."""
    life.begin(volume_key("v"))
    while life.running:
        life.advance(volume_key("v"))


def changed(life: Life, change: Callable[[Body], None]) -> None:
    body = life.cluster.api.get(PATH)
    change(body)
    life.cluster.api.store(PATH, body)


@BOTH
def test_it_is_emptied_once_its_claim_is_gone(*, instead: bool) -> None:
    life = life_that_knows("after-wipe", instead=instead)
    works(life)
    assert life.cluster.nodes.wiped_for == {"v": "u1"}
    assert "claimRef" not in life.cluster.api.get(PATH)["spec"]


@BOTH
@pytest.mark.parametrize("elsewhere", ["", "another"])
@pytest.mark.parametrize("reuse", ["after-wipe", "same-claim"])
def test_nothing_happens_under_a_claim_that_lives(reuse: str, elsewhere: str, *, instead: bool) -> None:
    life = life_that_knows(reuse, instead=instead)
    life.cluster.api.store(CLAIM, claim_body(volumeName=elsewhere))
    works(life)
    assert not life.cluster.nodes.wiped_for
    if not elsewhere:
        assert life.cluster.api.get(PATH)["spec"]["claimRef"]["uid"] == "u1"


@BOTH
def test_a_new_claim_of_that_name_does_not_stand_in_the_way(*, instead: bool) -> None:
    life = life_that_knows("after-wipe", instead=instead)
    life.cluster.api.store(CLAIM, claim_body(uid="u2"))
    works(life)
    assert life.cluster.nodes.wiped_for == {"v": "u1"}


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["spec"].update(persistentVolumeReclaimPolicy="Delete"),
        lambda body: body["spec"]["claimRef"].update(uid="u2"),
        lambda body: body["spec"].pop("claimRef"),
    ],
    ids=["policy", "taken", "freed"],
)
def test_what_is_not_as_it_was_is_not_emptied(change: Callable[[Body], None], *, instead: bool) -> None:
    life = life_that_knows("after-wipe", instead=instead)
    life.cluster.api.store(CLAIM, claim_body(uid="u2", volumeName="v"))
    changed(life, change)
    works(life)
    assert not life.cluster.nodes.wiped_for


@BOTH
def test_a_node_that_is_down_leaves_all_as_it_is_and_is_told(*, instead: bool) -> None:
    life = life_that_knows("after-wipe", instead=instead)
    life.cluster.nodes.mood["n1"] = "down"
    works(life)
    assert not life.cluster.nodes.wiped_for
    assert life.cluster.api.get(PATH)["spec"]["claimRef"]["uid"] == "u1"
    assert life.cluster.events["uid-v", "VolumeFailedRecycle"]


@BOTH
def test_what_was_emptied_for_a_claim_is_not_emptied_again_for_it(*, instead: bool) -> None:
    """The answer was lost, and meanwhile nobody can have written: the driver knows, so asking again is free."""
    life = life_that_knows("after-wipe", instead=instead)
    life.cluster.lose_next_answer = True
    works(life)
    life.deliver()
    works(life)
    assert life.cluster.nodes.wiped_for == {"v": "u1"}
    assert "claimRef" not in life.cluster.api.get(PATH)["spec"]


def life_that_binds(*, instead: bool, phase: str) -> Life:
    """One that knows a volume of that phase, made by hand and kept for a claim that lives."""
    cluster = HandmadeCluster()
    body = volume_body("v", uid="uid-v", phase=phase, policy="Retain", provisioned_by="", finalizers=(), driver="x")
    cluster.api.store(PATH, body)
    cluster.api.store(CLAIM, claim_body())
    return Life(cluster, "ours", Rules(instead=instead))


def at_rest(life: Life, *, news: bool = True) -> None:
    """All is done, and with ``news`` told; what is left to others for a moment is left to them for long enough."""
    for _ in range(3):
        while life.work(news=news):
            pass
        life.cluster.now += GRACE
        life.ready |= life.waiting


@BOTH
@pytest.mark.parametrize("phase", ["Released", "Failed"])
def test_a_volume_that_was_let_go_is_not_bound_to_a_claim_of_which_we_have_not_heard_that_it_is_gone(
    phase: str, *, instead: bool
) -> None:
    life = life_that_binds(instead=instead, phase=phase)
    life.cluster.api.objects.pop(CLAIM)
    at_rest(life, news=False)
    assert life.cluster.api.get(PATH)["status"]["phase"] == phase
    assert life.ledger.claim(claim_key("ns", "data")) is None


@BOTH
@pytest.mark.parametrize("phase", ["Released", "Failed", "Available"])
def test_it_is_bound_to_a_claim_that_lives(phase: str, *, instead: bool) -> None:
    life = life_that_binds(instead=instead, phase=phase)
    at_rest(life)
    assert life.cluster.api.get(PATH)["status"]["phase"] == "Bound"
    assert life.cluster.api.get(CLAIM)["status"]["phase"] == "Bound"


def test_a_volume_is_called_bound_by_one_worker_only() -> None:
    """The claim's bind writes both; its answer for the claim may come first, and wakes the volume."""
    life = life_that_binds(instead=True, phase="Available")
    life.begin(claim_key("ns", "data"))
    named = Claim.from_api(claim_body(volumeName="v", version=1000))
    assert volume_key("v") in life.ledger.apply(named, assumed=True)
    assert decide_volume(life.ledger, volume_key("v")) == NOTHING
    life.die()
    alone = Life(life.cluster, "next", Rules(instead=True))
    alone.ledger.apply(named)
    (write,) = decide_volume(alone.ledger, volume_key("v"))
    assert isinstance(write, Write)
    assert write.ops[-1] == {"op": "add", "path": "/status/phase", "value": "Bound"}
