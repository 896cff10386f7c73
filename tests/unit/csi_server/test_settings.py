import json
from pathlib import Path
from typing import Any

import pytest

from moorage_csi import quantity
from moorage_csi.settings import Address, SettingsError, load, read_pools

POOL = {"name": "default", "path": "/var/lib/moorage/default"}


@pytest.fixture
def pools_file(tmp_path: Path) -> Path:
    file = tmp_path / "pools.json"
    file.write_text(json.dumps({"pools": [POOL]}))
    return file


def loaded(pools_file: Path, *arguments: str, **environment: str) -> Any:
    return load(["--node-name", "n1", "--pools-file", str(pools_file), *arguments], environment)


def test_the_defaults_are_those_of_the_pod(pools_file: Path) -> None:
    settings = loaded(pools_file)
    assert settings.endpoint == Path("/csi/csi.sock")
    assert settings.listen == Address(host="0.0.0.0", port=9740)  # noqa: S104 - the default listens everywhere
    assert settings.registration_dir == Path("/registration")
    assert settings.kubelet_endpoint == "/var/lib/kubelet/plugins/csi.moorage.dev/csi.sock"
    assert settings.pools[0].name == "default"
    assert settings.pools[0].overcommit == 1.0


def test_a_flag_wins_over_the_environment_and_empty_switches_off(pools_file: Path) -> None:
    settings = loaded(
        pools_file, "--listen", "[::1]:1", MOORAGE_LISTEN="0.0.0.0:2", MOORAGE_METRICS_LISTEN="", MOORAGE_TLS_DIR="/x"
    )
    assert settings.listen == Address(host="::1", port=1)
    assert str(settings.listen) == "[::1]:1"
    assert settings.metrics_listen is None
    assert settings.tls_dir == Path("/x")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("node-name", "", "--node-name is needed"),
        ("node-name", "Bad_Name", "Bad_Name"),
        ("endpoint", "tcp://x", "unix:///absolute/path"),
        ("endpoint", "unix://relative", "not an absolute path"),
        ("endpoint", "unix:///" + "x" * 200, "longer than"),
        ("endpoint", "unix:///a/../b", "contains '..'"),
        ("listen", "9740", "host:port"),
        ("listen", ":9740", "host:port"),
        ("listen", "::1:9740", "host:port"),
        ("listen", "a:99999", "65535"),
        ("listen", "a:b", "65535"),
        ("kubelet-dir", "var", "not an absolute path"),
        ("kubelet-dir", "/a\nb", "line break"),
        ("log-level", "loud", "debug, info, warning, error"),
        ("log-format", "xml", "text, json"),
        ("pools-file", "/does/not/exist", "cannot be read"),
    ],
)
def test_a_wrong_flag_is_named_with_its_value(pools_file: Path, flag: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(pools_file, f"--{flag}", value)
    assert said in str(caught.value)


def importing(pools_file: Path, *imports: Any, kubelet_dir: str = "/var/lib/kubelet") -> Any:
    pools_file.write_text(json.dumps({"pools": [POOL], "imports": imports}))
    return loaded(pools_file, "--kubelet-dir", kubelet_dir).imports


def test_nothing_may_be_imported_that_is_not_listed(pools_file: Path) -> None:
    assert loaded(pools_file).imports == ()
    assert importing(pools_file) == ()
    assert importing(pools_file, "/srv/data/", "//mnt//nas", "/srv/data") == ("/srv/data", "/mnt/nas")
    # It only begins alike.
    assert importing(pools_file, "/var/lib/moorage/default-2", "/var/lib/kubelets")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (POOL["path"], "overlaps with pool 'default'"),
        (f"{POOL['path']}/volumes", "overlaps with pool 'default'"),
        ("/var/lib/moorage", "overlaps with pool 'default'"),
        ("/var", "overlaps with pool 'default'"),
        ("/", "overlaps with pool 'default'"),
        ("//", "overlaps with pool 'default'"),
        ("/srv/kubelet/pods", "overlaps with the kubelet's directory"),
        ("/srv", "overlaps with the kubelet's directory"),
        ("/data/../var/lib/moorage", "contains '..'"),
        ("data", "is not an absolute path"),
        ("/a\0b", "NUL"),
        (None, "is not an absolute path"),
        (1, "is not an absolute path"),
    ],
)
def test_a_pool_and_the_kubelets_directory_are_nobodys_to_import(pools_file: Path, path: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        importing(pools_file, "/mnt/fine", path, kubelet_dir="/srv/kubelet")
    assert said in str(caught.value)
    assert f"{pools_file}: imports[1]" in str(caught.value)


def test_the_number_of_volumes_is_a_number(pools_file: Path) -> None:
    assert loaded(pools_file).max_volumes == 0
    assert loaded(pools_file, "--max-volumes", "110").max_volumes == 110
    assert loaded(pools_file, MOORAGE_MAX_VOLUMES="7").max_volumes == 7
    for wrong in ("-1", "many", "", "1.5", "9" * 10):
        with pytest.raises(SettingsError, match="--max-volumes"):
            loaded(pools_file, "--max-volumes", wrong)


def test_an_unknown_flag_ends_the_program(pools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        loaded(pools_file, "--pool", "x")
    assert caught.value.code == 2
    assert "--pool" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        ("{", "is not JSON"),
        ("[]", '{"pools": [...]}'),
        ('{"pools": {}}', '{"pools": [...]}'),
        ('{"pools": [], "more": 1}', '{"pools": [...]}'),
        ('{"imports": []}', '{"pools": [...]}'),
        ('{"pools": [], "imports": {}}', '{"pools": [...]}'),
        ('{"pools": [], "imports": "/srv"}', '"imports": [...]'),
        ('{"pools": []}', "names no pool"),
        ([1], "pools[0] must be an object"),
        ([{**POOL, "size": 1}], "unknown key 'size'"),
        ([{"path": "/a"}], "pools[0].name None"),
        ([{**POOL, "name": "Default"}], "'Default' must be"),
        ([{**POOL, "name": "-a"}], "'-a' must be"),
        ([{**POOL, "name": "a" * 64}], "must be 1 to 63"),
        ([{"name": "a"}], "pools[0].path None is not an absolute path"),
        ([{**POOL, "path": "lib"}], "'lib' is not an absolute path"),
        ([{**POOL, "path": "/a/../b"}], "contains '..'"),
        ([{**POOL, "path": "/a\0b"}], "NUL"),
        ([{**POOL, "path": "//"}], "whole machine"),
        ([{**POOL, "reserve": "ten"}], "'ten' is not a size"),
        ([{**POOL, "reserve": "100%"}], "below 100%"),
        ([{**POOL, "reserve": "-5%"}], "is not a size"),
        ([{**POOL, "reserve": -1}], "is negative"),
        ([{**POOL, "reserve": True}], "must be a size"),
        ([{**POOL, "reserve": 1.5}], "must be a size"),
        ([{**POOL, "reserve": None}], "must be a size"),
        ([{**POOL, "overcommit": 0.5}], "0.5 must be a number of at least 1"),
        ([{**POOL, "overcommit": "2"}], "'2' must be a number"),
        ([{**POOL, "overcommit": True}], "must be a number"),
        ('{"pools": [{"name": "a", "path": "/a", "overcommit": NaN}]}', "must be a number"),
        ('{"pools": [{"name": "a", "path": "/a", "overcommit": Infinity}]}', "must be a number"),
        ([{**POOL, "shared": "yes"}], "must be true or false"),
        ([{**POOL, "trashRetention": "1 day"}], "must be a time like"),
        ([{**POOL, "trashRetention": 60}], "must be a time like"),
        ([{**POOL, "archiveRetention": "-1h"}], "must be a time like"),
        ([{**POOL, "archiveRetention": "7w"}], "must be a time like"),
        ([POOL, {**POOL, "path": "/b"}], "two pools have the name 'default'"),
        ([POOL, {"name": "b", "path": POOL["path"] + "/"}], "overlap"),
        ([POOL, {"name": "b", "path": POOL["path"] + "/below"}], "overlap"),
        ([POOL, {"name": "b", "path": "/var/lib/moorage"}], "overlap"),
    ],
)
def test_a_wrong_pools_file_says_where_and_what_is_allowed(tmp_path: Path, pools: Any, said: str) -> None:
    file = tmp_path / "pools.json"
    file.write_text(pools if isinstance(pools, str) else json.dumps({"pools": pools}))
    with pytest.raises(SettingsError) as caught:
        read_pools(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_pools_beside_each_other_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "pools.json"
    pools = [
        {"name": "a", "path": "/srv/a/", "reserve": "10Gi"},
        {"name": "b", "path": "/srv/ab", "reserve": "2.5%", "overcommit": 3, "shared": True},
        {"name": "c", "path": "//srv//c", "reserve": 4096},
    ]
    file.write_text(json.dumps({"pools": pools}))
    a, b, c = read_pools(file)
    assert (a.path, a.reserve_bytes, a.reserve_percent) == ("/srv/a", 10 * 2**30, 0)
    assert (b.reserve_bytes, b.reserve_percent, b.overcommit, b.shared) == (0, 2.5, 3.0, True)
    assert (c.path, c.reserve_bytes) == ("/srv/c", 4096)


def test_times_are_in_seconds_and_none_means_not_at_all_or_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "pools.json"
    timed = {"trashRetention": "36h", "archiveRetention": "7d"}
    pools = [{"name": "a", "path": "/a", **timed}, {"name": "b", "path": "/b"}]
    file.write_text(json.dumps({"pools": pools}))
    a, b = read_pools(file)
    assert (a.trash_retention, a.archive_retention) == (36 * 3600, 7 * 86400)
    assert (b.trash_retention, b.archive_retention) == (0, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("10Gi", 10 * 2**30),
        ("1.5Ti", 3 * 2**39),
        ("500M", 500_000_000),
        ("1e9", 10**9),
        ("1E9", 10**9),
        ("1E", 10**18),
        ("100m", 1),
        (".5Ki", 512),
        ("1.", 1),
        ("-1Gi", -(2**30)),
        ("0.1", 1),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_quantity_is_read_as_kubernetes_reads_it(text: str, size: int) -> None:
    assert quantity.parse(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Gi",
        "1 Gi",
        "1gi",
        "1KiB",
        "10%",
        "1,5",
        "0x10",
        "1_000",
        "٣",
        "8Ei",
        "1e99",
        "9223372036854775808",
        "1Gi\n",
    ],
)
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(quantity.QuantityError):
        quantity.parse(text)
