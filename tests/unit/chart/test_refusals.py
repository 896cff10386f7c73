"""Values that cannot be meant are refused before anything is written, in words that help."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.unit.chart.rendering import RefusedError, Values, default_values, render

if TYPE_CHECKING:
    from collections.abc import Iterator

A_CLASS: Final[Values] = {"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}

FREE: Final = ("nodeSelector", "podAnnotations", "podLabels", "annotations", "requests", "limits", "nodeAffinity")
"""Maps whose keys belong to the user or to Kubernetes, and the chart's own `global`, open for a parent chart."""


def full_values() -> Values:
    """Return the defaults with every optional part filled in, so that each level is there."""
    values = default_values()
    values["global"]["imagePullSecrets"] = [{"name": "secret"}]
    values["image"]["pullSecrets"] = [{"name": "secret"}]
    values["imports"] = ["/srv/data"]
    values["storageClasses"][0] |= {"annotations": {}, "mountOptions": [], "keep": False}
    for part in ("operator", "node"):
        values[part]["affinity"] = {"nodeAffinity": {}}
        values[part]["tolerations"] = [{"operator": "Exists"}]
        values[part]["resources"]["limits"] = {"memory": "1Gi"}
    return values


def closed_levels(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every map in which an unknown key must be refused."""
    if isinstance(value, dict):
        if path != ("global",):
            yield path
        for key, each in value.items():
            if key not in FREE:
                yield from closed_levels(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from closed_levels(each, (*path, index))


def test_the_full_values_are_fine() -> None:
    render(full_values())


@pytest.mark.parametrize("path", list(closed_levels(full_values())), ids=lambda path: ".".join(map(str, path)) or "top")
def test_an_unknown_key_is_refused_at_every_level(path: tuple[str | int, ...]) -> None:
    values = copy.deepcopy(full_values())
    level: Any = values
    for step in path:
        level = level[step]
    level["unkown"] = "a typing error"
    with pytest.raises(RefusedError, match="unkown"):
        render(values)


def test_a_parent_chart_may_have_other_globals() -> None:
    render({"global": {"storageClass": "theirs"}})


def _pools(*pools: tuple[str, str]) -> Values:
    return {"pools": [{"name": name, "path": path} for name, path in pools]}


def _classes(*classes: Values) -> Values:
    return {"storageClasses": [A_CLASS | each for each in classes]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_classes({"name": "a"}, {"name": "a"}), 'two classes are named "a"'),
        (_classes({"name": "a", "default": True}, {"name": "b", "default": True}), "a, b all say default: true"),
        (_classes({"name": "a", "parameters": {"pool": "ssd"}}), 'a: there is no pool "ssd"; pools has: default'),
        (_pools(("a", "var/lib")), '"var/lib" is not an absolute path; write it with a leading slash'),
        (_pools(("a", "/srv/../etc")), r'"\.\." part'),
        (_pools(("a", "/srv//a")), "empty"),
        (_pools(("a", "//")), "empty"),
        (_pools(("a", "/srv/a"), ("a", "/srv/b")), "two pools have this name"),
        (_pools(("a", "/srv/a"), ("b", "/srv/a/")), r"pools: b: the path \"/srv/a\" overlaps with pool a \(/srv/a\)"),
        (_pools(("a", "/srv/a"), ("b", "/srv/a/b")), "overlaps with pool a"),
        (_pools(("a", "/srv/a/b"), ("b", "/srv/a")), "overlaps with pool a"),
        (_pools(("a", "/var/lib/kubelet/volumes")), "overlaps with the kubelet's directory"),
        (_pools(("a", "/var/lib")), "overlaps with the kubelet's directory"),
        (_pools(("a", "/dev/volumes")), r"overlaps with the system directory /dev"),
        (_pools(("a", "/csi")), r"overlaps with the system directory /csi"),
        (_pools(("a", "/opt")), r"overlaps with the system directory /opt/moorage"),
        ({"imports": ["srv/data"]}, 'imports: "srv/data" is not an absolute path'),
        ({"imports": ["/srv/../data"]}, r"imports: .*part"),
        ({"imports": ["/var/lib/moorage"]}, "imports: .*overlaps with pool default"),
        ({"imports": ["/var/lib/moorage/default/volumes"]}, "imports: .*overlaps with pool default"),
        ({"imports": ["/var/lib/kubelet/pods"]}, "imports: .*overlaps with the kubelet's directory"),
        ({"imports": ["/etc"]}, "imports: .*overlaps with the system directory /etc"),
        ({"imports": ["/srv/a", "/srv/a/b"]}, "imports: .*overlaps with import /srv/a"),
        ({"operator": {"lease": {"renew": 15}}}, "duration must be longer than renew"),
        ({"operator": {"lease": {"retry": 10}}}, "renew longer than retry"),
        ({"kubeletDir": "var/lib/kubelet"}, 'kubeletDir: "var/lib/kubelet" is not an absolute path'),
        ({"kubeletDir": "/" + "k" * 65}, "66 bytes long, at most 65"),
    ],
)
def test_what_contradicts_itself_is_refused(values: Values, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        render(values)


def test_paths_that_only_begin_alike_do_not_overlap() -> None:
    render(_pools(("a", "/srv/a"), ("b", "/srv/ab"), ("c", "/development")))
    render({"kubeletDir": "/" + "k" * 64})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"binder": {"mode": "alone"}}, "binder.mode"),
        ({"operator": {"leaderElection": "no"}}, "operator.leaderElection"),
        ({"pools": []}, "pools"),
        ({"pools": [{"name": "A", "path": "/srv/a"}]}, "pools.0.name"),
        ({"pools": [{"name": "a", "path": "/srv/a", "reserve": "half"}]}, "pools.0.reserve"),
        ({"pools": [{"name": "a", "path": "/srv/a", "reserve": "100%"}]}, "pools.0.reserve"),
        ({"pools": [{"name": "a", "path": "/srv/a", "overcommit": 0.5}]}, "pools.0.overcommit"),
        ({"image": {"digest": "latest"}}, "image.digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy"),
        ({"logging": {"level": "loud"}}, "logging.level"),
        ({"operator": {"replicas": 0}}, "operator.replicas"),
        ({"api": {"qps": -1}}, "api.qps"),
        ({"node": {"maxUnavailable": "0%"}}, "node.maxUnavailable"),
        ({"node": {"maxVolumes": -1}}, "node.maxVolumes"),
        ({"imports": [1]}, "imports.0"),
        ({"ephemeralVolumes": {"enabled": "yes"}}, "ephemeralVolumes.enabled"),
        ({"test": {"size": "10%"}}, "test.size"),
        (_classes({"name": "a", "allowVolumeExpansion": True}), "storageClasses.0.allowVolumeExpansion"),
        (_classes({"name": "Not Allowed"}), "storageClasses.0.name"),
        (_classes({"name": "a", "parameters": {"backend": "cloud"}}), "storageClasses.0.parameters.backend"),
        (_classes({"name": "a", "parameters": {"onDelete": "burn"}}), "storageClasses.0.parameters.onDelete"),
        (_classes({"name": "a", "parameters": {"mountPermissions": 750}}), "storageClasses.0.parameters.mountPerm"),
        (_classes({"name": "a", "volumeBindingMode": "Later"}), "storageClasses.0.volumeBindingMode"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_name(values: Values, named: str) -> None:
    with pytest.raises(RefusedError) as refused:
        render(values)
    assert named.replace(".", "") in str(refused.value).replace(".", "").replace("/", "")
