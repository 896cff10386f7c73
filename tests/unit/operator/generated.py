"""Volumes and claims of every shape that decides anything, for Hypothesis.

Each object is made from one number, so that thousands of worlds take seconds; a failing world shrinks by its objects.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.unit.operator.objects import claim_body, volume_body

Body = dict[str, Any]

SIZES = {"512Mi": 2**29, "1Gi": 2**30, "1025Mi": 1025 * 2**20, "2Gi": 2**31, "2147483649": 2**31 + 1, "3Gi": 3 * 2**30}
CLASSES = ("", "a", "b")
MODES = (
    ["ReadWriteOnce"],
    ["ReadOnlyMany"],
    ["ReadWriteMany"],
    ["ReadWriteOnce", "ReadOnlyMany"],
    ["ReadOnlyMany", "ReadWriteOnce", "ReadOnlyMany"],
    ["ReadWriteOnce", "ReadWriteMany"],
    ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
    ["ReadWriteOncePod"],
)
VOLUME_MODES = (None, None, None, "Filesystem", "Block")
ATTRIBUTES = (None, None, None, "", "fast")
BETA_CLASS = "volume.beta.kubernetes.io/storage-class"
RESERVED_FOR = "moorage.dev/reserved-for"
ZONE = "zone"
LABELS = {"tier": ("gold", "lead"), "disk": ("a", "b")}
AFFINITIES: tuple[Body | None, ...] = (
    None,
    None,
    {},
    {"required": {"nodeSelectorTerms": []}},
    {"required": {"nodeSelectorTerms": [{}]}},
    *(
        {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": zones}]}]}}
        for zones in (["east"], ["west"], ["east", "west"])
    ),
)
PHASES = ("Available", "Available", "Available", "Available", "Available", "Pending", "Bound", "Released", "Failed")
REFERENCES = (
    {"namespace": "ns", "name": "data"},
    {"namespace": "ns", "name": "data", "uid": "u1"},
    {"namespace": "ns", "name": "data", "uid": "earlier"},
    {"namespace": "ns", "name": "other", "uid": "u2"},
    {"namespace": "elsewhere", "name": "data"},
    {"namespace": "ns", "name": "*"},
    {"namespace": "elsewhere", "name": "*"},
)

seeds = st.integers(0, 2**32)


def dice(seed: int) -> Random:
    """What an object is made of."""
    return Random(seed)  # noqa: S311 (shapes of test objects, no secrets)


def volume(random: Random, name: str) -> Body:
    """One volume made by hand, in any state."""
    body = volume_body(
        name,
        uid=f"uid-{name}",
        claim=None,
        policy="Retain",
        node="",
        driver="csi.example/hand",
        provisioned_by="",
        finalizers=(),
        phase=random.choice(PHASES),
        size=random.choice([*SIZES]),
        class_name=random.choice(CLASSES),
        deleting=_rarely(random),
    )
    body["spec"]["accessModes"] = list(random.choice(MODES))
    body["metadata"]["labels"] = _labels(random)
    marks = {}
    if _rarely(random):
        marks[BETA_CLASS] = random.choice(CLASSES)
    if _rarely(random):
        marks[RESERVED_FOR] = random.choice(("ns", "elsewhere", "ns/data"))
    if marks:
        body["metadata"]["annotations"] = marks
    _put(body["spec"], "nodeAffinity", random.choice(AFFINITIES))
    _put(body["spec"], "volumeMode", random.choice(VOLUME_MODES))
    _put(body["spec"], "volumeAttributesClassName", random.choice(ATTRIBUTES))
    _put(body["spec"], "claimRef", dict(random.choice(REFERENCES)) if random.random() < 0.35 else None)
    return body


def claim(random: Random) -> Body:
    """The claim ``ns/data`` with uid ``u1``, that names no volume."""
    body = claim_body(class_name=random.choice((*CLASSES, None)), size=random.choice([*SIZES][:4]))
    body["spec"]["accessModes"] = list(random.choice(MODES[:6]))
    if _rarely(random):
        body["metadata"]["annotations"] = {BETA_CLASS: random.choice(CLASSES)}
    _put(body["spec"], "volumeMode", random.choice(VOLUME_MODES))
    _put(body["spec"], "volumeAttributesClassName", random.choice(ATTRIBUTES))
    _put(body["spec"], "selector", random.choice((None, None, _selector(random))))
    return body


claims = seeds.map(lambda seed: claim(dice(seed)))
volumes = st.tuples(seeds, st.integers(0, 8)).map(lambda drawn: volume(dice(drawn[0]), f"v{drawn[1]}"))
stocks = st.lists(seeds, max_size=12).map(
    lambda drawn: [volume(dice(seed), f"v{number}") for number, seed in enumerate(drawn)]
)


def _rarely(random: Random) -> bool:
    return random.random() < 0.1


def _labels(random: Random) -> dict[str, str]:
    return {key: random.choice(values) for key, values in LABELS.items() if random.random() < 0.7}


def _selector(random: Random) -> Body:
    chosen: Body = {}
    if random.random() < 0.5:
        chosen["matchLabels"] = _labels(random)
    if random.random() < 0.5:
        chosen["matchExpressions"] = [_expression(random) for _ in range(random.randint(0, 2))]
    return chosen


def _expression(random: Random) -> Body:
    key, operator = random.choice([*LABELS]), random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
    if operator in {"Exists", "DoesNotExist"}:
        return {"key": key, "operator": operator}
    return {"key": key, "operator": operator, "values": random.sample(LABELS[key], random.randint(1, 2))}


def _put(body: Body, field: str, value: Any) -> None:
    if value is not None:
        body[field] = value
