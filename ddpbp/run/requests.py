"""What a rank asks of all others at a step: to save, or to save and stop, as one small number.

The largest number of all ranks is what is done. Signals may come to any rank; clocks are read on
rank 0 alone.
"""

import os
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Self

NOTHING, SAVE, TIME, SIGNAL = 0, 1, 2, 100  # from SIGNAL on: a signal's number on top

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# A scheduler signals every process, and a launcher passes it on: one request arrives several times.
PATIENCE_SECONDS = 2.0


def is_stop(request: int) -> bool:
    """Tell whether a request is to stop."""
    return request >= TIME


def reason(request: int, max_seconds: float) -> str:
    """Say in a word who asked to stop."""
    if request >= SIGNAL:
        return signal.Signals(request - SIGNAL).name
    return f"max_seconds = {max_seconds:g}"


class Requests:
    """Listens for signals while it is entered, and watches the clocks of rank 0.

    A signal is noted at once even while MPI waits in C, where no handler of Python runs: the
    interpreter writes its number to a pipe, and a thread reads it. So a second one ends this
    process, and with it the job, whatever it is doing.

    Parameters
    ----------
    max_seconds, every_minutes : float
        0 is off; for rank 0 only.
    alone : bool
        Whether this process has a terminal to itself: then a second SIGINT is one.
    """

    def __init__(self, *, max_seconds: float, every_minutes: float, alone: bool) -> None:
        now = time.monotonic()
        self._alone = alone
        self._end_seconds = now + max_seconds if max_seconds else float("inf")
        self._every_seconds = 60.0 * every_minutes if every_minutes else float("inf")
        self._save_seconds = now + self._every_seconds
        self._signal, self._first_seconds = 0, 0.0
        self._before: dict[int, object] = {}

    def pending(self, rank: int) -> int:
        """Return what this rank asks of all."""
        if self._signal:
            return SIGNAL + self._signal
        if rank:
            return NOTHING
        now = time.monotonic()
        if now > self._end_seconds:
            return TIME
        return SAVE if now > self._save_seconds else NOTHING

    def saved(self) -> None:
        """Count the minutes from now on."""
        self._save_seconds = time.monotonic() + self._every_seconds

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            for number in SIGNALS:
                self._before[number] = signal.signal(number, _do_nothing)
            signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, name="ddpbp signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _listen(self) -> None:
        while True:
            for number in os.read(self._read, 64):
                if not number:
                    return
                if number in SIGNALS:
                    self._note(number)

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._first_seconds = number, now
        elif (self._alone and number == signal.SIGINT) or (
            now - self._first_seconds > PATIENCE_SECONDS
        ):
            name = signal.Signals(number).name
            sys.stderr.write(f"ddpbp: {name} for the second time: ended at once\n")
            sys.stderr.flush()
            os._exit(128 + number)


def _do_nothing(*_: object) -> None:
    """Be there, so that the interpreter takes note of the signal."""
