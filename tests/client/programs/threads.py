"""threads.py TARGET SEED FOLDER: threads with a run each over one client, all at once, while the main thread forks."""

import random
import sys
import threading

from beside import Children, Training, report

from mechanicd.client import connect

THREADS, STEPS = 6, 200


def main() -> None:
    target, seed, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    barrier = threading.Barrier(THREADS)
    ended: list[int] = []
    with connect(target) as client, client.open_run("threads/main", start=0) as session:

        def work(index: int) -> None:
            barrier.wait()
            training = Training(client.open_run(f"threads/{index}", start=0), seed + index).step(STEPS)
            training.end(folder)
            ended.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        training, children = Training(session, seed - 1), Children(client, session, random.Random(seed))
        while any(thread.is_alive() for thread in threads):
            training.begin()
            children.fork()
            training.finish()
        children.join()
        assert sorted(ended) == list(range(THREADS)), f"only {sorted(ended)} of {THREADS} threads came to the end"
        training.end(folder)
    report(threads=THREADS, steps=THREADS * STEPS + len(training.scales), children=children.counts)


if __name__ == "__main__":
    main()
