"""Who may do what: tokens, roles, the keyring that checks them, and how it follows a store. No store, no transport."""

from mechanicd.access._keyring import Keyring
from mechanicd.access._keys import Keys
from mechanicd.access._principal import ANYONE, Denied, Principal, Role
from mechanicd.access._token import Token, bearer, create, parse

__all__ = ["ANYONE", "Denied", "Keyring", "Keys", "Principal", "Role", "Token", "bearer", "create", "parse"]
