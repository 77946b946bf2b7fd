"""What this process shows a server, and what it asks of it, where they speak TLS: files that the environment names.

    MECHANICD_CA      the authorities that may have signed the server's certificate, PEM; without it, those that gRPC brings
    MECHANICD_CERT    this client's own certificate, PEM, for a server that asks for one
    MECHANICD_KEY     its private key, PEM, without a passphrase

They are read for each new channel, so a short-lived certificate may be replaced while a training runs.
"""

import os
import ssl
from pathlib import Path
from typing import Final

from mechanicd.client._errors import NotTrusted

CA: Final = "MECHANICD_CA"
CERTIFICATE: Final = "MECHANICD_CERT"
KEY: Final = "MECHANICD_KEY"

Pem = bytes | None


def read() -> tuple[Pem, Pem, Pem]:
    """Authorities, key, certificate, as gRPC takes them; None where the environment names no file.

    Raises:
        NotTrusted: TLS_FILE_UNUSABLE.
    """
    ca, certificate, key = (os.environ.get(name) or None for name in (CA, CERTIFICATE, KEY))
    if (certificate is None) != (key is None):
        given, missing = (CERTIFICATE, KEY) if key is None else (KEY, CERTIFICATE)
        raise _unusable(f"{given} is set and {missing} is not; a client's certificate needs both")
    found = _pem(CA, ca), _pem(KEY, key), _pem(CERTIFICATE, certificate)
    # gRPC would take anything, and fail at the first call without saying why.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        which = CA if context.cert_store_stats()["x509"] == 0 and ca is not None else f"{CERTIFICATE} and {KEY}"
        why = "the key is not the certificate's" if mismatch else "no PEM file with what it should hold"
        raise _unusable(f"{which}: {error if isinstance(error, ValueError) and not mismatch else why}") from None
    return found


def _pem(name: str, path: str | None) -> Pem:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(f"{name} names {path}: {error.strerror}") from None


def _unusable(what: str) -> NotTrusted:
    return NotTrusted("TLS_FILE_UNUSABLE", f"{what}; let it name a PEM file that this process can read")


def _no_passphrase() -> str:
    """Python would ask the terminal for one."""
    raise ValueError("the key has a passphrase; give one without")
