"""The control plane of the `api` suite: several at once, killed and restarted, nothing left."""

import json
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from tests.harness import apiclient, binaries, controlplane, processes
from tests.harness.controlplane import ControlPlane
from tests.harness.errors import StartError

ROOT = Path(__file__).parents[3]


def _kubectl(plane: ControlPlane, *words: str, user: str = "admin") -> str:
    return processes.run([binaries.program("kubectl"), f"--kubeconfig={plane.access(user).kubeconfig}", *words]).stdout


def test_each_user_is_known_by_its_own_name_in_the_audit_log(api_server: ControlPlane) -> None:
    _kubectl(api_server, "create", "namespace", "audited", user="somebody")
    lines = [json.loads(line) for line in api_server.audit_log.read_text().splitlines()]
    mine = [line for line in lines if line["user"]["username"] == "somebody"]
    assert [(line["verb"], line["objectRef"]["name"]) for line in mine] == [("create", "audited")]
    assert "requestObject" not in mine[0]
    assert {line["verb"] for line in lines} <= {"create", "update", "patch", "delete", "deletecollection"}


def test_a_stranger_is_refused(api_server: ControlPlane) -> None:
    access = api_server.access()
    stranger = type(access)(access.url, "wrong", access.ca_file, access.kubeconfig)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        apiclient.get(stranger, "/api/v1/namespaces")


def test_what_was_written_outlives_a_kill_of_both_programs(api_server: ControlPlane) -> None:
    _kubectl(api_server, "create", "namespace", "kept")
    api_server.kill("kube-apiserver")
    assert not apiclient.ready(api_server.access())
    api_server.restart("etcd")
    api_server.restart("kube-apiserver")
    assert _kubectl(api_server, "get", "namespace", "kept", "-o", "name") == "namespace/kept\n"


def test_two_run_at_once_and_a_name_only_once() -> None:
    with ControlPlane("test-one") as one:
        with ControlPlane("test-two") as two:
            assert one.url != two.url
            with pytest.raises(StartError, match="runs already"):
                ControlPlane("test-one").start()
            assert apiclient.ready(one.access())
            assert apiclient.ready(two.access())
        folder = two.directory
        assert not folder.exists()
        assert _left(folder) == []


def test_what_a_killed_owner_leaves_is_swept() -> None:
    program = (
        "import sys; from tests.harness.controlplane import ControlPlane\n"
        "plane = ControlPlane('test-killed').start(); print(plane.directory, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert {each.program for each in _left(folder)} == {"etcd", "kube-apiserver"}
        owner.kill()
    processes.wait_until(lambda: not _left(folder), what="the end of its programs", seconds=10)
    assert folder.exists()
    controlplane.sweep()
    assert not folder.exists()


def _left(folder: Path) -> list[processes.Running]:
    return [each for each in processes.running() if any(f"{folder}/" in word for word in each.argv)]
