"""`mechanicd top`: the live table, in a real terminal and in a pipe."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

New = Callable[..., Any]


class Terminal:
    """A program in a terminal of 160 columns and 12 lines; what it wrote so far is `text`."""

    def __init__(self, *command: str) -> None:
        self._fd, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 160, 0, 0))
        self.before = termios.tcgetattr(end)
        environment = {**os.environ, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, close_fds=True)
        self._end = end
        self.text = ""

    def wait_for(self, pattern: str) -> bool:
        """Whether it shows this within 20 seconds, from now on or already since the last `clear`."""
        end = time.monotonic() + 20.0
        while not re.search(pattern, self.text):
            if time.monotonic() > end:
                return False
            if select.select([self._fd], [], [], 0.2)[0]:
                self.text += os.read(self._fd, 65536).decode(errors="replace")
        return True

    def press(self, keys: str) -> None:
        self.text = ""
        os.write(self._fd, keys.encode())

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._end)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
        os.close(self._end)


@pytest.fixture
def terminal(server: Any, project: str) -> Iterator[Callable[..., Terminal]]:
    """`mechanicd top OPTIONS` in a terminal of its own."""
    made: list[Terminal] = []

    def start(*options: str) -> Terminal:
        command = (sys.executable, "-m", "mechanicd.cli", "top", "--target", server.target, "--project", project, *options)
        made.append(Terminal(*command))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_top_shows_each_change_of_a_run_and_q_ends_it_and_leaves_the_terminal_as_it_was(train: New, terminal: New) -> None:
    train("a", 7)
    screen = terminal("--interval", "0.2")
    assert screen.wait_for(r": a\b.*running.*\b7\b"), screen.text
    assert "1 runs, 1 running" in screen.text
    assert screen.settings() != screen.before, "keys come one by one"
    train("a", 4, after_step=7, close="RUN_STATUS_FINISHED")
    assert screen.wait_for(r": a\b.*finished.*\b11\b"), screen.text
    screen.press("q")
    assert screen.wait_for(r"\x1b\[\?1049l"), "the screen from before is back"
    assert screen.process.wait(timeout=20) == 0
    assert screen.settings() == screen.before


def test_keys_choose_the_order_and_move_through_more_runs_than_there_is_room_for(train: New, terminal: New) -> None:
    for index in range(12):
        train(f"run{index:02}")
    screen = terminal("--sort", "name", "--interval", "30")
    assert screen.wait_for("run07"), screen.text
    assert "run09" not in screen.text
    screen.press("\x1b[B")
    assert screen.wait_for("run08"), screen.text
    screen.press("k")
    assert screen.wait_for("run00"), screen.text
    screen.press("s")
    assert screen.wait_for("by status"), screen.text
    screen.press("q")
    assert screen.process.wait(timeout=20) == 0


def test_ctrl_c_ends_it_as_q_does(train: New, terminal: New) -> None:
    train("a")
    screen = terminal()
    assert screen.wait_for(": a")
    screen.process.send_signal(2)
    assert screen.wait_for(r"\x1b\[\?1049l")
    assert screen.process.wait(timeout=20) == 0


def test_once_prints_the_table_and_ends_as_a_pipe_does(train: New, here: New, server: Any, project: str) -> None:
    train("a", 15, labels={"note": "[red]x[/red]"})
    train("b", close="RUN_STATUS_FAILED")
    given = ("top", "--target", server.target, "--project", project)
    for options in ((), ("--once",)):
        done = here(*given, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("2 runs, 1 running, 1 failed")
        assert "note=[red]x[/red]" in done.stdout
        assert "\x1b" not in done.stdout


def test_top_in_json_is_the_list_on_one_line(train: New, here: New, runs: New, server: Any, project: str) -> None:
    train("a", 3)
    train("b", 5, close="RUN_STATUS_FINISHED")
    done = here("top", "--target", server.target, "--project", project, "--json", "--once", "--sort", "-step")
    assert len(done.stdout.splitlines()) == 1
    listed = json.loads(runs("list", "--json", "--sort", "-step").stdout)
    assert json.loads(done.stdout) == listed
    assert [run["step"] for run in listed] == [5, 3]


def test_a_filter_keeps_what_it_names_and_a_wrong_one_is_told(train: New, here: New, server: Any, project: str) -> None:
    train("a", 3)
    train("b", 5)
    given = ("top", "--target", server.target, "--project", project, "--once")
    assert here(*given, "--filter", "step > 4").stdout.startswith("1 runs")
    done = here(*given, "--filter", "color = red")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[INVALID_FILTER]" in done.stderr


def test_top_says_that_its_server_is_away_and_goes_on_when_it_is_back(new_server: New, terminal: New) -> None:
    server = new_server("--grace", "0").start()
    screen = terminal("--target", server.target)
    assert screen.wait_for("0 runs")
    screen.text = ""
    server.kill()
    assert screen.wait_for("the server does not answer"), screen.text
    screen.text = ""
    server.start()
    assert screen.wait_for("0 runs"), screen.text
    screen.press("q")
    assert screen.process.wait(timeout=20) == 0
