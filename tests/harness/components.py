"""What each program of the control plane has to be told; the same for loopback and for a virtual node."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from pathlib import Path  # noqa: TC003 - dataclasses need their annotations' names at hand
from typing import Any

from tests.harness import binaries, certificates

SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
"""The address at which pods reach the API server; it lies on `lo` of the first node, so nothing has to proxy."""

SYSTEM_USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}
"""Who talks to the API server, with a group; separate users, so that the audit log tells who wrote what."""

WRITES = ["create", "update", "patch", "delete", "deletecollection"]


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One program with its arguments, under the name by which it is killed and restarted."""

    name: str
    argv: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """How one user reaches an API server."""

    url: str
    token: str
    ca_file: Path
    kubeconfig: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """Where one control plane keeps its files and listens."""

    directory: Path
    bind: str
    """The address to listen on."""
    host: str
    """The address that clients use."""
    port: int
    etcd_port: int
    etcd_peer_port: int
    in_cluster: bool
    """Whether pods must reach it at the address of the `kubernetes` service."""
    extra_names: tuple[str, ...] = ()
    """Further addresses its certificate must be valid for."""
    users: tuple[tuple[str, str], ...] = ()
    """Further users with a group each."""
    controllers: bool = True
    binder: bool = True

    @property
    def pki(self) -> Path:
        """Return the folder of the keys and certificates."""
        return self.directory / "pki"

    @property
    def audit_log(self) -> Path:
        """Return the file with one line of JSON for each write that reached the API server."""
        return self.directory / "audit.log"

    @property
    def url(self) -> str:
        """Return the address of the API server."""
        return f"https://{self.host}:{self.port}"

    def prepare(self) -> None:
        """Write what the programs read: keys, tokens, the audit policy, a kubeconfig for each user. Idempotent."""
        self.directory.mkdir(parents=True, exist_ok=True)
        certificates.write_all(
            self.pki,
            names=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"],
            addresses=sorted({"127.0.0.1", API_SERVICE, self.host, *self.extra_names}),
        )
        tokens = self.directory / "tokens.csv"
        if not tokens.exists():
            lines = [
                f'{secrets.token_hex(16)},{user},{user},"{group}"\n'
                for user, group in [*SYSTEM_USERS.items(), *self.users]
            ]
            tokens.touch(mode=0o600)
            tokens.write_text("".join(lines))
        (self.directory / "audit-policy.yaml").write_text(
            json.dumps(
                {
                    "apiVersion": "audit.k8s.io/v1",
                    "kind": "Policy",
                    "omitStages": ["RequestReceived"],
                    "rules": [{"level": "Metadata", "verbs": WRITES}, {"level": "None"}],
                }
            )
        )

    def tokens(self) -> dict[str, str]:
        """Return each user's token."""
        lines = (self.directory / "tokens.csv").read_text().splitlines()
        return {line.split(",")[1]: line.split(",")[0] for line in lines}

    def access(self, user: str = "admin", *, url: str = "") -> Access:
        """Return how a user reaches the API server; writes the kubeconfig that says the same.

        Args:
            user: one of the system users or of `users`.
            url: the address as this user sees it, where it is another one.
        """
        token = self.tokens()[user]
        kubeconfig = self.directory / f"{user.replace(':', '-')}.kubeconfig"
        text = json.dumps(kubeconfig_of(url=url or self.url, ca_file=self.pki / "ca.crt", token=token), indent=1)
        if not kubeconfig.exists() or kubeconfig.read_text() != text:
            kubeconfig.touch(mode=0o600)
            kubeconfig.write_text(text)
        return Access(url or self.url, token, self.pki / "ca.crt", kubeconfig)

    def etcd(self) -> Command:
        """Return the command of etcd; without fsync, because a test's cluster need not survive a power cut."""
        client = f"http://127.0.0.1:{self.etcd_port}"
        peer = f"http://127.0.0.1:{self.etcd_peer_port}"
        return Command(
            "etcd",
            (
                str(binaries.program("etcd")),
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ),
        )

    def api_server(self) -> Command:
        """Return the command of the API server."""
        argv = [
            str(binaries.program("kube-apiserver")),
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--bind-address={self.bind}",
            f"--advertise-address={self.host}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.pki / 'apiserver.crt'}",
            f"--tls-private-key-file={self.pki / 'apiserver.key'}",
            f"--kubelet-client-certificate={self.pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={self.pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.pki / 'service-account.pub'}",
            f"--service-account-signing-key-file={self.pki / 'service-account.key'}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--audit-policy-file={self.directory / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxsize=1000",
        ]
        if not self.in_cluster:
            # No pod will ever look for an address here, and a loopback address is refused as an endpoint.
            argv.append("--endpoint-reconciler-type=none")
        if not self.controllers:
            # Nobody makes the service accounts that this plug-in would demand of every pod.
            argv.append("--disable-admission-plugins=ServiceAccount")
        return Command("kube-apiserver", tuple(argv))

    def controller_manager(self) -> Command:
        """Return the command of the controller manager, with a service account for each of its controllers."""
        kubeconfig = self.access("system:kube-controller-manager").kubeconfig
        argv = [
            str(binaries.program("kube-controller-manager")),
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={self.pki / 'service-account.key'}",
            f"--root-ca-file={self.pki / 'ca.crt'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            "--allocate-node-cidrs=false",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]
        if not self.binder:
            argv.append("--controllers=*,-persistentvolume-binder-controller")
        return Command("kube-controller-manager", tuple(argv))

    def scheduler(self) -> Command:
        """Return the command of the scheduler."""
        return Command(
            "kube-scheduler",
            (
                str(binaries.program("kube-scheduler")),
                f"--kubeconfig={self.access('system:kube-scheduler').kubeconfig}",
                "--leader-elect=false",
                "--secure-port=0",
                "--kube-api-qps=200",
                "--kube-api-burst=400",
            ),
        )


def kubeconfig_of(*, url: str, ca_file: Path, token: str) -> dict[str, Any]:
    """Return a kubeconfig that holds the CA's certificate and the token: it can be copied elsewhere."""
    authority = base64.b64encode(ca_file.read_bytes()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "moorage", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "moorage", "context": {"cluster": "moorage", "user": "user"}}],
        "current-context": "moorage",
    }
