"""Accelerate, Lightning and TensorBoard, each the real library."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mechanicd.client import InvalidArgument, connect
from mechanicd.torch import mechanize
from mechanicd.v1 import run_service_pb2

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    from accelerate import Accelerator
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from mechanicd.integrations import accelerate, lightning, tensorboard


def data() -> torch.utils.data.DataLoader[Any]:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(128, 4, generator=make)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1)


def status(server: Any, project: str, run: str) -> tuple[int, int]:
    """The run's status and last step."""
    with connect(server.target) as client:
        found = client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/{project}/runs/{run}")).run
    return found.status, found.durable_step


def accelerated(folder: Path, epochs: int, saved: str | None = None) -> tuple[list[float], dict[str, float]]:
    """Trains under Accelerate with gradients of two batches a step, from a saved state or from scratch; S after each step."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, project_dir=str(folder))
    net, opt, loader = accelerator.prepare(model(), mechanize(torch.optim.AdamW(model().parameters(), lr=1.0)), data())
    del opt
    opt = accelerator.prepare(mechanize(torch.optim.AdamW(net.parameters(), lr=1.0), s_init=1e-3))
    if saved is not None:
        accelerator.load_state(saved)
    scales = []
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(net):
                accelerator.backward((net(x).squeeze(1) - y).square().mean())
                opt.step()
                opt.zero_grad()
            if accelerator.sync_gradients:
                scales.append(opt.optimizer.scale)
        accelerator.save_state(str(folder / f"{len(scales)}"))
    found = accelerate.log_scale(accelerator, opt, len(scales))
    accelerator.free_memory()
    return scales, found


def test_accelerate_accumulates_saves_and_resumes(tmp_path: Path) -> None:
    scales, found = accelerated(tmp_path / "whole", 6)
    assert len(scales) == 24
    assert found == {"mechanic/S": scales[-1], "mechanic/effective_lr": scales[-1]}
    again, _ = accelerated(tmp_path / "again", 3, str(tmp_path / "whole" / "12"))
    assert again == scales[12:]


class Module(LightningModule):
    def __init__(self, fail_at: int = -1, **settings: Any) -> None:
        super().__init__()
        self.net, self.settings, self.fail_at = model(), settings, fail_at

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        if self.global_step == self.fail_at:
            raise ZeroDivisionError("by zero")
        return (self.net(x).squeeze(1) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return mechanize(torch.optim.AdamW(self.parameters(), lr=1.0), s_init=1e-3, **self.settings)


def fit(module: Module, folder: Path, epochs: int, checkpoint: str | None = None) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[lightning.MechanicCallback()], log_every_n_steps=1,
        logger=CSVLogger(folder), enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on workers of loaders, and its own deprecations
        trainer.fit(module, data(), ckpt_path=checkpoint)
    return trainer


def test_lightning_trains_logs_resumes_and_closes(server: Any, project: str, tmp_path: Path) -> None:
    settings = {"run": "whole", "target": server.target, "project": project}
    whole = fit(Module(**settings), tmp_path / "whole", 4)
    opt = whole.optimizers[0]
    assert opt.last_step == 32
    assert whole.logged_metrics["mechanic/S"] == pytest.approx(opt.scale, rel=1e-6)
    assert status(server, project, "whole") == (5, 32)

    half = fit(Module(**{**settings, "run": "half"}), tmp_path / "half", 2)
    assert half.checkpoint_callback is not None
    resumed = fit(Module(**{**settings, "run": "half"}), tmp_path / "half", 4, half.checkpoint_callback.best_model_path)
    assert resumed.optimizers[0].scale == opt.scale
    assert status(server, project, "half") == (5, 32)


def test_lightning_says_why_a_run_ended(server: Any, project: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(Module(10, run="r", target=server.target, project=project), tmp_path, 4)
    assert status(server, project, "r") == (4, 10)


@pytest.mark.parametrize(("kind", "names"), [("all", ["S"]), ("tensor", ["S/0", "S/1"])])
def test_tensorboard_has_each_nth_step(kind: str, names: list[str], tmp_path: Path) -> None:
    net = model()
    opt = mechanize(torch.optim.SGD(net.parameters(), lr=0.5), s_init=1e-3, scale_groups=kind)
    scales = []
    with SummaryWriter(str(tmp_path)) as writer:
        handle = tensorboard.write_scale(writer, opt, every=3)
        for x, y in data():
            opt.zero_grad()
            (net(x).squeeze(1) - y).square().mean().backward()
            opt.step()
            scales.append(opt.scales)
        handle.remove()
        opt.step()
    events = EventAccumulator(str(tmp_path)).Reload()
    for i, name in enumerate(names):
        for tag, factor in ((f"mechanic/{name}", 1.0), (f"mechanic/{name.replace('S', 'effective_lr')}", 0.5)):
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            assert found == [(step, pytest.approx(factor * scales[step - 1][i])) for step in (3, 6)]


def test_what_is_not_mechanized_is_named(tmp_path: Path) -> None:
    plain = torch.optim.SGD(model().parameters(), lr=1.0)
    with SummaryWriter(str(tmp_path)) as writer, pytest.raises(InvalidArgument, match="SGD holds no mechanized"):
        tensorboard.write_scale(writer, plain)
