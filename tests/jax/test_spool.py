"""A JAX training without a network has its steps in a file, however the host learns of them, and can be imported."""

from pathlib import Path
from typing import Any

import optax

from mechanicd.client import connect
from mechanicd.client.spool import import_spool, spool_files
from mechanicd.jax import mechanize, scale


def test_it_writes_each_step_and_can_be_imported(digits: Any, server: Any, project: str, history: Any, tmp_path: Path) -> None:
    trained = []
    for report in ("callback", "loop"):
        with mechanize(optax.adamw(1.0), report, f"file://{tmp_path}", project=project, s_init=1e-4, report=report) as tx:
            trained.append(scale(digits.train(tx, 20)[1]))
            assert tx.flush() == 20
    with connect(server.target) as client:
        for file in spool_files(tmp_path):
            assert import_spool(client, file).imported == 20
    callback, loop = ([each.scale[0] for each in history(server.target, run, project)] for run in ("callback", "loop"))
    assert callback == loop
    assert trained == [callback[-1], loop[-1]]
