"""What the Secrets should hold, at every age and after every damage."""

import base64
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage_csi.contract import NODE_SERVER_NAME, OPERATOR_CLIENT_NAME
from moorage_operator import authority
from moorage_operator.act.kubeconfig import load_client
from moorage_operator.authority import Contents, Plan, plan

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def fresh(now: datetime = START) -> Contents:
    return plan(Contents(), now=now).contents


FRESH = fresh()


def certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def trusted(contents: Contents, *, now: datetime) -> bool:
    """Whether each side's leaf chains to a living authority the other side knows."""
    for bundle, leaf in (
        (contents.node["ca.crt"], contents.authority["client.crt"]),
        (contents.authority["ca.crt"], contents.node["tls.crt"]),
    ):
        certificate = certificates(leaf)[0]
        if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            return False
        if not any(_signed(certificate, one) and now < one.not_valid_after_utc for one in certificates(bundle)):
            return False
    return True


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except ValueError:
        return False
    return True


def test_from_nothing_all_is_made_and_then_nothing_is_to_do() -> None:
    first = plan(Contents(), now=START)
    assert len(first.reasons) == 4
    assert set(first.contents.authority) == {"ca.crt", "ca.key", "client.crt", "client.key"}
    assert set(first.contents.node) == {"ca.crt", "tls.crt", "tls.key"}
    assert trusted(first.contents, now=START)
    again = plan(first.contents, now=START)
    assert again.reasons == ()
    assert again.contents == first.contents


def test_lives_names_and_uses_are_as_promised() -> None:
    contents = fresh()
    (ca,) = certificates(contents.authority["ca.crt"])
    assert ca.not_valid_after_utc - START == timedelta(days=3650)
    assert START - ca.not_valid_before_utc == timedelta(minutes=5)
    for pem, name in (
        (contents.authority["client.crt"], OPERATOR_CLIENT_NAME),
        (contents.node["tls.crt"], NODE_SERVER_NAME),
    ):
        (leaf,) = certificates(pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name]
        assert leaf.not_valid_after_utc - START == timedelta(days=90)


def test_leaves_are_renewed_after_two_thirds_and_not_before() -> None:
    contents = fresh()
    assert plan(contents, now=START + 59 * DAY).reasons == ()
    later = plan(contents, now=START + 61 * DAY)
    assert len(later.reasons) == 2
    assert later.contents.authority["ca.crt"] == contents.authority["ca.crt"]
    assert later.contents.authority["ca.key"] == contents.authority["ca.key"]
    assert plan(later.contents, now=START + 61 * DAY).reasons == ()


def test_twelve_years_of_daily_looks_never_break_trust_between_old_and_new() -> None:
    contents = fresh()
    changes = 0
    for day in range(0, 12 * 365, 5):
        now = START + day * DAY
        before = contents
        step = plan(contents, now=now)
        contents = step.contents
        changes += bool(step.reasons)
        assert plan(contents, now=now).reasons == ()
        assert trusted(contents, now=now)
        # A node that still has yesterday's files, and the other way round.
        assert trusted(Contents(authority=contents.authority, node=before.node), now=now), day
        assert trusted(Contents(authority=before.authority, node=contents.node), now=now), day
        assert len(certificates(contents.node["ca.crt"])) <= 2
    assert 70 < changes < 90


def test_a_successor_signs_only_after_it_is_known_everywhere() -> None:
    near = START + timedelta(days=3650 - 364)
    first = plan(plan(fresh(), now=near - 10 * DAY).contents, now=near)
    assert "next.key" in first.contents.authority
    old, new = certificates(first.contents.node["ca.crt"])
    assert _signed(certificates(first.contents.node["tls.crt"])[0], old)
    hours = plan(first.contents, now=near + timedelta(hours=23))
    assert hours.reasons == ()
    moved = plan(first.contents, now=near + timedelta(hours=25))
    assert "next.key" not in moved.contents.authority
    assert _signed(certificates(moved.contents.node["tls.crt"])[0], new)
    assert {old, new} == set(certificates(moved.contents.node["ca.crt"]))
    ended = plan(moved.contents, now=START + timedelta(days=3651))
    assert old not in certificates(ended.contents.node["ca.crt"])


def damaged(contents: Contents, where: str, key: str, value: bytes | None) -> Contents:
    parts = {"authority": dict(contents.authority), "node": dict(contents.node)}
    if value is None:
        del parts[where][key]
    else:
        parts[where][key] = value
    return Contents(authority=parts["authority"], node=parts["node"])


ALL = [("authority", key) for key in ("ca.crt", "ca.key", "client.crt", "client.key")] + [
    ("node", key) for key in ("ca.crt", "tls.crt", "tls.key")
]


@pytest.mark.parametrize(("where", "key"), ALL)
@pytest.mark.parametrize(
    "value", [None, b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_whatever_is_damaged_is_made_good_and_nothing_else(where: str, key: str, value: bytes | None) -> None:
    contents = fresh()
    mended = plan(damaged(contents, where, key, value), now=START)
    assert mended.reasons
    assert trusted(mended.contents, now=START)
    assert plan(mended.contents, now=START).reasons == ()
    if key not in {"ca.crt", "ca.key"} or where == "node":
        assert mended.contents.authority["ca.key"] == contents.authority["ca.key"]


@pytest.mark.parametrize(("where", "key"), [one for one in ALL if one != ("node", "ca.crt")])
def test_parts_of_another_installation_do_not_pass(where: str, key: str) -> None:
    contents, other = fresh(), fresh()
    mixed = damaged(contents, where, key, getattr(other, where)[key])
    mended = plan(mixed, now=START)
    assert mended.reasons
    assert trusted(mended.contents, now=START)
    assert plan(mended.contents, now=START).reasons == ()


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=300, deadline=None)
@given(which=st.sampled_from(ALL), at=st.integers(0, 700), flip=st.integers(1, 255))
def test_one_flipped_byte_anywhere_is_survived(which: tuple[str, str], at: int, flip: int) -> None:
    """Bits rot inside the encoding too, where the text still looks like a certificate."""
    _survive(*which, at=at, flip=flip)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_the_lowest_bit_flipped_in_each_byte_of_an_authority_is_survived() -> None:
    """One of them makes it a certificate of version 4, which the library refuses by an error of its own."""
    for at in range(len(FRESH.node["ca.crt"])):
        _survive("authority", "ca.crt", at=at, flip=1)


def _survive(where: str, key: str, *, at: int, flip: int) -> None:
    text = getattr(FRESH, where)[key].decode().splitlines()
    raw = bytearray(base64.b64decode("".join(text[1:-1])))
    raw[at % len(raw)] ^= flip
    rotten = "\n".join([text[0], base64.b64encode(raw).decode(), text[-1], ""]).encode()
    mended = plan(damaged(FRESH, where, key, rotten), now=START)
    assert mended.reasons
    assert trusted(mended.contents, now=START)
    assert plan(mended.contents, now=START).reasons == ()


def test_the_roles_are_not_interchangeable() -> None:
    contents = fresh()
    swapped = damaged(contents, "node", "tls.crt", contents.authority["client.crt"])
    swapped = damaged(swapped, "node", "tls.key", contents.authority["client.key"])
    mended = plan(swapped, now=START)
    assert any("made for something else" in reason for reason in mended.reasons)


def test_a_lost_authority_keeps_the_old_one_trusted_until_it_ends() -> None:
    contents = fresh()
    mended = plan(damaged(contents, "authority", "ca.key", b"lost"), now=START)
    assert certificates(contents.authority["ca.crt"])[0] in certificates(mended.contents.node["ca.crt"])


def test_a_certificate_from_a_clock_that_was_ahead_is_made_anew() -> None:
    ahead = plan(damaged(fresh(), "node", "tls.crt", None), now=START + 30 * DAY).contents
    assert any("begins only" in reason for reason in plan(ahead, now=START).reasons)


def test_openssl_accepts_them_both_ways() -> None:
    contents = fresh(datetime.now(UTC))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=contents.node["ca.crt"].decode())
    server.verify_mode = ssl.CERT_REQUIRED
    load_client(server, certificate=contents.node["tls.crt"], key=contents.node["tls.key"])
    client = ssl.create_default_context(cadata=contents.authority["ca.crt"].decode())
    load_client(client, certificate=contents.authority["client.crt"], key=contents.authority["client.key"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=NODE_SERVER_NAME)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    peer = far.getpeercert()
    assert peer is not None
    assert ("DNS", OPERATOR_CLIENT_NAME) in peer["subjectAltName"]


def test_nothing_secret_shows_in_a_repr() -> None:
    step: Plan = plan(Contents(), now=START)
    assert "PRIVATE" not in repr(step) + repr(step.contents)
    assert authority.CA_KEY == "ca.key"
