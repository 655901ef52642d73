"""Compressing rotated files beside the writer."""

from __future__ import annotations

import os

from transom.services.logfiles.writer import names

BLOCK = 262_144


class Packing:
    """Compresses every rotated file that is plain yet, those of a crash too, in a thread of its own."""

    def __init__(self, path: str, max_file: int) -> None:
        import threading

        self._path, self._max_file, self._stop = path, max_file, False
        self._thread = threading.Thread(target=self._run, name="log-compress", daemon=True)
        self._thread.start()

    def finish(self, timeout: float | None) -> None:
        """Wait until all are compressed; when `timeout` seconds pass first, leave the rest plain."""
        self._thread.join(timeout)
        self._stop = True
        self._thread.join()

    def _run(self) -> None:
        for number in range(1, self._max_file):
            plain, packed = names(self._path, number)
            try:
                if os.path.exists(plain):
                    self._pack(plain, packed)
            except OSError:  # the file stays as it is, complete; the next rotation tries again
                return

    def _pack(self, plain: str, packed: str) -> None:
        import gzip

        new = f"{self._path}.gz.new"
        target = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            with os.fdopen(target, "wb") as raw, open(plain, "rb") as source:
                name = str(os.fstat(source.fileno()).st_ino)
                with gzip.GzipFile(filename=name, fileobj=raw, mode="wb", compresslevel=6) as archive:
                    while block := source.read(BLOCK):
                        if self._stop:
                            raise InterruptedError
                        archive.write(block)
                raw.flush()
                os.fsync(raw.fileno())
            os.rename(new, packed)
        except OSError:
            os.unlink(new)
            raise
        os.unlink(plain)


def source_of(header: bytes) -> int | None:
    """Return the inode of the file that a compressed one was made from; None where it does not say.

    It stands where gzip keeps the original name (RFC 1952, section 2.3). A reader that holds the original open finds
    its place by it: the number cannot have gone to another file meanwhile.
    """
    magic, flags, name = header[:3], header[3:4], header[10:].partition(b"\0")[0]
    return int(name) if magic == b"\x1f\x8b\x08" and flags == b"\x08" and name.isdigit() else None
