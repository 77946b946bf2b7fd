"""A warm Python's programs are like any other's, but for the imports."""

from pathlib import Path

from tests.support.warm import warm

PROGRAM = """
import atexit, os, sys
class Mine: pass
print(__name__, sys.argv[1:], os.environ["WORD"], os.getcwd(), sys.path[0], "decimal" in sys.modules, Mine.__module__)
print(sorted(name for name in globals() if not name.startswith("__")))
print("an error", file=sys.stderr)
atexit.register(print, "the end")
sys.exit(int(sys.argv[1]))
"""


def test_a_program_has_its_words_folder_and_environment_and_ends_with_its_code(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    python = warm("decimal")
    for code in (0, 3):
        done = python.start(str(program), str(code), folder=tmp_path, environment={"WORD": "a"}).end()
        assert (done.returncode, done.stderr) == (code, "an error\n")
        first, names, last = done.stdout.splitlines()
        assert first == f"__main__ ['{code}'] a {tmp_path} {tmp_path} True __main__"
        assert names == "['Mine', 'atexit', 'os', 'sys']"
        assert last == "the end"


def test_one_that_takes_too_long_is_killed_and_an_error_is_shown(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys, time\nif sys.argv[1:]: time.sleep(60)\nraise ValueError('said')")
    assert warm("decimal").start(str(program), "sleep", folder=tmp_path).end(0.5).returncode == -9
    done = warm("decimal").start(str(program), folder=tmp_path).end()
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: said\n")
