"""Spool files: what a training with `target="file:///FOLDER"` writes, and how it is brought to a server.

    with connect("127.0.0.1:50051") as client:
        for path in spool_files("/data/spool"):
            print(import_spool(client, path))

This is what `mechanicd import` does. `_spool_format` describes the bytes.
"""

from mechanicd.client._spool_import import Imported, import_spool, spool_files

__all__ = ["Imported", "import_spool", "spool_files"]
