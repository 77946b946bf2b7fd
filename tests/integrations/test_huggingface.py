"""Hugging Face's Trainer with one changed line: it trains, logs S, and a killed fine-tuning ends where it would have."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from mechanicd.client import InvalidArgument, connect
from mechanicd.integrations.huggingface import MechanicCallback, log_scale, mechanized
from mechanicd.v1 import run_service_pb2

EXAMPLE = Path(__file__).parent.parent.parent / "clients" / "examples" / "finetune_minilm.py"


class Line(torch.nn.Module):
    """A linear model that speaks the Trainer's language."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(x).squeeze(1) - labels).square().mean()}


def trainer(folder: Path, callbacks: Any = (), **settings: Any) -> Trainer:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    rows = [{"x": row, "labels": row @ torch.tensor([1.0, -2.0, 0.5, 0.0])} for row in x]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=80, per_device_train_batch_size=32, logging_steps=20, save_strategy="no",
        gradient_accumulation_steps=2, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    made = mechanized(torch.optim.AdamW, s_init=1e-3, **settings)
    return Trainer(Line(), arguments, train_dataset=rows, optimizer_cls_and_kwargs=made, callbacks=list(callbacks))


def test_one_line_trains_and_s_is_in_the_logs(server: Any, project: str, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Reporter(MechanicCallback.__mro__[1]):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(dict(logs))

    training = trainer(tmp_path, [Reporter()], run="line", target=server.target, project=project)
    log_scale(training)
    with pytest.raises(InvalidArgument, match="already"):
        log_scale(training)
    training.train()
    logs = [entry for entry in training.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [20, 40, 60, 80]
    assert logs[-1]["loss"] < 0.5 * logs[0]["loss"]
    assert all(entry["mechanic/effective_lr"] == entry["mechanic/S"] > 0 for entry in logs), "lr is 1.0 and constant"
    assert [entry["mechanic/S"] for entry in seen if "loss" in entry] == [entry["mechanic/S"] for entry in logs]
    with connect(server.target) as client:
        run = client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/{project}/runs/line")).run
    assert (run.durable_step, run.status) == (80, 5), "a step for two batches; finished"
    assert run.scale[0] == logs[-1]["mechanic/S"]


def test_without_the_callback_the_run_goes_on(tmp_path: Path) -> None:
    training = trainer(tmp_path, [MechanicCallback(close=False)])
    training.train()
    training.train()
    assert training.optimizer.optimizer.last_step == 160


def fine_tune(output: Path, *arguments: str) -> list[str]:
    """The command of a short fine-tuning."""
    short = ["--steps", "8", "--batch", "4", "--length", "16", "--save-steps", "4", "--test", "32"]
    return [sys.executable, str(EXAMPLE), "--output", str(output), *short, *arguments]


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_killed_fine_tuning_of_minilm_on_reuters_ends_where_it_would_have(
    server: Any, project: str, tmp_path: Path, history: Any
) -> None:
    environment = {**os.environ, "MECHANICD_PROJECT": project, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(fine_tune(whole, "--run", "whole", "--target", server.target), env=environment, check=True, timeout=200)
    command = fine_tune(killed, "--run", "killed", "--target", server.target)
    with subprocess.Popen(command, env=environment) as process:
        while not (killed / "checkpoint-4" / "trainer_state.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "final").exists()
    done = subprocess.run(command, env=environment, check=True, timeout=200, stdout=subprocess.PIPE, text=True)
    assert "accuracy " in done.stdout
    one, other = (history(server.target, run, project) for run in ("whole", "killed"))
    assert [record.step for record in one] == list(range(1, 9))
    assert [record.scale[0] for record in other] == [record.scale[0] for record in one], "S bit for bit"
    ends = [load_file(folder / "final" / "model.safetensors") for folder in (whole, killed)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
