"""How a `with` block ends says how its run ended, as the end of a process does."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mechanicd.client import connect, open_run
from mechanicd.client.framework import failure_of
from mechanicd.v1 import resources_pb2, run_service_pb2


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (None, None),
        (SystemExit(), None),
        (SystemExit(0), None),
        (SystemExit(False), None),
        (GeneratorExit(), None),
        (SystemExit(1), "the process exited with status 1"),
        (SystemExit("no data"), "the process exited: no data"),
        (SystemExit(""), "the process exited: "),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (StopIteration(3), "StopIteration: 3"),
    ],
    ids=repr,
)
def test_what_leaves_a_block_as_a_failure(error: BaseException | None, why: str | None) -> None:
    assert failure_of(error) == why


def test_the_run_of_a_block_ends_as_the_block_does(server: Any, project: str) -> None:
    def reader() -> Iterator[None]:
        with open_run(server.target, "read", project=project, start=0):
            yield

    with pytest.raises(SystemExit), open_run(server.target, "done", project=project, start=0):
        sys.exit(0)
    with pytest.raises(SystemExit), open_run(server.target, "bad", project=project, start=0):
        sys.exit("no data")
    reading = reader()
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    with connect(server.target) as client:
        listed = client.call("ListRuns", run_service_pb2.ListRunsRequest(parent=f"projects/{project}")).runs
    finished, failed = resources_pb2.RUN_STATUS_FINISHED, resources_pb2.RUN_STATUS_FAILED
    assert [(run.name.rpartition("/")[2], run.status, run.status_message) for run in listed] == [
        ("bad", failed, "the process exited: no data"),
        ("done", finished, ""),
        ("read", finished, ""),
    ]


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_block_of_an_optimizer_ends_alike(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(framework)
    closed: list[tuple[str | None, str]] = []
    if framework == "torch":
        import torch

        from mechanicd.torch import mechanize

        tuned: Any = mechanize(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
    else:
        import optax

        from mechanicd.jax import mechanize as mechanize_jax

        tuned = mechanize_jax(optax.sgd(1.0))
    monkeypatch.setattr(type(tuned), "close", lambda self, status=None, message="": closed.append((status, message)))
    for code in (0, None, 2):
        with pytest.raises(SystemExit), tuned:
            sys.exit(code)
    assert closed == [(None, ""), (None, ""), ("failed", "the process exited with status 2")]
