"""The child's configuration, the first line of its stdin. It may hold a database password, so it is on no command line."""

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from mechanicd.runs import Silence
from mechanicd.tls import TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class PageConfig:
    """How to serve the page.

    Attributes:
        store: the URL of the store, which is opened read-only.
        silence: when a running run counts as silent.
        guarded: refuse requests whose Host header is not this machine (DNS rebinding).
        grpc: the addresses for trainers, for the commands that the page shows.
        metrics_per_run: whether /metrics has each run by name.
        log_level: the level of the log on stderr.
        webhook: the URL to POST alerts to; "": none.
        told: the alerts that the webhook has already sent: (run, kind).
        started: the start of the server, ns since 1970, by the store's clock.
        clock: that clock's offset (`Clock.offset`).
        tls: the files of the certificate; None: no TLS.
    """

    store: str
    silence: Silence = field(default_factory=Silence)
    guarded: bool = True
    grpc: tuple[str, ...] = ()
    metrics_per_run: bool = False
    log_level: str = "INFO"
    webhook: str = ""
    told: tuple[tuple[str, str], ...] = ()
    started: int = 0
    clock: int | None = None
    tls: TlsFiles | None = None

    def to_line(self) -> bytes:
        """The configuration as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """The inverse of `to_line`."""
        given = json.loads(line)
        given["silence"] = Silence(**given["silence"])
        given["tls"] = given["tls"] and TlsFiles(**given["tls"])
        given["grpc"] = tuple(given["grpc"])
        given["told"] = tuple(map(tuple, given["told"]))
        return cls(**given)
