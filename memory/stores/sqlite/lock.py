"""The lock of a data folder: one process at a time has it, and loses it when it dies."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from memory.errors import StoreUnavailable


class FolderLock:
    """An exclusive lock on the file `lock` of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Never a file whose mere existence counts: a killed process would leave it behind.
        self._lock = FileLock(
            folder / "lock", mode=0o600, thread_local=False, fallback_to_soft=False
        )

    def acquire(self) -> None:
        """Raises StoreUnavailable when another process has it, or the folder takes no lock."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreUnavailable(
                f"{self._folder} is in use by another process: stop it or talk to it with --url"
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"{self._folder} cannot be locked: {error.strerror}") from error

    def release(self) -> None:
        self._lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process has this folder's lock."""
    if not (folder / "lock").exists():
        return False
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except StoreUnavailable:
        return True
    lock.release()
    return False
