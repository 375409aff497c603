"""Lines to the launcher, which ends a job whose ranks do not meet or no longer move.

The launcher gives each rank the write end of a pipe, by its number in the environment. The ranks
report to each other by the heartbeat; this is for what no rank can notice: that all are frozen.

    here                              the start, before that of MPI
    met STALL_SECONDS                 the ranks are connected; 0: they are not watched
    beat STEP PHASE PROGRESS SLOW     about once a second, while watched
    bye                               the regular end
"""

import contextlib
import functools
import os
import stat

VARIABLE = "LAUNCH_PULSE_FD"


class LauncherPulse:
    """The pipe to the launcher. Nothing of it ever waits or raises an error.

    Attributes
    ----------
    there : bool
        Whether a launcher listens.
    """

    def __init__(self) -> None:
        self.there = False
        try:  # a program that this process starts must not be taken for the rank
            self._file = int(os.environ.pop(VARIABLE))
            os.set_inheritable(self._file, False)
            os.set_blocking(self._file, False)
            self.there = stat.S_ISFIFO(os.fstat(self._file).st_mode)
        except (KeyError, ValueError, OverflowError, OSError):
            return

    def write(self, *words: object) -> None:
        """Write one line; it is lost if the pipe is full."""
        if self.there:
            with contextlib.suppress(OSError):
                os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


@functools.cache
def launcher_pulse() -> LauncherPulse:
    """Return the pipe of this process, the same each time."""
    return LauncherPulse()
