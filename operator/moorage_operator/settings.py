"""What the program is told: flags and the environment, checked once and then frozen.

Every flag can be given as ``MOORAGE_<FLAG>`` too, in capitals with underscores; the flag wins. A mistake
ends the program before it has touched anything, with a message that names the flag, the value and what
is allowed.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from moorage_csi.contract import CSI_PORT
from moorage_operator.errors import SettingsError

PREFIX: Final = "MOORAGE_"
DEFAULT_NAMESPACE: Final = "moorage-system"
MAX_PORT: Final = 65535

_LABEL: Final = re.compile(r"[0-9A-Za-z._/-]+=[0-9A-Za-z._-]*")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set; times are in seconds.

    Attributes:
        namespace: the operator's own; None leaves it to the service account or the kubeconfig.
        node_selector: labels of the node plugins' pods.
        binder_mode: ``beside`` the in-tree binder, or ``instead`` of it.
        leader_election: False lets every replica act at the same time.
        api_qps: requests a second to the API server; 0 is no limit.
        kubeconfig: None looks for the pod's service account first.
    """

    namespace: str | None
    node_selector: str
    node_port: int
    binder_mode: str
    listen: str
    workers: int
    api_qps: float
    api_burst: int
    csi_timeout: float
    leader_election: bool
    lease_duration: float
    lease_renew: float
    lease_retry: float
    log_level: str
    log_format: str
    kubeconfig: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flag:
    name: str
    default: str
    parse: Callable[[str], Any]
    meaning: str

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper().replace("-", "_")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists what there is")


def read(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the settings.

    Args:
        arguments: of the command line, without the program's name.
        environ: the environment.

    Raises:
        SettingsError: something cannot be used.
        SystemExit: ``--help`` was asked for.
    """
    parser = _Parser(prog="moorage-operator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in _FLAGS:
        default = f" (default: {flag.default})" if flag.default else ""
        parser.add_argument(f"--{flag.name}", metavar="VALUE", help=f"{flag.meaning}{default}".replace("%", "%%"))
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for flag in _FLAGS:
        field = flag.name.replace("-", "_")
        text = given[field]
        said = f"--{flag.name}"
        if text is None:
            text, said = environ.get(flag.variable, flag.default), flag.variable
        try:
            values[field] = flag.parse(text)
        except ValueError as error:
            raise SettingsError(f"{said} is {text!r}: {error}") from error
    settings = Settings(**values)
    if not settings.lease_duration > settings.lease_renew > settings.lease_retry:
        raise SettingsError(
            f"--lease-duration {settings.lease_duration:g}, --lease-renew {settings.lease_renew:g} and "
            f"--lease-retry {settings.lease_retry:g}: expected duration > renew > retry, such as 15, 10 and 2"
        )
    return settings


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return int(text)

    return parse


def _number(*, zero: bool) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (value >= 0 if zero else value > 0) or value == float("inf"):
            raise ValueError("expected a number, 0 or more" if zero else "expected a number above 0")
        return value

    return parse


def _word(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)}")
        return text

    return parse


def _truth(text: str) -> bool:
    return _word("true", "false")(text) == "true"


def _namespace(text: str) -> str | None:
    if text and not _NAMESPACE.fullmatch(text):
        raise ValueError("expected the name of a namespace")
    return text or None


def _selector(text: str) -> str:
    if not text or not all(_LABEL.fullmatch(part) for part in text.split(",")):
        raise ValueError("expected labels such as app.kubernetes.io/name=moorage,app.kubernetes.io/component=node")
    return text


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT or host.strip() != host:
        raise ValueError("expected HOST:PORT such as 0.0.0.0:9742")
    return text


_FLAGS: Final = (
    _Flag(
        name="namespace",
        default="",
        parse=_namespace,
        meaning="own namespace: Lease, Secrets, node plugins; default is the service account's or the kubeconfig's, "
        f"else {DEFAULT_NAMESPACE}",
    ),
    _Flag(
        name="node-selector",
        default="app.kubernetes.io/name=moorage,app.kubernetes.io/component=node",
        parse=_selector,
        meaning="labels of the node plugins' pods",
    ),
    _Flag(
        name="node-port", default=str(CSI_PORT), parse=_whole(1, MAX_PORT), meaning="TCP port where node plugins serve"
    ),
    _Flag(
        name="binder-mode",
        default="beside",
        parse=_word("beside", "instead"),
        meaning="beside: the in-tree persistent-volume binder runs too; instead: kube-controller-manager runs with "
        "--controllers=*,-persistentvolume-binder-controller, and its work is done here",
    ),
    _Flag(name="listen", default="0.0.0.0:9742", parse=_address, meaning="where /healthz, /readyz and /metrics are"),
    _Flag(name="workers", default="32", parse=_whole(1, 1024), meaning="claims and volumes worked on at a time"),
    _Flag(
        name="api-qps",
        default="500",
        parse=_number(zero=True),
        meaning="requests a second to the API server, on average; 0 is no limit",
    ),
    _Flag(name="api-burst", default="1000", parse=_whole(1, 100_000), meaning="requests at once to the API server"),
    _Flag(
        name="csi-timeout", default="30", parse=_number(zero=False), meaning="seconds that a call to a node plugin has"
    ),
    _Flag(
        name="leader-election",
        default="true",
        parse=_truth,
        meaning="true: one replica acts, the others stand by; false: every replica acts, and they get in each "
        "other's way",
    ),
    _Flag(
        name="lease-duration",
        default="15",
        parse=_number(zero=False),
        meaning="seconds after which a silent leader is replaced",
    ),
    _Flag(
        name="lease-renew",
        default="10",
        parse=_number(zero=False),
        meaning="seconds after which a leader that cannot renew stops working",
    ),
    _Flag(name="lease-retry", default="2", parse=_number(zero=False), meaning="seconds between two tries or renewals"),
    _Flag(
        name="log-level",
        default="info",
        parse=_word("debug", "info", "warning", "error"),
        meaning="debug, info, warning or error",
    ),
    _Flag(name="log-format", default="text", parse=_word("text", "json"), meaning="text or json"),
    _Flag(
        name="kubeconfig",
        default="",
        parse=_path,
        meaning="file to log in with; default is the pod's service account, then KUBECONFIG, then ~/.kube/config",
    ),
)
