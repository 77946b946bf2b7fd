"""What a run or a server says is shown, and obeyed by no terminal and no log: every command against a hostile server."""

import contextlib
import csv
import io
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from rich.console import Console

from mechanicd.cli import _text, main
from mechanicd.client import MechanicdError, connect, open_run
from mechanicd.tuner import Reductions
from mechanicd.v1 import names, resources_pb2, run_service_pb2, tuner_service_pb2

EVIL = "a\x1b[2J\x1b]52;c;ZXZpbA==\x07\x1b]0;t\x07\r\nerror: forged \x9b31m‮⁦\x7f\x08\x00\u2028z"
Answer = Callable[[str], Any]
HERE = Path(__file__).parents[2]


def run_of(text: str, **fields: Any) -> resources_pb2.Run:
    return resources_pb2.Run(
        name=f"projects/default/runs/r{text}",
        labels={f"k{text}": text},
        status=resources_pb2.RUN_STATUS_FAILED,
        status_message=text,
        command=text,
        scale=[1.0],
        config=resources_pb2.TunerConfig(scale_groups=[text]),
        needs=[resources_pb2.Need(kind=1, message=text)],
        step_time=Timestamp(seconds=1),
        **fields,
    )


def says(text: str) -> Answer:
    """Answers every method with well-formed messages in which every text is hostile."""
    run = run_of(text)
    bucket = run_service_pb2.SeriesBucket(first_step=1, last_step=2)
    for field in bucket.DESCRIPTOR.fields:
        if field.message_type is not None and {"min", "max"} <= set(field.message_type.fields_by_name):
            getattr(bucket, field.name).min.append(1.0)
            getattr(bucket, field.name).max.append(1.0)
    event = resources_pb2.RunEvent(kind=1, message=text)

    def answer(method: str) -> Any:
        made = response(method)
        for field, value in (("run", run), ("runs", [run]), ("events", [event]), ("buckets", [bucket]), ("gone", [run.name])):
            if field in made.DESCRIPTOR.fields_by_name:
                target = getattr(made, field)
                target.extend(value) if isinstance(value, list) else target.CopyFrom(value)
        return made

    return answer


def response(method: str) -> Any:
    for module in (run_service_pb2, tuner_service_pb2):
        if hasattr(module, f"{method}Response"):
            return getattr(module, f"{method}Response")()
    return health_pb2.HealthCheckResponse()


class Refuses(Exception):
    """What the server answers instead of a message."""


def refuses(text: str) -> Answer:
    """Refuses every method with a hostile reason, message and metadata."""

    def answer(method: str) -> Any:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=text, domain=names.DOMAIN, metadata={"last_step": text, "k": text}))
        raise Refuses(status_pb2.Status(code=9, message=text, details=[detail]).SerializeToString(), text)

    return answer


def rejects(code: grpc.StatusCode, trailer: bytes = b"") -> Answer:
    def answer(method: str) -> Any:
        raise Refuses(trailer, EVIL, code)

    return answer


class Server(grpc.GenericRpcHandler):
    """Answers as it is told, whatever it is asked."""

    def __init__(self) -> None:
        self.answer: Answer = says(EVIL)
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                made = self.answer(method)
            except Refuses as error:
                trailer, text, *code = error.args
                if trailer:
                    context.set_trailing_metadata((("grpc-status-details-bin", trailer),))
                context.abort(code[0] if code else grpc.StatusCode.FAILED_PRECONDITION, text.replace("\x00", ""))
            return bytes(made if isinstance(made, bytes) else made.SerializeToString())

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            yield unary(request, context)
            self.answer = refuses(EVIL)  # a watch goes on after anything but a refusal
            unary(request, context)

        if method == "WatchRuns":
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def close(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture(scope="module")
def hostile() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


COMMANDS = [
    ("health",),
    ("runs", "list"),
    ("runs", "list", "--sketch"),
    ("runs", "list", "--format", "csv"),
    ("runs", "list", "--format", "jsonl"),
    ("runs", "show", "r"),
    ("runs", "watch"),
    ("runs", "export", "r"),
    ("runs", "export", "r", "--format", "jsonl"),
    ("runs", "rewind", "r", "1", "--yes"),
    ("runs", "fork", "r", "s"),
    ("runs", "rename", "r", "s"),
    ("runs", "close", "r", "--status", "failed", "--message", EVIL.replace("\x00", "")),
    ("runs", "archive", "r"),
    ("runs", "archive", "--filter", "archived : *", "--dry-run"),
    ("runs", "restore", "--filter", "archived : *", "--yes"),
    ("runs", "label", "r", "s", "a=b", "--yes"),
    ("runs", "delete", "r", "--yes"),
    ("runs", "delete", "r", "s", "t", "--yes"),
    ("top", "--once"),
]


def test_these_are_all_commands_that_ask_a_server(here: Any) -> None:
    asked = {command[:2] if command[0] == "runs" else command[:1] for command in COMMANDS}
    context = click.Context(main)
    runs = main.get_command(context, "runs")
    assert isinstance(runs, click.Group)
    assert {("runs", name) for name in runs.list_commands(context)} <= asked
    others = {"demo", "import", "runs", "serve", "store", "tokens"}
    assert {(name,) for name in main.list_commands(context)} - asked == {(name,) for name in others}


ANSWERS = {
    "well-formed messages": says(EVIL),
    "refusals": refuses(EVIL),
    "another reason": rejects(grpc.StatusCode.INTERNAL),
    "unimplemented": rejects(grpc.StatusCode.UNIMPLEMENTED),
    "details that are no message": rejects(grpc.StatusCode.INTERNAL, b"\xff\xff\xff\xff"),
    "no message": lambda method: b"\xff\xff\xff",
    "empty messages": response,
    "numbers that nobody knows": lambda method: answers_oddly(method),
}


OUTAGES = ("another reason", "details that are no message", "no message")


def answers_oddly(method: str) -> Any:
    made = response(method)
    run = run_of("", create_time=Timestamp(seconds=2**62, nanos=-5))
    run.status, run.config.convention, run.needs[0].kind = 99, 98, 97  # type: ignore[assignment]
    if "run" in made.DESCRIPTOR.fields_by_name:
        made.run.CopyFrom(run)
    if "runs" in made.DESCRIPTOR.fields_by_name:
        made.runs.append(run)
    return made


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spool file with three steps."""
    folder = tmp_path_factory.mktemp("spool")
    with open_run(f"file://{folder}", "r", start=0, labels={"a": EVIL.replace("\x00", "")}) as session:
        for step in range(3):
            session.step(Reductions(-1.0 - step, 0.0, 1.0, 1.0))
    return str(folder)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_import_shows_what_a_server_says_and_obeys_none_of_it(kind: str, hostile: Server, spool: str, here: Any) -> None:
    for as_json in ([], ["--json"]):
        hostile.answer = ANSWERS[kind]
        done = here("import", spool, "--target", hostile.target, *as_json)
        plain(done.stdout + done.stderr, ("import",))
        assert done.returncode == 1


@pytest.mark.parametrize("kind", ANSWERS)
def test_no_command_lets_a_server_write_to_the_terminal_or_ends_in_a_traceback(kind: str, hostile: Server, here: Any) -> None:
    for command in COMMANDS:
        if kind in OUTAGES and ("watch" in command or "top" in command):
            continue  # it waits for a better server
        for as_json in ([], ["--json"]):
            hostile.answer = ANSWERS[kind]
            done = here(*command, "--target", hostile.target, *as_json)
            plain(done.stdout.replace("\r\n", "\n") if "csv" in command or "export" in command else done.stdout, command)
            plain(done.stderr, command)
            assert done.returncode in (0, 1), (command, done.stderr)


def plain(text: str, about: Any) -> None:
    found = [each for each in text if not each.isprintable() and each != "\n"]
    if "csv" not in about and about[1:2] != ("export",):  # data for programs, exact
        assert not found, (about, text)
        assert not re.search(r"^error: forged", text, re.MULTILINE), (about, text)
    assert "Traceback" not in text, (about, text)


def test_a_question_and_a_usage_error_are_plain_too(hostile: Server, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile.answer = says(EVIL)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    for command in (
        ["runs", "delete", "--filter", "archived : *"],
        ["runs", "list", "--sort", EVIL],
        ["runs", EVIL],
        [f"--{EVIL}"],
    ):
        target = ["--target", hostile.target] if command[0] == "runs" and command[1] != EVIL else []
        done = here(*command, *target)
        assert done.returncode in (1, 2)
        plain(done.stdout + done.stderr, command)


def test_the_live_table_of_top_is_plain() -> None:
    out = Console(file=io.StringIO(), width=400, force_terminal=True, color_system=None)
    out.print(_text.table([run_of(EVIL.replace("\n", "").replace("/", ""), durable_step=1)][:0]))
    found = run_of(EVIL)
    found.name = "projects/default/runs/r"
    out.print(_text.table([found], {found.name: "▁"}))
    plain(out.file.getvalue(), ("top",))  # type: ignore[attr-defined]
    assert "\\x1b[2J" in out.file.getvalue()  # type: ignore[attr-defined]


def test_what_a_server_says_is_one_plain_line_in_the_errors_and_the_log_of_a_trainer(
    hostile: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("refusals", "another reason", "details that are no message", "unimplemented"):
        hostile.answer = ANSWERS[kind]
        with connect(hostile.target) as client, pytest.raises(MechanicdError) as caught:
            client.call("GetRun", run_service_pb2.GetRunRequest(name="x"))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 5000
        assert caught.value.reason.isprintable()

    def opens(method: str) -> Any:
        if method == "OpenSession":
            return tuner_service_pb2.OpenSessionResponse(session=1, outcome=3, explanation=EVIL * 1000)
        raise Refuses(b"", EVIL, grpc.StatusCode.INTERNAL)

    hostile.answer = opens
    with caplog.at_level(logging.INFO), connect(hostile.target) as client, contextlib.suppress(ValueError):
        client.open_run("r", start=0).close(timeout=0.1)  # the answer lacks a state
    assert caplog.messages
    assert all(message.isprintable() and len(message) < 10_000 for message in caplog.messages)


CELLS = ["=1+1", "+1+cmd", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "'=1", '"=1', "＝1", "x;=1+1", "x\t@y", "x\n-y z"]


def test_csv_of_runs_is_safe_in_a_spreadsheet_and_numbers_stay_numbers(train: Any, runs: Any) -> None:
    numbers = ["-0.5", "+3", "1e-3", ".5", "-1E+5"]
    texts = ["plain", "a=b", "x-y", "2026-01-01"]
    values = [*CELLS, *numbers, *texts]
    train("r", 1, labels={f"l{i:02}": value for i, value in enumerate(values)})
    (row,) = csv.DictReader(io.StringIO(runs("list", "--format", "csv").stdout))
    shown = [row[f"labels.l{i:02}"] for i in range(len(values))]
    for value, cell in zip(CELLS, shown, strict=False):
        for separator in (",", ";", "\t", "\n"):
            for part in cell.split(separator):
                assert not re.match(r"[\s\"]*[=+\-@＝]", part), (value, cell)
        assert cell.replace("'", "") == value.replace("'", "")
    assert shown[len(CELLS) :] == numbers + texts
    assert float(row["scale_max"]) > 0


def test_all_of_the_command_line_prints_through_one_door() -> None:
    doors = re.compile(r"(?<![.\w])print\(|click\.(echo|secho)\(|sys\.(stdout|stderr)\.write\(")
    found = {
        (path.name, line.strip())
        for path in (HERE / "server" / "mechanicd" / "cli").glob("*.py")
        for line in path.read_text().splitlines()
        if doors.search(line)
    }
    assert {name for name, _ in found} == {"_output.py", "_export.py", "_query.py"}
    assert len(found) == 4, "say and say_json, and the CSV and JSON of two commands"


def test_a_log_line_is_plain_with_its_traceback() -> None:
    program = f"""
import logging
from mechanicd.logs import log_to_stderr
log_to_stderr("INFO")
try:
    raise ValueError({EVIL!r})
except ValueError:
    logging.getLogger("a").exception("of %s", {EVIL!r}, stack_info=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    lines = done.stderr.decode().split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line[:2] == "20" for line in lines if line and not line.startswith("  ")] == [True]
