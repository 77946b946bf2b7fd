"""subprocesses.py TARGET SEED FOLDER: threads that start programs in every way, beside one stream."""

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable

from beside import Training, report

from mechanicd.client import open_run

THREADS, EACH = 4, 30


def piped() -> int:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        return int(cat.communicate(b"mechanic")[0] != b"mechanic")


# A preexec_fn takes the way of os.fork, with its hooks; the others take a shorter one.
WAYS: dict[str, Callable[[], int]] = {
    "run": lambda: subprocess.run(["true"], check=False).returncode,
    "pipes": piped,
    "shell": lambda: subprocess.run("exit 0", shell=True, check=False).returncode,
    "preexec_fn": lambda: subprocess.run(["true"], preexec_fn=os.setsid, check=False).returncode,
    "open descriptors": lambda: subprocess.run(["true"], close_fds=False, check=False).returncode,
    "os.system": lambda: os.system("true"),
}


def main() -> None:
    target, seed, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    session = open_run(target, "subprocesses", start=0)
    training = Training(session, seed)
    counts: Counter[str] = Counter()
    wrong: list[str] = []

    def work(rng: random.Random) -> None:
        for _ in range(EACH):
            way = rng.choice(list(WAYS))
            counts[way] += 1
            if WAYS[way]() != 0:
                wrong.append(way)

    threads = [threading.Thread(target=work, args=(random.Random(seed + index),)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        training.step()
    training.step(20)
    assert not wrong, wrong
    assert session.connected, "no subprocess was taken for an outage"
    training.end(folder)
    report(steps=len(training.scales), subprocesses=counts)


if __name__ == "__main__":
    main()
