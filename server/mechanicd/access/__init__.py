"""Who may do what: tokens, roles, and the keyring that checks them. Pure: no store, no transport, no clock of its own."""

from mechanicd.access._keyring import Keyring
from mechanicd.access._principal import ANYONE, Denied, Principal, Role
from mechanicd.access._token import Token, bearer, create, parse

__all__ = ["ANYONE", "Denied", "Keyring", "Principal", "Role", "Token", "bearer", "create", "parse"]
