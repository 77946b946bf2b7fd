"""What a run's command shows of how its trainer was started: no secret, and everything else as it was."""

import shlex

import pytest

from mechanicd.client._secrets import command_without_secrets as without_secrets

SECRET = "s3cr3t-Zx9"


@pytest.mark.parametrize(
    "command",
    [
        "--token {}",
        "--token={}",
        "-token {}",
        "--hf_token {}",
        "--hfToken {}",
        "--HF-TOKEN={}",
        "--password {}",
        "--db-password={}",
        "--passwd {}",
        "--api-key {}",
        "--api_key={}",
        "--apiKey {}",
        "--wandb.key {}",
        "--key={}",
        "--aws-secret-access-key {}",
        "--client-secret={}",
        "--auth {}",
        "env MECHANICD_TOKEN={} python train.py",
        "env WANDB_API_KEY={} HF_TOKEN={}",
        "PGPASSWORD={} python train.py",
        "+logger.api_key={}",
        "++db.password={}",
        "db.password='{} {}'",
        "--set password={},lr=0.1",
        """--config '{{"lr": 1, "api_key": "{}"}}'""",
        """--config "{{'password': '{} {}'}}" """,
        "--db 'host=db user=me password={} port=1'",
        "--db 'host=db password='\"'\"'{} x{}'\"'\"''",
        "--db postgresql://me:{}@db:5432/runs",
        "--db 'postgresql://me:a/{}#?@b{}@db:5432/runs'",
        """--db "postgresql://me:a'{}@db/runs" """,
        "--db 'postgresql://db/runs?user=me&password={}&sslmode=require'",
        "--repo https://{}@github.com/me/it",
        "--repo=https://me:{}@github.com/me/it",
        "--proxy http://:{}@proxy:3128",
        "--hook https://hooks.example/x?token={}",
        "--header 'Authorization: Bearer {}'",
        "--header 'authorization: basic {}'",
        "--header 'X-Api-Key: {}'",
        '-c \'import os; os.environ["HF_TOKEN"] = "{}"; main(password="{}")\'',
        "-c 'login(token=\"{} {}\")'",
    ],
)
def test_a_value_that_is_named_a_secret_is_hidden(command: str) -> None:
    shown = without_secrets(shlex.split(command.replace("{{", "{").replace("}}", "}").replace("{}", SECRET)))
    assert "s3cr3t" not in shlex.join(shown)
    assert "***" in shlex.join(shown)


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + "a1" * 18,
        "github_pat_11" + "a1" * 20,
        "hf_" + "aB" * 17,
        "sk-proj-" + "aB3" * 12,
        "glpat-" + "x1" * 10,
        "xoxb-1234567890-" + "a" * 24,
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_a_token_of_a_known_form_is_hidden_wherever_it_stands(token: str) -> None:
    for words in ([token], [f"--x={token}"], ["-c", f"login('{token}')"], [f"https://x/{token}/y"]):
        assert token not in " ".join(without_secrets(words))


@pytest.mark.parametrize(
    "command",
    [
        "python -m torch.distributed.run --nproc-per-node 8 train.py --lr 1.0 --max-tokens 4096 --tokenizer bert-base",
        "train.py --token-file /run/secrets/token --password-file=/x --tokens-per-batch=65536 --pad_token '<pad>' --n-tokens 5",
        "train.py --mail a@b.c --note 'it is \"fine\" $HOME' model.key_dim=64 monkey=1 --keys a,b --author me --passes 3",
        "train.py run@host:/data s3://bucket/key https://example.org/a?b=c scp://me@host/x --compass north --sketch sketch-1",
        "--private --secretary=no authors=3 bypass=1 --tokenize --keyboard x --patience 5 --pattern a:b --path=/x",
    ],
)
def test_the_rest_can_still_be_pasted(command: str) -> None:
    words = shlex.split(command)
    assert without_secrets(words) == words


def test_an_option_after_a_flag_that_sounds_secret_stays() -> None:
    assert without_secrets(["train.py", "--use-auth", "--lr", "1"]) == ["train.py", "--use-auth", "--lr", "1"]


def test_it_takes_no_longer_for_an_odd_word() -> None:
    for part in ("a.", "https://", "password", "_key", "-", "eyJ", "a:/", "sk", "api", "x@"):
        odd = part * (20_000 // len(part))
        assert len(without_secrets([odd, f"{odd}=", f"{odd}@"])) == 3
