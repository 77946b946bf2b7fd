"""Who may see what: every route, every kind of credentials, and what other sites try through a visitor's browser."""

import asyncio
import json
import logging
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trustme
from starlette.routing import Route

from mechanicd.access import Role, Token, _keys, create
from mechanicd.client import connect
from mechanicd.dashboard import PageConfig, _sessions
from mechanicd.dashboard._app import Child, make_app
from mechanicd.dashboard._door import subjects
from mechanicd.store import open_beside, open_store
from mechanicd.tls import TlsFiles
from mechanicd.tuner import TunerConfig
from mechanicd.v1 import local_token
from tests.service.test_limits import limits

API = "/api/v1"
MINE, OTHERS = "projects/mine/runs/a", "projects/others/runs/a"
OPEN = {"/", "/assets", "/healthz", f"{API}/login", f"{API}/logout"}
ASK: dict[str, Callable[[str], dict[str, Any]]] = {
    f"{API}/runs": lambda name: {"params": {"project": name.split("/")[1]}},
    f"{API}/events": lambda _: {},
    f"{API}/session": lambda _: {},
    "/metrics": lambda _: {},
    f"{API}/run": lambda name: {"params": {"name": name}},
    f"{API}/sparklines": lambda name: {"params": {"run": [MINE, name]}},
    f"{API}/heatmap": lambda name: {"params": {"run": name}},
    f"{API}/export": lambda name: {"params": {"run": name}},
    f"{API}/series": lambda name: {"json": {"runs": [MINE, name]}},
    f"{API}/bands": lambda name: {"json": {"groups": [{"runs": [MINE]}, {"runs": [name]}]}},
}
"""A request for a run, on each route that is not open."""
OF_ALL = {f"{API}/events", f"{API}/session", "/metrics"}
"""Routes that name no run: a token of one project sees the others' no more than elsewhere."""


class Site:
    """The page's application, without sockets, over a store with two projects."""

    def __init__(self, child: Child, store: Any) -> None:
        self.child = child
        self.store = store
        self.app = make_app(child)
        self.routes = {
            (method, route.path)
            for route in self.app.routes
            if isinstance(route, Route)
            for method in sorted(route.methods or ())
            if method != "HEAD"
        }

    def token(self, project: str = "", role: Role = Role.READ, **fields: Any) -> str:
        """A new token's text."""
        text, token = create(project, role, 1)
        self.store.add_token(Token(**{**{name: getattr(token, name) for name in Token.__dataclass_fields__}, **fields}))
        return text

    def session(self, text: str, age: float = 0.0) -> dict[str, str]:
        """The cookie of one who signed in with a token, so many seconds ago."""
        name = self.child.login._sessions.begin(text, text.split("_")[1], monotonic() - age)
        return {"Cookie": f"mechanicd-8080={name}"}

    def revoke(self, text: str) -> None:
        self.store.revoke_token(text.split("_")[1], 2)

    def client(self, address: str = "192.0.2.7", url: str = "http://localhost:8080", **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=(address, 9))
        return httpx.AsyncClient(transport=transport, base_url=url, **options)

    async def ask(self, method: str, path: str, name: str = MINE, **options: Any) -> tuple[int, str, str]:
        """The status of an answer, the reason of its error, and its text. Of a stream, its first two events."""
        asked = ASK.get(path, lambda _: {"json": {}} if method == "POST" else {})(name)
        async with self.client() as client:
            request = client.build_request(method, path, **asked, **options)
        status, text = await first_of(self.app, request)
        reason = json.loads(text)["error"]["reason"] if status >= 400 and text.startswith("{") else ""
        return status, reason, text


async def first_of(app: Any, request: httpx.Request) -> tuple[int, str]:
    """The status and the text of an answer; of one that does not end, what comes until the third part."""
    scope = {
        "type": "http",
        "method": request.method,
        "path": request.url.path,
        "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "server": ("127.0.0.1", 8080),
        "client": ("192.0.2.7", 9),
        "scheme": request.url.scheme,
        "http_version": "1.1",
    }
    said: list[Any] = [{"type": "http.request", "body": request.content, "more_body": False}]
    gone, status, endless, parts = asyncio.Event(), 0, False, []

    async def receive() -> Any:
        if said:
            return said.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, endless
        status = message.get("status", status)
        endless |= any(b"event-stream" in value for _, value in message.get("headers", ()))
        parts.append(message.get("body", b""))
        if endless and len(parts) == 3:
            gone.set()

    async with asyncio.timeout(10):
        await app(scope, receive, send)
    return status, b"".join(parts).decode()


@pytest.fixture
def visit(tmp_path: Path) -> Callable[..., None]:
    """`visit(test, **config)`: runs an async test of a Site."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"

    @asynccontextmanager
    async def site(**config: Any) -> AsyncIterator[Site]:
        store = open_store(url)
        for name in ("mine", "others"):
            store.create(name, "a", TunerConfig(), b"", (1e-8,), 1)
        try:
            async with Child(PageConfig(store=url, metrics_per_run=True, **config)) as child:
                yield Site(child, store)
        finally:
            store.close()

    def run(test: Callable[[Site], Awaitable[None]], **config: Any) -> None:
        async def within() -> None:
            async with site(**config) as there:
                await test(there)

        asyncio.run(within())

    return run


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def wrong(text: str) -> str:
    """Another secret of the same length."""
    return text[:-43] + "A" * 43


def test_each_route_lets_in_those_with_a_right_token_and_nobody_else(
    visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_keys, "AGAIN_SECONDS", 0.0)

    async def test(site: Site) -> None:
        right, of_project, revoked, expired = site.token(), site.token("mine"), site.token(), site.token(expire_time=3)
        admin = site.token(role=Role.ADMIN)
        site.revoke(revoked)
        unknown = create("", Role.ADMIN, 1)[0]
        refused: dict[str, dict[str, Any]] = {
            "no token": {},
            "no text": {"Authorization": "Bearer"},
            "malformed": bearer("mech_x"),
            "of another scheme": {"Authorization": f"Basic {right}"},
            "a wrong secret": bearer(wrong(right)),
            "unknown": bearer(unknown),
            "revoked": bearer(revoked),
            "expired": bearer(expired),
            "a session of a revoked token": site.session(revoked),
            "a session of an expired token": site.session(expired),
            "a session that is over": site.session(right, _sessions.SECONDS + 1.0),
            "a session of another page": {"Cookie": "mechanicd-8081=" + site.session(right)["Cookie"].partition("=")[2]},
            "a malformed cookie": {"Cookie": b"mechanicd-8080=\xff;;=="},
            "the token as a cookie": {"Cookie": f"mechanicd-8080={right}"},
            "a user whom no proxy vouches for": {"X-Forwarded-User": "root"},
        }
        assert {path for _, path in site.routes} - OPEN == set(ASK), "a new route is tested here, and is not open"
        for method, path in site.routes:
            for what, headers in refused.items():
                status, reason, text = await site.ask(method, path, headers=headers)
                if path in OPEN:
                    assert reason != "UNAUTHENTICATED" or path == f"{API}/login", (path, what)
                else:
                    assert (status, reason) == (401, "UNAUTHENTICATED"), (path, what)
                    assert right[-43:] not in text
            shown = [show(text) for text in (right, of_project, admin) for show in (bearer, site.session)]
            for headers in shown:
                status, reason, _ = await site.ask(method, path, headers=headers)
                assert status not in (401, 403) or path == f"{API}/login", (path, reason)
        assert (await site.ask("GET", "/nothing"))[:2] == (401, "UNAUTHENTICATED"), (
            "what is not there is no secret's place either"
        )

    visit(test)


def test_a_token_of_a_project_sees_that_project_alone(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        everything, mine = site.token(), site.token("mine", Role.ADMIN)
        for method, path in site.routes:
            if path in OPEN:
                continue
            status, reason, text = await site.ask(method, path, OTHERS, headers=bearer(mine))
            assert (await site.ask(method, path, OTHERS, headers=site.session(mine)))[:2] == (status, reason)
            if path in OF_ALL:
                assert status == 200
            else:
                assert (status, reason) == (403, "PERMISSION_DENIED"), path
                gone = await site.ask(method, path, "projects/others/runs/none", headers=bearer(mine))
                assert gone[:2] == (status, reason), "nor whether a run is there"
            assert OTHERS not in text, path
            assert "others" not in text or "PERMISSION_DENIED" in text, path
            status, _, text = await site.ask(method, path, OTHERS, headers=bearer(everything))
            assert status == 200, path
            assert "others" in text or path in (f"{API}/session", f"{API}/bands", f"{API}/heatmap", f"{API}/export"), path
        async with site.client(headers=bearer(mine)) as http:
            for query in ("", "?filter=archived%20:%20*", "?filter=step%20>=%200"):
                runs = (await http.get(f"{API}/runs{query}")).json()["runs"]
                assert [run["name"] for run in runs] == [MINE], query
            assert (await http.get(f"{API}/run", params={"name": "nonsense"})).status_code == 403
            metrics = (await http.get("/metrics")).text
            assert 'mechanicd_run_step{project="mine",run="a"}' in metrics
            assert "mechanicd_runs{status=" in metrics

    visit(test)


def test_a_token_typed_once_becomes_a_cookie(visit: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mechanicd.audit")

    async def test(site: Site) -> None:
        token = site.token("mine")
        id_ = token.split("_")[1]
        async with site.client() as http:
            assert (await http.get(f"{API}/session")).status_code == 401
            answer = await http.post(f"{API}/login", json={"token": token})
            who = {"id": id_, "role": "read", "project": "mine", "signed_in": True}
            assert (answer.status_code, answer.json()) == (200, who)
            cookie = answer.headers["set-cookie"]
            assert re.fullmatch(r"mechanicd-8080=[\w-]{43}; HttpOnly; Max-Age=604800; Path=/; SameSite=strict", cookie)
            assert token[-43:] not in cookie
            assert id_ not in cookie
            assert (await http.get(f"{API}/session")).json() == who
            assert [run["name"] for run in (await http.get(f"{API}/runs")).json()["runs"]] == [MINE]
            session = http.cookies["mechanicd-8080"]
            again = await http.post(f"{API}/login", json={"token": token})
            assert http.cookies["mechanicd-8080"] != session, "a new name each time"
            stale = {"Cookie": f"mechanicd-8080={session}"}
            async with site.client(headers=stale) as other:
                assert (await other.get(f"{API}/runs")).json()["error"]["message"] == "the session has ended; sign in again"
            assert again.status_code == 200
            left = await http.post(f"{API}/logout", json={})
            assert "Max-Age=0" in left.headers["set-cookie"]
            assert (await http.get(f"{API}/runs")).status_code == 401
        async with site.client() as http:
            for text in (wrong(token), "mech_x", ""):
                refused = await http.post(f"{API}/login", json={"token": text})
                assert (refused.status_code, refused.json()["error"]["reason"]) == (401, "UNAUTHENTICATED")
                assert "set-cookie" not in refused.headers
            for body in ({}, {"token": 1}, {"token": token, "more": token}, [token], {"token": [token]}):
                refused = await http.post(f"{API}/login", json=body)
                assert (refused.status_code, refused.json()["error"]["reason"]) == (400, "MALFORMED_REQUEST")
                assert token[-43:] not in refused.text
        lines = [record.getMessage() for record in caplog.records if record.name == "mechanicd.audit"]
        assert lines == [
            *(f"token={id_} method=login run=- result=ok from=192.0.2.7" for _ in range(2)),
            f"token={id_} method=logout run=- result=ok from=192.0.2.7",
            f"token={id_} method=login run=- result=refused from=192.0.2.7",
            *("token=- method=login run=- result=refused from=192.0.2.7" for _ in range(2)),
        ]
        assert token[-43:] not in caplog.text

    visit(test)


def test_over_tls_the_cookie_is_for_tls_and_for_this_host_alone(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        token = site.token()
        for url, headers in (
            ("https://localhost:8443", {}),
            ("http://localhost:8443", {"Origin": "https://localhost:8443"}),  # a proxy ended TLS
        ):
            async with site.client(url=url, headers=headers) as http:
                answer = await http.post(f"{API}/login", json={"token": token})
                name, value = re.match(r"([\w-]+)=([\w-]+); ", answer.headers["set-cookie"]).groups()  # type: ignore[union-attr]
                assert name == "__Host-mechanicd-8443"
                assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
                assert "Domain" not in answer.headers["set-cookie"]
                assert (await http.get(f"{API}/runs", headers={"Cookie": f"{name}={value}"})).status_code == 200
        async with site.client(url="https://localhost:8443") as http:
            planted = {"Cookie": f"mechanicd-8443={value}"}
            assert (await http.get(f"{API}/runs", headers=planted)).status_code == 401, "what anybody on the way may have set"

    visit(test)


def test_a_session_ends_with_its_token(visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keys, "LOOK_SECONDS", 0.02)

    async def test(site: Site) -> None:
        now = 10**19
        revoked, expiring = site.token(), site.token(expire_time=now)
        async with site.client() as first, site.client() as second, site.client() as third:
            await first.post(f"{API}/login", json={"token": revoked})
            await second.post(f"{API}/login", json={"token": expiring})
            await third.post(f"{API}/login", json={"token": site.token()})
            site.revoke(revoked)
            async with asyncio.timeout(5):
                while (await first.get(f"{API}/runs")).status_code == 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            error = (await first.get(f"{API}/runs")).json()["error"]
            assert (error["reason"], "was revoked" in error["message"]) == ("UNAUTHENTICATED", True)
            assert (await second.get(f"{API}/runs")).status_code == 200
            monkeypatch.setattr(site.child.keys, "_now", lambda: now)
            error = (await second.get(f"{API}/runs")).json()["error"]
            assert (error["reason"], "expired" in error["message"]) == ("UNAUTHENTICATED", True)
            assert (await third.get(f"{API}/runs")).status_code == 200

    visit(test)


def test_the_pages_process_is_told_all_that_the_server_was() -> None:
    config = PageConfig(
        store="sqlite:///x.db",
        local=create("", Role.ADMIN, 1)[1],
        hosts=("runs.example.org",),
        proxies=("10.0.0.0/8",),
        proxy_role=Role.WRITE,
        client_roles=(("ada", Role.READ, "mine"),),
        told=(("projects/mine/runs/a", "stuck"),),
        tls=TlsFiles("a", "b"),
    )
    again = PageConfig.from_line(config.to_line())
    assert again == config
    assert again.local is not None
    assert all(isinstance(role, Role) for role in (again.local.role, again.proxy_role, again.client_roles[0][1]))


def test_sessions_last_a_week_and_are_bounded() -> None:
    days, most = limits("days until a browser must sign in again")
    assert (days * 86_400, most) == (_sessions.SECONDS, _sessions.MOST_OF_TOKEN)
    sessions = _sessions.Sessions()
    first = sessions.begin("text", "id", 0.0)
    assert sessions.token(first, _sessions.SECONDS - 1.0) == "text"
    assert sessions.token(first, _sessions.SECONDS + 1.0) is None
    other = sessions.begin("text", "other", 0.0)
    names = [sessions.begin("text", "id", 0.0) for _ in range(_sessions.MOST_OF_TOKEN)]
    assert sessions.token(first, 1.0) is None, "the oldest goes"
    assert [sessions.token(name, 1.0) for name in (*names, other)] == ["text"] * (len(names) + 1)
    sessions.begin("text", "id", _sessions.SECONDS + 1.0)
    assert len(sessions._sessions) == 1


def test_a_new_token_is_good_at_once_and_guesses_do_not_ask_the_store_each_time(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        looks = 0
        reader = site.child.keys._reader

        async def call(function: Callable[[Any], Any]) -> Any:
            nonlocal looks
            looks += 1
            return await reader.call(function)

        site.child.keys._reader = SimpleNamespace(call=call)  # type: ignore[assignment]
        async with site.client() as http:
            guesses = [http.get(f"{API}/runs", headers=bearer(create("", Role.READ, 1)[0])) for _ in range(50)]
            good = http.get(f"{API}/runs", headers=bearer(site.token()))
            answers = await asyncio.gather(*guesses, good)
        assert [answer.status_code for answer in answers] == [401] * 50 + [200]
        assert looks <= 3

    visit(test)


def test_attempts_to_sign_in_are_limited_and_fill_no_log(
    visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(site: Site) -> None:
        token, second = site.token(), 5.0
        monkeypatch.setattr("mechanicd.dashboard._login.monotonic", lambda: second)
        async with site.client() as http, site.client("192.0.2.8") as elsewhere:
            most, in_all = limits("attempts to sign in to the page in a second")
            answers = [await http.post(f"{API}/login", json={"token": "mech_x"}) for _ in range(most + 1)]
            assert [answer.status_code for answer in answers] == [401] * most + [429]
            assert answers[-1].json()["error"]["reason"] == "TOO_MANY_ATTEMPTS"
            assert (await elsewhere.post(f"{API}/login", json={"token": token})).status_code == 200, "one does not lock out all"
            second = 6.0
            assert (await http.post(f"{API}/login", json={"token": token})).status_code == 200
            second = 7.0
            many = [site.client(f"192.0.2.{number % 200}") for number in range(in_all + 1)]
            caplog.clear()
            codes = [(await each.post(f"{API}/login", json={"token": "mech_x"})).status_code for each in many]
            assert codes == [401] * in_all + [429]
            second = 8.0
            await http.post(f"{API}/login", json={"token": "mech_x"})
            lines = [record.getMessage() for record in caplog.records if record.name == "mechanicd.audit"]
            assert len(lines) == 12
            assert lines[10] == f"{in_all - 10} more attempts to sign in were refused"

    visit(test)


def test_no_other_site_gets_in_through_a_visitors_browser(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        series = {"runs": [MINE]}
        async with site.client() as http:
            await http.post(f"{API}/login", json={"token": site.token()})

            async def asked(method: str, path: str, **options: Any) -> tuple[int, str]:
                answer = await http.request(method, path, **options)
                return answer.status_code, answer.json()["error"]["reason"] if answer.status_code >= 400 else ""

            for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "192.0.2.1", ""):
                for path in ("/", "/healthz", f"{API}/runs"):
                    assert await asked("GET", path, headers={"Host": host}) == (403, "FOREIGN_HOST"), host
            for headers in (
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
                {"Origin": "http://localhost:8081"},
                {"Origin": "http://[::1"},
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
                {"Sec-Fetch-Site": "of tomorrow"},
            ):
                for path in (f"{API}/login", f"{API}/logout", f"{API}/series"):
                    assert await asked("POST", path, json=series, headers=headers) == (403, "FOREIGN_SITE"), headers
                for path in (f"{API}/runs", f"{API}/export?run={MINE}", "/metrics"):
                    assert await asked("GET", path, headers=headers) == (403, "FOREIGN_SITE"), headers
                assert (await http.get("/healthz", headers=headers)).status_code == 200
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""):
                for path in (f"{API}/login", f"{API}/logout", f"{API}/series", f"{API}/bands"):
                    content = json.dumps(series).encode()
                    assert await asked("POST", path, content=content, headers={"Content-Type": kind}) == (415, "NOT_JSON")
            kept = (await http.get(f"{API}/runs")).headers
            assert (kept["cache-control"], kept["cross-origin-resource-policy"]) == ("no-store", "same-origin")
            own = {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"}
            assert await asked("POST", f"{API}/series", json=series, headers=own) == (200, "")
        async with site.client(headers=bearer(site.token())) as program:
            answer = await program.post(f"{API}/series", content=json.dumps(series))
            assert answer.status_code == 200, "a program has no visitor's cookie to lend"

    visit(test)


def test_the_page_answers_to_the_names_that_it_was_given(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        async with site.client(headers=bearer(site.token())) as http:
            for host in ("runs.example.org", "RUNS.example.org:443", "localhost", "127.0.0.1:8080", "[::1]:8080"):
                assert (await http.get(f"{API}/runs", headers={"Host": host})).status_code == 200, host
            assert (await http.get(f"{API}/runs", headers={"Host": "example.org"})).status_code == 403
            behind = {"Host": "127.0.0.1:8080", "Origin": "https://runs.example.org", "Sec-Fetch-Site": "same-origin"}
            assert (await http.post(f"{API}/series", json={"runs": [MINE]}, headers=behind)).status_code == 200

    visit(test, hosts=("Runs.example.org",))


def test_who_is_let_in_everywhere_needs_no_token(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        for method, path in site.routes:
            assert (await site.ask(method, path))[0] not in (401, 403), path
        async with site.client() as http:
            who = {"id": "anyone", "role": "admin", "project": "", "signed_in": False}
            assert (await http.get(f"{API}/session")).json() == who
            answer = await http.post(f"{API}/login", json={"token": site.token()})
            assert (answer.json(), "set-cookie" in answer.headers) == (who, False)
            assert (await http.get("/healthz")).json() == {"status": "ok", "message": ""}

    visit(test, everyone=True)


def test_health_says_to_a_stranger_no_more_than_whether(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        async with site.client() as http:
            assert (await http.get("/healthz")).json() == {"status": "ok"}
            site.child.told({"clock": 0, "trouble": "the disk of db.example.org is full"})
            answer = await http.get("/healthz")
            assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
            known = await http.get("/healthz", headers=bearer(site.token()))
            assert known.json()["message"] == "the disk of db.example.org is full"

    visit(test)


def test_a_trusted_proxy_says_who_it_is(visit: Callable[..., None]) -> None:
    async def test(site: Site) -> None:
        named = {"X-Forwarded-User": "ada"}
        async with (
            site.client("10.1.2.3") as proxy,
            site.client("10.2.0.1") as stranger,
            site.client("::ffff:10.1.9.9") as mapped,
        ):
            who = {"id": "user:ada", "role": "read", "project": "mine", "signed_in": False}
            assert (await proxy.get(f"{API}/session", headers=named)).json() == who
            assert (await mapped.get(f"{API}/session", headers=named)).json() == who
            assert (await proxy.get(f"{API}/run", params={"name": OTHERS}, headers=named)).status_code == 403
            basic = {**named, "Authorization": "Basic YWRhOmg="}
            assert (await proxy.get(f"{API}/session", headers=basic)).json() == who, "what the proxy itself asked for"
            for headers in ({}, {"X-Forwarded-User": ""}, {"X-Forwarded-User": "a" * 129}, {"X-Forwarded-User": "a\x1bb"}):
                assert (await proxy.get(f"{API}/session", headers=headers)).status_code == 401
            twice = [("X-Forwarded-User", "root"), ("X-Forwarded-User", "ada")]
            assert (await proxy.get(f"{API}/session", headers=twice)).status_code == 401, "one may be the client's own"
            forwarded = {**named, "X-Forwarded-For": "10.1.2.3"}
            assert (await stranger.get(f"{API}/session", headers=forwarded)).status_code == 401
            token = site.token()
            both = {**named, **bearer(token)}
            assert (await proxy.get(f"{API}/session", headers=both)).json()["id"] == token.split("_")[1]
            assert (await proxy.get(f"{API}/session", headers={**named, **bearer(wrong(token))})).status_code == 401
            for second in (token, site.token()):
                two = [*bearer(token).items(), *bearer(second).items()]
                assert (await stranger.get(f"{API}/session", headers=two)).status_code == 401, "one may be somebody else's"

    visit(test, proxies=("10.1.0.0/16", "fd00::/8"), proxy_project="mine")


def certificates(folder: Path) -> tuple[ssl.SSLContext, tuple[str, ...]]:
    """A browser with a certificate of ada's, and the options of a server that asks for it."""
    authority = trustme.CA()
    server_side, client_side = authority.issue_cert("127.0.0.1"), authority.issue_cert("ada.example.org", common_name="ada")
    for name, pem in (
        ("server.pem", server_side.cert_chain_pems[0]),
        ("server.key", server_side.private_key_pem),
        ("ca.pem", authority.cert_pem),
        ("client.pem", client_side.private_key_and_cert_chain_pem),
    ):
        pem.write_to_path(folder / name)
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "client.pem")
    files = zip(("--tls-cert", "--tls-key", "--tls-client-ca"), ("server.pem", "server.key", "ca.pem"), strict=True)
    return context, tuple(word for option, name in files for word in (option, str(folder / name)))


def test_a_clients_certificate_has_a_role(visit: Callable[..., None]) -> None:
    certificate = {
        "subject": ((("organizationName", "Example"),), (("commonName", "ada"),)),
        "subjectAltName": (("DNS", "ada.example.org"), ("email", "ada@example.org")),
    }
    assert list(subjects(certificate)) == ["ada", "ada.example.org", "ada@example.org"]
    assert list(subjects(None)) == list(subjects({})) == []

    async def test(site: Site) -> None:
        async def session(peercert: Any, headers: dict[str, str] | None = None) -> Any:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                await site.app({**scope, "state": {"peercert": peercert}}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://localhost") as http:
                return (await http.get(f"{API}/session", headers=headers)).json()

        who = {"id": "cert:ada", "role": "write", "project": "mine", "signed_in": False}
        assert await session(certificate) == who
        token = site.token()
        assert (await session(certificate, bearer(token)))["id"] == token.split("_")[1]
        assert (await session({"subject": ((("commonName", "eve"),),)}))["error"]["reason"] == "UNAUTHENTICATED"

    visit(test, client_roles=(("ada", Role.WRITE, "mine"),))


# ---- a real server


def test_the_servers_own_user_comes_in_and_a_live_view_ends_with_its_token(
    new_server: Callable[..., Any], new_http: Callable[..., httpx.Client]
) -> None:
    server = new_server("--http", "127.0.0.1:0", "--auth", "auto").start()
    own = local_token.path(server.page).read_text().strip()
    store = open_beside(server.store)
    text, token = create("", Role.READ, store.clock.now())
    store.add_token(token)
    http = new_http(server, headers=bearer(own))
    assert http.get(f"{API}/session").json() == {"id": "local", "role": "admin", "project": "", "signed_in": False}
    stranger = new_http(server)
    assert stranger.get(f"{API}/runs").status_code == 401
    assert stranger.get("/").status_code == stranger.get("/healthz").status_code == 200
    assert stranger.post(f"{API}/login", json={"token": own}).status_code == 200
    assert stranger.get(f"{API}/runs").status_code == 200
    with stranger.stream("GET", f"{API}/events") as stays, http.stream("GET", f"{API}/events", headers=bearer(text)) as ends:
        going_on = stays.iter_lines()
        assert next(going_on).startswith("retry:")
        store.revoke_token(token.id, store.clock.now())
        assert [line for line in ends.iter_lines() if line.startswith("event:")] == ["event: reset"], "it has come to its end"
        with connect(server.target) as trainer:
            trainer.open_run("later", start=0).close("finished")
        assert any("later" in line for line in going_on)
    assert new_http(server, headers=bearer(text)).get(f"{API}/runs").status_code == 401
    store.close()
    assert "token=local method=login run=- result=ok from=127.0.0.1" in server.log.read_text()
    assert own[-43:] not in server.log.read_text()


def test_at_a_terminal_the_server_prints_a_link_that_signs_in(tmp_path: Path) -> None:
    ours, its = os.openpty()
    command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--store", f"sqlite:///{tmp_path}/x.db"], stdout=its, stderr=subprocess.DEVNULL
    ) as process:
        os.close(its)
        with open(ours, encoding="utf-8") as terminal:
            page = re.search(r" http=(\S+)", terminal.readline())
            link = re.search(r"signs you in to the page: (\S+)#token=(mech_\S+)", terminal.readline())
        assert page is not None
        assert link is not None
        assert link[1] == f"{page[1]}/"
        answer = httpx.post(f"{page[1]}{API}/login", json={"token": link[2]}, trust_env=False)
        assert answer.json()["id"] == "local"
        process.terminate()


def test_over_tls_a_client_shows_a_certificate_that_has_a_role(
    tmp_path: Path, new_server: Callable[..., Any], new_http: Callable[..., httpx.Client]
) -> None:
    context, options = certificates(tmp_path)
    roles = ("--client-role", "ada=read:mine")
    server = new_server("--http", "127.0.0.1:0", "--auth", "tokens", *options, *roles).start()
    http = new_http(server, verify=context)
    assert http.get(f"{API}/session").json() == {"id": "cert:ada", "role": "read", "project": "mine", "signed_in": False}
    assert http.get(f"{API}/runs", params={"project": "others"}).status_code == 403
