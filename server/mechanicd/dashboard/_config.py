"""The child's configuration, the first line of its stdin. It may hold a database password, so it is on no command line."""

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from mechanicd.access import Role, Token
from mechanicd.runs import Silence
from mechanicd.tls import TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class PageConfig:
    """How to serve the page.

    Attributes:
        store: the URL of the store, which is opened read-only.
        silence: when a running run counts as silent.
        everyone: nobody has to show who they are.
        local: the server's own token.
        hosts: names, besides those of this machine, by which the page may be asked for (DNS rebinding).
        proxies: the networks of proxies, CIDR, whose X-Forwarded-User header is believed.
        proxy_role: what users whom they name may do.
        proxy_project: where; "": in all projects.
        client_roles: what clients with a certificate may do: (subject, role, project).
        grpc: the addresses for trainers, for the commands that the page shows.
        metrics_per_run: whether /metrics has each run by name.
        log_level: the level of the log on stderr.
        webhook: the URL to POST alerts to; "": none.
        told: the alerts that the webhook has already sent: (run, kind).
        started: the start of the server, ns since 1970, by the store's clock.
        clock: that clock's offset (`Clock.offset`).
        tls: the files of the certificate; None: no TLS.
    """

    store: str = field(repr=False)
    silence: Silence = field(default_factory=Silence)
    everyone: bool = False
    local: Token | None = None
    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    proxy_role: Role = Role.READ
    proxy_project: str = ""
    client_roles: tuple[tuple[str, Role, str], ...] = ()
    grpc: tuple[str, ...] = ()
    metrics_per_run: bool = False
    log_level: str = "INFO"
    webhook: str = field(default="", repr=False)
    told: tuple[tuple[str, str], ...] = ()
    started: int = 0
    clock: int | None = None
    tls: TlsFiles | None = None

    def to_line(self) -> bytes:
        """The configuration as one line of JSON."""
        return json.dumps(asdict(self), default=bytes.hex).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """The inverse of `to_line`."""
        given = json.loads(line)
        given["silence"] = Silence(**given["silence"])
        given["tls"] = given["tls"] and TlsFiles(**given["tls"])
        if local := given["local"]:
            given["local"] = Token(**{**local, "role": Role(local["role"]), "digest": bytes.fromhex(local["digest"])})
        given["proxy_role"] = Role(given["proxy_role"])
        given["client_roles"] = tuple((subject, Role(role), project) for subject, role, project in given["client_roles"])
        for name in ("grpc", "hosts", "proxies"):
            given[name] = tuple(given[name])
        given["told"] = tuple(map(tuple, given["told"]))
        return cls(**given)
