"""What programs import from this package. A name that comes or goes here is a change for users."""

import importlib

import pytest

PUBLIC = {
    "mechanicd.tuner": """
        CONVENTIONS ConfigError Reductions ReductionsError StateError Tuner TunerConfig TunerState
    """,
    "mechanicd.store": """
        ADOPTED CLOSED EXPORT_COLUMNS EXPORT_FORMATS FAILED FENCED FINISHED FORKED HELD LEFT NEED_KINDS NON_FINITE OPENED
        OUTAGE PREEMPTED REATTACHED RESUMED REWOUND REWOUND_BY_HAND RUNNING SCHEMA_VERSION SERIES SILENT SWING TUNED
        Buckets Claim Commit EventRow Filter FilterError Finding Fork Mark Need OwnershipLost Release Rewind RunExists
        RunRow SQLStore SQLiteStore SchemaTooNew SchemaTooOld SessionRow Silence StepRow Store StoreError StoreInUse
        StoreNotWritable StorePackageMissing SummaryRequest Vitals
        changes check copy duration export_rows first_scale judged needs open_store outcomes pack parse_filter same_needs unpack
        without_password
    """,
    "mechanicd.client": """
        Client ConfigMismatch InvalidArgument LocalSession MechanicdError NotImplementedByServer Reductions ResumeError
        ServerUnavailable Session SessionClosed SessionError SessionFenced StepConflict TunerConfig TunerState
        connect make_config open_run scale_of
    """,
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module].split())


@pytest.mark.parametrize("module", PUBLIC)
def test_each_public_name_is_there_and_nothing_public_is_beside_them(module: str) -> None:
    imported = importlib.import_module(module)
    here = {name for name, value in vars(imported).items() if not name.startswith("_") and not hasattr(value, "__path__")}
    modules = {name for name in here if type(vars(imported)[name]).__name__ == "module"}
    assert here - modules == set(imported.__all__)
