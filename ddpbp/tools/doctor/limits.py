"""No check may hang: what takes too long ends the process with a finding."""

import faulthandler
import os
import select
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ddpbp.tools.doctor.finding import Finding


def limit(seconds: float, what: str, *, first: bool) -> threading.Timer:
    """Let the process end with exit code 1 after so long, unless cancelled: no check may hang.

    `first` says whether this rank is the one that prints.
    """

    def end() -> None:
        if first:
            _no_end(what, seconds)
        os._exit(1)

    timer = threading.Timer(seconds + (0.0 if first else 2.0), end)
    timer.daemon = True
    timer.start()
    return timer


def _no_end(what: str, seconds: float) -> None:
    fix = (
        "a rank, its host or the network does not answer: try with fewer hosts to find which, or "
        "give it longer with --timeout"
    )
    sys.stdout.write(f"{Finding('fail', what, f'no end after {seconds:g} s', fix)}\n")
    sys.stdout.flush()


def limit_joining(seconds: float, *, first: bool) -> Callable[[], None]:
    """Do as `limit` while MPI starts; call what is returned as soon as it has.

    MPI_Init holds the interpreter while it waits. So a process tells, and another clock ends.
    """
    joined, tell = os.pipe()
    teller = os.fork()
    if teller == 0:
        os.close(tell)
        if not select.select([joined], [], [], seconds)[0] and first:
            _no_end("launcher", seconds)
        os._exit(0)
    os.close(joined)
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - until it has rung or is cancelled
    faulthandler.dump_traceback_later(seconds + 1.0, exit=True, file=nowhere)

    def cancel() -> None:
        if not nowhere.closed:
            faulthandler.cancel_dump_traceback_later()
            nowhere.close()
            os.close(tell)
            os.waitpid(teller, 0)

    return cancel
