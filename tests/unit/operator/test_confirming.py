"""The live look before anything is emptied or given away: whatever a lagging watch has not told counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from moorage_operator.model.ids import volume_key
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
