"""The private folder of a server for volumes: uploads and results lie there, and nothing outlives the server."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path

from segship.errors import OutputError
from segship.inference.volume_cost import in_words
from segship.serve.refused import Refused

_log = logging.getLogger(__name__)

PREFIX = "segship-serve-"
_LOCK = "in-use"


class Space:
    """A folder that only this user can read, with a limit of bytes. Any thread may count."""

    def __init__(self, limit: int, parent: Path | None = None) -> None:
        """In the system's folder for temporary files (TMPDIR) unless another is named. What a server that was killed
        left there is removed first. Raises OutputError."""
        parent = parent or Path(tempfile.gettempdir())
        remove_left_behind(parent)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
            self._lock_file = (self.folder / f".{_LOCK}").open("w")
            _take(self._lock_file.fileno())
            os.replace(self.folder / f".{_LOCK}", self.folder / _LOCK)  # under this name it is locked from the start
        except OSError as error:
            raise OutputError(
                f"cannot make a folder for uploads in {parent} ({error.strerror or error}); set TMPDIR to another place"
            ) from None
        self.limit = limit
        self.total = 0
        self._numbers = 0
        self._counting = threading.Lock()

    def new_folder(self) -> Path:
        """An empty folder for one job."""
        with self._counting:
            self._numbers += 1
            folder = self.folder / f"{self._numbers:06d}"
        folder.mkdir(mode=0o700)
        return folder

    def add(self, count: int, what: str = "the uploads") -> None:
        """Count bytes that are going to be written. Raises Refused 507 where they have no room."""
        with self._counting:
            if count > 0 and self.total + count > self.limit:
                raise Refused(
                    507, f"{what} and the results that are kept need {in_words(self.total + count)}, and this server "
                    f"keeps {in_words(self.limit)}",
                    "delete jobs that are done (DELETE /v1/jobs/{id}), or try again when they have expired",
                    retry_after=60,
                )  # fmt: skip
            self.total += count

    def check_disk(self, count: int) -> None:
        """Raises Refused 507 where the disk has not so many bytes left."""
        free = shutil.disk_usage(self.folder).free
        if count > free:
            raise Refused(
                507, f"this job needs {in_words(count)} of disk, and {in_words(free)} are free", "try again later",
                retry_after=60,
            )  # fmt: skip

    def remove(self, count: int) -> None:
        with self._counting:
            self.total -= count

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        self._lock_file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_left_behind(parent: Path) -> None:
    """Remove folders of servers that ended without closing them (kill -9, a power cut): patients' data lie there."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if mine and folder.is_dir() and not folder.is_symlink() and _is_abandoned(folder / _LOCK):
                _log.info("removing %s, which a server left behind", folder)
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(lock: Path) -> bool:
    """The system drops a lock with the process that held it."""
    if not lock.is_file():
        return False
    with lock.open("r+") as file:
        return _take(file.fileno())


def _take(descriptor: int) -> bool:
    """Lock a file; False where another process has it, or where this system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
