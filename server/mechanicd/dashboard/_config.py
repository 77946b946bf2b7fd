"""What the child is told on the first line of its stdin. A database's password is in it, so it is in no command line."""

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from mechanicd.runs import Silence


@dataclass(frozen=True, slots=True, kw_only=True)
class PageConfig:
    """How to serve the page.

    Attributes:
        store: URL of the store, which is only read.
        silence: when a run that is held counts as silent.
        guarded: refuse requests for another host than this machine (a foreign page that calls itself so by DNS).
        grpc: where trainers connect, for the commands that the page shows.
        metrics_per_run: whether /metrics tells of each run.
        log_level: how much to say on stderr.
        webhook: where to POST what runs need; "" nowhere.
        told: what the webhook has been told of already: (run, kind of need).
        started: when the server was started, ns since 1970.
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

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """The reverse of `to_line`."""
        given = json.loads(line)
        given["silence"] = Silence(**given["silence"])
        given["grpc"] = tuple(given["grpc"])
        given["told"] = tuple(map(tuple, given["told"]))
        return cls(**given)
