"""What a store can refuse. Each error has a stable `reason` and says what to do."""


class StoreError(Exception):
    """Base of the store's errors."""

    reason = "STORE_UNAVAILABLE"


class StoreNotWritable(StoreError):
    """The place for the database can't be written, or is no database of this program."""

    reason = "STORE_NOT_WRITABLE"


class StoreInUse(StoreError):
    """Another server holds this database."""

    reason = "STORE_IN_USE"


class SchemaTooNew(StoreError):
    """The database was written by a newer mechanicd."""

    reason = "STORE_SCHEMA_TOO_NEW"


class SchemaTooOld(StoreError):
    """The database was written by an older mechanicd, and may only be read here."""

    reason = "STORE_SCHEMA_TOO_OLD"


class StorePackageMissing(StoreError):
    """The engine's package is not installed."""

    reason = "PACKAGE_MISSING"


class RunExists(StoreError):
    """A run of this name was created in the meantime."""

    reason = "RUN_EXISTS"


class OwnershipLost(StoreError):
    """The run's row has another epoch or session than expected: somebody else took the run."""

    reason = "OWNERSHIP_LOST"
