"""What a mechanized step costs: against BASE alone, against the package mechanic-pytorch, and against the memory's bandwidth.

    python tests/benchmarks/torch_step.py [--sizes 3M 124M 1.1B] [--dtypes float32 bfloat16] [--train] [--json FILE]

On a CUDA device if there is one, else on the CPU (where the size is 20M). For each set of parameters, which are a GPT-2's in
number and shape, with AdamW as BASE and fixed gradients, prints the time of a step, and as slots (of one parameter-sized
tensor) what is kept beside BASE's own and what is needed at the peak:

    AdamW           torch.optim.AdamW, fused
    mechanic-pytorch   the authors' package around the same
    in-process      mechanize(…, target=None)
    remote          the same with a server of its own, on this host

and the floor: the bytes that AdamW and the two passes must move, by the bandwidth of a copy measured in the same run.
`--train` adds whole training steps of a GPT-2 of 124M parameters (from transformers, random weights, random tokens).
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechanicd.torch import mechanize

SHAPES = {"3M": (4, 192, 6000), "20M": (8, 384, 14_000), "124M": (12, 768, 50_257), "1.1B": (20, 2048, 50_257)}
"""Layers, width and vocabulary."""
BYTES = {torch.float32: 16 * 4, torch.bfloat16: 7 * 2 + (4 + 2 + 2) + (2 + 2 + 4 + 4 + 2)}
"""Per parameter: AdamW reads four and writes three; reduce reads three (float32: writes x_t); apply reads three, writes two."""


def shapes(size: str) -> list[tuple[int, ...]]:
    """A GPT-2's tensors."""
    layers, d, vocabulary = SHAPES[size]
    block = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(vocabulary, d), (1024, d), *(block * layers), (d,), (d,)]


class Bench:
    """One device, and how time and memory are read there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.cuda = device == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, step: Callable[[], Any], least: float = 0.6) -> float:
        """Of one step: the best of three rounds, each of as many steps as take `least` seconds."""
        for _ in range(3):
            step()
        self.wait()
        began = time.perf_counter()
        step()
        self.wait()
        count = max(3, int(least / max(1e-5, time.perf_counter() - began)))
        rounds = []
        for _ in range(3):
            began = time.perf_counter()
            for _ in range(count):
                step()
            self.wait()
            rounds.append((time.perf_counter() - began) / count)
        return min(rounds)

    def bandwidth(self) -> float:
        """Bytes/s of a copy, read and written."""
        source = torch.empty(2**30 if self.cuda else 2**26, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source))

    def allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else 0

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else 0


@contextmanager
def server() -> Iterator[str]:
    """A server process with a store of its own; its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "mechanicd.cli",
            "serve",
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "off",
            "--log-level",
            "warning",
        ]
        command += ["--store", f"sqlite:///{Path(folder) / 'bench.db'}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split("grpc=")[1].split()[0]
        finally:
            process.terminate()
            process.wait(30)


def wrapped(name: str, params: list[Tensor], target: str) -> Any:
    """The optimizer of one column."""
    if name == "mechanic-pytorch":
        import mechanic_pytorch

        return mechanic_pytorch.mechanize(torch.optim.AdamW)(params, lr=1.0, fused=True)
    base = torch.optim.AdamW(params, lr=1e-3 if name == "AdamW" else 1.0, fused=True)
    if name == "AdamW":
        return base
    return mechanize(base, run=f"bench/{time.monotonic_ns()}", target=target if name == "remote" else None, deadline=30.0)


NAMES = ("AdamW", "mechanic-pytorch", "in-process", "remote")


def steps_only(bench: Bench, size: str, dtype: torch.dtype, target: str, bandwidth: float) -> dict[str, Any]:
    """The row of one set of parameters."""
    count = sum(torch.Size(shape).numel() for shape in shapes(size))
    found: dict[str, Any] = {"size": size, "dtype": str(dtype).removeprefix("torch."), "parameters": count}
    for name in NAMES:
        gc.collect()
        if bench.cuda:
            torch.cuda.empty_cache()
        make = torch.Generator(bench.device).manual_seed(0)
        params = []
        for shape in shapes(size):
            p = torch.nn.Parameter((torch.randn(shape, generator=make, device=bench.device) * 0.02).to(dtype))
            p.grad = (torch.randn(shape, generator=make, device=bench.device) * 1e-3).to(dtype)
            params.append(p)
        slot = sum(p.numel() * p.element_size() for p in params)
        before = bench.allocated()
        try:
            opt = wrapped(name, params, target)
            opt.step()
            opt.step()
            if bench.cuda:
                torch.cuda.reset_peak_memory_stats()
            row: dict[str, Any] = {"ms": 1e3 * bench.seconds(opt.step)}
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {error}"[:200]}
        else:
            if bench.cuda:
                row["kept"] = (bench.allocated() - before) / slot - 2  # AdamW's own two
                row["peak"] = (bench.peak() - before) / slot - 2
            if hasattr(opt, "close"):
                opt.close()
        found[name] = row
        del params
        opt = None
    found["floor_ms"] = 1e3 * count * BYTES[dtype] / bandwidth
    return found


def training(bench: Bench, target: str) -> dict[str, float]:
    """Milliseconds of a whole training step of a GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    found = {}
    for name in ("AdamW", "in-process", "remote"):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config()).to(bench.device)
        tokens = torch.randint(0, 50_257, (8, 1024), device=bench.device)
        opt = wrapped(name, list(model.parameters()), target)

        def step(model: Any = model, opt: Any = opt, tokens: Tensor = tokens) -> None:
            opt.zero_grad()
            with torch.autocast(bench.device, torch.bfloat16) if bench.cuda else nullcontext():
                loss = model(tokens, labels=tokens).loss
            loss.backward()
            opt.step()

        found[name] = 1e3 * bench.seconds(step, least=2.0)
        if hasattr(opt, "close"):
            opt.close()
        del model, opt
        gc.collect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    bench = Bench("cuda" if torch.cuda.is_available() else "cpu")
    sizes = arguments.sizes or (["3M", "124M", "1.1B"] if bench.cuda else ["20M"])
    where = torch.cuda.get_device_name() if bench.cuda else f"CPU, {torch.get_num_threads()} threads"
    bandwidth = bench.bandwidth()
    print(f"{where}, torch {torch.__version__}; a copy moves {bandwidth / 1e12:.3f} TB/s", flush=True)
    report: dict[str, Any] = {"device": where, "bandwidth": bandwidth, "rows": []}
    with server() as target:
        for size in sizes:
            for dtype in arguments.dtypes:
                row = steps_only(bench, size, getattr(torch, dtype), target, bandwidth)
                report["rows"].append(row)
                show(row)
        if arguments.train:
            report["training"] = training(bench, target)
            bare = report["training"]["AdamW"]
            for name, ms in report["training"].items():
                print(f"a training step of GPT-2 124M, {name:12s} {ms:8.2f} ms, {ms / bare:.3f} of AdamW's")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2))


def show(row: dict[str, Any]) -> None:
    """The row, with its ratios."""
    print(f"\n{row['size']} ({row['parameters']:,} parameters), {row['dtype']}; floor {row['floor_ms']:.2f} ms")
    for name in NAMES:
        found = row[name]
        if "failed" in found:
            print(f"  {name:17s} {found['failed']}")
            continue
        slots = f"  kept {found['kept']:.2f}, peak {found['peak']:.2f} slots" if "kept" in found else ""
        print(f"  {name:17s} {found['ms']:9.3f} ms{slots}")
    ms = {name: row[name]["ms"] for name in NAMES if "ms" in row[name]}
    ratios = [("in-process", "AdamW"), ("remote", "in-process"), ("mechanic-pytorch", "in-process")]
    said = [f"{one} ÷ {other} {ms[one] / ms[other]:.3f}" for one, other in ratios if one in ms and other in ms]
    print("  " + "; ".join([*said, f"in-process ÷ floor {ms['in-process'] / row['floor_ms']:.3f}"]), flush=True)


if __name__ == "__main__":
    main()
