"""outage.py TARGET SEED FOLDER SERVER: forks while the server is away and the session's thread tries to come back.

It kills the process SERVER, says "away" when it has forked, and expects that somebody then starts the server again.
"""

import os
import random
import signal
import sys
import time

from beside import Children, Training, report

from mechanicd.client import connect


def main() -> None:
    target, seed, folder, server = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    rng = random.Random(seed)
    with connect(target) as client, client.open_run("outage", start=0) as session:
        training, children = Training(session, seed).step(50), Children(client, session, rng)
        os.kill(server, signal.SIGKILL)
        while session.connected:
            training.step()
        for _ in range(40):
            training.begin()
            children.fork()
            training.finish()
            time.sleep(rng.uniform(0.0, 0.02))  # the thread that comes back is now here, now there
        assert not session.connected
        print("away", flush=True)
        while not session.connected:
            training.begin()
            children.fork()
            training.finish()
            time.sleep(0.005)
        missed = len(training.scales) - 50
        for _ in range(20):
            training.begin()
            children.fork()
            training.finish()
        children.join()
        training.end(folder)
    report(steps=len(training.scales), missed=missed, children=children.counts)


if __name__ == "__main__":
    main()
