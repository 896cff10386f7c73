"""The chart and the programs agree: flags, ports, words, files. A flag the program does not know fails here."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from moorage_csi import contract
from moorage_csi import settings as csi_settings
from moorage_csi.rpc import validation
from moorage_operator import settings as operator_settings
from tests.unit.chart.rendering import CHART, NAMESPACE, Rendering, render

if TYPE_CHECKING:
    from pathlib import Path

NODE = {"MOORAGE_NODE_NAME": "node-1"}


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return schema


def _pools_file(made: Rendering, folder: Path) -> Path:
    path = folder / "pools.json"
    path.write_text(made.only("ConfigMap")["data"]["pools.json"])
    return path


def test_the_node_plugin_starts_with_what_the_chart_gives_it(tmp_path: Path) -> None:
    made = render(
        {
            "kubeletDir": "/var/lib/k0s/kubelet/",
            "logging": {"level": "debug", "format": "json"},
            "node": {"maxVolumes": 110},
            "imports": ["/mnt/nas/", "/srv/data"],
            "pools": [
                {"name": "default", "path": "/srv/default", "reserve": "10Gi", "overcommit": 2.5},
                {"name": "shared", "path": "/srv/shared/", "shared": True},
            ],
        }
    )
    container = made.container("DaemonSet")
    assert container["env"] == [
        {"name": "MOORAGE_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    ]
    in_the_pod = "--pools-file=/etc/moorage/pools.json"
    assert in_the_pod in container["args"]
    arguments = [each for each in container["args"] if each != in_the_pod]
    settings = csi_settings.load([*arguments, f"--pools-file={_pools_file(made, tmp_path)}"], NODE)
    assert str(settings.kubelet_dir) == "/var/lib/k0s/kubelet"
    assert settings.kubelet_endpoint == f"/var/lib/k0s/kubelet/plugins/{contract.DRIVER_NAME}/csi.sock"
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert (settings.max_volumes, settings.imports) == (110, ("/mnt/nas", "/srv/data"))
    first, second = settings.pools
    assert (first.name, first.path, first.reserve_bytes, first.overcommit) == ("default", "/srv/default", 10 << 30, 2.5)
    assert (second.path, second.shared, second.reserve_bytes) == ("/srv/shared", True, 0)


def test_every_path_the_node_plugin_is_told_is_mounted(defaults: Rendering, tmp_path: Path) -> None:
    container = defaults.container("DaemonSet")
    settings = csi_settings.load([*container["args"], f"--pools-file={_pools_file(defaults, tmp_path)}"], NODE)
    told = {
        str(settings.endpoint.parent),
        str(settings.tls_dir),
        str(settings.registration_dir),
        str(settings.kubelet_dir),
        "/etc/moorage",
        "/dev",
        *(str(pool.path) for pool in settings.pools),
    }
    assert {each["mountPath"] for each in container["volumeMounts"]} == told


def test_the_ports_are_the_ones_served(defaults: Rendering, tmp_path: Path) -> None:
    container = defaults.container("DaemonSet")
    settings = csi_settings.load([*container["args"], f"--pools-file={_pools_file(defaults, tmp_path)}"], NODE)
    assert settings.listen is not None
    assert settings.metrics_listen is not None
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"csi": contract.CSI_PORT, "metrics": settings.metrics_listen.port}
    assert settings.listen.port == contract.CSI_PORT
    assert f"--node-port={contract.CSI_PORT}" in defaults.container("Deployment")["args"]


def test_the_operator_looks_for_the_pods_that_the_chart_makes(defaults: Rendering) -> None:
    (selector,) = (
        each.removeprefix("--node-selector=")
        for each in defaults.container("Deployment")["args"]
        if each.startswith("--node-selector=")
    )
    wanted = dict(each.split("=") for each in selector.split(","))
    assert defaults.pod("DaemonSet")["metadata"]["labels"].items() >= wanted.items()
    assert not defaults.pod("Deployment")["metadata"]["labels"].items() >= wanted.items()


def test_the_operator_knows_every_flag_of_the_chart() -> None:
    lease = {"duration": 60, "renew": 40, "retry": 10}
    made = render(
        {
            "api": {"qps": 0, "burst": 1},
            "logging": {"level": "error", "format": "json"},
            "binder": {"mode": "instead"},
            "operator": {"workers": 8, "csiTimeout": 60, "lease": lease, "leaderElection": False},
        }
    )
    settings = operator_settings.read(made.container("Deployment")["args"], {})
    assert (settings.namespace, settings.node_port, settings.binder_mode) == (NAMESPACE, contract.CSI_PORT, "instead")
    assert (settings.api_qps, settings.api_burst, settings.workers, settings.csi_timeout) == (0, 1, 8, 60)
    assert settings.leader_election is False
    assert (settings.lease_duration, settings.lease_renew, settings.lease_retry) == (60, 40, 10)
    assert (settings.log_level, settings.log_format) == ("error", "json")


def test_the_defaults_of_the_chart_are_those_of_the_operator(defaults: Rendering) -> None:
    told = operator_settings.read(defaults.container("Deployment")["args"], {})
    untold = operator_settings.read([f"--namespace={NAMESPACE}", f"--node-selector={told.node_selector}"], {})
    assert told == untold
    ports = {each["name"]: each["containerPort"] for each in defaults.container("Deployment")["ports"]}
    assert told.listen == f"0.0.0.0:{ports['metrics']}"


def test_names_and_words_are_those_of_the_contract(defaults: Rendering) -> None:
    assert defaults.only("CSIDriver")["metadata"]["name"] == contract.DRIVER_NAME
    assert {each["provisioner"] for each in defaults.all("StorageClass")} == {contract.DRIVER_NAME}
    words = _schema()["properties"]["storageClasses"]["items"]["properties"]["parameters"]["properties"]
    assert set(words) == {
        value for key, value in vars(contract.Parameter).items() if key.isupper() and isinstance(value, str)
    }
    assert tuple(words[contract.Parameter.BACKEND]["enum"]) == contract.BACKENDS
    assert tuple(words[contract.Parameter.QUOTA]["enum"]) == contract.QUOTAS
    assert tuple(words[contract.Parameter.FSTYPE]["enum"]) == contract.FILESYSTEMS


def test_the_schema_allows_what_the_driver_allows() -> None:
    words = _schema()["properties"]["storageClasses"]["items"]["properties"]["parameters"]["properties"]
    for key, allowed in words.items():
        for value in allowed.get("enum", ["0750"] if key == contract.Parameter.MOUNT_PERMISSIONS else ["default"]):
            validation.parameters({key: value}, pools=["default"])


def test_the_classes_of_the_chart_are_understood_by_the_driver(defaults: Rendering) -> None:
    for each in defaults.all("StorageClass"):
        validation.parameters(each["parameters"], pools=["default"])


def test_the_image_has_the_versions_of_the_distribution(defaults: Rendering) -> None:
    version = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    assert defaults.container("Deployment")["image"] == f"moorage:{version}"
    assert f"--namespace={NAMESPACE}" in defaults.container("Deployment")["args"]
