"""What a program's end says of its trainings: each program here is a real process that ends in its own way."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

BEFORE = """
import atexit, sys
from mechanicd.client import _exit
atexit.register(lambda: sys.stdout.write(f"{_exit.failure()}"))
"""
FINE = "None"
UNKNOWN = "SystemExit, or another exception, ended the program"
ENDINGS = {
    "pass": FINE,
    "sys.exit()": FINE,
    "sys.exit(None)": FINE,
    "sys.exit(0)": FINE,
    "sys.exit(False)": FINE,
    "sys.exit(1)": "the process exited with status 1",
    "sys.exit(True)": "the process exited with status 1",
    "sys.exit('CUDA out of memory')": "the process exited: CUDA out of memory",
    "sys.exit(2.5)": "the process exited: 2.5",
    "sys.exit(ValueError('of the user'))": "the process exited: of the user",
    "exit(2)": "the process exited with status 2",
    "quit(code=3)": "the process exited with status 3",
    "exit()": FINE,
    "def main(): return 1\nsys.exit(main())": "the process exited with status 1",
    "def main(): pass\nsys.exit(main())": FINE,
    "def main(): sys.exit(4)\nmain()": "the process exited with status 4",
    "def main(): sys.exit(0)\nmain()": FINE,
    "try: sys.exit(1)\nexcept SystemExit: pass": FINE,
    "try: sys.exit(1)\nfinally: pass": "the process exited with status 1",
    "import argparse; argparse.ArgumentParser().parse_args(['--no'])": "the process exited with status 2",
    "import asyncio\nasync def main(): sys.exit(5)\nasyncio.run(main())": "the process exited with status 5",
    "import threading\nt = threading.Thread(target=sys.exit, args=(1,)); t.start(); t.join()": FINE,
    "atexit.register(sys.exit, 1)": FINE,
    "raise SystemExit": FINE,
    "raise SystemExit()": FINE,
    "raise SystemExit(0)": FINE,
    "raise SystemExit(6)": "the process exited with status 6",
    "raise SystemExit('no data')": "the process exited: no data",
    "code = 7\nraise SystemExit(code)": "the process exited with status 7",
    "name = 'x'\nraise SystemExit(f'no {name}')": UNKNOWN,
    "def main(): return 0\nraise SystemExit(main())": FINE,
    "def main(): raise SystemExit('deep')\nmain()": UNKNOWN,
    "raise RuntimeError('boom')": "RuntimeError: boom",
    "def main(): 1 / 0\nmain()": "ZeroDivisionError: division by zero",
    "sys.excepthook = lambda *_: None\nraise OSError('boom')": "OSError: boom",
    "class E(Exception):\n  def __str__(self): 1 / 0\nraise E": "E: (E has no text: its __str__ raised ZeroDivisionError)",
    "import contextlib\nwith contextlib.closing(sys.stdin): raise KeyError('k')": "KeyError: 'k'",
    "raise KeyboardInterrupt": "KeyboardInterrupt: ",
    # what a notebook or a test runner leaves behind
    "sys.last_value = sys.last_exc = NameError('modle')": FINE,
    "try: modle\nexcept NameError as e: sys.last_value = sys.last_exc = e": FINE,
    "try: modle\nexcept NameError as e: sys.last_value = sys.last_exc = e\nsys.exit(8)": "the process exited with status 8",
    "import code; code.InteractiveInterpreter().runsource('modle')": FINE,
    "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'nothing']) == 0)": FINE,
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("endings")

    def of(ending: str) -> str:
        command = [sys.executable, "-c", BEFORE + ending]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, input="", check=False)
        assert (done.returncode == 0) == (ENDINGS[ending] == FINE), done.stderr
        return done.stdout.splitlines()[-1]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ENDINGS, pool.map(of, ENDINGS), strict=True))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_a_program(ending: str, verdicts: dict[str, str]) -> None:
    assert verdicts[ending] == ENDINGS[ending]


def test_statements_at_a_prompt_fail_without_an_end() -> None:
    """Each statement is a program of its own to Python; the process ends when the input does."""
    typed = BEFORE.replace("atexit.reg", "_ = atexit.reg") + "modle\nraise RuntimeError('at the prompt')\n1 / 0\n"
    done = subprocess.run([sys.executable, "-i", "-q"], input=typed, capture_output=True, text=True, timeout=60, check=False)
    assert "at the prompt" in done.stderr
    assert done.stdout == FINE


def test_a_program_fails_however_it_is_run(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BEFORE + "def main():\n    raise RuntimeError('boom')\nmain()\n")
    for command in (["program.py"], ["-m", "program"], ["-i", "program.py"]):  # the last stays at a prompt
        done = subprocess.run(
            [sys.executable, *command], input="", capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        assert done.stdout == "RuntimeError: boom", command
