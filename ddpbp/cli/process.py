"""The ranks of a command, and how it ends: the same exit code everywhere, one message."""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TextIO

from ddpbp.base.spelling import printable
from ddpbp.comm.join import join, launched
from ddpbp.comm.world import World
from ddpbp.errors import DdpbpError

MESSAGE_CHARACTERS = 1_900  # the names of a file's columns may be of any length
# A message needs this long to pass through the launcher, which ends all ranks with the first one.
MESSAGE_SECONDS = 0.5


def is_first() -> bool:
    """Return whether this process is the one that prints, as its launcher numbers it."""
    place = launched()
    return place is None or place[0] == 0


def complain(message: object) -> None:
    """Print one message on standard error, of a very long one the beginning and the end."""
    text = printable(str(message))
    if len(text) > MESSAGE_CHARACTERS:
        text = f"{text[: MESSAGE_CHARACTERS // 2]} ... {text[-MESSAGE_CHARACTERS // 2 :]}"
    _print_error(f"ddpbp: {text}\n")


def print_notes(world: World, notes: Iterable[str]) -> None:
    """Print notes on standard error, on rank 0."""
    if world.rank == 0:
        _print_error("".join(f"note: {printable(note)}\n" for note in notes))


def _print_error(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # it is full: the exit code tells what happened
            sys.stderr.write(text)
            sys.stderr.flush()


def leave_together() -> None:
    """Wait until rank 0 has printed: a launcher ends all ranks as soon as one has failed.

    The others wait longer, since rank 0 may start later than they do.
    """
    if launched() is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(MESSAGE_SECONDS if is_first() else 3 * MESSAGE_SECONDS)


def on_all_ranks(
    main: Callable[[World], int], *, simulate_ranks: int | None = None, mpi: bool | None = None
) -> int:
    """Run `main` in the world of this process and turn its faults into exit codes.

    A `DdpbpError` has reached every rank: rank 0 prints it. Any other fault is this rank's alone:
    it prints it and ends all ranks.

    Parameters
    ----------
    main : callable
        Returns an exit code.
    simulate_ranks : int, optional
        Run this many ranks in this process.
    mpi : bool, optional
        As `join` takes it.
    """

    def guarded(world: World) -> int:
        try:
            return main(world)
        except DdpbpError as error:
            if world.rank == 0:
                complain(error)
            return error.code
        except BaseException as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            _print_fault(error, world)
            world.abort(code)
            return code

    if launched() is None and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # to say that it was interrupted
    if simulate_ranks:
        from ddpbp.comm.simulated import simulate

        return simulate(simulate_ranks, guarded)
    return guarded(join(mpi=mpi))


def _print_fault(error: BaseException, world: World) -> None:
    """Print a fault of this rank alone: a bug with its traceback, a known limit without."""
    if isinstance(error, MemoryError):
        complain(
            f"rank {world.rank} on {world.host} is out of memory: {error}; if the data are too big "
            "(every rank holds all of them), use fewer ranks a host or fewer examples; else lower "
            "batch_size or model.hidden (ddpbp train --dry-run prints what each takes)"
        )
    elif isinstance(error, KeyboardInterrupt):
        if world.rank == 0:
            complain("interrupted")
    elif not isinstance(error, SystemExit):  # with that, a simulated rank follows another
        complain(f"rank {world.rank} on {world.host} failed:")
        traceback.print_exception(error)


# --- standard output -----------------------------------------------------------------------------


def begin_output() -> None:
    """Make every text printable: an encoding that lacks a character prints its escape.

    Raises
    ------
    DdpbpError
        If standard output is closed: its number would go to the next file that is opened.
    """
    if sys.stdout is None:
        raise DdpbpError("standard output is closed; redirect it to a file or to /dev/null")
    stream: TextIO = sys.stdout
    # The C locale comes with "surrogateescape".
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")


def end_output(code: int) -> int:
    """Flush standard output; return the exit code.

    A reader that closed its end is no fault. Lost output is one; it is reported unless the command
    failed anyway. A training whose output is lost continues, and is reported here when it is done.
    """
    lost = sys.stdout is None
    try:
        if not lost:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor may it fail when Python exits
        lost = not isinstance(error, BrokenPipeError)
    if lost and not code:
        complain("standard output could not be written: is the disk full?")
    return code or int(lost)
