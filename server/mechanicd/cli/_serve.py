"""`mechanicd serve`: one server, and the process that serves its page."""

import asyncio
import importlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import click

from mechanicd.access import Role, create
from mechanicd.cli._access import networks, role_of, roles_of_clients
from mechanicd.cli._output import fail, json_option, json_text, say
from mechanicd.cli._ranges import DAYS, STEP, FiniteRange
from mechanicd.cli._secret_files import or_by_file
from mechanicd.cli._streams import forget
from mechanicd.v1 import local_token

if TYPE_CHECKING:
    from mechanicd.dashboard import Page, PageConfig


@click.command()
@click.option(
    "--grpc",
    "addresses",
    multiple=True,
    default=("127.0.0.1:50051",),
    show_default=True,
    metavar="HOST:PORT|unix:PATH",
    help="Listen for trainers here; may be repeated. Port 0 picks a free port.",
)
@click.option(
    "--http",
    "http",
    show_default="127.0.0.1:8080, or a free port if that one is taken",
    metavar="HOST:PORT|off",
    help="Serve the page, its JSON API and /metrics here. Port 0 picks a free port; off disables them.",
)
@click.option(
    "--page-host",
    "page_hosts",
    multiple=True,
    metavar="NAME",
    help="A name by which browsers know the page, besides localhost and its address; may be repeated.",
)
@click.option(
    "--trusted-proxy",
    "proxies",
    multiple=True,
    callback=networks,
    metavar="CIDR",
    help="Take the page's readers for whom a proxy in this network says, in X-Forwarded-User; may be repeated.",
)
@click.option(
    "--proxy-role",
    callback=role_of,
    default="read",
    show_default=True,
    metavar="ROLE[:PROJECT]",
    help="What those readers may do, and where.",
)
@or_by_file(
    "--store",
    "store_url",
    "MECHANICD_STORE_FILE",
    default="sqlite:///mechanicd.db",
    show_default=True,
    metavar="URL",
    help="The database: sqlite:///FILE (sqlite:////FILE for an absolute path), or postgresql://USER@HOST/DATABASE, which "
    "any number of servers can share.",
)
@click.option("--metrics-per-run", is_flag=True, help="Export S and the step of every run in /metrics, labeled with its name.")
@or_by_file(
    "--webhook",
    "webhook",
    "MECHANICD_WEBHOOK_FILE",
    default="",
    metavar="URL",
    help="POST JSON here when a run starts to need attention, and again when it no longer does.",
)
@click.option(
    "--tls-cert",
    metavar="FILE",
    help="Speak TLS, on gRPC and the page: the server's certificate, PEM, with those between it and its authority. Read again "
    "when it changes.",
)
@click.option("--tls-key", metavar="FILE", help="The certificate's private key, PEM, without a passphrase.")
@click.option(
    "--tls-client-ca",
    metavar="FILE",
    help="Let in only clients with a certificate of these authorities, PEM: trainers, tools, and browsers.",
)
@click.option(
    "--auth",
    type=click.Choice(["auto", "tokens", "off"]),
    default="auto",
    show_default=True,
    help="Who may come in. tokens: who has a token of the store (`mechanicd tokens create`). auto: they, and this user's own "
    "programs on this machine. off: everyone.",
)
@click.option(
    "--client-role",
    "client_roles",
    multiple=True,
    callback=roles_of_clients,
    metavar="NAME=ROLE[:PROJECT]",
    help="What a client may do whose certificate has this common name or alternative name: read, write or admin, in one "
    "project or in all. Needs --tls-client-ca; may be repeated.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow addresses that other machines can reach without TLS, or without tokens. Without TLS, --auth auto is then off: "
    "whoever reaches them can read, change and delete every run.",
)
@click.option(
    "--flush-interval",
    type=FiniteRange(0.0, 10.0),
    default=0.02,
    show_default=True,
    metavar="SECONDS",
    help="Commit pending steps at least this often.",
)
@click.option(
    "--durability",
    type=click.Choice(["group", "step"]),
    default="group",
    show_default=True,
    help="group: answer a step right away and commit it within the flush interval. step: answer only after the commit.",
)
@click.option(
    "--grace",
    type=FiniteRange(0.0, 600.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="On SIGTERM, wait this long for calls in flight.",
)
@click.option(
    "--keep-steps",
    type=STEP,
    metavar="N",
    help="Keep the last N steps of each run exactly, and only min, max and last of earlier ones. Default: keep all.",
)
@click.option(
    "--keep-days",
    type=DAYS,
    metavar="DAYS",
    help="Delete runs whose last step is older than this, unless their trainer is connected. Default: keep all.",
)
@click.option(
    "--silent-after",
    type=(FiniteRange(1.0, 1e6), FiniteRange(0.0, 1e9)),
    default=(20.0, 30.0),
    show_default=True,
    metavar="FACTOR SECONDS",
    help="Call a run silent after FACTOR times its usual step interval without a step, and never before SECONDS.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much to log on stderr.",
)
@json_option
def serve(
    addresses: tuple[str, ...],
    http: str | None,
    page_hosts: tuple[str, ...],
    proxies: tuple[str, ...],
    proxy_role: tuple[Role, str],
    store_url: str,
    metrics_per_run: bool,
    webhook: str,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    auth: Literal["auto", "tokens", "off"],
    client_roles: tuple[tuple[str, Role, str], ...],
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
    """Run a server until SIGTERM or Ctrl-C, then drain it. Prints one line on stdout once it is ready."""
    if webhook and not _is_web_address(webhook):  # its text may be a secret, so it is not shown
        raise click.BadParameter("expected an http:// or https:// URL with a host and no user name", param_hint="--webhook")
    if webhook and http == "off":
        raise click.UsageError("the webhook runs in the page's process: remove --http off, or remove --webhook")
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca is not None and tls_cert is None):
        raise click.UsageError("TLS needs both --tls-cert and --tls-key")
    if client_roles and tls_client_ca is None:
        raise click.UsageError("--client-role is for clients with certificates: add --tls-client-ca")
    try:
        importlib.import_module("fcntl")
    except ModuleNotFoundError:
        fail(
            "PLATFORM_NOT_SUPPORTED",
            f"`mechanicd serve` needs Unix signals and file locks, which {sys.platform} does not have; run it on Linux, on "
            "macOS, in WSL or in a container. Trainings on this machine reach it by target='HOST:PORT'",
            as_json,
        )
    from mechanicd.dashboard import PageConfig, PageError
    from mechanicd.logs import log_to_stderr
    from mechanicd.runs import Silence
    from mechanicd.service import Access, Retention, ServeError, ServerConfig, check_address
    from mechanicd.service import serve as serve_
    from mechanicd.store import StoreError, open_store, without_password
    from mechanicd.tls import TlsError, TlsFiles

    log_to_stderr(log_level.upper())

    def on_ready(listening: list[str], page: str) -> None:
        ready: dict[str, Any] = {"grpc": listening, "store": without_password(store_url), "pid": os.getpid()}
        where = f" http={page}" if page else ""
        text = f"mechanicd ready: grpc={','.join(listening)} store={ready['store']} pid={os.getpid()}{where}"
        try:
            say(json_text({"ready": {**ready, "http": page or None}}) if as_json else text)
            if page and local is not None and not as_json and sys.stdout.isatty():
                say(f"This link signs you in to the page: {local_token.link(page, local[0])}")
        except OSError as error:  # nobody reads the line, but trainers may come
            logging.getLogger("mechanicd").warning("stdout can't be written (%s); serving all the same", error.strerror)
            forget(sys.stdout)

    tls = TlsFiles(tls_cert, tls_key, tls_client_ca or "") if tls_cert and tls_key else None
    everyone = auth == "off" or (auth == "auto" and insecure and tls is None)
    local = create("", Role.ADMIN, time.time_ns()) if auth == "auto" and not everyone else None
    config = ServerConfig(
        grpc=addresses,
        access=Access(everyone=everyone, local=local, client_roles=client_roles),
        insecure=insecure,
        tls=tls,
        flush_interval=flush_interval,
        durability=durability,
        grace=grace,
        retention=Retention(keep_steps, keep_days),
        silence=Silence(*silent_after),
    )
    try:
        for address in addresses:
            check_address(address, config.open_to_others)
        if http not in (None, "off"):
            check_address(http, config.open_to_others, unix=False)
        if tls is not None:
            tls.read()
        store = open_store(store_url)
        told = PageConfig(
            store=store_url,
            silence=config.silence,
            metrics_per_run=metrics_per_run,
            log_level=log_level.upper(),
            webhook=webhook,
            started=store.clock.now(),
            clock=store.clock.offset,
            tls=tls,
            everyone=everyone,
            local=local and local[1],
            client_roles=client_roles,
            hosts=page_hosts,
            proxies=proxies,
            proxy_role=proxy_role[0],
            proxy_project=proxy_role[1],
        )
        page = _page(http, told)
        _run(serve_(config, store, on_ready, page.beside if page else None))
    except (ServeError, StoreError, PageError, TlsError) as error:
        fail(error.reason, str(error), as_json)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url and url.replace(parts.netloc, "", 1).isascii()
    return valid and plain and parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def _page(http: str | None, config: "PageConfig") -> "Page | None":
    """The page with its socket bound, or None if there is to be no page. Raises PageError."""
    from mechanicd.dashboard import DEFAULT, Page, PageError

    if http == "off":
        return None
    if config.store == "sqlite:///:memory:":
        if http is None:
            return None
        raise PageError(
            "STORE_IN_MEMORY",
            "the page's process can't read a store in memory; use a file, or pass --http off",
        )
    return Page(http or DEFAULT, config, yielding=http is None)


def _run(coroutine: Any) -> None:
    try:
        import uvloop
    except ModuleNotFoundError:  # Windows: asyncio's own loop is slower, and just as correct
        asyncio.run(coroutine)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(coroutine)
