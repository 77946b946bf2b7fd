"""The public API. Adding or removing a name here is a change for users."""

import importlib

import pytest

PUBLIC = {
    "mechanicd.tuner": """
        CONVENTIONS H_MAX R_MAX S_MAX V_MAX
        ConfigError Convention ConventionSpec InvalidArgument MechanicdError Reductions ReductionsError Row StateError
        Tuner TunerConfig TunerState
    """,
    "mechanicd.access": """
        ANYONE Denied Keyring Keys Principal Role Token bearer create parse
    """,
    "mechanicd.runs": """
        EXPORT_COLUMNS EXPORT_FORMATS LEFT SWING
        Alert AlertKind EventKind EventRow Filter FilterError Mark RunRow RunStats RunStatus SessionRow Silence StepOutcome
        StepColumns StepRow alerts cell duration export_rows first_scale judged not_ahead outcomes pack parse_filter
        record_dtype record_layout same_alerts session_key unpack unpack_columns
    """,
    "mechanicd.store": """
        SCHEMA_VERSION SERIES Buckets Claim Clock Commit Finding Fork Left OwnershipLost Release Rename Rewind RunExists
        SQLStore SQLiteStore SchemaTooNew SchemaTooOld Store StoreConflict StoreDamaged StoreError StoreInUse StoreMoved
        StoreNotPortable StoreNotWritable StorePackageMissing StorePooled StoreRejected StoreUnavailable SummaryRequest
        changes check copy every_run file_of open_beside open_store salvage saved_records steady_ns without_password
    """,
    "mechanicd.client": """
        AccessDenied Client ConfigMismatch InvalidArgument LocalSession MechanicdError NotImplementedByServer NotTrusted
        OnOutage PackageMissing PermissionDenied Reductions ResumeError ServerUnavailable Session SessionClosed SessionError
        SessionFenced StepConflict TunerConfig TunerState Unauthenticated connect make_config open_run scale_of
    """,
    "mechanicd.client.spool": """
        Imported import_spool spool_files
    """,
}


@pytest.mark.parametrize("module", PUBLIC)
def test_all_lists_exactly_these_names(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module].split())


@pytest.mark.parametrize("module", PUBLIC)
def test_each_name_exists_and_nothing_else_is_public(module: str) -> None:
    imported = importlib.import_module(module)
    here = {name for name, value in vars(imported).items() if not name.startswith("_") and not hasattr(value, "__path__")}
    modules = {name for name in here if type(vars(imported)[name]).__name__ == "module"}
    assert here - modules == set(imported.__all__)
