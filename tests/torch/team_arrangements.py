"""One rank of several small trainings, one after the other, in one process.

    python team_arrangements.py RANK WORLD PORT OUT NAME…

Each NAME is a function of `team_right` or `team_refused`. It gets a process group of its own, and what it returns goes to
OUT.RANK, as JSON by name. An error of mechanicd becomes {"error": its reason, "said": its message, "at": the step, "moved":
whether the weights have moved}.
"""

import json
import os
import sys
from pathlib import Path

import team_refused
import team_right
import torch
import torch.distributed as dist
from team_training import Outcome, Refused


def main() -> None:
    here, ranks, port, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, ranks, here == 0) if ranks > 1 else None
    found: dict[str, Outcome] = {}
    for name in sys.argv[5:]:
        if store is not None:
            dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=here, world_size=ranks)
        Path(f"{out}.{here}").write_text(json.dumps(found))  # the process may end in the middle
        try:
            found[name] = getattr(team_right if hasattr(team_right, name) else team_refused, name)()
        except Refused as refused:
            found[name] = refused.outcome
        Path(f"{out}.{here}").write_text(json.dumps(found))
        if store is not None:
            store.set(f"{name}/{here}", "done")
            alive = range(ranks - 1 if name == "dies" else ranks)
            store.wait([f"{name}/{rank}" for rank in alive])
            if dist.is_initialized():
                dist.destroy_process_group()
    if store is not None:
        store.set(f"done/{here}", "")
        if here == 0:  # which holds the store
            store.wait([f"done/{rank}" for rank in alive])
    os._exit(0)  # gloo's threads, when they want Python while it ends, now and then end a process by std::terminate


if __name__ == "__main__":
    main()
