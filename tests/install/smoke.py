"""`python smoke.py EXTRA TARGET FOLDER`: whether an installation with this extra works. `floors.py` runs it.

Needs nothing but what the extra installs. Each function trains through a real server, resumes, and uses the integration in
question; it raises where anything is not as it should be.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

STEPS = 12


def client(target: str, folder: Path) -> None:
    """A training without a framework, killed after half its steps and resumed from the state's bytes."""
    from mechanicd.client import Reductions, TunerConfig, TunerState, open_run
    from mechanicd.tuner import Tuner

    def steps(session: Any, first: int, last: int) -> None:
        for t in range(first, last):
            session.step(Reductions(-1.0 / t, 0.5, 1.0, 2.0 + t))

    wanted = Tuner().init()
    for t in range(1, STEPS):
        wanted = Tuner().update(wanted, Reductions(-1.0 / t, 0.5, 1.0, 2.0 + t))
    session = open_run(target, "client", start=0, on_outage="raise")
    steps(session, 1, 5)
    saved = session.state.to_bytes()
    steps(session, 5, 8)
    session.flush()
    with open_run(target, "client", start=TunerState.from_bytes(saved, TunerConfig()), on_outage="raise") as again:
        steps(again, 5, STEPS)
        again.flush()
        assert again.state == wanted


def server(target: str, folder: Path, store: str = "") -> None:
    """A server of this environment: trained against, killed, started again, asked by its page and its command line."""
    from mechanicd.v1 import local_token

    command = [sys.executable, "-m", "mechanicd", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
    command += ["--store", store or f"sqlite:///{folder / 'runs.db'}"]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                ready = json.loads(process.stdout.readline())["ready"]
                client(ready["grpc"][0], folder)
                own = {"Authorization": f"Bearer {local_token.path(ready['http']).read_text().strip()}"}
                for path, expected in (("/api/v1/runs", b"client"), ("/metrics", b"mechanicd"), ("/", b"<html")):
                    asked = urllib.request.Request(ready["http"].rstrip("/") + path, headers=own)
                    with urllib.request.urlopen(asked, timeout=20) as answer:
                        assert expected in answer.read(), path
                listed = [sys.executable, "-m", "mechanicd", "runs", "list", "--json", "--target", ready["grpc"][0]]
                done = subprocess.run(listed, capture_output=True, text=True, timeout=60, check=True)
                assert '"projects/default/runs/client"' in done.stdout
            finally:
                process.send_signal(signal.SIGKILL)


def postgres(target: str, folder: Path) -> None:
    """The same with PostgreSQL as its store."""
    server(target, folder, os.environ["FLOORS_POSTGRES"])


def torch(target: str, folder: Path) -> None:
    """A training resumed from its checkpoint ends as one without a server and without a break; half precision learns."""
    import torch

    from mechanicd.torch import mechanize

    def build(**where: Any) -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0), s_init=1e-3, **where)
        return model, opt, torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t / 10))

    def train(model: Any, opt: Any, schedule: Any, first: int, last: int) -> None:
        for t in range(first, last):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(t))
            opt.zero_grad()
            (model(x).squeeze(1) - x.sum(1)).square().mean().backward()
            opt.step()
            schedule.step()

    alone = build()
    train(*alone, 0, STEPS)
    for layout in ("delta", "delta+ref"):
        where = {"run": f"torch/{layout[5:] or 'delta'}".replace("+", ""), "target": target, "on_outage": "raise"}
        parts = build(**where, delta_layout=layout)
        train(*parts, 0, 5)
        torch.save([part.state_dict() for part in parts], folder / "checkpoint")
        train(*parts, 5, 7)
        parts[1].flush()
        again = build(**where, delta_layout=layout)
        for part, state in zip(again, torch.load(folder / "checkpoint", weights_only=True), strict=True):
            part.load_state_dict(state)
        train(*again, 5, STEPS)
        again[1].close()
        if layout == "delta":
            assert again[1].scale == alone[1].scale > 0
            assert all(torch.equal(a, b) for a, b in zip(alone[0].parameters(), again[0].parameters(), strict=True))
    model = torch.nn.Linear(4, 1).bfloat16()
    half = mechanize(torch.optim.SGD(model.parameters(), lr=1.0), s_init=1e-3)
    for _ in range(3):
        half.zero_grad()
        torch.stack([parameter.float().square().sum() for parameter in model.parameters()]).sum().backward()
        half.step()
    assert half.scale > 0


def jax(target: str, folder: Path) -> None:
    """Under jit, with each way to report; a restored state goes on with the same bits."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from mechanicd.jax import mechanize, scale

    def steps(tx: Any, params: Any, state: Any, first: int, last: int, report: str = "") -> tuple[Any, Any]:
        @jax.jit
        def step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
            grads = jax.grad(lambda p: jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - x.sum(1)) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for t in range(first, last):
            params, state = step(params, state, jnp.asarray(np.random.default_rng(t).normal(size=(16, 4)), jnp.float32))
            if report == "loop":
                tx.report(state)
        return params, state

    start = {"w": jnp.ones((4, 8)) / 4, "v": jnp.ones(8) / 8}
    alone = mechanize(optax.adamw(1.0), s_init=1e-3)
    wanted, wanted_state = steps(alone, start, alone.init(start), 0, STEPS)
    ways: Any = itertools.product(("callback", "loop"), ("delta", "delta+ref"))
    for how, layout in ways:
        run = f"jax/{how}/{layout.replace('+', '')}"
        with mechanize(optax.adamw(1.0), run, target, s_init=1e-3, report=how, delta_layout=layout, on_outage="local") as tx:
            params, state = steps(tx, start, tx.init(start), 0, 5, how)
            kept: Any = jax.tree.map(np.asarray, (params, state))
            steps(tx, params, state, 5, 7, how)
            params, state = (jax.tree.map(jnp.asarray, each) for each in kept)
            params, state = steps(tx, params, state, 5, STEPS, how)
            assert tx.flush() == STEPS
            if layout == "delta":
                assert scale(state) == scale(wanted_state) > 0
                assert all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (params, wanted)), strict=True))


def _batches() -> Any:
    import torch

    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1)), batch_size=16)


def huggingface(target: str, folder: Path) -> None:
    """The Trainer resumes from its checkpoint with the S it would have had; Accelerate steps, saves and logs."""
    import torch
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    from mechanicd.integrations.accelerate import log_scale
    from mechanicd.integrations.huggingface import MechanicCallback, mechanized
    from mechanicd.torch import mechanize

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x: Any, labels: Any) -> Any:
            return {"loss": (self.layer(x).squeeze(1) - labels).square().mean()}

    def trainer(run: str) -> Any:
        torch.manual_seed(0)
        rows = [{"x": x, "labels": y} for x, y in _batches().dataset]
        arguments = TrainingArguments(
            output_dir=str(folder / run), max_steps=STEPS, per_device_train_batch_size=16, logging_steps=4, save_steps=4,
            lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        made = mechanized(torch.optim.AdamW, s_init=1e-3, run=run, target=target, on_outage="raise")
        return Trainer(Line(), arguments, train_dataset=rows, optimizer_cls_and_kwargs=made, callbacks=[MechanicCallback()])

    whole = trainer("hf/whole")
    whole.train()
    again = trainer("hf/again")
    again.args.max_steps = 8
    again.train()
    resumed = trainer("hf/again")
    resumed.train(resume_from_checkpoint=True)
    ends = [[log["mechanic/S"] for log in each.state.log_history if "loss" in log][-1] for each in (whole, resumed)]
    assert ends[0] == ends[1] > 0, ends

    accelerator = Accelerator(cpu=True)
    net, loader = accelerator.prepare(Line(), _batches())
    opt = accelerator.prepare(mechanize(torch.optim.AdamW(net.parameters(), lr=1.0), s_init=1e-3))
    for x, y in loader:
        with accelerator.accumulate(net):
            accelerator.backward(net(x, y)["loss"])
            opt.step()
            opt.zero_grad()
    before = log_scale(accelerator, opt, 4)
    accelerator.save_state(str(folder / "accelerate"))
    accelerator.load_state(str(folder / "accelerate"))
    assert before == log_scale(accelerator, opt, 4)


def lightning(target: str, folder: Path) -> None:
    """Lightning fits, logs, and resumes from its checkpoint with the S it would have had."""
    import torch
    from lightning.pytorch import LightningModule, Trainer

    from mechanicd.integrations.lightning import MechanicCallback
    from mechanicd.torch import mechanize

    class Module(LightningModule):
        def __init__(self, run: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.run = torch.nn.Linear(4, 1), run

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            return (self.net(x).squeeze(1) - y).square().mean()

        def configure_optimizers(self) -> Any:
            return mechanize(torch.optim.AdamW(self.parameters(), lr=1.0), self.run, target, s_init=1e-3, on_outage="raise")

    def fit(run: str, epochs: int, checkpoint: Any = None) -> Any:
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[MechanicCallback()], log_every_n_steps=1, logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder / run,
        )  # fmt: skip
        trainer.fit(Module(run), _batches(), ckpt_path=checkpoint)
        return trainer

    whole = fit("lightning/whole", 4)
    half = fit("lightning/half", 2)
    resumed = fit("lightning/half", 4, half.checkpoint_callback.best_model_path)
    assert resumed.optimizers[0].scale == whole.optimizers[0].scale > 0
    assert resumed.optimizers[0].last_step == 16
    assert "mechanic/S" in whole.logged_metrics


def tensorboard(target: str, folder: Path) -> None:
    """S is in the events that TensorBoard reads."""
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from mechanicd.integrations.tensorboard import write_scale
    from mechanicd.torch import mechanize

    net = torch.nn.Linear(4, 1)
    opt = mechanize(torch.optim.SGD(net.parameters(), lr=1.0), "tensorboard", target, s_init=1e-3, on_outage="raise")
    with SummaryWriter(str(folder)) as writer:
        write_scale(writer, opt)
        for x, y in _batches():
            opt.zero_grad()
            (net(x).squeeze(1) - y).square().mean().backward()
            opt.step()
    opt.close()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("mechanic/S")] == [1, 2, 3, 4]


def demo(target: str, folder: Path) -> None:
    """The demo's three short trainings and its table."""
    command = [
        sys.executable,
        "-m",
        "mechanicd",
        "demo",
        "--quick",
        "--no-sweep",
        "--once",
        "--json",
        "--dir",
        str(folder / "demo"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=500, check=True)
    assert json.loads(done.stdout)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
