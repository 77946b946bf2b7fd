"""Who trains together: replicas, shards and parts of one model get one S; whatever else is refused at the first step, by name.

No arrangement hangs. Each test runs several arrangements of `team_arrangements.py` in the same processes.
"""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from mechanicd.torch._team import failure
from tests.support.soak import SOAK
from tests.support.warm import warm

SCRIPT = Path(__file__).with_name("team_arrangements.py")
Ranks = list[dict[str, Any]]


def run(world: int, folder: Path, *names: str) -> dict[str, Ranks]:
    """What each arrangement left, on each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / f"found{world}"
    python = warm("torch.distributed.fsdp", "torch.distributed.tensor.parallel", "mechanicd.torch")
    words = (str(world), str(port), str(out), *names)
    programs = [python.start(str(SCRIPT), str(rank), *words, folder=folder) for rank in range(world)]
    ended = [program.end() for program in programs]
    assert [rank.returncode for rank in ended] == [0] * world, "\n".join(rank.stdout + rank.stderr for rank in ended)
    found = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]
    return {name: [rank.get(name, {}) for rank in found] for name in names}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same trainings by one process."""
    found = run(
        1, tmp_path_factory.mktemp("single"), "whole", "whole_frozen", "whole_sam", "whole_grows", "team_of", "warm_up_alone"
    )
    return {name: ranks[0] for name, ranks in found.items()}


def test_ranks_that_hold_replicas_shards_or_parts_find_the_s_of_one_process(tmp_path: Path, single: dict[str, Any]) -> None:
    names = (
        "ddp",
        "ddp_mechanized_first",
        "by_hand",
        "own_collectives",
        "unused_parameter",
        "fsdp",
        "hsdp",
        "parts_that_are_replicas",
        "without_a_store",
        "slow_rank",
        "join_that_throws",
        "late_group",
    )
    parts = ("pipeline", "tensor_parallel_by_hand", "all_reload")
    found = run(2, tmp_path, *names, *parts, "pipeline_frozen", "sam", "grows", "warm_up", "gan", "alone")
    for name in names + parts:
        for rank in found[name]:
            assert rank.get("scales") == pytest.approx(single["whole"]["scales"], rel=1e-6), (name, rank)
    for name in names:
        assert [rank["norm"] for rank in found[name]] == pytest.approx([single["whole"]["norm"]] * 2), name
    for rank in found["pipeline_frozen"]:
        assert rank["scales"] == pytest.approx(single["whole_frozen"]["scales"], rel=1e-6), (
            "a frozen stage takes part with nothing"
        )
    for name in ("sam", "grows"):
        for rank in found[name]:
            assert rank["scales"] == pytest.approx(single[f"whole_{name}"]["scales"], rel=1e-6), name
    for rank in found["warm_up"]:
        assert rank["scales"] == pytest.approx(single["warm_up_alone"]["scales"], rel=1e-6)
        assert rank["taken"] == single["warm_up_alone"]["taken"] == 9, "the run starts with the first step that moves something"
    one, other = found["gan"]
    assert one == other
    assert one["0"] != one["1"]
    for rank, scales in zip(found["alone"], single["team_of"].values(), strict=True):
        assert rank["scales"] == scales, "bit for bit as alone"
    assert [rank["refused"] for rank in found["late_group"]] == ["PROCESS_GROUP_CHANGED"] * 2
    assert [rank["lost"] for rank in found["all_reload"]] == ["PROCESS_GROUP_CHANGED"] * 2


def test_four_ranks_in_two_dimensions_or_two_teams(tmp_path: Path, single: dict[str, Any]) -> None:
    names = ("hsdp", "tp_and_fsdp", "pipeline", "pipeline_of_shards")
    found = run(4, tmp_path, *names, "two_teams", "mesh_of_some", "leaves")
    for name in names:
        for rank in found[name]:
            assert rank.get("scales") == pytest.approx(single["whole"]["scales"], rel=1e-6), (name, rank)
    for i, rank in enumerate(found["two_teams"]):
        assert rank["scales"] == pytest.approx(single["team_of"][str(i // 2)], rel=1e-6)
        assert rank["not a member"] == "INVALID_SETTING"
    for rank in found["mesh_of_some"]:
        assert (rank["error"], rank["moved"]) == ("RANKS_DIFFER", False)
    for rank in found["leaves"][:3]:
        assert (rank["error"], rank["at"]) == ("RANKS_MISSING", 5)
        assert rank["said"].startswith("rank 3 did not come to step 5")


AT_THE_START = {
    "independent": "rank 1 has other weights than rank 0",
    "not_averaged": "rank 1 has other gradients than rank 0",
    "other_shapes": "parameters: 4 with 123 numbers at rank 0, 4 with 135 numbers at rank 1",
    "other_settings": "s_init",
    "other_lr": "lr: [1.0] at rank 0, [2.0] at rank 1",
    "pipeline_by_default": "parameters: ",
    "mesh_of_some": "the process group has the ranks [0, 1]",
}

LATER = {
    "weights_change_on_one_rank": (5, "RANKS_DIFFER", "‖x‖"),
    "local_sgd_after_a_while": (5, "RANKS_DIFFER", "‖g‖"),
    "one_rank_reloads": (5, "RANKS_DIFFER", "session: open at rank 0, one starts at S = "),
    "own_plateaus": (4, "RANKS_DIFFER", "lr: [1.0] at rank 0, [0.1] at rank 1"),
    "frozen_on_one_rank": (4, "RANKS_DIFFER", "frozen: False at rank 0, True at rank 1"),
    "base_fails_on_one_rank": (5, "RANKS_DIFFER", "steps in which BASE failed: 0 at rank 0, 1 at rank 1"),
    "zero_gradients_first": (2, "RANKS_DIFFER", "gradients"),
}


def test_what_the_ranks_do_not_share_is_found_at_once_on_every_rank(tmp_path: Path) -> None:
    found = run(2, tmp_path, *AT_THE_START, *LATER, "join", "sparse_on_one_rank", "refusals")
    for rank in found["join"]:
        assert (rank["error"], rank["at"], rank["moved"]) == ("UNEVEN_INPUTS", 1, False)
    for name, what in AT_THE_START.items():
        for rank in found[name]:
            assert (rank["error"], rank["at"]) == ("RANKS_DIFFER", 1), (name, rank)
            assert what in rank["said"], (name, rank)
            assert "distributed=False" in rank["said"], (name, rank)
            assert not rank.get("moved"), "nothing has changed"
    for name, (step, reason, what) in LATER.items():
        for rank in found[name]:
            assert (rank["error"], rank["at"]) == (reason, step), (name, rank)
            assert what in rank["said"], (name, rank)
    assert [rank["then"] for rank in found["one_rank_reloads"]] == [12, 12], "all load one checkpoint"
    assert [rank["error"] for rank in found["sparse_on_one_rank"]] == ["RANK_FAILED", "SPARSE_GRADIENT"]
    assert [rank["at"] for rank in found["sparse_on_one_rank"]] == [4, 4]
    for rank in found["refusals"]:
        reasons = {name: said.partition(":")[0] for name, said in rank.items()}
        settings = ("a group, alone", "a wrong word", "True", "no group", "no time")
        taken = ("megatron as parts", "zero", "a copy")
        assert reasons == {
            name: "INVALID_SETTING" if name in settings else "taken" if name in taken else "SHARDING_NOT_SUPPORTED"
            for name in reasons
        }
        assert "fully_shard" in rank["fsdp1"]


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    """Not one of the waits is the group's own time-out, which is half an hour."""
    found = run(3, tmp_path, "only_rank_0", "all_but_rank_0", "leaves", "drops", "grows_on_one_rank", "dies")
    missing = {
        "only_rank_0": ([0], 1, "ranks 1, 2 did not come to the first step, or the first after a new scale group, within 2 s"),
        "all_but_rank_0": (
            [1, 2],
            1,
            "rank 0 did not come to the first step, or the first after a new scale group, within 1 s",
        ),
        "leaves": ([0, 1], 5, "rank 2 did not come to step 5 within 3 s"),
        "drops": ([0, 1], 5, "rank 2 did not come to step 5; a connection broke"),
        "dies": ([0, 1], 5, "rank 2 did not come to step 5; a connection broke"),
    }
    for name, (waiting, step, said) in missing.items():
        for rank in waiting:
            here = found[name][rank]
            assert (here["error"], here["at"], here["moved"]) == ("RANKS_MISSING", step, step > 1)
            assert here["said"].startswith(said)
    for rank in found["grows_on_one_rank"]:
        assert rank["error"] == "RANKS_MISSING"


def test_a_skipped_step_does_not_meet_the_trainers_own_collectives(tmp_path: Path) -> None:
    """In one process group gloo would end the process: sizes differ."""
    names = ("skips_under_ddp", *(("skips_before_own_collective", "shorter_loop") if SOAK else ()))
    found = run(2, tmp_path, *names)
    for name in names:
        here, other = found[name]
        assert (here["error"], here["at"]) == ("RANKS_MISSING", 5), name
        assert here["said"].startswith("rank 1 did not come to step 5 within 1 s"), name
        assert other == ({"then": "alone"} if name == "shorter_loop" else {"error": "of the trainer's own", "at": AT[name]})


AT = {"skips_under_ddp": 6, "skips_before_own_collective": 5}


@pytest.mark.parametrize(
    ("failed", "whose", "reason", "said"),
    [
        (1.0, 2.0, "RANK_FAILED", "rank 7"),
        (2.0, 3.0, "RANK_FAILED", "2 ranks"),
        (0.0371, -2.5, "RANKS_MISSING", "skipped a step"),  # gradients, seen with NCCL on two GPUs
        (1.0, 0.25, "RANKS_MISSING", "skipped a step"),
        (float("nan"), 0.0, "RANKS_MISSING", "skipped a step"),
        (3.0, 6.0, "RANKS_MISSING", "skipped a step"),
    ],
)
def test_noise_of_another_collective_is_no_failed_rank(failed: float, whose: float, reason: str, said: str) -> None:
    error = failure(failed, whose, [4, 7], 6)
    assert error.reason == reason
    assert said in error.message
