"""One training: it learns, and goes on from its checkpoint as if nothing had happened."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mechanicd.demo import _data, _reports, train
from mechanicd.demo._bases import BASES
from mechanicd.demo._fleet import Recipe
from mechanicd.demo._reports import Finished, Report, Started, Stepped
from mechanicd.demo.models import MODELS


@pytest.fixture(scope="module")
def digits() -> _data.Digits:
    return _data.read()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """What trainings of this test report."""
    reports: list[Report] = []
    monkeypatch.setattr(_reports, "write", reports.append)
    return reports


def _options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(target=None, checkpoint=tmp_path / "one.pt", checkpoint_every=20, report_every=1)


@pytest.mark.parametrize(("model", "parameters"), [("mlp", 109_386), ("cnn", 9_226)])
def test_models_name_ten_classes_and_are_as_large_as_they_say(model: str, parameters: int):
    network = MODELS[model]()
    assert network(torch.zeros(3, 28, 28)).shape == (3, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert f"{parameters:,} parameters" in (MODELS[model].__doc__ or "")


@pytest.mark.parametrize("base", sorted(BASES))
def test_a_bare_training_learns(base: str, digits: _data.Digits, said: list[Report]):
    train.train_bare(Recipe("mlp", base, 64, 100), digits, {"adamw": 3e-3, "sgd": 3e-2, "lion": 1e-3}[base])
    (finished,) = said
    assert isinstance(finished, Finished)
    assert finished.accuracy > 80.0


@pytest.mark.parametrize("base", sorted(BASES))
def test_a_mechanized_training_finds_its_scale_from_1e_8_by_itself(
    base: str, digits: _data.Digits, said: list[Report], tmp_path: Path
):
    train.train_mechanized(Recipe("mlp", base, 64, 200), digits, _options(tmp_path))
    started, *steps, finished = said
    assert started == Started(0)
    assert isinstance(finished, Finished)
    assert finished.lr is None
    assert finished.accuracy > 80.0
    scales = [step.scale for step in steps if isinstance(step, Stepped)]
    assert scales[0] < 1e-7
    assert 1e-4 < max(scales) < 0.2


def test_a_training_cut_off_between_checkpoints_goes_on_bit_for_bit(
    digits: _data.Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, options = Recipe("cnn", "lion", 32, 60), _options(tmp_path)

    def reports_until(last: int | None) -> list[Report]:
        heard: list[Report] = []

        def hear(report: Report) -> None:
            heard.append(report)
            if isinstance(report, Stepped) and report.step == last:
                raise BrokenPipeError

        monkeypatch.setattr(_reports, "write", hear)
        if last is None:
            train.train_mechanized(recipe, digits, options)
        else:
            with pytest.raises(BrokenPipeError):
                train.train_mechanized(recipe, digits, options)
        return heard

    whole = reports_until(None)
    options.checkpoint.unlink()
    before, after = reports_until(50), reports_until(None)
    assert after[0] == Started(40)
    assert _numbers(before) == _numbers(whole)[:50]
    assert _numbers(after) == _numbers(whole)[40:]
    assert isinstance(after[-1], Finished)
    assert isinstance(whole[-1], Finished)
    assert after[-1].accuracy == whole[-1].accuracy


def test_a_divergence_is_a_result_and_no_failure(digits: _data.Digits, said: list[Report]):
    train.train_bare(Recipe("mlp", "sgd", 32, 60), digits, 1e6)
    (finished,) = said
    assert isinstance(finished, Finished)
    assert finished.accuracy < 30.0
    assert _reports.decode(_reports.encode(finished))


@pytest.mark.parametrize("extra", [[], ["--lr", "0.1", "--checkpoint", "one.pt"]])
def test_it_is_told_to_train_bare_or_mechanized(extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--digits", str(tmp_path), "--model", "mlp", "--base", "sgd", "--batch", "32", "--steps", "10", *extra]
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert "give either --lr" in capsys.readouterr().err


def _numbers(reports: list[Report]) -> list[tuple[int, float, float]]:
    found = [(report.step, report.loss, report.scale) for report in reports if isinstance(report, Stepped)]
    assert all(math.isfinite(loss) and np.isfinite(scale) for _, loss, scale in found)
    return found
