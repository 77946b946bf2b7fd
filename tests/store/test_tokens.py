"""The tokens of a store, on both engines: beside a server, in a copy, and damaged."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

from mechanicd.access import Role, Token, create
from mechanicd.store import Store, check, copy, open_beside, open_store

NOW = 1_800_000_000 * 10**9


def made(count: int) -> list[Token]:
    return [create(f"p{i}" if i else "", list(Role)[i % 3], NOW + i, i, "no “note”\n" * i)[1] for i in range(count)]


def test_tokens_are_kept_and_revoked_once(store: Store, url: str, open_kind: Callable[[str], Store]) -> None:
    tokens = made(4)
    assert store.tokens() == []
    for token in reversed(tokens):
        store.add_token(token)
    assert store.tokens() == tokens
    revoked = store.revoke_token(tokens[1].id, NOW + 9)
    assert revoked is not None
    assert (revoked.revoke_time, revoked.id, revoked.digest) == (NOW + 9, tokens[1].id, tokens[1].digest)
    assert store.revoke_token(tokens[1].id, NOW + 99) == revoked, "the first time counts"
    assert store.revoke_token("aaaaaaaaaaaa", NOW) is None
    store.close()
    again = open_kind(url)
    assert again.tokens() == [tokens[0], revoked, *tokens[2:]]
    again.close()


def test_a_row_that_is_as_it_was_is_not_decoded_again(store: Store) -> None:
    """A server reads all tokens every two seconds, beside its trainers."""
    token, other = made(2)
    store.add_token(token)
    store.add_token(other)
    first = store.tokens()
    store.revoke_token(other.id, NOW)
    assert [again is before for again, before in zip(store.tokens(), first, strict=True)] == [True, False]


def test_tokens_are_made_beside_the_server_that_has_the_store_open(store: Store, url: str) -> None:
    beside = open_beside(url)
    token, other = made(2)
    beside.add_token(token)
    assert store.tokens() == [token]
    store.add_token(other)
    beside.revoke_token(other.id, NOW)
    beside.close()
    assert [each.revoke_time for each in store.tokens()] == [0, NOW]
    readonly = open_store(url, readonly=True)
    assert readonly.tokens() == store.tokens()
    readonly.close()


def test_a_store_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    beside = open_beside(url)
    beside.add_token(made(1)[0])
    beside.close()
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600
    store = open_store(url)
    assert len(store.tokens()) == 1
    store.close()


def test_a_store_of_an_older_server_gets_the_table(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    store = open_store(f"sqlite:///{path}")
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE tokens")
    db.close()
    readonly = open_store(f"sqlite:///{path}", readonly=True)
    assert (readonly.tokens(), list(check(readonly))) == ([], [])
    readonly.close()
    beside = open_beside(f"sqlite:///{path}")
    beside.add_token(made(1)[0])
    assert len(beside.tokens()) == 1
    beside.close()


def test_a_copy_has_the_tokens(tmp_path: Path) -> None:
    source, target = (open_store(f"sqlite:///{tmp_path}/{name}.db") for name in "ab")
    mine, kept, other = made(3)
    for token in (mine, kept):
        source.add_token(token)
    source.revoke_token(mine.id, NOW)
    for token in (kept, other):
        target.add_token(token)
    copy(source, target)
    assert target.tokens() == [*source.tokens(), other]
    source.close()
    target.close()


def test_a_damaged_token_lets_nobody_in_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    store = open_store(f"sqlite:///{path}")
    tokens = made(40)
    for token in tokens:
        store.add_token(token)
    store.close()
    rng = random.Random(16)
    with sqlite3.connect(path) as db:
        rows = dict(db.execute("SELECT id, data FROM tokens").fetchall())
        for token in tokens[3:]:  # in each a flipped bit
            data = bytearray(rows[token.id.encode()])
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            db.execute("UPDATE tokens SET data = ? WHERE id = ?", (bytes(data), token.id.encode()))
        db.execute("UPDATE tokens SET checksum = 'x' WHERE id = ?", (tokens[1].id.encode(),))
        db.execute(
            "UPDATE tokens SET (checksum, data) = (SELECT checksum, data FROM tokens WHERE id = ?) WHERE id = ?",
            (tokens[0].id.encode(), tokens[2].id.encode()),
        )
    db.close()
    store = open_store(f"sqlite:///{path}", readonly=True)
    assert store.tokens() == tokens[:1]
    found = list(check(store))
    assert [finding.reason for finding in found] == ["TOKEN_UNREADABLE"] * 39
    assert all(any(token.id in finding.message for finding in found) for token in tokens[1:])
    store.close()
