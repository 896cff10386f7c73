"""From requests to checked values: what passes, and that nothing dangerous does."""

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.errors import InvalidArgumentError, OutOfRangeError
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.validation import Range
from moorage_csi.volumes.record import ID_PATTERN

KUBELET = "/var/lib/kubelet"

_PIECES = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "//",
        "\0",
        "\n",
        "\r",
        "%2e%2e",
        "\u2025",
        "\uff0e\uff0e",
        "~",
        "a",
        "vol-",
        "etc/passwd",
        "\\",
        " ",
    ]
)
hostile = st.one_of(st.lists(_PIECES, max_size=8).map("".join), st.text(max_size=40))


def _volume() -> csi.VolumeCapability:
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(),
        access_mode=csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
    )


@given(hostile)
def test_an_id_that_passes_is_one_plain_name(text: str) -> None:
    try:
        passed = validation.volume_id(text)
    except InvalidArgumentError:
        return
    assert passed == text
    assert passed
    assert not re.search(r"[\x00-\x1f\x7f/]|\.\.", passed)


@given(hostile)
def test_an_id_of_a_nodes_call_is_one_plain_name_and_the_kubelets_is_one_of_ours(text: str) -> None:
    for given_ in (text, f"csi-{text}", f"csi-{text.encode().hex():0<64}"[:68]):
        try:
            passed = validation.published_id(given_)
        except InvalidArgumentError:
            continue
        if validation.is_inline(given_):
            assert ID_PATTERN.fullmatch(passed)
            assert passed == validation.published_id(given_) != validation.volume_id_for(given_)
        else:
            assert passed == validation.volume_id(given_)


@pytest.mark.parametrize("wrong", ["csi-", "csi-" + "g" * 64, "csi-" + "0" * 63, "csi-" + "0" * 65, "CSI-" + "0" * 64])
def test_what_only_looks_like_an_id_of_the_kubelets_is_none(wrong: str) -> None:
    assert not validation.is_inline(wrong)


@given(st.one_of(hostile, st.integers().map(str)))
def test_a_group_that_passes_is_one_that_the_kernel_has(text: str) -> None:
    wanted = _volume()
    try:
        wanted.mount.volume_mount_group = text
    except ValueError:
        return
    try:
        passed = validation.access([wanted]).group
    except InvalidArgumentError:
        return
    assert (passed is None) is (text == "")
    assert passed is None or (str(passed) == text and 0 <= passed < (1 << 32) - 1)


def test_two_groups_are_not_one() -> None:
    one, two, none = _volume(), _volume(), _volume()
    one.mount.volume_mount_group, two.mount.volume_mount_group = "1", "2"
    assert validation.access([one, none, one]).group == 1
    with pytest.raises(InvalidArgumentError, match="1, 2"):
        validation.access([one, two])


@given(hostile)
def test_a_claims_uid_that_passes_is_one_plain_word(text: str) -> None:
    try:
        passed = validation.released_uid(text)
    except InvalidArgumentError:
        return
    assert passed == text
    assert re.fullmatch(r"[-._0-9A-Za-z]{1,128}", passed)


def test_a_claims_uid_is_needed_and_short() -> None:
    assert validation.released_uid("8c0a3f0e-1d1c-4b5e-9d5a-0c5a4f1b2e3d") == "8c0a3f0e-1d1c-4b5e-9d5a-0c5a4f1b2e3d"
    for wrong, says in (("", "missing"), ("a" * 129, "129 bytes"), ("a b", "allowed are"), ("../a", "allowed are")):
        with pytest.raises(InvalidArgumentError, match=f"released_uid.*{says}"):
            validation.released_uid(wrong)


@given(hostile)
def test_a_target_that_passes_lies_beneath_the_kubelets_folder(text: str) -> None:
    for path in (text, f"{KUBELET}/{text}", f"{KUBELET}{text}"):
        try:
            passed = validation.target_path(path, kubelet_dir=KUBELET)
        except InvalidArgumentError:
            continue
        parts = PurePosixPath(passed).parts
        assert parts[:4] == ("/", "var", "lib", "kubelet")
        assert len(parts) > 4
        assert ".." not in parts
        assert not re.search(r"[\x00-\x1f\x7f]", passed)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "relative/path",
        "/",
        KUBELET,
        f"{KUBELET}/",
        "/var/lib/kubelet2/pods/x",
        f"{KUBELET}/../../../etc",
        f"{KUBELET}/pods/./x",
        f"{KUBELET}//pods",
        f"{KUBELET}/pods/x\0y",
        f"{KUBELET}/pods/x\ny",
        f"{KUBELET}/{'x' * 5000}",
    ],
)
def test_targets_that_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        validation.target_path(path, kubelet_dir=KUBELET)


def test_a_target_as_the_kubelet_gives_it_passes() -> None:
    path = f"{KUBELET}/pods/0f2/volumes/kubernetes.io~csi/pvc-1/mount"
    assert validation.target_path(path, kubelet_dir=KUBELET) == path
    assert validation.target_path(f"{path}/", kubelet_dir=f"{KUBELET}/") == path


@given(st.text(min_size=1, max_size=40))
def test_an_id_made_from_a_name_has_nothing_of_the_name_and_is_always_the_same(name: str) -> None:
    made = validation.volume_id_for(name)
    assert ID_PATTERN.fullmatch(made)
    assert made == validation.volume_id_for(name)
    assert validation.volume_id(made) == made


def test_ids_of_different_names_differ() -> None:
    assert len({validation.volume_id_for(f"pvc-{number}") for number in range(1000)}) == 1000


@given(st.dictionaries(hostile, hostile, max_size=4))
def test_parameters_that_are_not_known_never_pass(given_: dict[str, str]) -> None:
    known = {"backend", "pool", "quota", "onDelete", "mountPermissions", "csi.storage.k8s.io/fstype"}
    try:
        validation.parameters(given_, pools=["default"])
    except InvalidArgumentError:
        return
    assert set(given_) <= known | {
        "csi.storage.k8s.io/pvc/name",
        "csi.storage.k8s.io/pvc/namespace",
        "csi.storage.k8s.io/pv/name",
    }


@given(hostile, st.sampled_from(["backend", "pool", "quota", "onDelete", "csi.storage.k8s.io/fstype"]))
def test_values_are_words_of_a_list(value: str, key: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        validation.parameters({key: value}, pools=["default"])
    assert key in str(refused.value)


def test_the_claim_is_taken_from_the_sidecars_names() -> None:
    passed = validation.parameters(
        {
            "csi.storage.k8s.io/pvc/name": "data",
            "csi.storage.k8s.io/pvc/namespace": "shop",
            "csi.storage.k8s.io/pv/name": "pvc-1",
            "mountPermissions": "750",
        },
        pools=["default"],
    )
    assert passed.claim is not None
    assert (passed.claim.namespace, passed.claim.name) == ("shop", "data")
    assert (passed.volume_name, passed.permissions) == ("pvc-1", 0o750)
    assert (passed.backend, passed.pool, passed.quota, passed.on_delete) == ("auto", None, "required", "delete")


def test_the_filesystem_may_come_as_a_parameter_but_not_twice_differently() -> None:
    request = csi.CreateVolumeRequest(
        name="pvc-1", volume_capabilities=[_volume()], parameters={"csi.storage.k8s.io/fstype": "xfs"}
    )
    assert validation.creation(request, pools=["default"]).access.filesystem == "xfs"
    request.volume_capabilities[0].mount.fs_type = "ext4"
    with pytest.raises(InvalidArgumentError, match="ext4, xfs"):
        validation.creation(request, pools=["default"])


@pytest.mark.parametrize("name", ["x" * 129, "a\0b", "a\nb", "", "\u20ac" * 43])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name"):
        validation.creation(csi.CreateVolumeRequest(name=name, volume_capabilities=[_volume()]), pools=["default"])


_SIZES = st.one_of(st.none(), st.integers(min_value=0, max_value=1 << 62))


@given(_SIZES, _SIZES, st.integers(min_value=4096, max_value=1 << 32).map(lambda size: size - size % 4096))
def test_a_size_that_is_given_is_within_the_range_and_above_the_minimum(
    required: int | None, limit: int | None, minimum: int
) -> None:
    wish = Range(required=required, limit=limit or None)
    try:
        size = validation.size_within(wish, minimum=minimum, what="a volume")
    except OutOfRangeError:
        return
    assert size >= minimum
    assert size % validation.SIZE_STEP == 0
    assert wish.holds(size)
    assert required is None or size - required < validation.SIZE_STEP


@pytest.mark.parametrize(
    ("required", "limit", "size"),
    [(None, None, 1 << 30), (None, 1 << 29, 1 << 29), (None, (1 << 29) + 5, 1 << 29), (5 << 20, None, 5 << 20)],
)
def test_sizes_that_are_given(required: int | None, limit: int | None, size: int) -> None:
    assert validation.size_within(Range(required=required, limit=limit), minimum=1 << 20, what="a volume") == size
