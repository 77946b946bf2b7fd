"""Who asks, and what they may do."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class Role(StrEnum):
    """What somebody may do; each role may also do what those before it may."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        """Whether whoever has this role may do what the other one allows."""
        return _ORDER.index(self) >= _ORDER.index(other)


_ORDER: Final = tuple(Role)


class Denied(Exception):
    """Who asks may not. The message says what to do, and has no secret in it.

    Args:
        id: of the token that is no longer good, where its secret was right.
    """

    def __init__(self, reason: Literal["UNAUTHENTICATED", "PERMISSION_DENIED"], message: str, id: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.id = id


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        id: of the token; "local" for the server's own token, "cert:SUBJECT", "user:NAME", or "anyone" where nobody has to show
            who they are.
        role: what they may do.
        project: where; "" means in all projects.
    """

    id: str
    role: Role
    project: str = ""

    def allows(self, role: Role, project: str | None) -> bool:
        """Whether they have this role in a project; None: in all projects."""
        return self.role.includes(role) and (not self.project or self.project == project)

    def require(self, role: Role, project: str | None) -> None:
        """Raises Denied PERMISSION_DENIED where `allows` says no."""
        if self.allows(role, project):
            return
        where = "all projects" if project is None else f"project {project}"
        mine = f"project {self.project}" if self.project else "all projects"
        advice = f"ask for a token with --role {role}{'' if project is None else f' --project {project}'}"
        if project is None and self.role.includes(role):
            advice = f"name the project, {self.project}, or ask for a token without a project"
        needs = f"this needs the role {role} in {where}; {self.id} has {self.role} in {mine}"
        raise Denied("PERMISSION_DENIED", f"{needs}: {advice}")


ANYONE: Final = Principal("anyone", Role.ADMIN)
"""Everybody, where nobody has to show who they are."""
