"""The command line: `mechanicd serve | demo | runs … | store … | top`. Errors go to stderr with a reason; each takes --json."""

import asyncio
import importlib
import json
import logging
import os
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Literal

try:
    import click
except ModuleNotFoundError:  # the base install is the client alone
    sys.exit("error: the command line needs the server's packages; pip install 'mechanicd[server]' [PACKAGE_MISSING]")

if TYPE_CHECKING:
    from mechanicd.dashboard import Page, PageConfig

EXIT_FAILED: Final = 1

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


class LazyGroup(click.Group):
    """A group whose other commands are imported when asked for: `serve` needs neither torch nor a client."""

    lazy: Final = {
        "demo": "mechanicd.demo:demo",
        "runs": "mechanicd.cli._runs:runs",
        "store": "mechanicd.cli._store:store",
        "top": "mechanicd.cli._runs:top",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.lazy[cmd_name].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = error.name or "a package"
            message = f"`mechanicd {cmd_name}` needs {missing}, which is not installed; pip install 'mechanicd[demo]'"

            @click.command(cmd_name, help=f"Not available: {message}.", context_settings={"ignore_unknown_options": True})
            @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
            def unavailable(rest: tuple[str, ...]) -> None:
                fail("PACKAGE_MISSING", message)

            return unavailable
        return command


def fail(reason: str, message: str, as_json: bool = False) -> None:
    """Says what went wrong, on stderr, and exits with 1."""
    text = json.dumps({"error": {"reason": reason, "message": message}}) if as_json else f"error: {message} [{reason}]"
    click.echo(text, err=True)
    sys.exit(EXIT_FAILED)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mechanicd")
def main() -> None:
    """MECHANIC, the learning-rate tuner, as a service: it gives every run its scale S, and keeps its state.

    Exit codes: 0, it is done (Ctrl-C ends `watch` and `top` so, too); 1, it failed, or the question was answered with no, and
    stderr has the reason; 2, it was called in a way that can't be.
    """


@main.command()
@click.option(
    "--grpc",
    "addresses",
    multiple=True,
    default=("127.0.0.1:50051",),
    show_default=True,
    metavar="HOST:PORT|unix:PATH",
    help="Where trainers connect; may be given more than once. Port 0 takes a free one.",
)
@click.option(
    "--http",
    "http",
    show_default="127.0.0.1:8080, or a free port where that is taken",
    metavar="HOST:PORT|off",
    help="Where the page, its JSON and /metrics are. Port 0 takes a free one; off: nowhere.",
)
@click.option(
    "--store",
    "store_url",
    default="sqlite:///mechanicd.db",
    show_default=True,
    metavar="URL",
    help="Where runs are kept: sqlite:///FILE (sqlite:////FILE from the root), or postgresql://USER@HOST/DATABASE, which any "
    "number of servers may share.",
)
@click.option("--metrics-per-run", is_flag=True, help="Let /metrics tell S and the step of each run by name.")
@click.option(
    "--webhook",
    default="",
    metavar="URL",
    help="POST here, as JSON, when a run begins to need somebody, and when it no longer does.",
)
@click.option("--insecure", is_flag=True, help="Allow addresses that other machines can reach, without TLS and tokens.")
@click.option(
    "--flush-interval",
    type=click.FloatRange(0.0, 10.0),
    default=0.02,
    show_default=True,
    metavar="SECONDS",
    help="Commit steps at least this often.",
)
@click.option(
    "--durability",
    type=click.Choice(["group", "step"]),
    default="group",
    show_default=True,
    help="group: answer a step at once, commit it within the flush interval; step: answer it when it is committed.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0.0, 600.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for calls in flight to end on SIGTERM.",
)
@click.option(
    "--keep-steps",
    type=click.IntRange(0),
    metavar="N",
    help="Keep the exact steps of the last N steps of each run; of earlier ones min, max and last. Default: all.",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(0.0),
    metavar="DAYS",
    help="Delete runs whose last step is older. Default: keep all.",
)
@click.option(
    "--silent-after",
    type=(click.FloatRange(1.0), click.FloatRange(0.0)),
    default=(20.0, 30.0),
    show_default=True,
    metavar="FACTOR SECONDS",
    help="A run counts as silent after FACTOR of its usual step intervals without a step, and SECONDS at least.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much to say on stderr.",
)
@json_option
def serve(
    addresses: tuple[str, ...],
    http: str | None,
    store_url: str,
    metrics_per_run: bool,
    webhook: str,
    insecure: bool,
    flush_interval: float,
    durability: Literal["group", "step"],
    grace: float,
    keep_steps: int | None,
    keep_days: float | None,
    silent_after: tuple[float, float],
    log_level: str,
    as_json: bool,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. Prints one line on stdout when it is ready."""
    if webhook and not webhook.startswith(("http://", "https://")):
        raise click.BadParameter(f"{webhook!r}: expected http://… or https://…", param_hint="--webhook")
    if webhook and http == "off":
        raise click.UsageError("--webhook is the page's process's to send: it goes without --http off")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # grpc's own lines on stderr; what they tell is told below
    from mechanicd.dashboard import PageConfig, PageError
    from mechanicd.runs import Silence
    from mechanicd.service import Retention, ServeError, ServerConfig, check_address
    from mechanicd.service import serve as serve_
    from mechanicd.store import StoreError, open_store, without_password

    logging.basicConfig(stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s")

    def on_ready(listening: list[str], page: str) -> None:
        ready: dict[str, Any] = {"grpc": listening, "store": without_password(store_url), "pid": os.getpid()}
        if as_json:
            click.echo(json.dumps({"ready": {**ready, "http": page or None}}))
        else:
            where = f" http={page}" if page else ""
            click.echo(f"mechanicd ready: grpc={','.join(listening)} store={ready['store']} pid={os.getpid()}{where}")
        sys.stdout.flush()

    config = ServerConfig(
        grpc=addresses,
        insecure=insecure,
        flush_interval=flush_interval,
        durability=durability,
        grace=grace,
        retention=Retention(keep_steps, keep_days),
        silence=Silence(*silent_after),
    )
    try:
        if http not in (None, "off"):
            check_address(http, insecure, unix=False)
        store = open_store(store_url)
        told = PageConfig(
            store=store_url,
            silence=config.silence,
            metrics_per_run=metrics_per_run,
            log_level=log_level.upper(),
            webhook=webhook,
            started=time_ns(),
        )
        page = _page(http, told)
        _run(serve_(config, store, on_ready, page.beside if page else None))
    except (ServeError, StoreError, PageError) as error:
        fail(error.reason, str(error), as_json)


def _page(http: str | None, config: "PageConfig") -> "Page | None":
    """The page's socket, bound; None where there is to be no page. Raises PageError."""
    from mechanicd.dashboard import DEFAULT, Page, PageError

    if http == "off":
        return None
    if config.store.endswith(":memory:"):
        if http is None:
            return None
        raise PageError("STORE_IN_MEMORY", "a store in memory can't be read by the page's process; name a file, or --http off")
    return Page(http or DEFAULT, config, yielding=http is None)


def _run(coroutine: Any) -> None:
    try:
        import uvloop
    except ModuleNotFoundError:  # Windows: asyncio's own loop is slower and right
        asyncio.run(coroutine)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(coroutine)
