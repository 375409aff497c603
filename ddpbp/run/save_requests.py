"""Requests to save, or to save and stop: from signals and clocks to one number for each step.

Every rank states its request as a small integer that rides on the step's reduction; the largest of
all ranks is carried out by all of them. (An MPI request, which `comm` waits for, is another thing.)
Signals may reach any rank; clocks are read on rank 0 only. Until the training begins there is
nothing to save, and a signal ends its process at once.
"""

import os
import signal
import sys
import threading
import time
from typing import Self

NOTHING, SAVE, TIME, SIGNAL = 0, 1, 2, 100  # from SIGNAL on: plus the number of the signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A scheduler signals every process and a launcher passes it on: one request arrives several times.
PATIENCE_SECONDS = 2.0


def is_stop(request: int) -> bool:
    """Return whether a request is to stop."""
    return request >= TIME


def reason(request: int, max_seconds: float) -> str:
    """Return the reason of a stop: the name of a signal, or the setting that was reached."""
    if request >= SIGNAL:
        return signal.Signals(request - SIGNAL).name
    return f"max_seconds = {max_seconds:g}"


class SaveRequests:
    """Watches the clocks of rank 0, and catches signals from `begin` on while it is entered.

    Before, a signal has its default effect, also on a rank that waits for others in C: there a
    Python handler, as that of SIGINT, would never run. SIGHUP stays ignored if it is (nohup).

    A signal is noticed at once even while MPI waits in C, where no Python handler runs: the
    interpreter writes its number to a pipe, and a thread reads it. So a second signal ends this
    process, and with it the job, whatever it is doing.

    Parameters
    ----------
    max_seconds, every_minutes : float
        Time until the run stops, and between two saves; 0 turns either off. Rank 0 only.
    alone : bool
        Whether this process has a terminal to itself: then a second SIGINT always counts, however
        soon it follows the first.
    """

    def __init__(self, *, max_seconds: float, every_minutes: float, alone: bool) -> None:
        now = time.monotonic()
        self._alone = alone
        self._end_seconds = now + max_seconds if max_seconds else float("inf")
        self._every_seconds = 60.0 * every_minutes if every_minutes else float("inf")
        self._save_seconds = now + self._every_seconds
        self._signal, self._first_seconds = 0, 0.0
        self._entered = False
        self._handlers: dict[int, object] = {}  # those to put back
        self._thread: threading.Thread | None = None

    def pending(self, rank: int) -> int:
        """Return this rank's request."""
        if self._signal:
            return SIGNAL + self._signal
        if rank:
            return NOTHING
        now = time.monotonic()
        if now > self._end_seconds:
            return TIME
        return SAVE if now > self._save_seconds else NOTHING

    def saved(self) -> None:
        """Restart the minutes until the next save."""
        self._save_seconds = time.monotonic() + self._every_seconds

    def __enter__(self) -> Self:
        self._entered = True
        interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if interrupts and not self._alone and threading.current_thread() is threading.main_thread():
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_DFL)
        return self

    def begin(self) -> None:
        """Catch signals from now on: the training begins."""
        here = threading.current_thread() is threading.main_thread()
        if not (here and self._entered) or self._thread:
            return
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(number, _do_nothing)
                self._handlers.setdefault(number, handler)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="ddpbp signals", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._entered = False
        if self._thread:
            signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()
        if self._thread:
            os.write(self._write, b"\0")  # ends the thread
            self._thread.join()
            self._thread = None
            os.close(self._read)
            os.close(self._write)

    def _listen(self) -> None:
        while True:
            for number in os.read(self._read, 64):
                if not number:
                    return
                if number in SIGNALS:
                    self._receive(number)

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._first_seconds = number, now
        elif (self._alone and number == signal.SIGINT) or (
            now - self._first_seconds > PATIENCE_SECONDS
        ):
            name = signal.Signals(number).name
            sys.stderr.write(f"ddpbp: second signal, {name}: exiting at once without saving\n")
            sys.stderr.flush()
            os._exit(128 + number)


def _do_nothing(*_: object) -> None:
    """Handle a signal without effect: only signals with a handler reach the wake-up pipe."""
