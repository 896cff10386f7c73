"""Flags win over the environment, and a mistake is named with what is allowed."""

from pathlib import Path

import pytest

from moorage_operator.errors import SettingsError
from moorage_operator.settings import read


def test_defaults() -> None:
    settings = read([], {})
    assert settings.namespace is None
    assert settings.binder_mode == "beside"
    assert (settings.workers, settings.api_qps, settings.api_burst, settings.csi_timeout) == (32, 500, 1000, 30)
    assert settings.leader_election is True
    assert (settings.lease_duration, settings.lease_renew, settings.lease_retry) == (15, 10, 2)
    assert settings.kubeconfig is None


def test_a_flag_wins_over_the_environment() -> None:
    environ = {"MOORAGE_WORKERS": "8", "MOORAGE_API_QPS": "0", "MOORAGE_KUBECONFIG": "/a"}
    settings = read(["--workers=9"], environ)
    assert (settings.workers, settings.api_qps, settings.kubeconfig) == (9, 0, Path("/a"))


def test_the_binders_place_and_the_election_can_be_chosen() -> None:
    assert read(["--binder-mode=instead"], {}).binder_mode == "instead"
    assert read(["--binder-mode=beside"], {"MOORAGE_BINDER_MODE": "instead"}).binder_mode == "beside"
    assert read(["--leader-election=false"], {}).leader_election is False
    assert read([], {"MOORAGE_LEADER_ELECTION": "false"}).leader_election is False


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["--workers=0"], {}, ["--workers", "'0'", "from 1 to 1024"]),
        (["--workers=many"], {}, ["--workers", "'many'"]),
        ([], {"MOORAGE_NODE_PORT": "70000"}, ["MOORAGE_NODE_PORT", "65535"]),
        (["--binder-mode=x"], {}, ["--binder-mode", "'x'", "expected beside or instead"]),
        (["--leader-election=no"], {}, ["--leader-election", "'no'", "expected true or false"]),
        ([], {"MOORAGE_LEADER_ELECTION": "1"}, ["MOORAGE_LEADER_ELECTION", "expected true or false"]),
        (["--csi-timeout=0"], {}, ["above 0"]),
        (["--csi-timeout=nan"], {}, ["above 0"]),
        (["--lease-renew=20"], {}, ["duration > renew > retry"]),
        (["--log-level=loud"], {}, ["debug or info or warning or error"]),
        (["--listen=9742"], {}, ["HOST:PORT"]),
        (["--namespace=No_Such"], {}, ["--namespace"]),
        (["--node-selector=nonsense"], {}, ["--node-selector", "labels such as"]),
        (["--unknown"], {}, ["--unknown", "--help"]),
    ],
)
def test_a_mistake_is_named(arguments: list[str], environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        read(arguments, environ)
    for word in words:
        assert word in str(caught.value)
