"""Values of options that say who may do what."""

import ipaddress
from collections.abc import Iterable

import click

from mechanicd.access import Role
from mechanicd.v1 import names


def networks(_: click.Context, __: click.Parameter, given: Iterable[str]) -> tuple[str, ...]:
    """Of `10.0.0.0/8`, or of an address."""
    try:
        return tuple(str(ipaddress.ip_network(text)) for text in given)
    except ValueError as error:
        raise click.BadParameter(f"{error}; expected a network such as 10.0.0.0/8, or an address") from None


def role_of(_: click.Context, __: click.Parameter, given: str) -> tuple[Role, str]:
    """Of `read:bert`: the role, and its project; "" for all of them."""
    role, colon, project = given.partition(":")
    try:
        return Role(role), (names.parse_project(f"projects/{project}") or "") if colon else ""
    except ValueError:
        wanted = f"expected {', '.join(Role)}, or a role and a project such as read:bert"
        raise click.BadParameter(f"{given!r}: {wanted}") from None


def roles_of_clients(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, Role, str], ...]:
    """Of each `trainer.example=write:bert`: the name in a certificate, the role, and its project; "" for all of them."""
    found = []
    for text in given:
        name, _, rest = text.rpartition("=")  # a name may have an equals sign, a role and a project have none
        if not name:
            raise click.BadParameter(f"{text!r}: expected NAME=ROLE, such as trainer.example=write:bert")
        found.append((name, *role_of(ctx, param, rest)))
    return tuple(found)
