"""Tokens, roles, and the check of a token."""

import dataclasses
import hashlib
import re
from itertools import product

import pytest

from mechanicd.access import ANYONE, Denied, Keyring, Principal, Role, Token, bearer, create, parse

NOW = 1_800_000_000 * 10**9


def ring(*tokens: Token, local: Token | None = None) -> Keyring:
    made = Keyring(local)
    made.take(tokens)
    return made


def refused(keyring: Keyring, text: str | None, now: int = NOW) -> str:
    with pytest.raises(Denied) as caught:
        keyring.check(text, now)
    assert caught.value.reason == "UNAUTHENTICATED"
    secret = (text or "").rpartition("_")[2]
    assert len(secret) < 9 or secret not in caught.value.message
    return caught.value.message


def test_a_token_is_shown_once_and_only_its_hash_is_kept() -> None:
    text, token = create("p", Role.WRITE, NOW, NOW + 5, "for the cluster")
    assert re.fullmatch(r"mech_[a-z0-9]{12}_[A-Za-z0-9_-]{43}", text)
    id_, secret = parse(text) or ("", "")
    assert (token.id, token.digest) == (id_, hashlib.sha256(secret.encode()).digest())
    assert secret not in repr(token)
    assert token == Token(id_, token.digest, "p", Role.WRITE, NOW, NOW + 5, 0, "for the cluster")
    assert create("p", Role.WRITE, NOW)[0] != text


@pytest.mark.parametrize(
    "text",
    [
        *("", "mech_", "mech__", "x", "mech_abcdefghijk1", "Bearer", "\0", "mech_é", "💥" * 9),
        "mech_ABCDEFGHIJKL_" + "a" * 43,
        "mech_abcdefghijk_" + "a" * 43,
        "mech_abcdefghijkl_" + "a" * 42,
        "mech_abcdefghijkl_" + "a" * 44,
        "mech_abcdefghijkl_" + "a" * 42 + "=",
        "mech_abcdefghijkl_" + "a" * 43 + "\n",
        "mech_abcdefghijk١_" + "a" * 43,
        "x" * 100_000,
    ],
)
def test_what_is_no_token_is_refused_without_showing_it(text: str) -> None:
    assert parse(text) is None
    assert "is no token" in refused(ring(), text)
    assert ring().knows(text)


def test_the_right_token_says_who_and_any_other_is_refused() -> None:
    text, token = create("p", Role.READ, NOW)
    other, _ = create("p", Role.READ, NOW)
    assert ring(token).check(text, NOW) == Principal(token.id, Role.READ, "p")
    assert "none came" in refused(ring(token), None)
    assert "too old for tokens: upgrade it" in refused(ring(token), None), "a client that knows no tokens shows just this text"
    assert "HOME" not in refused(ring(token), None)
    assert "where HOME and XDG_CONFIG_HOME are those" in refused(Keyring(token), None)
    unknown = refused(ring(token), other)
    wrong = refused(ring(token), f"mech_{token.id}_{other[-43:]}")
    assert unknown == wrong, "whether the id exists is nobody's business"
    assert "port" not in unknown
    assert "another server's, with the same port number" in refused(Keyring(token), other), "tools have shown what they found"
    assert not ring(token).knows(other)
    assert ring(token).knows(text)


def test_a_token_ends_at_its_time_and_when_it_is_revoked() -> None:
    text, token = create("", Role.ADMIN, NOW, NOW + 10)
    assert ring(token).check(text, NOW + 9) == Principal(token.id, Role.ADMIN)
    assert f"{token.id} expired on 2027-01-15" in refused(ring(token), text, NOW + 10)
    revoked = dataclasses.replace(token, revoke_time=NOW)
    assert "was revoked on" in refused(ring(revoked), text)
    assert "no such token" in refused(ring(revoked), text[:-43] + "a" * 43), "only who has the secret is told"
    keyring = ring(token)
    keyring.take([])
    assert "no such token" in refused(keyring, text)


def test_the_servers_own_token_stands_beside_those_of_the_store() -> None:
    text, token = create("", Role.ADMIN, NOW)
    stored, kept = create("p", Role.WRITE, NOW)
    keyring = ring(kept, local=token)
    assert keyring.check(text, NOW) == Principal("local", Role.ADMIN)
    assert keyring.check(stored, NOW).id == kept.id
    assert "no such token" in refused(ring(kept), text)


def test_where_nobody_is_asked_everything_passes() -> None:
    keyring = Keyring(everyone=True)
    assert keyring.check(None, NOW) == keyring.check("rubbish", NOW) == ANYONE
    assert all(ANYONE.allows(role, project) for role, project in product(Role, ("p", None)))


@pytest.mark.parametrize(
    ("role", "project", "asked", "where", "allowed"),
    [
        *((mine, "", asked, where, mine >= asked) for mine, asked, where in product(range(3), range(3), ("p", "q", None))),
        *((mine, "p", asked, "p", mine >= asked) for mine, asked in product(range(3), range(3))),
        *((mine, "p", asked, where, False) for mine, asked, where in product(range(3), range(3), ("q", None, ""))),
    ],
)
def test_roles_include_those_below_and_a_project_excludes_the_others(
    role: int, project: str, asked: int, where: str | None, allowed: bool
) -> None:
    principal = Principal("abc", list(Role)[role], project)
    needed = list(Role)[asked]
    assert principal.allows(needed, where) == allowed
    if allowed:
        principal.require(needed, where)
    else:
        with pytest.raises(Denied, match=r"ask for a token|name the project") as caught:
            principal.require(needed, where)
        assert caught.value.reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (None, None),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("abc", "abc"),
        ("Basic abc", "Basic abc"),
        ("Bearer a b", "Bearer a b"),
        ("Bearer", "Bearer"),
        ("", ""),
    ],
)
def test_the_header_carries_the_token(header: str | None, text: str | None) -> None:
    assert bearer(header) == text
