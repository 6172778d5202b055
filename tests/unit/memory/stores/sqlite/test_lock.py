"""The lock of a data folder, also beside a process of release 0.1.0."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memory.errors import StoreUnavailable
from memory.stores.sqlite.lock import FolderLock, is_locked

HOLDER = """
import pathlib, sys
from memory.stores.sqlite.lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


def test_one_holder_at_a_time_and_whether_there_is_one(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert not is_locked(tmp_path), "nobody has made the file yet"
    first.acquire()
    assert is_locked(tmp_path)
    with pytest.raises(StoreUnavailable, match="in use by another process"):
        second.acquire()
    first.release()
    assert not is_locked(tmp_path)
    second.acquire()
    second.release()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_release_0_1_0_and_this_one_keep_each_other_out(tmp_path: Path) -> None:
    """That release used flock on the same file, which it could read and write alone."""
    theirs = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ours = FolderLock(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(StoreUnavailable):
        ours.acquire()
    os.close(theirs)
    ours.acquire()
    theirs = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    with pytest.raises(BlockingIOError):
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(theirs)
    ours.release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=Path(__file__).parents[5], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    assert is_locked(tmp_path)
    holder.kill()
    holder.wait()
    assert not is_locked(tmp_path)
    holder.stdin.close()
    holder.stdout.close()
