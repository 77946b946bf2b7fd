"""`mechanicd health`: whether a server serves, for probes of containers and for scripts that start one."""

import time
from typing import Final

import click
from grpc_health.v1 import health_pb2

from mechanicd.cli._options import reports_errors, target_option
from mechanicd.cli._output import fail, json_option, json_text, say
from mechanicd.cli._ranges import FiniteRange
from mechanicd.client import Client, NotTrusted, ServerUnavailable, connect

_CALL_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.1


@click.command()
@target_option
@click.option(
    "--wait",
    type=FiniteRange(0.0, 86_400.0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for a server that is starting.",
)
@click.option(
    "--live",
    is_flag=True,
    help="Any answer will do: a server whose store is away, or that drains, is alive. For a probe that restarts what fails it.",
)
@json_option
@reports_errors
def health(target: str, wait: float, live: bool, as_json: bool) -> None:
    """Ask a server whether it serves. Exits with 0 if it does, with 1 if it doesn't or nobody answers."""
    end = time.monotonic() + wait
    with connect(target) as client:
        status = _status(client, end)
        while status != "SERVING" and not live and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)
            status = _status(client, end)
    if status != "SERVING" and not live:
        fail(
            "SERVER_NOT_SERVING",
            f"{target} answers {status}: its store is unavailable, or it drains; see its log",
            as_json,
        )
    say(json_text({"target": target, "status": status}) if as_json else status)


def _status(client: Client, end: float) -> str:
    """The name of its status. Until `end` it waits for a server. Raises MechanicdError."""
    while True:
        try:
            answer = client.call("Check", health_pb2.HealthCheckRequest().SerializeToString(), _CALL_SECONDS)
        except NotTrusted:
            raise
        except ServerUnavailable:
            if time.monotonic() >= end:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            response = health_pb2.HealthCheckResponse.FromString(answer)
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
