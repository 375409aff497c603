"""One job at a time in a run folder: a lock of the kernel, which ends with its owner."""

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from ddpbp.errors import ConfigError, DataError
from ddpbp.store.files import read_bytes

LOCK = "lock"
# A job that is started again may meet the end of the one before. The server of a network file
# system keeps the lock of a host that is lost for a while (NFS 4: 90 s).
PATIENCE_SECONDS, LEASE_SECONDS = 3.0, 120.0
RETRY_SECONDS = 0.1
JOB_NAMES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
MAX_TEXT_BYTES = 4096
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class _Owner(msgspec.Struct, kw_only=True):
    """The content of the file `lock`."""

    host: str
    pid: int
    job: str | None = None
    since: str

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"pid {self.pid} on {self.host}{job} since {self.since}"


class Lock:
    """The lock of a run folder, which the process of rank 0 holds from the start to the end.

    It is a lock of the kernel on the file `lock`, so a process that dies does not keep it. The text
    of the file names its owner. Where the file system has no locks, the text has to do.

    Parameters
    ----------
    folder : str or Path
        The run folder; it is made where it is missing.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._path = self.folder / LOCK
        self._file: int | None = None
        self._made: list[Path] = []

    def take(self) -> list[str]:
        """Take the lock, also anew where the folder was removed; return notes.

        Raises
        ------
        ConfigError
            If another job has it, or the folder cannot be written.
        """
        if self.holds():
            return []
        self._close()
        began = time.monotonic()
        try:
            self._make_folder()
            while not self._try_to_lock():
                owner = self._read_owner()
                here = owner is None or owner.host == socket.gethostname()
                if time.monotonic() - began > (PATIENCE_SECONDS if here else LEASE_SECONDS):
                    raise ConfigError(
                        f"output {self.folder} is in use by {owner or 'another job'} (its file "
                        f"{LOCK}); wait for its end, or choose another folder with output=..."
                    )
                time.sleep(RETRY_SECONDS)
            return self._write_owner()
        except OSError as error:
            raise ConfigError(
                f"output {self.folder} cannot be written ({error.strerror}); choose another "
                "folder with output=..."
            ) from None

    def release(self) -> None:
        """Release the lock, and remove the folder again if nothing came to lie in it."""
        if self.holds():
            with suppress(OSError):
                self._path.unlink()
        self._close()
        while self._made:
            with suppress(OSError):  # it is not empty
                self._made.pop().rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _make_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)

    def holds(self) -> bool:
        """Return whether the file that was locked is still the one with its name."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False

    def _try_to_lock(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = self.holds()  # or its owner removed it just now
        except BlockingIOError:
            free = False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            owner = self._read_owner()
            free = owner is None or owner.host != socket.gethostname() or not _lives(owner.pid)
        if not free:
            self._close()
        return free

    def _read_owner(self) -> _Owner | None:
        with suppress(DataError, msgspec.MsgspecError, UnicodeError):
            return msgspec.json.decode(read_bytes(self._path, MAX_TEXT_BYTES), type=_Owner)
        return None

    def _write_owner(self) -> list[str]:
        assert self._file is not None
        notes = []
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            before = self._read_owner()
            ended = f"; {before} is taken to have ended" if before else ""
            notes.append(
                f"the file system of {self.folder} has no locks ({error.strerror}){ended}: see to "
                "it that one job at a time uses this folder"
            )
        job = next((os.environ[name] for name in JOB_NAMES if os.environ.get(name)), None)
        owner = _Owner(
            host=socket.gethostname(),
            pid=os.getpid(),
            job=job,
            since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )
        os.ftruncate(self._file, 0)
        with suppress(OSError):  # a full disk: the lock holds without its text
            os.pwrite(self._file, msgspec.json.encode(owner) + b"\n", 0)
        return notes

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _lives(pid: int) -> bool:
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()
