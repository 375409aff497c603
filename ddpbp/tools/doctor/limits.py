"""Limits on time: a check that takes too long ends the process with a finding."""

import faulthandler
import os
import select
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ddpbp.tools.doctor.finding import Finding


def limit(seconds: float, what: str, *, first: bool) -> threading.Timer:
    """End the process with exit code 1 after some seconds, unless cancelled.

    Parameters
    ----------
    seconds : float
    what : str
        The check, for the finding.
    first : bool
        Whether this rank is the one that prints.
    """

    def end() -> None:
        if first:
            _print_finding(what, seconds)
        os._exit(1)

    timer = threading.Timer(seconds + (0.0 if first else 2.0), end)
    timer.daemon = True
    timer.start()
    return timer


def _print_finding(what: str, seconds: float) -> None:
    fix = (
        "a rank, its host or the network does not answer: try with fewer hosts to find which, or "
        "give it longer with --timeout"
    )
    sys.stdout.write(f"{Finding('fail', what, f'no end after {seconds:g} s', fix)}\n")
    sys.stdout.flush()


def limit_joining(seconds: float, *, first: bool) -> Callable[[], None]:
    """Do as `limit` while MPI starts; return a function that cancels the limit.

    MPI_Init holds the interpreter's lock while it waits, so no thread of this process can run. A
    second process prints the finding instead, and the clock of `faulthandler` ends this one.
    """
    read_end, write_end = os.pipe()
    reporter = os.fork()
    if reporter == 0:
        os.close(write_end)
        if not select.select([read_end], [], [], seconds)[0] and first:
            _print_finding("launcher", seconds)
        os._exit(0)
    os.close(read_end)
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - until it has rung or is cancelled
    faulthandler.dump_traceback_later(seconds + 1.0, exit=True, file=nowhere)

    def cancel() -> None:
        if not nowhere.closed:
            faulthandler.cancel_dump_traceback_later()
            nowhere.close()
            os.close(write_end)
            os.waitpid(reporter, 0)

    return cancel
