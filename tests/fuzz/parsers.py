"""Targets of parsers of texts and messages: filters, names, addresses, URLs, labels, requests of the page, cursors, errors."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from random import Random
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from mechanicd import access
from mechanicd.client import MechanicdError, _address, _arguments, _errors, _run_name, _spool_target, _transport
from mechanicd.dashboard import _metrics, _request
from mechanicd.dashboard._errors import ApiError
from mechanicd.dashboard._poller import Watch
from mechanicd.dashboard._sse import Live
from mechanicd.dashboard._table import Table
from mechanicd.runs import FilterError, RunRow, RunStats, RunStatus, Silence, alerts, parse_filter
from mechanicd.service import ServeError, ServiceError, _convert, _pages, check_address
from mechanicd.store import Clock, StoreNotWritable, _url, without_password
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import names, tuner_service_pb2
from tests.fuzz import mutation
from tests.fuzz.harness import Target

NAMES = (
    "projects/p/runs/r",
    "projects/default/runs/bert/seed0",
    "projects/a-b.c_d/runs/1/2/3/4/5/6/7/8",
    "projects/-",
    "r",
    "p",
)
FILTERS = (
    'status = RUNNING AND labels.batch = "256"',
    "scale < 1e-6 AND step >= 100",
    "needs : stuck AND archived : *",
    'name : "bert/seed" AND labels.model-x.y != "a \\" b\\\\"',
    "archived = true AND status != FAILED",
    f"step > {'1' * 9_000}x",
    "",
)
FILTER_WORDS = (
    *(
        "AND",
        "=",
        "!=",
        "<=",
        ">=",
        "<",
        ">",
        ":",
        '"',
        '""',
        "\\",
        '"a b"',
        "*",
        "1e9",
        "-inf",
        "nan",
        "1_0",
        "1e999",
        ".",
        "٣",
    ),
    *("status", "name", "step", "scale", "needs", "archived", "labels.", "labels.k", "labels.é", "true", "projects/", "runs/"),
)


def _row(run: str, **fields: Any) -> RunRow:
    config = TunerConfig()
    state = TunerState.initial(config)
    values: dict[str, Any] = {
        "id": 1,
        "revision": 1,
        "project": "p",
        "run": run,
        "labels": {"batch": "256", "k": ""},
        "config": config,
        "status": RunStatus.RUNNING,
        "status_message": "",
        "epoch": 1,
        "session": 1,
        "last_step": 7,
        "state": b"",
        "scale": state.scale,
        "create_time": 1,
        "open_time": 1,
        "step_time": 1,
        "interval": 10**9,
        "session_count": 1,
        "rewinds": 0,
        "command": "",
        "stats": RunStats(),
        "archive_time": 0,
    }
    return RunRow(**values | fields)


ROWS = [_row("r"), _row("bert/seed0", archive_time=1), _row("s", status=RunStatus.FAILED, labels={}, scale=(1e-3,))]
SEEN = [(row, alerts(row, 10**12, Silence())) for row in ROWS]


def _take_filter(given: str) -> None:
    matches = parse_filter(given)
    for row, needs in SEEN:
        matches(row, needs)


def _take_run_name(given: str) -> None:
    assert str(names.parse_run(given)) == given
    names.run_name(*names.parse_run(given))


# --- URLs and addresses ----------------------------------------------------------------------------------------------------

URLS = (
    *("sqlite:////tmp/x.db", "sqlite:///:memory:", "sqlite:///x.db?mode=ro", "postgresql://me@h:5432/runs?sslmode=require"),
    *("postgres://h1:1,[::1]:2/db", "postgresql://%2Fvar%2Frun/db", "postgresql:///runs?host=/tmp&user=x", "mysql://x", "x.db"),
)
SECRET = "s3cr3t"


def _make_url(rng: Random) -> str:
    if rng.random() < 0.5:
        return mutation.text(rng, URLS, ("://", "@", ":", "?", "=", "&", "%", "%40", "sqlite:///", "postgresql://", "[", "]"))
    secret = mutation.text(rng, (SECRET,), ("@", "/", "?", ":", "%40", "%", " ", "#", "&", "="))
    return f"postgresql://me:{secret}@host:5432/runs"


def _take_url(given: str) -> None:
    shown = without_password(given)
    assert given.startswith("sqlite") or SECRET not in shown, shown
    shown.encode()
    assert shown.isprintable()
    try:
        _url.parse(given)
    except StoreNotWritable as error:
        _hides(SECRET, error)
        raise


def _hides(secret: str, error: Exception) -> None:
    assert secret not in str(error), str(error)


ADDRESSES = (
    *(
        "127.0.0.1:50051",
        "localhost:1",
        "[::1]:50051",
        "https://host.example:443/",
        "unix:/run/m.sock",
        "dns:///h:1",
        "a:1, b:2",
    ),
    *(
        "file:///data/spool",
        "file:spool%20x",
        "0.0.0.0:0",
        "http://h:1",
        "me:s3cr3t@h:1",
        "ipv6:[::1]:1",
        "xn--nxasmq6b.example:1",
    ),
)


def _take_target(given: str) -> None:
    for address in _address.parse(given):
        if _spool_target.is_spool(address):
            assert _spool_target.folder(address).is_absolute()
            continue
        _address.may_proxy(address)
        parts = _address.split(_address.bare(address))
        assert parts is None or (parts[0] and 0 < parts[1] < 65_536), parts


TEMPLATES = ("sweep/{random}", "{host}/{rank}", "a{slurm_job_id}b", "{slurm_array_task_id}", "{{random}}", "plain", "{}", "{x}")


def _take_template(given: str) -> None:
    made = _run_name.filled(given, "0123abcd")
    if _run_name.has_random(given):
        assert "0123abcd" in made
    names.run_name("p", made)


def _make_labels(rng: Random) -> Mapping[str, str]:
    keys, values = ("batch", "model", "a.b-c_d", "-", "x" * 63), ("256", "", "é" * 256, "a=b")
    return {mutation.text(rng, keys): mutation.text(rng, values) for _ in range(rng.choice((0, 1, 2, 70)))}


def _take_labels(given: Mapping[str, str]) -> None:
    checked = names.check_labels(given)
    assert checked == given
    json.dumps(checked).encode()


def _take_words(given: str) -> None:
    """What is only for people is never refused."""
    for most in (0, 1, 200):
        assert len(_arguments.text(given, most).encode()) <= 4 * most
    told = mutation.unicode(given)
    assert len(_convert.text_in(told, 200)) <= 200
    _convert.command_in(told).encode()
    assert _TEXT[-43:] not in _arguments.without_secrets(f"{given} {_TEXT} {given}")


def _make_bytes_of_text(rng: Random) -> str:
    return mutation.text(rng, ("python train.py --lr 1", "host, process 7", "", "postgresql://me:pw@h/db", "'a b' \\"))


# --- page ------------------------------------------------------------------------------------------------------------------

BODIES: tuple[dict[str, Any], ...] = (
    {"runs": ["projects/p/runs/r"], "series": "S", "x": "step", "x0": 1, "x1": 100.5, "columns": 300, "group": 0, "branch": 0},
    {"groups": [{"label": "a", "runs": ["projects/p/runs/r"]}], "quantiles": [0.1, 0.5], "columns": 200, "series": "h"},
    {"runs": [], "pixels": 8192, "x": "time", "series": "effective_lr", "x0": None},
)
JSON_WORDS = (
    "null",
    "true",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "1e999",
    "-0",
    "NaN",
    "1e-7",
    '"\\ud800"',
    '"runs"',
    "9" * 30,
    '"S"',
)
QUERIES: tuple[dict[str, str], ...] = (
    {"run": "projects/p/runs/r", "x0": "1", "x1": "1e3", "columns": "300", "branch": "0"},
    {"run": "projects/p/runs/r", "format": "csv", "x0": "", "x1": "-5"},
)


def make_body(rng: Random) -> bytes:
    """A body of JSON, or nearly."""
    kind = rng.randrange(8)
    if kind == 0:
        return b"[" * rng.randrange(3_000) + b"]" * rng.randrange(3_000)
    given = json.loads(json.dumps(rng.choice(BODIES)))
    if kind < 5:
        for _ in range(rng.randrange(1, 3)):
            field = rng.choice((*given, "runs", "x0", "columns", "new"))
            given[field] = _json_value(rng, 0)
        return json.dumps(given).encode()
    return mutation.text(rng, (json.dumps(given),), JSON_WORDS).encode("utf-8", "surrogatepass")


def _json_value(rng: Random, depth: int) -> Any:
    match rng.randrange(9 if depth < 3 else 6):
        case 0:
            return rng.choice((None, True, False, 10**400 if rng.random() < 0.02 else 2**63, -1, 0, 1e308, 2**53))
        case 1:
            return mutation.real(rng)
        case 2:
            return rng.randint(-5, 10_000)
        case 3 | 4:
            return mutation.unicode(mutation.text(rng, (*NAMES, "S", "h", "step", "")))
        case 5:
            return [0.1] * rng.choice((0, 1, 21, 3_000))
        case 6 | 7:
            return [_json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            return {"label": _json_value(rng, depth + 1), "runs": _json_value(rng, depth + 1)}


def make_query(rng: Random) -> dict[str, str]:
    """Parameters of a query string."""
    given = dict(rng.choice(QUERIES))
    for _ in range(rng.randrange(3)):
        key = rng.choice((*given, "x0", "x1", "branch", "columns", "format", "new"))
        given[key] = mutation.text(
            rng, ("1", "1e308", "-1.5", "csv", "inf", "1e-320", "9" * 400, ".", "+3."), ("e", "1", "_", "-")
        )
    return given


def _take_body(given: bytes) -> None:
    with contextlib.suppress(ApiError):
        _request.SeriesRequest.of(given)
    _request.BandsRequest.of(given)


def _take_query(given: dict[str, str]) -> None:
    with contextlib.suppress(ApiError):
        _request.HeatRequest.of(given)
    _request.ExportRequest.of(given)


ACCEPTS = (
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text; version=1.0.0; escaping=underscores",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6",
)
COUNTS: dict[str, Any] = {
    "steps": {"tuned": 1},
    "opened": {"created": 1},
    "commits_failed": 0,
    "lost": 0,
    "sessions": 1,
    "store_works": True,
    **{name: {"bounds": [0.1], "counts": [1, 0], "sum": 0.1} for name in ("step_seconds", "commit_seconds")},
    "unfolded": 0,
}


def _take_accept(given: str) -> None:
    facts = _metrics.Facts(version="1", counts=COUNTS, age=0.1, readable=True, items=[], per_run=True)
    content, media_type = _metrics.text(facts, given.encode("utf-8", "replace").decode("latin-1"))  # as a header comes
    assert content
    media_type.encode("latin-1")


class _Cursor:
    """`Last-Event-ID` as the page's process takes it."""

    def __init__(self) -> None:
        watch = Watch(SimpleNamespace(), Table(Silence()), Clock(0))  # type: ignore[arg-type]
        self._live = Live(watch, dict)

    def make(self, rng: Random) -> str:
        return mutation.text(rng, (self._live.cursor, "", "0.0", "abc.12", f"{self._live.cursor}0"), (".", "-1", "9" * 20, "١"))

    def take(self, given: str) -> None:
        moment = self._live._moment(given)
        assert moment is None or moment >= 0


# --- tokens and errors -------------------------------------------------------------------------------------------------------

TOKENS = (_pages.token_out(["p", "r"], "runs"), _pages.token_out(["17"], "series"), "", "x", "====", "QUJD")


def _take_token(given: str) -> None:
    given = mutation.unicode(given)
    with contextlib.suppress(ServiceError):
        _pages.token_in(given, "runs", parts=2)
    _pages.step_token_in(given, "series")


_TEXT, _KEPT = access.create("p", access.Role.WRITE, 1)
_KEYRING = access.Keyring()
_KEYRING.take([_KEPT])
BEARERS = (f"Bearer {_TEXT}", _TEXT, f"bearer  {_TEXT[:-1]}", "Basic eDp5", f"Bearer {_TEXT.swapcase()}", "")


def _take_bearer(given: str) -> None:
    text = access.bearer(given)
    assert text is not None
    parsed = access.parse(text)
    assert parsed is None or "_".join(("mech", *parsed)) == text
    try:
        principal = _KEYRING.check(text, 2)
    except access.Denied as error:
        _hides(_TEXT[-43:], error)
        raise
    assert text == _TEXT, "another text lets somebody in"
    assert principal == _KEPT.principal


def _details(reason: str, metadata: Mapping[str, str]) -> bytes:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=names.DOMAIN, metadata=metadata))
    return status_pb2.Status(code=3, message="no", details=[packed]).SerializeToString()


TRAILERS = (
    _details("STEP_OUT_OF_ORDER", {"expected": "3", "received": "5"}),
    _details("CONFIG_MISMATCH", {"field": "betas"}),
    _details("RUN_DELETED", {"name": "projects/p/runs/r", "session": "1"}),
    _details("NEW_REASON", {}),
)


class _RpcError(grpc.RpcError):
    """What grpc raises, with the trailers of any answerer."""

    def __init__(self, code: Any, details: str, trailer: bytes) -> None:
        super().__init__()
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: (("x", "y"), ("grpc-status-details-bin", trailer))

    def __repr__(self) -> str:
        return f"{self.code()}, {self.details()!r}, {self.trailing_metadata()!r}"


def _make_error(rng: Random) -> _RpcError:
    said = ("", "Socket closed", "SSL: CERTIFICATE_VERIFY_FAILED: expired: x", "a\nb", "WRONG_VERSION_NUMBER")
    return _RpcError(rng.choice(list(grpc.StatusCode)), mutation.text(rng, said), mutation.data(rng, TRAILERS))


def _take_error(given: _RpcError) -> None:
    error = _transport.translate(given, "127.0.0.1:1")
    assert isinstance(error, MechanicdError)
    str(error)


def _make_step_error(rng: Random) -> Any:
    return mutation.message(rng, tuner_service_pb2.StepError.DESCRIPTOR, {})


def _texts(seeds: tuple[str, ...], words: tuple[str, ...] = ()) -> Callable[[Random], str]:
    return lambda rng: mutation.text(rng, seeds, words)


os.environ.setdefault("RANK", "0")
_CURSOR = _Cursor()
_MALFORMED = (names.MalformedName,)

TARGETS = (
    Target(
        name="filter",
        make=_texts(FILTERS, FILTER_WORDS),
        take=_take_filter,
        refused=(FilterError,),
        covers=(parse_filter, _convert.filter_in),
        rounds=120_000,
    ),
    Target(
        name="run-name",
        make=_texts(NAMES, ("projects/", "/runs/", "/", "-", "..", "p")),
        take=_take_run_name,
        refused=_MALFORMED,
        covers=(names.parse_run, _convert.run_name_in),
        rounds=80_000,
    ),
    Target(
        name="project",
        make=_texts(NAMES, ("projects/", "-", "/")),
        take=names.parse_project,
        refused=_MALFORMED,
        covers=(names.parse_project, _convert.project_in),
    ),
    Target(
        name="template",
        make=_texts(TEMPLATES, ("{", "}", "{random}", "{rank}", "/")),
        take=_take_template,
        refused=(MechanicdError, *_MALFORMED),
        covers=(_run_name.filled,),
        rounds=60_000,
    ),
    Target(
        name="labels", make=_make_labels, take=_take_labels, refused=_MALFORMED, covers=(names.check_labels, _convert.labels_in)
    ),
    Target(name="words", make=_make_bytes_of_text, take=_take_words, covers=(_convert.text_in, _convert.command_in)),
    Target(name="store-url", make=_make_url, take=_take_url, refused=(StoreNotWritable,), covers=(_url.parse,), rounds=80_000),
    Target(
        name="target",
        make=_texts(ADDRESSES, ("https://", "file:", "unix:", "[", "]", ":", "%00", "%ff", ",", "@", "..", "xn--")),
        take=_take_target,
        refused=(MechanicdError,),
        covers=(_address.parse, _spool_target.folder),
        rounds=80_000,
    ),
    Target(
        name="listen",
        make=_texts(ADDRESSES, (":", "[", "]", "0", "unix:")),
        take=lambda given: check_address(given, insecure=False),
        refused=(ServeError,),
        covers=(check_address,),
    ),
    Target(
        name="body",
        make=make_body,
        take=_take_body,
        refused=(ApiError,),
        covers=(_request.SeriesRequest.of, _request.BandsRequest.of),
        rounds=60_000,
    ),
    Target(
        name="query",
        make=make_query,
        take=_take_query,
        refused=(ApiError,),
        covers=(_request.HeatRequest.of, _request.ExportRequest.of),
        rounds=60_000,
    ),
    Target(
        name="accept",
        make=_texts(ACCEPTS, (";", ",", "=", "q=", "*/*", "version=", "escaping=")),
        take=_take_accept,
        covers=(_metrics.text,),
        rounds=8_000,
        quick=10,
    ),
    Target(name="cursor", make=_CURSOR.make, take=_CURSOR.take, covers=(Live._moment,)),
    Target(
        name="page-token",
        make=_texts(TOKENS, ("=", "-", "_", "QQ")),
        take=_take_token,
        refused=(ServiceError,),
        covers=(_pages.token_in, _pages.step_token_in),
    ),
    Target(
        name="token",
        make=_texts(BEARERS, ("Bearer", "mech_", "_", " ", "é")),
        take=_take_bearer,
        refused=(access.Denied,),
        covers=(access.parse, access.bearer),
    ),
    Target(name="answer-error", make=_make_error, take=_take_error, covers=(_transport.translate, _errors.from_reason)),
    Target(
        name="step-error",
        make=_make_step_error,
        take=_transport.step_error,
        covers=(_transport.step_error,),
        rounds=10_000,
    ),
)
