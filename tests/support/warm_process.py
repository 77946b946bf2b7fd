"""The process behind `warm.py`: it imports what it is told to, then forks for each program that it is asked for.

    python warm_process.py FD MODULE …

A request comes through the socket FD: JSON, with the files for the program's output, its errors, and its number and exit code.
The fork becomes `__main__` of that program, and ends as any Python does.
"""

import gc
import importlib
import json
import os
import socket
import sys
import warnings
from pathlib import Path


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork needn't copy what all of them share
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            requests.close()
            reap()
            return
        if fork() == 0:
            break
        for file in files:
            os.close(file)
        reap(os.WNOHANG)
    requests.close()
    output, errors, report = files
    if program := fork():
        os.write(report, f"{program}\n".encode())
        os.write(report, f"{os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])}\n".encode())
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for file in files:
        os.close(file)
    become(**json.loads(message))


def fork() -> int:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="os.fork")  # JAX's: nobody has used it, so it has no threads yet
        return os.fork()


def reap(flags: int = 0) -> None:
    """What the programs took counts as taken by this process."""
    try:
        while os.waitpid(-1, flags)[0]:
            pass
    except ChildProcessError:
        pass


def become(command: list[str], folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    code = compile(Path(command[0]).read_text(encoding="utf-8"), command[0], "exec")
    names = vars(sys.modules["__main__"])
    builtins = names["__builtins__"]
    names.clear()
    names.update(__name__="__main__", __file__=command[0], __builtins__=builtins, __doc__=None, __spec__=None, __package__=None)
    exec(code, names)


main()
