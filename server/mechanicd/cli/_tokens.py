"""`mechanicd tokens …`: who may use the servers of a store. It works on the store itself, beside its servers or without one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import click

from mechanicd import store as stores
from mechanicd.access import Role, Token
from mechanicd.access import create as new_token
from mechanicd.cli._options import reports_errors, target_option
from mechanicd.cli._output import fail, json_option, say, say_json
from mechanicd.cli._store import store_option
from mechanicd.client import InvalidArgument, MechanicdError
from mechanicd.v1 import local_token, names

_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_MOST_DAYS: Final = 3650
_LONGEST_NOTE: Final = 200
_NS: Final = 10**9


def _period(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    """`90d`: a number of minutes, hours, days or weeks, in ns; 0 where none is given."""
    if value is None:
        return 0
    found = re.fullmatch(r"([1-9][0-9]{0,6})([mhdw])", value, re.ASCII)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= _MOST_DAYS * _UNITS["d"]:
        raise click.BadParameter(f"{value!r} is not a period such as 90d, 12h, 30m or 2w, at most {_MOST_DAYS}d", ctx, param)
    return seconds * _NS


@click.group()
def tokens() -> None:
    """Make, list and revoke the tokens that trainers, tools and people show to a server.

    A server of the store knows of a change within two seconds.
    """


@tokens.command()
@store_option
@click.option("--project", required=True, help="Where it is good: a project, or - for all of them.")
@click.option("--role", required=True, type=click.Choice([str(role) for role in Role]), help="What it allows.")
@click.option(
    "--expires", callback=_period, metavar="PERIOD", help="For how long: 90d, 12h, 30m, 2w. Default: until it is revoked."
)
@click.option("--note", default="", help=f"Who or what has it; at most {_LONGEST_NOTE} characters.")
@json_option
@reports_errors
def create(url: str, project: str, role: str, expires: int, note: str, as_json: bool) -> None:
    """Make a token, and print it: this once, as only a hash of its secret is kept."""
    where, made = names.parse_project(f"projects/{project}") or "", _missing(url)
    if len(note) > _LONGEST_NOTE:
        raise InvalidArgument("INVALID_SETTING", f"--note has {len(note)} characters, and may have {_LONGEST_NOTE}; shorten it")
    with _opened(url, as_json) as store:
        now = store.clock.now()
        text, token = new_token(where, Role(role), now, now + expires if expires else 0, note)
        store.add_token(token)
    if made:
        say(
            f"warning: {made} is a new store; to make a token for a server that you have, name its store with --store", err=True
        )
    if as_json:
        say_json({"token": text, **_as_json(token, now)})
    else:
        say(text)
        until = f"until {_moment(token.expire_time)}" if token.expire_time else "until it is revoked"
        say(f"It allows {role} in {_place(token)} {until}. It is not shown again.", err=True)


@tokens.command("list")
@store_option
@json_option
@reports_errors
def list_(url: str, as_json: bool) -> None:
    """List all tokens, also those that expired or were revoked. Their secrets are not kept, and not shown."""
    with _opened(url, as_json, readonly=True) as store:
        now, found, damaged = store.clock.now(), store.tokens(), store.damaged_tokens()
    for id_ in damaged:
        say(f"warning: token {id_} can't be read any more, and lets nobody in; make another", err=True)
    if as_json:
        say_json([_as_json(token, now) for token in found], 2)
        return
    if not found:
        say("no tokens; `mechanicd tokens create` makes one", err=True)
    for token in found:
        note = f"  {token.note}" if token.note else ""
        line = f"{token.id}  {token.role:5}  {token.project or names.ALL_PROJECTS:20}  {_state(token, now)}{note}"
        say(line)


@tokens.command()
@store_option
@click.argument("ids", metavar="ID…", nargs=-1, required=True)
@json_option
@reports_errors
def revoke(url: str, ids: tuple[str, ...], as_json: bool) -> None:
    """Revoke tokens by their ids: servers refuse them within two seconds, and end what they have open."""
    with _opened(url, as_json, readonly=bool(_missing(url))) as store:
        now = store.clock.now()
        known = {token.id for token in store.tokens()}
        for id_ in ids:
            if id_ not in known:  # before any is revoked
                message = "no token has the id {}; see `mechanicd tokens list`"
                shown = id_ if re.fullmatch(r"[a-z0-9]{1,12}", id_) else "that was given"  # perhaps it is a whole token
                raise MechanicdError("TOKEN_NOT_FOUND", message.format(shown))
        revoked = [token for id_ in ids if (token := store.revoke_token(id_, now))]
    if as_json:
        say_json([_as_json(token, now) for token in revoked], 2)
    else:
        for token in revoked:
            say(f"{token.id} revoked on {_moment(token.revoke_time)}")


@tokens.command()
@target_option
@click.option(
    "--page",
    is_flag=False,
    flag_value="http://127.0.0.1:8080",
    metavar="[URL]",
    help="Print a link to the page at this address that signs you in. Default: http://127.0.0.1:8080.",
)
@json_option
@reports_errors
def local(target: str, page: str | None, as_json: bool) -> None:
    """Print the token that a server on this machine has made for its own user, to sign in on its page, or for curl."""
    try:
        text = local_token.path(page or target).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        message = (
            f"there is no local token for {page or target}: a server writes it for the user who started it, on its own "
            "machine, with --auth auto; give --target or --page as that server prints it, or make a token with "
            "`mechanicd tokens create`"
        )
        fail("TOKEN_NOT_FOUND", message, as_json)
    link = local_token.link(page, text) if page else ""
    if as_json:
        say_json({"token": text, **({"link": link} if link else {})})
    else:
        say(link or text)


@contextmanager
def _opened(url: str, as_json: bool, *, readonly: bool = False) -> Iterator[stores.SQLStore]:
    if url.endswith(":memory:"):
        fail("STORE_IN_MEMORY", "a store in memory is its server's alone; name a file, or use the server's own token", as_json)
    try:
        opened = stores.open_store(url, readonly=True) if readonly else stores.open_beside(url)
        try:
            yield opened
        finally:
            opened.close()
    except stores.StoreError as error:
        fail(error.reason, str(error), as_json)


def _missing(url: str) -> str:
    """The file of a SQLite store that is yet to be made; "" if there is one, or for another store."""
    with suppress(stores.StoreError):  # opening it will say so
        file = stores.file_of(url)
        if file not in (None, ":memory:") and not os.path.lexists(file):
            return file
    return ""


def _as_json(token: Token, now: int) -> dict[str, Any]:
    return {
        "id": token.id,
        "project": token.project or names.ALL_PROJECTS,
        "role": str(token.role),
        "state": _state(token, now).partition(" ")[0],
        "create_time": _moment(token.create_time),
        "expire_time": _moment(token.expire_time) if token.expire_time else None,
        "revoke_time": _moment(token.revoke_time) if token.revoke_time else None,
        "note": token.note,
    }


def _state(token: Token, now: int) -> str:
    if token.revoke_time:
        return f"revoked {_moment(token.revoke_time)}"
    if token.expire_time:
        return f"{'expired' if token.expire_time <= now else 'good until'} {_moment(token.expire_time)}"
    return "good"


def _place(token: Token) -> str:
    return f"project {token.project}" if token.project else "all projects"


def _moment(time: int) -> str:
    return datetime.fromtimestamp(time // _NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
