"""The server's certificate: the files it is in, and what they hold now. For gRPC as well as for the page."""

from mechanicd.tls._files import Pair, TlsError, TlsFiles
from mechanicd.tls._keeper import Keeper

__all__ = ["Keeper", "Pair", "TlsError", "TlsFiles"]
