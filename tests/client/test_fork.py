"""A live stream beside forks: the parent trains on, the child is told by name that the session is not its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

PROGRAM = """
    import os, subprocess, sys
    from mechanicd.client import Reductions, SessionClosed, open_run

    target = sys.argv[1]
    session = open_run(target, "forks", start=0, on_outage="raise")
    reductions = Reductions(-1.0, 0.5, 1.0, 2.0)
    for step in range(40):
        session.begin(reductions)
        child = os.fork()
        if child == 0:
            try:
                session.begin(reductions)
            except SessionClosed as error:
                # Ends through atexit, as a child that forgot os._exit does: the parent's session must live on.
                sys.exit(7 if error.reason == "FORKED_PROCESS" else 8)
            sys.exit(9)
        session.finish()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert subprocess.run(["true"]).returncode == 0
    assert session.flush() == 40
    session.close()
    print("trained", session.state.step)
"""


def test_forks_and_subprocesses_beside_a_live_stream(server: Any, project: str, tmp_path: Path) -> None:
    program = tmp_path / "forks.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(program), server.target]
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained 40\n"
