"""One tree of errors: `except MechanicdError` catches whatever the package refuses."""

import pickle
from collections.abc import Callable

import pytest

from mechanicd.client import InvalidArgument, MechanicdError, Reductions, TunerConfig, TunerState, open_run
from mechanicd.client.framework import PackageMissing, check_choice, check_settings, require_package
from mechanicd.tuner import ConfigError, ReductionsError, StateError, Tuner
from tests.support.settings import SETTINGS

REFUSALS: dict[str, tuple[Callable[[], object], type[MechanicdError], str]] = {
    "config": (lambda: TunerConfig(s_init=-1), ConfigError, "INVALID_CONFIG"),
    "reductions": (lambda: Tuner(TunerConfig()).groups(Reductions(0.0, 0.0, -1.0, 1.0)), ReductionsError, "NEGATIVE_SQUARE"),
    "groups": (lambda: Tuner(TunerConfig()).groups([]), ReductionsError, "GROUP_COUNT_MISMATCH"),
    "state": (lambda: TunerState.from_bytes(b"?", TunerConfig()), StateError, "INVALID_TUNER_STATE"),
    "name": (lambda: open_run("127.0.0.1:1", "no//name"), InvalidArgument, "MALFORMED_NAME"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_whatever_is_invalid_is_one_of_the_clients_errors_and_a_value_error(case: str) -> None:
    call, kind, reason = REFUSALS[case]
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    assert caught.value.reason == reason
    assert str(caught.value) == f"{caught.value.message} [{reason}]"


@pytest.mark.parametrize("case", REFUSALS)
def test_an_error_survives_pickling_whole(case: str) -> None:
    """As a data loader's or a launcher's process hands it on."""
    with pytest.raises(MechanicdError) as caught:
        REFUSALS[case][0]()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert (copy.reason, str(copy), vars(copy)) == (caught.value.reason, str(caught.value), vars(caught.value))


def test_a_config_error_names_its_field() -> None:
    with pytest.raises(InvalidArgument) as caught:
        TunerConfig(s_init=-1)
    assert caught.value.metadata == {"field": "s_init"}


@pytest.mark.parametrize(
    ("given", "reason", "words"),
    [
        ({"s_decay": -1.0}, "INVALID_CONFIG", "s_decay: got -1.0"),
        ({"convention": "none"}, "INVALID_CONFIG", "convention"),
        ({"delta_layout": "both"}, "INVALID_SETTING", "delta_layout='both'; choose one of delta, delta+ref, ref"),
        ({"max_scale": 0.0}, "INVALID_SETTING", "max_scale=0.0"),
        ({"on_outage": "wait"}, "INVALID_OUTAGE_POLICY", "on_outage='wait'; choose one of local, hold, raise"),
        ({"target": "127.0.0.1:1"}, "RUN_NAME_MISSING", "run="),
    ],
)
def test_the_keywords_of_every_mechanize_are_checked_in_one_place(given: dict[str, object], reason: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_settings(**SETTINGS | given)
    assert caught.value.reason == reason
    assert words in caught.value.message


def test_checked_settings_hold_the_run_and_the_config() -> None:
    settings = check_settings(**SETTINGS | {"run": "a", "betas": [0.5], "max_scale": 3.0})
    assert settings.config == TunerConfig(betas=(0.5,))
    assert (settings.run.name, settings.run.target, settings.run.session) == ("a", None, None)
    assert (settings.delta_layout, settings.max_scale) == ("delta", 3.0)
    check_choice("report", "loop", ("callback", "loop"))


def test_a_missing_package_says_how_to_install_it() -> None:
    words = r"mechanicd\.abc needs no_such_package.*pip install 'mechanicd\[abc\]' \[ABC_MISSING\]"
    with pytest.raises(ImportError, match=words) as caught:
        require_package("json", "no_such_package", extra="abc", reason="ABC_MISSING")
    assert type(caught.value) is PackageMissing
    assert caught.value.reason == "ABC_MISSING"
    require_package("json", extra="abc", reason="ABC_MISSING")
