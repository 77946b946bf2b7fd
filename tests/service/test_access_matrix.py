"""Who may call what: every method of the contract × every role × every kind of token, against a real server.

The methods are found by reflection, so that none can be forgotten: a new one has no line in `METHODS`, and this file fails.
"""

import queue
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mechanicd.access import Role, create
from mechanicd.service import _permissions
from mechanicd.store import open_beside
from mechanicd.v1 import (
    errors_pb2,
    local_token,
    resources_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    tuner_service_pb2,
    tuner_service_pb2_grpc,
)
from tests.support.servers import ServerProcess, wait_for

READ, WRITE, ADMIN = Role
MINE, OTHER = "mine", "other"
DENIED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
SERVICES = [service for file in (tuner_service_pb2, run_service_pb2) for service in file.DESCRIPTOR.services_by_name.values()]
PATHS = {method.name: (f"/{service.full_name}/{method.name}", method) for service in SERVICES for method in service.methods}


@dataclass(frozen=True)
class Case:
    """A request that a role may send.

    Attributes:
        role: the least that it takes.
        fields: of the request, where it is about this project; `sessions` has a session of each.
        everywhere: the request is about several projects, so that nobody of one project may send it.
    """

    role: Role
    fields: Callable[[str, Mapping[str, int]], Mapping[str, Any]]
    everywhere: bool = False


def name(project: str, run: str = "nobody") -> str:
    return f"projects/{project}/runs/{run}"


def by_name(project: str, sessions: Mapping[str, int]) -> Mapping[str, Any]:
    return {"name": name(project)}


def fenced(project: str, sessions: Mapping[str, int]) -> Mapping[str, Any]:
    return {"name": name(project), "fence": True}


def renamed(project: str, sessions: Mapping[str, int]) -> Mapping[str, Any]:
    return {"name": name(project), "new_name": name(project, "new")}


def by_session(project: str, sessions: Mapping[str, int]) -> Mapping[str, Any]:
    return {"session": sessions[project]}


METHODS = {
    "OpenSession": {
        "": Case(WRITE, lambda project, _: {"name": name(project), "after_step": 7}),
        "with a session of another project": Case(
            WRITE, lambda _, sessions: {"name": name(MINE), "session": sessions[OTHER]}, everywhere=True
        ),
    },
    "Step": {"": Case(WRITE, by_session)},
    "StreamSteps": {"": Case(WRITE, lambda project, sessions: {"steps": [{"session": sessions[project]}]})},
    "Flush": {"": Case(WRITE, by_session)},
    "CloseSession": {"": Case(WRITE, by_session)},
    "GetRun": {"": Case(READ, by_name)},
    "ListRuns": {"": Case(READ, lambda project, _: {"parent": f"projects/{project}"})},
    "WatchRuns": {"": Case(READ, lambda project, _: {"parent": f"projects/{project}"})},
    "SketchRuns": {
        "": Case(READ, lambda project, _: {"names": [name(project)]}),
        "of several projects": Case(READ, lambda project, _: {"names": [name(MINE), name(OTHER)]}, everywhere=True),
    },
    "QuerySeries": {"": Case(READ, by_name)},
    "UpdateRun": {
        "": Case(
            WRITE,
            lambda project, _: {
                "run": {"name": name(project)},
                "update_mask": field_mask_pb2.FieldMask(paths=["labels"]),
            },
        )
    },
    "CloseRun": {
        "": Case(WRITE, lambda project, _: {"name": name(project), "status": resources_pb2.RUN_STATUS_FAILED}),
        "with a fence": Case(ADMIN, fenced),
    },
    "RewindRun": {
        "": Case(WRITE, by_name),
        "with a fence": Case(ADMIN, fenced),
    },
    "ForkRun": {
        "": Case(WRITE, lambda project, _: {"source": name(project), "name": name(project, "new")}),
        "out of the project": Case(ADMIN, lambda _, __: {"source": name(MINE), "name": name(OTHER, "new")}, everywhere=True),
        "into the project": Case(ADMIN, lambda _, __: {"source": name(OTHER), "name": name(MINE, "new")}, everywhere=True),
    },
    "RenameRun": {
        "": Case(WRITE, renamed),
        "with a fence": Case(
            ADMIN, lambda project, _: {"name": name(project), "new_name": name(project, "new"), "fence": True}
        ),
        "out of the project": Case(ADMIN, lambda _, __: {"name": name(MINE), "new_name": name(OTHER)}, everywhere=True),
        "into the project": Case(ADMIN, lambda _, __: {"name": name(OTHER), "new_name": name(MINE)}, everywhere=True),
    },
    "ArchiveRun": {"": Case(ADMIN, by_name)},
    "RestoreRun": {"": Case(ADMIN, by_name)},
    "DeleteRun": {
        "": Case(ADMIN, by_name),
        "with a fence": Case(ADMIN, fenced),
    },
}
QUIET = {"Step", "StreamSteps", "Flush", "GetRun", "ListRuns", "WatchRuns", "SketchRuns", "QuerySeries"}
"""Change nothing, or are a step."""
CASES = [(method, what) for method, cases in METHODS.items() for what in cases]


@dataclass
class Site:
    """A server that asks for tokens, and its store."""

    server: ServerProcess
    channel: grpc.Channel
    local: str = ""
    sessions: dict[str, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def token(self, role: Role, project: str, *, expired: bool = False, revoked: bool = False) -> str:
        store = open_beside(self.server.store)
        now = store.clock.now()
        text, token = create(project, role, now, expire_time=now - 1 if expired else 0)
        store.add_token(token)
        if revoked:
            store.revoke_token(token.id, now)
        store.close()
        self.texts.append(text)
        return text

    def open(self, project: str, run: str = "held", text: str = "") -> int:
        stub = tuner_service_pb2_grpc.TunerServiceStub(self.channel)
        config = resources_pb2.TunerConfig()
        request = tuner_service_pb2.OpenSessionRequest(name=name(project, run), config=config)
        return int(stub.OpenSession(request, metadata=(bearer(text or self.local),)).session)

    def revoke(self, text: str) -> None:
        store = open_beside(self.server.store)
        assert store.revoke_token(text.split("_")[1], store.clock.now())
        store.close()

    def call(self, method: str, fields: Mapping[str, Any], *metadata: tuple[str, str]) -> str:
        """The reason of the refusal; "OK" or another reason where the method itself was reached."""
        path, described = PATHS[method]
        request = GetMessageClass(described.input_type)(**fields)
        respond = GetMessageClass(described.output_type).FromString
        try:
            if described.client_streaming:
                answers = self.channel.stream_stream(path, type(request).SerializeToString, respond)(
                    iter([request]), metadata=metadata, timeout=10
                )
                (result,) = next(answers).results
                return errors_pb2.ErrorReason.Name(result.error.reason) if result.HasField("error") else "OK"
            if described.server_streaming:
                answers = self.channel.unary_stream(path, type(request).SerializeToString, respond)(
                    request, metadata=metadata, timeout=10
                )
                next(answers)
                answers.cancel()
                return "OK"
            self.channel.unary_unary(path, type(request).SerializeToString, respond)(request, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            reason, message = reason_of(error)
            assert not any(text[-43:] in message for text in self.texts)
            return reason
        return "OK"


def reason_of(error: Any) -> tuple[str, str]:
    """The reason and the message of a failed call; its status fits."""
    trailer = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    status, info = status_pb2.Status.FromString(trailer), error_details_pb2.ErrorInfo()
    assert status.details, error
    status.details[0].Unpack(info)
    if info.reason in DENIED:
        assert error.code().name == info.reason
    return info.reason, error.details() + str(trailer)


def bearer(text: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {text}")


@dataclass(frozen=True)
class Tokens:
    """One of each kind, of a role."""

    good: str
    of_other: str
    of_all: str
    bad: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = ServerProcess(tmp_path_factory.mktemp("access"), "--auth", "auto").start()
    with grpc.insecure_channel(server.target) as channel:
        found = Site(server, channel)
        found.local = local_token.path(server.target).read_text().strip()
        found.texts.append(found.local)
        for project in (MINE, OTHER):
            found.sessions[project] = found.open(project)
        yield found
        log = server.log.read_text()
        assert not any(text[-43:] in log for text in found.texts), "a token in the log"
        assert "Traceback" not in log
    assert server.stop() == 0


@pytest.fixture(scope="module")
def tokens(site: Site) -> dict[Role, Tokens]:
    found = {}
    for role in Role:
        good = site.token(role, MINE)
        bad = {
            "malformed": "mech_x",
            "wrong secret": good[:-43] + "a" * 43,
            "expired": site.token(role, MINE, expired=True),
            "revoked": site.token(role, MINE, revoked=True),
        }
        found[role] = Tokens(good, site.token(role, OTHER), site.token(role, ""), bad)
    return found


def test_every_method_is_here() -> None:
    assert set(METHODS) == set(PATHS)


@pytest.mark.parametrize(("method", "what"), CASES, ids=[" ".join(filter(None, case)) for case in CASES])
def test_who_may_call_it(method: str, what: str, site: Site, tokens: dict[Role, Tokens]) -> None:
    case = METHODS[method][what]
    fields = case.fields(MINE, site.sessions)
    assert site.call(method, fields) == "UNAUTHENTICATED", "no token"
    for role, given in tokens.items():
        for kind, text in given.bad.items():
            assert site.call(method, fields, bearer(text)) == "UNAUTHENTICATED", (role, kind)
        assert site.call(method, fields, bearer(given.of_other)) == "PERMISSION_DENIED", role
        enough = list(Role).index(role) >= list(Role).index(case.role)
        for text, allowed in ((given.good, enough and not case.everywhere), (given.of_all, enough)):
            reason = site.call(method, fields, bearer(text))
            assert (reason not in DENIED) == allowed, (role, reason)
            assert allowed or reason == "PERMISSION_DENIED"
    assert site.call(method, fields, bearer(site.local)) not in DENIED, "the server's own user"


@pytest.mark.parametrize("method", PATHS)
def test_nothing_is_decoded_before_it_is_known_who_asks(method: str, site: Site) -> None:
    path, described = PATHS[method]
    shape = f"{'stream' if described.client_streaming else 'unary'}_{'stream' if described.server_streaming else 'unary'}"
    rubbish = b"\xff" * 100
    for metadata, expected in (((), "UNAUTHENTICATED"), ((bearer(site.local),), "MALFORMED_REQUEST")):
        sent = iter([rubbish]) if described.client_streaming else rubbish
        with pytest.raises(grpc.RpcError) as caught:
            next(getattr(site.channel, shape)(path)(sent, metadata=metadata, timeout=10))
        assert reason_of(caught.value)[0] == expected


@pytest.mark.parametrize("method", PATHS)
def test_a_stranger_is_refused_before_the_request_is_received(method: str, site: Site) -> None:
    """Else each stream of a stranger could have 64 MiB kept for it."""
    words = {":method": "POST", ":scheme": "http", ":path": PATHS[method][0], ":authority": "here"}
    words |= {"content-type": "application/grpc", "te": "trailers"}
    head = b"".join(b"\0%c%b%c%b" % (len(key), key.encode(), len(value), value.encode()) for key, value in words.items())
    begun = b"\0" + (2**25).to_bytes(4) + b"the rest never comes"
    host, _, port = site.server.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as wire, wire.makefile("rb") as answer:
        settings, headers, data = h2(4, 0, 0), h2(1, 4, 1, head), h2(0, 0, 1, begun)
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers + data)
        kind = stream = -1
        while (kind, stream) != (1, 1):  # the headers of the answer
            frame = answer.read(9)
            assert frame, "the connection is closed"
            kind, stream = frame[3], int.from_bytes(frame[5:])
            answer.read(int.from_bytes(frame[:3]))


def h2(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def test_a_token_is_taken_from_one_header_alone(site: Site, tokens: dict[Role, Tokens]) -> None:
    fields, good = {"name": name(MINE)}, tokens[READ].good
    assert site.call("GetRun", fields, bearer(good)) == "RUN_NOT_FOUND"
    assert site.call("GetRun", fields, ("authorization", f"bearer {good}")) == "RUN_NOT_FOUND"
    assert site.call("GetRun", fields, ("authorization", f"Basic {good}")) == "UNAUTHENTICATED"
    assert site.call("GetRun", fields, bearer(good), bearer(good)) == "UNAUTHENTICATED"
    assert site.call("GetRun", fields, ("x-authorization", f"Bearer {good}")) == "UNAUTHENTICATED"
    assert site.call("GetRun", fields, bearer(create("", ADMIN, 0)[0])) == "UNAUTHENTICATED", "no token of this store"


def test_who_works_in_one_project_sees_its_runs_where_all_are_asked_for(site: Site, tokens: dict[Role, Tokens]) -> None:
    metadata = (bearer(tokens[READ].good),)
    stub = run_service_pb2_grpc.RunServiceStub(site.channel)
    everything = run_service_pb2.ListRunsRequest(parent="projects/-", page_size=1)
    listed = stub.ListRuns(everything, metadata=metadata)
    names_ = [run.name for run in listed.runs]
    while listed.next_page_token:
        everything.page_token = listed.next_page_token
        listed = stub.ListRuns(everything, metadata=metadata)
        names_ += [run.name for run in listed.runs]
    assert name(MINE, "held") in names_
    assert all(each.startswith(f"projects/{MINE}/") for each in names_)
    watched = stub.WatchRuns(run_service_pb2.WatchRunsRequest(parent="projects/-"), metadata=metadata)
    assert sorted(run.name for run in next(watched).runs) == sorted(names_)
    watched.cancel()
    both = stub.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/-"), metadata=(bearer(tokens[READ].of_all),))
    assert {name(MINE, "held"), name(OTHER, "held")} <= {run.name for run in both.runs}


def test_a_stream_takes_no_step_of_another_project(site: Site, tokens: dict[Role, Tokens]) -> None:
    mine, other = site.open(MINE, "streamed"), site.open(OTHER, "streamed")
    first, second, foreign = step(mine, 1), step(mine, 2), step(other, 1)
    for messages in ([[first], [second], [foreign]], [[first], [second, foreign]]):
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stub = tuner_service_pb2_grpc.TunerServiceStub(site.channel)
        answers = stub.StreamSteps(iter(requests.get, None), metadata=(bearer(tokens[WRITE].good),), timeout=10)
        for message in messages[:-1]:
            requests.put(tuner_service_pb2.StreamStepsRequest(steps=message))
            assert not next(answers).results[0].HasField("error")
        requests.put(tuner_service_pb2.StreamStepsRequest(steps=messages[-1]))
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert reason_of(caught.value)[0] == "PERMISSION_DENIED"
        assert OTHER not in reason_of(caught.value)[1]
        requests.put(None)
    stub = run_service_pb2_grpc.RunServiceStub(site.channel)
    untouched = stub.GetRun(run_service_pb2.GetRunRequest(name=name(OTHER, "streamed")), metadata=(bearer(site.local),))
    assert untouched.run.durable_step == 0


def test_a_stream_ends_within_seconds_when_its_token_does(site: Site) -> None:
    store = open_beside(site.server.store)
    now = store.clock.now()
    expiring, token = create(MINE, WRITE, now, expire_time=now + 1_500_000_000)
    store.add_token(token)
    store.close()
    revoked, lasting = site.token(WRITE, MINE), site.token(WRITE, MINE)
    session = site.open(MINE, "revoked")
    runs, tuner = run_service_pb2_grpc.RunServiceStub(site.channel), tuner_service_pb2_grpc.TunerServiceStub(site.channel)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(tuner_service_pb2.StreamStepsRequest(steps=[step(session, 1)]))
    steps = tuner.StreamSteps(iter(requests.get, None), metadata=(bearer(revoked),))
    assert not next(steps).results[0].HasField("error")
    watches = {}
    for text in (revoked, expiring, lasting):
        watches[text] = runs.WatchRuns(run_service_pb2.WatchRunsRequest(parent=f"projects/{MINE}"), metadata=(bearer(text),))
        next(watches[text])
    site.revoke(revoked)
    for stream in (steps, watches[revoked], watches[expiring]):
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        assert reason_of(caught.value)[0] == "UNAUTHENTICATED"
        assert re.search("was revoked|expired", caught.value.details())
    requests.put(None)
    assert site.call("GetRun", {"name": name(MINE)}, bearer(revoked)) == "UNAUTHENTICATED"
    assert watches[lasting].is_active()
    watches[lasting].cancel()
    kept = runs.GetRun(run_service_pb2.GetRunRequest(name=name(MINE, "revoked")), metadata=(bearer(site.local),))
    assert kept.run.durable_step == 1, "what was answered is kept"


def test_health_and_reflection_are_open(site: Site) -> None:
    for service in ("", *(service.full_name for service in SERVICES)):
        answer = health_pb2_grpc.HealthStub(site.channel).Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(site.channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert {service.full_name for service in SERVICES} <= {each.name for each in answer.list_services_response.service}


def test_each_change_has_one_line_with_who_and_what(site: Site, tokens: dict[Role, Tokens]) -> None:
    changes = {method for method, case in METHODS.items() if method not in QUIET}
    writer, id_ = tokens[WRITE].good, tokens[WRITE].good.split("_")[1]
    session = site.open(MINE, "audited", writer)
    opened = f"token={id_} method=OpenSession run={name(MINE, 'audited')} result=ok"
    assert wait_for(lambda: opened in audit(site))
    before = len(audit(site))
    for number in range(1, 4):
        assert site.call("StreamSteps", {"steps": [step(session, number)]}, bearer(writer)) == "OK"
    evil = "projects/mine/runs/x\n2026 I mechanicd.audit: token=root\x1b[2J result=ok"
    site.call("UpdateRun", {"run": {"name": evil}, "update_mask": field_mask_pb2.FieldMask(paths=["labels"])}, bearer(writer))
    site.call("DeleteRun", {"name": name(MINE, "audited")}, bearer(writer))
    site.call("DeleteRun", {"name": name(MINE, "audited")})
    site.call("DeleteRun", {"name": name(MINE, "audited")}, bearer(tokens[WRITE].bad["revoked"]))
    closing = {"session": session, "status": resources_pb2.RUN_STATUS_FINISHED}
    assert site.call("CloseSession", closing, bearer(writer)) == "OK"
    assert site.call("ArchiveRun", {"name": name(MINE, "audited")}, bearer(site.local)) == "OK"
    assert wait_for(lambda: len(audit(site)) >= before + 6)
    lines = audit(site)[before:]
    assert [line.partition(" run=")[0] for line in lines] == [
        f"token={id_} method=UpdateRun",
        f"token={id_} method=DeleteRun",
        "token=- method=DeleteRun",
        f"token={tokens[WRITE].bad['revoked'].split('_')[1]} method=DeleteRun",
        f"token={id_} method=CloseSession",
        "token=local method=ArchiveRun",
    ]
    results = ["MALFORMED_NAME", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAUTHENTICATED", "ok", "ok"]
    assert [line.rpartition(" result=")[2] for line in lines] == results
    assert all(len(line.split(" ")) == 4 for line in lines), "four fields, whatever a client sends"
    runs = [line.split(" ")[2] for line in lines]
    audited = f"run={name(MINE, 'audited')}"
    assert [runs[1], runs[4], runs[5]] == [audited] * 3
    assert runs[2:4] == ["run=-"] * 2, "who is not let in is not listened to"
    methods = {line.split(" ")[1].removeprefix("method=") for line in audit(site)}
    assert methods <= changes


def test_strangers_do_not_fill_the_log(site: Site) -> None:
    time.sleep(1.0 - time.monotonic() % 1.0)  # into a new second
    before = len(audit(site))
    for _ in range(50):
        assert site.call("DeleteRun", {"name": name(MINE)}) == "UNAUTHENTICATED"
    time.sleep(1.0 - time.monotonic() % 1.0)
    site.call("DeleteRun", {"name": name(MINE)})
    assert wait_for(lambda: "more calls without a good token were refused" in site.server.log.read_text())
    assert 0 < len(audit(site)) - before < 50


def audit(site: Site) -> list[str]:
    return re.findall(r"^\S+ \S+ I mechanicd\.audit: (.*)$", site.server.log.read_text(), re.MULTILINE)


def step(session: int, number: int) -> Any:
    reductions = resources_pb2.Reductions(delta_dot_g=[-1.0 * number], delta_dot_x=[0.5], g_norm_sq=[1.0], x_norm_sq=[2.0])
    return tuner_service_pb2.StepRequest(session=session, step=number, reductions=reductions)


def test_a_token_is_in_no_answer_no_process_list_and_no_file_of_the_store(site: Site, tokens: dict[Role, Tokens]) -> None:
    stub = run_service_pb2_grpc.RunServiceStub(site.channel)
    shown = str(stub.GetRun(run_service_pb2.GetRunRequest(name=name(MINE, "held")), metadata=(bearer(tokens[READ].good),)))
    seen = [Path(f"/proc/{site.server.pid}/cmdline").read_text(), Path(f"/proc/{site.server.pid}/environ").read_text(), shown]
    seen += [path.read_bytes().decode("latin1") for path in site.server.folder.iterdir() if path.is_file()]
    for text in site.texts:
        assert not any(text[-43:] in each for each in seen)


def test_a_method_without_a_rule_starts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    _permissions.check_complete()
    monkeypatch.delitem(_permissions.RULES["RunService"], "GetRun")
    with pytest.raises(KeyError):
        _permissions.check_complete()


def test_the_table_in_the_docs_says_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    rows = dict(re.findall(r"^\| `(read|write|admin)` \| (.*) \|$", page, re.MULTILINE))

    def listed(text: str) -> set[str]:
        return set(re.findall(r"[A-Za-z]+", text)) & set(METHODS)

    def taking(what: str, role: Role) -> set[str]:
        return {method for method, cases in METHODS.items() if what in cases and cases[what].role == role}

    for role in Role:
        assert listed(rows[role].split(";")[0]) == taking("", role)
    _, fenced, moved = rows["admin"].split(";")
    assert listed(fenced) == taking("with a fence", ADMIN) - taking("", ADMIN)
    assert listed(moved) == taking("out of the project", ADMIN)
