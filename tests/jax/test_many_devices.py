"""Parameters and batch split among 8 devices, or among two processes: one request a step, and S the same everywhere."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.warm import warm

SCRIPT = Path(__file__).with_name("training_on_devices.py")


def train(processes: int, devices: int, target: str, on_outage: str, project: str, folder: Path) -> list[Any]:
    """Trains with so many processes of so many devices; what each of them left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / on_outage
    running = []
    for index in range(processes):
        words = map(str, (SCRIPT, processes, index, devices, port, target, on_outage, out))
        running.append(warm("mechanicd.jax").start(*words, folder=folder, environment={"MECHANICD_PROJECT": project}))
    ended = [program.end(110) for program in running]
    assert [one.returncode for one in ended] == [0] * processes, "\n".join(one.stdout + one.stderr for one in ended)
    return [np.load(f"{out}.{index}.npz") for index in range(processes)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same training on one device, without a server."""
    return train(1, 1, "none", "local", "none", tmp_path_factory.mktemp("single"))[0]


@pytest.mark.parametrize(
    ("processes", "devices", "on_outage"), [(1, 8, "local"), (2, 1, "local"), (2, 4, "hold"), (2, 2, "loop"), (2, 2, "axes")]
)
def test_s_is_that_of_one_device(processes, devices, on_outage, server, project, history, tmp_path, single):
    results = train(processes, devices, server.target, on_outage, project, tmp_path)
    for result in results:
        np.testing.assert_array_equal(result["scales"], results[0]["scales"])
        np.testing.assert_allclose(result["scales"], single["scales"], rtol=1e-9)
        for name in ("first", "bias", "second"):
            np.testing.assert_allclose(result[name], single[name], rtol=1e-8, atol=1e-10)
    kept = history(server.target, on_outage, project)
    assert [r.step for r in kept] == list(range(1, 31)), "one request a step"
    np.testing.assert_array_equal([list(r.scale) for r in kept], results[0]["scales"])
    assert [r.step for r in kept if r.outcome == 2] == [21]
