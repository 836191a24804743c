"""Append to a file, also where the disk is full for a while."""

import errno
import os
import threading
from pathlib import Path


class Appender:
    """A file to append to. What a full disk refuses waits in memory until it fits; sync and close raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path, self.handle = path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.waiting = b""
        self.lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self.lock:
            was_full = bool(self.waiting)
            self.waiting += data
            try:
                self._write()
            except OSError as failure:
                if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not was_full:
                    print(f"warning: {self.path}: {failure.strerror}; its rows are kept in memory", flush=True)

    def sync(self) -> None:
        with self.lock:
            self._write()
            os.fsync(self.handle)

    def close(self) -> None:
        with self.lock:
            self._write()
            os.close(self.handle)

    def _write(self) -> None:
        while self.waiting:
            self.waiting = self.waiting[os.write(self.handle, self.waiting) :]
