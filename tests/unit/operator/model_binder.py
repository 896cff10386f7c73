"""The in-tree binder as a further life, and a cluster in which volumes are also made by hand.

The in-tree binder is our own table of decisions in the setting that 234 recorded behaviours check it in, with two
differences: it takes Moorage for a program of somebody else, and each of its writes is a PUT, which goes through
only if the object is still at the version that this life has seen.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.decide import judging, matching, reasons
from moorage_operator.decide.judging import Case
from moorage_operator.errors import ConflictError
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import claim_key
from moorage_operator.model.rules import Rules
from moorage_operator.model.volume import ANY_CLAIM, Volume
from tests.unit.operator.model_api import Body, kind_of
from tests.unit.operator.model_cluster import Cluster
from tests.unit.operator.model_life import Life

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moorage_operator.ledger import Record

OUTSIDE = "csi.example/outside"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
MOST_TURNS = 4
IN_TREE = Rules(instead=True, explains=False, patience=0.0)


class InTreeLife(Life):
    """The binder of kube-controller-manager."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name, IN_TREE)

    def read(self, path: str, body: Body) -> Record:
        return kind_of(path).from_api(foreign(body))

    async def get(self, path: str) -> Body:
        return foreign(await super().get(path))

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Body:
        known = self._version(path.removesuffix("/status"))

        def put() -> Body:
            current = self.cluster.api.get(path.removesuffix("/status"))
            if current["metadata"]["resourceVersion"] != known:
                raise ConflictError(path, status=409)
            return self.cluster.api.patch(path, ops)

        return foreign(await self._call("in-tree", path, put))

    def _version(self, path: str) -> str:
        names = path.split("/")
        record: Claim | Volume | None
        if names[-2] == "persistentvolumes":
            record = self.ledger.volume(names[-1])
        else:
            record = self.ledger.claim(claim_key(names[-3], names[-1]))
        return record.resource_version if record is not None else ""


class HandmadeCluster(Cluster):
    """A cluster whose volumes may be anybody's: what must hold there at every moment, and at rest."""

    def check(self) -> None:
        holders: dict[str, str] = {}
        for body in self.api.claims.values():
            name, uid = body["spec"].get("volumeName"), body["metadata"]["uid"]
            if body["status"]["phase"] != "Bound":
                continue
            assert name, "Bound without a volume"
            assert "pv.kubernetes.io/bind-completed" in body["metadata"].get("annotations", {}), (
                "Bound before the marks"
            )
            assert name not in holders, f"{name} is bound to {holders.get(name)} and {uid}"
            holders[name] = uid
            volume = self.api.volumes.get(f"/api/v1/persistentvolumes/{name}")
            if volume is not None:
                ref = volume["spec"].get("claimRef") or {}
                assert ref.get("uid") == uid, f"{name} was taken from its claim {uid}: {ref}"

    def check_rest(self, rules: Rules) -> None:
        """Everything that can be bound is, nothing is kept for those who do not need it, and every wait has a reason."""
        ledger = Ledger(rules)
        for path, body in self.api.objects.items():
            ledger.apply(kind_of(path).from_api(copy.deepcopy(body)))
        for body in self.api.claims.values():
            claim = Claim.from_api(copy.deepcopy(body))
            judgement = judging.judge(ledger, claim)
            assert judgement.case not in {Case.BIND, Case.CHOOSE, Case.DEFAULT, Case.REPAIR}, (
                f"{claim.name}: {judgement}"
            )
            made = judgement.case is Case.PROVISION and judgement.cls is not None and judgement.cls.ours
            refused = claim.selector is not None or ledger.volume(f"pvc-{claim.uid}") is not None
            assert not made or refused or claim.deleting, f"no volume was made for {claim.name}"
            if judgement.case is Case.KEEP:
                assert claim.bound, f"{claim.name} is bound half"
                for volume in ledger.volumes_for(claim.key):
                    spare = volume.claim_uid == claim.uid and volume.name != claim.volume_name
                    assert not spare or volume.phase in {"Released", "Failed"}, (
                        f"{volume.name} is kept for {claim.name}"
                    )
            else:
                assert reasons.answer(ledger, claim, judgement) is not None, f"{claim.name} waits without a reason"
                found = matching.match(ledger, claim, late=matching.is_late(claim, judgement.cls))
                assert found is None or claim.volume_name or claim.bind_completed
        for body in self.api.volumes.values():
            self._check_phase(Volume.from_api(copy.deepcopy(body)), ledger)

    def check_calm(self, since: int) -> None:
        """Once people have stopped, no field of an object goes to and fro: a bind changes each twice at most, a loser too."""
        last: dict[tuple[str, str], Any] = {}
        turns: Counter[tuple[str, str]] = Counter()
        for number, (path, body, _) in enumerate(self.api.log):
            fields = {
                "phase": (body.get("status") or {}).get("phase"),
                "claimRef": ((body.get("spec") or {}).get("claimRef") or {}).get("uid"),
                "volumeName": (body.get("spec") or {}).get("volumeName"),
                "node": (body["metadata"].get("annotations") or {}).get("volume.kubernetes.io/selected-node"),
            }
            for name, value in fields.items():
                field = (body["metadata"]["uid"], f"{name} of {path.rpartition('/')[2]}")
                if number >= since and field in last and last[field] != value:
                    turns[field] += 1
                last[field] = value
        assert max(turns.values(), default=0) <= MOST_TURNS, f"to and fro: {turns.most_common(2)}"

    def _check_phase(self, volume: Volume, ledger: Ledger) -> None:
        if not volume.claim_uid:
            assert volume.phase == "Available", f"{volume.name} is {volume.phase} and nobody's"
        elif ledger.claim_of(volume.claim_uid) is None:
            assert volume.phase in {"Released", "Failed"}, f"{volume.name} is {volume.phase}, its claim is gone"


def foreign(body: Body) -> Body:
    """The object as somebody sees it who does not know Moorage."""
    seen = copy.deepcopy(body)
    if seen.get("provisioner") == DRIVER_NAME:
        seen["provisioner"] = OUTSIDE
    spec = seen.get("spec") or {}
    if (spec.get("claimRef") or {}).get("name") == ANY_CLAIM:
        # What is kept for a namespace is to everybody else just kept for somebody.
        spec["claimRef"]["name"] = "somebody"
    if (spec.get("csi") or {}).get("driver") == DRIVER_NAME:
        spec["csi"]["driver"] = OUTSIDE
    marks = (seen.get("metadata") or {}).get("annotations") or {}
    if marks.get(PROVISIONED_BY) == DRIVER_NAME:
        marks[PROVISIONED_BY] = OUTSIDE
    for mark in ("moorage.dev/reuse", "moorage.dev/reserved-for"):
        if mark in marks:
            marks[f"seen.{mark}"] = marks.pop(mark)
    return seen
