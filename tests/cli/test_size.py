"""Thousands of runs on the command line, and a server of an older version."""

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from mechanicd.cli import _export, _query, _text, _top
from mechanicd.client import Client, NotImplementedByServer
from mechanicd.v1 import resources_pb2, run_service_pb2

New = Callable[..., Any]


def made(index: int, **fields: Any) -> resources_pb2.Run:
    return resources_pb2.Run(name=f"projects/p/runs/{index:04}", status="RUN_STATUS_FINISHED", scale=[0.5], **fields)


def test_the_table_of_a_pipe_and_of_a_terminal_have_the_same_cells() -> None:
    found = [made(1, durable_step=12345, labels={"größe": "大", "b": "1"}), made(2, needs=[resources_pb2.Need(kind=2)])]
    sketches = {found[0].name: "▁▂█"}
    lines = _text.lines(found, sketches)
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["run", "status", "step", "S", "S over the steps", "last step", "needs", "labels"],
        ["p: 0001", "finished", "12,345", "0.5", "▁▂█", "–", "b=1 größe=大"],
        ["p: 0002", "finished", "0", "0.5", "–", "stuck"],
    ]
    table = _text.table(found, sketches)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert [" ".join(filter(None, row)).split() for row in zip(*cells, strict=True)] == [line.split() for line in lines[1:]]


def test_top_waits_for_the_last_of_several_messages() -> None:
    come = threading.Event()

    class Many:
        def watch(self, request: Any, lost: Any) -> Iterator[run_service_pb2.WatchRunsResponse]:
            yield run_service_pb2.WatchRunsResponse(runs=[made(1), made(2)], more=True)
            come.wait(20)
            yield run_service_pb2.WatchRunsResponse(runs=[made(3)])
            yield run_service_pb2.WatchRunsResponse(gone=[made(1).name], runs=[made(2, durable_step=7)], more=True)
            threading.Event().wait()

    threading.Timer(0.2, come.set).start()
    fleet = _top._Fleet(cast(Client, Many()), run_service_pb2.WatchRunsRequest(), live=False)
    assert {3} <= {int(run.name[-4:]) for run in fleet.runs()}


def test_a_server_of_an_older_version_is_asked_as_it_understands(train: New, runs: New, server: Any, project: str) -> None:
    """It has no SketchRuns, and answers with records where columns are asked for."""
    name = train("a", 30, groups=("x", "y"))
    with _query.connect(server.target) as client:

        class Old:
            def call(self, method: str, request: Any, timeout: float = 10.0) -> Any:
                if method == "SketchRuns":
                    raise NotImplementedByServer("NOT_IMPLEMENTED", "no such method")
                if method == "QuerySeries":
                    request.as_columns = False
                return client.call(method, request, timeout)

        old = cast(Client, Old())
        assert _query.sketches_of(old, [name], 24) == _query.sketches_of(client, [name], 24)
        assert list(_export._steps(old, name, 0, 1, None)) == list(_export._steps(client, name, 0, 1, None))
