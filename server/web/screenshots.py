"""Takes the pictures of the page for the README: a fleet of runs of every fate on a server of its own, seen by Chromium.

    python server/web/screenshots.py          # about a minute; writes server/web/screenshots/*.png; --all: more, to look at

It needs what the tests need: the [dev] extra, and Chromium. The fleet is that of tests/benchmarks/fleet.py.
"""

import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from mechanicd.client import Reductions, Session, connect
from mechanicd.tuner import TunerConfig

HERE = Path(__file__).parent
FLEET = HERE.parents[1] / "tests" / "benchmarks" / "fleet.py"
OUT = HERE / "screenshots"
STEPS, RATE = 3000, 80
LAYERS = tuple(f"h.{i}.{name}" for i in range(6) for name in ("attn.qkv", "attn.out", "mlp.up", "mlp.down"))
RUN = "gpt2-124m/by-layer/seed0"


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str]]:
    """Its gRPC target and its page."""
    command = [
        sys.executable,
        "-m",
        "mechanicd.cli",
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--auth",
        "off",
    ]
    command += ["--store", f"sqlite:///{folder / 'fleet.db'}", "--silent-after", "20", "4", "--log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        words = dict(word.partition("=")[::2] for word in process.stdout.readline().split())
        try:
            yield words["grpc"], words["http"]
        finally:
            process.terminate()
            process.wait()


def train(session: Session, steps: int, rng: random.Random, bad: bool = False, hold: bool = False) -> None:
    """Steps whose gradients draw each layer's S to a place of its own, which falls slowly."""
    for _ in range(steps):
        step, norm = session.state.step, float("nan") if bad else 1.0
        scalars = []
        for i, S in enumerate(session.scales):
            wanted = -2.2 - 0.25 * (i * 7 % 5) - 0.5 * math.log10(1 + step / 300)
            pull = math.tanh(2.0 * (math.log10(max(S, 1e-30)) - wanted))
            scalars.append(Reductions(norm * rng.gauss(pull, 1.5), 0.1, math.exp(rng.gauss(0.0, 0.3)), 900.0 + step / 10))
        session.begin(scalars, base_lr=0.5 * min(1.0, step / 200), hold=hold)
        session.finish(wait=False)
    session.flush(30.0)


def tell_a_story(target: str) -> None:
    """A run with a rewind, steps skipped and held, a preemption and a fence."""
    rng = random.Random(5)
    sys.orig_argv = ["python", "train.py", "--model", "gpt2-124m", "--batch", "256", "--seed", "0"]  # what the page shows
    labels = {"model": "gpt2-124m", "base": "adamw", "batch": "256", "seed": "0"}
    config = TunerConfig(scale_groups=LAYERS)
    with connect(target) as client:
        session = client.open_run(RUN, project="fleet", config=config, labels=labels)
        train(session, 700, rng)
        checkpoint = session.state
        train(session, 250, rng)
        session.close("preempted", "SIGTERM")
        session = client.open_run(RUN, project="fleet", config=config, start=checkpoint)
        train(session, 500, rng)
        train(session, 4, rng, bad=True)
        train(session, 300, rng)
        train(session, 25, rng, hold=True)
        train(session, 300, rng)
        session.close("preempted", "SIGTERM: the node is drained")
        session = client.open_run(RUN, project="fleet", config=config)
        train(session, 700, rng)
        session.close("preempted", "SIGTERM: the node is drained")


def take(browser: Browser, address: str, name: str, view: str, width: int, height: int, theme: str, scale: int = 1) -> None:
    """One picture, once everything on it is there."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=scale)
    page = context.new_page()
    page.goto(f"{address}/{view}")
    page.wait_for_timeout(3000)
    path = OUT / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        # A fifth of the shades of each channel: nothing that an eye sees, and a quarter off the size.
        picture.convert("RGB").point(lambda shade: shade // 5 * 5).save(path, optimize=True)
    context.close()


def main() -> None:
    OUT.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    everything = "--all" in sys.argv
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (target, address), sync_playwright() as playwright:
        tell_a_story(target)
        command = [sys.executable, str(FLEET), "--target", target, "--runs", "36", "--steps", str(STEPS), "--rate", str(RATE)]
        fleet = subprocess.Popen(
            [*command, "--grouped", "4", "--seed", "3"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            while _step(address) < 0.94 * STEPS and fleet.poll() is None:
                time.sleep(0.5)
            take(browser, address, "overview", "#/", 1440, 900, "light")
            take(browser, address, "run", f"#/run/fleet:{RUN}", 1440, 900, "dark")
            if everything:
                for theme in ("light", "dark"):
                    take(browser, address, f"all-overview-{theme}", "#/", 1440, 900, theme)
                    take(browser, address, f"all-group-{theme}", "#/?group=base", 1440, 900, theme)
                    take(browser, address, f"all-run-{theme}", f"#/run/fleet:{RUN}", 1440, 1800, theme)
                    take(browser, address, f"all-phone-{theme}", "#/", 390, 844, theme, 2)
                    take(browser, address, f"all-phone-run-{theme}", f"#/run/fleet:{RUN}", 390, 844, theme, 2)
        finally:
            browser.close()
            fleet.terminate()
            fleet.wait()


def _step(address: str) -> int:
    """How far the fleet is."""
    runs = httpx.get(f"{address}/api/v1/runs").json()["runs"]
    return max((run["step"] for run in runs if run["run"] != RUN), default=0)


if __name__ == "__main__":
    main()
