"""A real Chromium, a real server with its page, and runs of every fate."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from mechanicd.client import Reductions, connect
from mechanicd.tuner import TunerConfig
from tests.support.servers import ServerProcess

NAN = float("nan")
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SPIKE_STEP, LONG_STEPS = 12_345, 20_000
expect.set_options(timeout=15_000)


class Training:
    """Takes steps of a run with made-up scalars: ⟨Δ,g⟩ < 0 where it goes well, which makes S grow."""

    def __init__(self, client: Any, run: str, project: str = "zoo", groups: int = 1, **options: Any) -> None:
        config = TunerConfig(scale_groups=tuple(f"layer{i}.weight" for i in range(groups))) if groups > 1 else TunerConfig()
        self.session = client.open_run(run, project=project, config=config, **options)
        self.groups = groups
        self._random = random.Random(run)

    def take(
        self, steps: int, *, drift: float = -0.3, norm_sq: float = 1.0, bad: bool = False, hold: bool = False
    ) -> "Training":
        """So many steps; then they are durable."""
        for _ in range(steps):
            scalars = [
                Reductions(NAN if bad else self._random.gauss(drift, 1.0), 0.1, norm_sq * self._random.uniform(0.9, 1.1), 100.0)
                for _ in range(self.groups)
            ]
            self.session.begin(scalars, base_lr=0.5, hold=hold)
            self.session.finish(wait=False)
        self.session.flush(30.0)
        return self


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server whose runs all tests of the page look at."""
    folder = tmp_path_factory.mktemp("site")
    server = ServerProcess(folder, "--http", "127.0.0.1:0", "--silent-after", "20", "3600").start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def zoo(site: Any) -> Iterator[dict[str, Training]]:
    """Runs by name, in project "zoo"; those that are not ended go on as long as the tests."""
    with connect(site.target) as client:
        runs: dict[str, Training] = {}

        def start(run: str, **options: Any) -> Training:
            runs[run] = Training(client, run, **options)
            return runs[run]

        for seed in range(3):
            start(f"bert/seed{seed}", labels={"batch": "256" if seed < 2 else "512", "opt": "adamw"}).take(
                120 + 10 * seed, drift=-2.0
            )
        start("flat", labels={"batch": "512"}).take(1010, drift=3.0)
        long = start("long", labels={"batch": "1024"}).take(SPIKE_STEP - 1, drift=-0.05)
        long.take(1, norm_sq=1e14).take(LONG_STEPS - SPIKE_STEP, drift=-0.05)
        start("layers", groups=6, labels={"batch": "256"}).take(150, drift=-0.4)
        broken = start("broken", labels={"note": MARKUP}).take(80, drift=-0.8).take(2, bad=True).take(3, hold=True).take(20)
        broken.session.close("failed", MARKUP)
        checkpoint = start("resumed", labels={"batch": "512"}).take(50, drift=-1.0).session.state
        runs["resumed"].take(40).session.close("preempted", "SIGTERM")
        start("resumed", start=checkpoint).take(60, drift=-1.0).session.close("finished", "all done")
        start("live").take(30, drift=-1.2)
        yield runs
        for training in runs.values():
            training.session.close("finished")


def chromium() -> str:
    """Where Chromium is."""
    path = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert path, "tests/web needs Chromium: `apt-get install chromium`, or set CHROMIUM to its path"
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One a module: its event loop must be gone before tests elsewhere want one."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-background-networking"]
        )
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser, site: Any, zoo: Any) -> Iterator[Callable[..., Page]]:
    """`open_page("#/?q=bert", width=390, …)`. What the page says on the console, and what breaks its own rules, fails the test.

    Args:
        quiet: whether anything on the console is an error of the test's.
        address: of another server.
    """
    contexts: list[BrowserContext] = []
    said: list[str] = []

    def open_(
        view: str = "#/", *, width: int = 1440, height: int = 900, quiet: bool = True, address: str = "", **options: Any
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()

        def hear(message: ConsoleMessage) -> None:
            if message.type == "error":
                said.append(message.text)

        if quiet:
            page.on("console", hear)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address or site.page}/{view}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def names() -> Callable[[Page], list[str]]:
    """`names(page)`: the runs of the table's rows, from the top."""
    return lambda page: page.locator(".row.run").evaluate_all(
        """rows => rows.sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
            .map(row => row.dataset.name.replace(/^.*\\/runs\\//, ""))"""
    )
