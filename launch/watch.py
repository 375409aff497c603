"""Judge a training from outside: whether its ranks have met, and whether any of them moves.

The ranks watch each other; this is for what none of them can notice: all are frozen, or stuck in
the start of MPI. Each rank writes lines to a pipe, which rank.py passes on:

    here                              its start; a rank that never writes is not judged
    met STALL_SECONDS                 it is connected to the others; 0: it is not watched
    beat STEP PHASE PROGRESS SLOW     about once a second; PROGRESS grows with any work
    bye                               it ends as it should
"""

from collections.abc import Mapping
from typing import NamedTuple

from .rank import PULSE

SLOW_FACTOR = 10  # in a phase that may take long, such as writing a checkpoint
MARGIN_SECONDS = 20.0  # what the ranks notice, they report earlier and better
PAUSE_SECONDS = 5.0  # a longer time between two calls: this process itself did not run
NAMED = 8  # ranks in a message


class Beat(NamedTuple):
    """What was last heard from a rank."""

    seconds: float  # when
    step: int
    phase: str
    progress: int
    slow: bool


class Watch:
    """What one start of the ranks has reported.

    Parameters
    ----------
    n : int
        The number of ranks.
    meet_seconds : float
        How long they may take to meet; 0: for ever.
    now : float
        The time of the start, as all times in seconds of one monotonic clock.
    """

    def __init__(self, n: int, meet_seconds: float, now: float) -> None:
        self._n, self._meet_seconds = n, meet_seconds
        self._began = self._moved = self._judged = now
        self._here = False
        self._limits: dict[int, float] = {}  # stall_seconds of the ranks that have met
        self._ended: set[int] = set()
        self._beats: dict[int, Beat] = {}  # of those that are watched

    def heard(self, rank: int, line: str, now: float) -> None:
        """Take one line of a rank."""
        match = PULSE.fullmatch(line.encode())
        if match is None:
            return
        self._here = True
        if match["limit"]:
            self._limits[rank] = float(match["limit"])
            self._moved = now
        elif match["phase"]:
            step, progress, slow = (int(match[name]) for name in ("step", "progress", "slow"))
            beat = Beat(now, step, match["phase"].decode(), progress, bool(slow))
            before = self._beats.get(rank)
            if before is None or before.progress != beat.progress:
                self._moved = now
            self._beats[rank] = beat
        elif line == "bye":
            self.ended(rank)

    def ended(self, rank: int) -> None:
        """Watch this rank no longer."""
        self._beats.pop(rank, None)
        self._ended.add(rank)

    def count_anew(self, now: float) -> None:
        """Forget the time up to now, in which this process could not listen."""
        self._began += now - self._judged
        self._moved = self._judged = now

    def judge(self, now: float, hosts: Mapping[int, str]) -> str:
        """Return why the job has to end, "" if it has not; to be called about each second."""
        if now - self._judged > PAUSE_SECONDS:
            self.count_anew(now)
        self._judged = now
        missing = sorted(set(range(self._n)) - set(self._limits))
        if self._here and self._meet_seconds and missing and now - self._began > self._meet_seconds:
            met = f"{self._n - len(missing)} of {self._n} ranks have met"
            without = _listed([f"rank {r} on {hosts.get(r, '? (not started)')}" for r in missing])
            return f"{met} within {self._meet_seconds:g} s (--meet-seconds), without {without}"
        limits = [limit for rank, limit in self._limits.items() if rank not in self._ended]
        stall_seconds = max(limits, default=0.0)
        slow = not self._beats or any(beat.slow for beat in self._beats.values())
        limit = stall_seconds * (SLOW_FACTOR if slow else 1) + MARGIN_SECONDS
        if not stall_seconds or now - self._moved <= limit:
            return ""
        beats = sorted(self._beats.items(), key=lambda item: (item[1].step, item[0]))
        last = [
            f"rank {rank} on {hosts.get(rank, '?')}, step {beat.step}, {beat.phase}, "
            f"{now - beat.seconds:.0f} s ago"
            for rank, beat in beats
        ]
        return (
            f"no rank has moved for {now - self._moved:.0f} s (stall_seconds = {stall_seconds:g}); "
            f"last heard: {_listed(last)}"
        )


def _listed(texts: list[str]) -> str:
    more = len(texts) - NAMED
    return "; ".join([*texts[:NAMED], *([f"and {more} more"] * (more > 0))])
