"""Watch that every rank responds and makes progress: MPI itself would wait forever.

Every process has a thread for this, connected to rank 0 by TCP. About once a second, less often
where there are many, it reports what its ranks are doing, and rank 0 answers. A broken connection
means that a process died; silence, that it is stopped or cut off. A rank that responds but neither
makes progress nor waits for others is stuck. The rank at fault is named and all ranks end, with
exit code 1 after a death, otherwise 4.
A launcher that gave this process a pipe is told the same as rank 0.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Self

from ddpbp.base.phases import START
from ddpbp.comm.handshake import connect
from ddpbp.comm.launcher_pulse import launcher_pulse
from ddpbp.comm.peers import (
    FIRST_STEP,
    BadMessage,
    Beat,
    Beats,
    Bye,
    End,
    Fault,
    Message,
    Peer,
    Stacks,
)
from ddpbp.comm.world import World

# A process that has to end first waits this long, for rank 0 to report and the launcher to end it.
GRACE_SECONDS = 3.0
# It ends then in any case: a disk or a terminal may block its report.
RECORD_SECONDS, END_SECONDS = 1.0, 7.0
START_SECONDS = 0.1  # between two looks at ranks that start
# Rank 0 hears from no more processes a second: 1,024 took 1.3% of its time.
REPORTS_PER_SECOND = 256
STACKS_CHARACTERS = 20_000
# The longest wait of this thread for the interpreter's lock: after a death, MPICH kills all
# processes within milliseconds.
SWITCH_SECONDS = 5e-4


class Verdict(NamedTuple):
    """The faults, and the processes whose stacks show why."""

    faults: list[Fault]
    at_fault: list[Peer]


def silent(
    peers: list[Peer], now: float, stall_seconds: float, extra_seconds: float
) -> Verdict | None:
    """Name the processes that have not answered for too long."""
    faults = []
    for peer in peers:
        if peer.silent(now, stall_seconds, extra_seconds):
            seconds = now - peer.heard_seconds
            what = f"has not answered for {seconds:.0f} s (stopped, or cut off)"
            faults.append(peer.fault(0, what, 4))
    return Verdict(faults, []) if faults else None


def stuck(
    peers: list[Peer], now: float, stall_seconds: float, *, all_watched: bool
) -> Verdict | None:
    """Name the ranks that make no progress.

    A rank that waits for others is not at fault. If all ranks wait, those at the first step are.

    Parameters
    ----------
    peers : list of Peer
    now, stall_seconds : float
    all_watched : bool
        Whether `peers` are all processes, so that no other one can be the reason.
    """
    ranks = [(peer, i) for peer in peers for i in range(len(peer.beats))]
    stalled = [(peer, i) for peer, i in ranks if peer.stalled(i, now, stall_seconds)]
    named = [(peer, i) for peer, i in stalled if not peer.waits(i)]
    what = "has made no progress for {:.0f} s"
    if all_watched and len(stalled) == len(ranks) and not named:
        first = min(peer.beats[i].step for peer, i in ranks)
        named = [(peer, i) for peer, i in ranks if peer.beats[i].step == first]
        what = "has waited for {:.0f} s, as all others do (a lost message, or a network failure?)"
    if not named:
        return None
    faults = [peer.fault(i, what.format(now - peer.moved_seconds[i]), 4) for peer, i in named]
    return Verdict(faults, [peer for peer, _ in named])


class Clock:
    """Seconds that pass only while this process runs.

    Where it is stopped or gets no core for a while, the others cannot be heard either. Such a pause
    counts little, and it must not restart the counts: on a busy machine there is always another.
    """

    def __init__(self, longest_seconds: float) -> None:
        self.now, self._longest_seconds = 0.0, longest_seconds
        self._looked_seconds = time.monotonic()

    def advance(self) -> float:
        """Add the time since the last call, of a pause only the longest step; return the time."""
        before, self._looked_seconds = self._looked_seconds, time.monotonic()
        self.now += min(self._looked_seconds - before, self._longest_seconds)
        return self.now


class Heartbeat:
    """Watches the processes of a world while it is entered; all of them enter and leave it.

    Parameters
    ----------
    world : World
        Of the processes; `world.pulses` shows what the ranks in this one are doing.
    stall_seconds : float
        The limit for silence and for a standstill; 0 turns the heartbeat off.
    leave : callable
        Called with the fault (rank, host, step, phase, cause, exit_code) before this process ends.
        Returns whether this process is the first to report one, and so has to print it.

    Attributes
    ----------
    notes : list of str
        To be printed once, by rank 0.
    """

    def __init__(self, world: World, stall_seconds: float, leave: Callable[[Fault], bool]) -> None:
        self._world, self._stall_seconds, self._leave = world, stall_seconds, leave
        interval_seconds = max(1.0, world.world_size / REPORTS_PER_SECOND)
        self._interval_seconds = min(interval_seconds, stall_seconds / 5)
        self._clock = Clock(2 * self._interval_seconds)
        self._launcher = launcher_pulse()
        if world.world_size > 1:  # simulated ranks are one process: there is no other to watch
            watched = world.shares_memory or world.survives
        else:
            watched = self._launcher.there
        self._on = stall_seconds > 0 and watched
        self._me = Peer(world.rank, world.host, None)
        self._peers: list[Peer] = []  # on rank 0 all others; on the others rank 0
        self._stacks: dict[int, str] = {}
        self._ending = False
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        if self._on:
            self._selector = selectors.DefaultSelector()
            self._end, end = socket.socketpair()
            self._selector.register(end, selectors.EVENT_READ)
            connections, hosts, self.notes = connect(self._world)
            for rank, connection in connections.items():
                connection.setblocking(False)
                self._peers.append(Peer(rank, hosts[rank], connection))
                self._selector.register(connection, selectors.EVENT_READ, self._peers[-1])
            self._clock.advance()
            self._clock.now = 0.0
            self._thread = threading.Thread(target=self._run, name="ddpbp heartbeat", daemon=True)
            self._thread.start()
            self._switch_seconds = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_SECONDS)
        self._launcher.write("met", f"{self._stall_seconds if self._on else 0:g}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._on and kind is None:  # leave together, or the first to go would be missed
                self._world.barrier()
        finally:
            if self._on:
                self._stop()
            if kind is None:
                self._launcher.write("bye")

    def _stop(self) -> None:
        sys.setswitchinterval(self._switch_seconds)
        self._end.close()
        self._thread.join()
        for peer in self._peers:
            peer.send(Bye())
            if peer.connection:  # unread data would reset the connection and drop the message
                with contextlib.suppress(OSError, BadMessage):
                    peer.receive()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # otherwise nobody would watch, and nobody would know
            traceback.print_exc()
            what = f"cannot watch the other ranks any more ({error!r})"
            self._finish(Verdict([self._me.fault(0, what, 1)], []))

    def _watch(self) -> None:
        looked_seconds = time.monotonic()
        while True:
            starts = self._starts()
            events = self._selector.select(
                min(START_SECONDS, self._interval_seconds) if starts else self._interval_seconds
            )
            self._clock.advance()
            for key, _ in events:
                if key.data is None:
                    return
                self._hear(key.data)
            # The end of the start is reported at once: its limits are larger.
            over = starts and not self._starts()
            if not over and time.monotonic() - looked_seconds < self._interval_seconds:
                continue
            looked_seconds = time.monotonic()
            self._report()
            self._judge(self._clock.now)

    def _starts(self) -> bool:
        """Return whether a rank of this process has not finished its first step."""
        return any(p.phase == START or p.progress < FIRST_STEP for p in self._world.pulses)

    def _report(self) -> None:
        """Tell the others, and the launcher, what the ranks of this process are doing."""
        beats = [Beat(p.step, p.phase.name, p.progress, p.waits) for p in self._world.pulses]
        self._me.update(beats, self._clock.now)
        for peer in self._peers:
            peer.send(Beats(beats))
        progress = sum(beat.progress for beat in beats)
        slow = any(self._me.slow(i) for i in range(len(beats)))
        self._launcher.write("beat", *beats[0][:2], progress, int(slow))

    def _hear(self, peer: Peer) -> None:
        """Read the messages of a peer and act on them."""
        try:
            messages = peer.receive()
        except OSError as error:
            self._close(peer)
            # In a world that survives, MPI reports the death; and any other error than the end of
            # the connection is one of the network: the silence will be noticed.
            ended = isinstance(error, ConnectionError)
            if ended and not (peer.left or self._ending or self._world.survives):
                what = "exited without saying why (killed? out of memory?)"
                self._finish(Verdict([peer.fault(0, what, 1)], []))
        except BadMessage as error:
            self._close(peer)
            if not self._ending:
                what = f"sent what no rank sends ({error})"
                self._finish(Verdict([peer.fault(0, what, 1)], []))
        else:
            for message in messages:
                self._obey(peer, message)

    def _obey(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Beats):
            peer.update(message.ranks, self._clock.now)
        elif isinstance(message, Bye):
            peer.left = True
        elif isinstance(message, Stacks):
            self._stacks[peer.rank] = message.text
        else:
            if message.show_stacks:
                peer.send(Stacks(_stacks()))
            time.sleep(GRACE_SECONDS)
            os._exit(message.code)

    def _close(self, peer: Peer) -> None:
        assert peer.connection
        self._selector.unregister(peer.connection)
        peer.connection.close()
        peer.connection = None

    def _judge(self, now: float) -> None:
        """End all ranks if one is silent or stuck."""
        watched = [peer for peer in self._peers if not peer.left]
        # Rank 0 names the fault; the others wait longer for it before they do.
        extra_seconds = 2 * self._interval_seconds if self._world.rank else 0.0
        if verdict := silent(watched, now, self._stall_seconds, extra_seconds):
            self._finish(verdict)
        if self._world.rank:
            return
        if any(now - peer.heard_seconds > 3 * self._interval_seconds for peer in watched):
            return  # it may be about to count as silent, and the others merely wait for it
        all_watched = len(watched) == self._world.world_size - 1
        if verdict := stuck(
            [self._me, *watched], now, self._stall_seconds, all_watched=all_watched
        ):
            self._finish(verdict)

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self, verdict: Verdict) -> NoReturn:
        """Print the faults, if no other process has, and end all ranks."""
        self._ending = True
        faults, at_fault = verdict
        code = faults[0]["exit_code"]
        last = threading.Timer(END_SECONDS, os._exit, (code,))
        last.name, last.daemon = "ddpbp end", True
        last.start()
        first = self._record({**faults[0], "cause": "; ".join(f["cause"] for f in faults)})
        if self._me in at_fault:
            self._stacks[self._me.rank] = _stacks()
        for peer in self._peers:
            peer.send(End(code, peer in at_fault))
        end = time.monotonic() + 1.0
        while len(self._stacks) < len(set(at_fault)) and time.monotonic() < end:
            for key, _ in self._selector.select(0.1):
                if key.data is not None:
                    self._hear(key.data)
        if first:
            text = "".join(f"ddpbp: {fault['cause']}\n" for fault in faults)
            for rank, stacks in self._stacks.items():
                text += f"ddpbp: stacks of the process of rank {rank}:\n{stacks}"
            with contextlib.suppress(Exception):  # an output that is lost or closed
                sys.stderr.write(text)
                sys.stderr.flush()
                sys.stdout.flush()
            time.sleep(0.2)  # the launcher needs time to forward it before it ends the job
        if code != 4:  # after a death most launchers end the job themselves
            time.sleep(GRACE_SECONDS)
        with contextlib.suppress(SystemExit):
            self._world.abort(code)  # an exit alone would be mixed with the codes of killed ranks
        os._exit(code)

    def _record(self, fault: Fault) -> bool:
        """Return whether this process is the first to report; if the disk hangs, suppose so."""
        answers: list[bool] = []
        record = threading.Thread(
            target=lambda: answers.append(self._leave(fault)), name="ddpbp fault", daemon=True
        )
        record.start()
        record.join(RECORD_SECONDS)
        return answers[0] if answers else True


def _stacks() -> str:
    """Return the stacks of the threads of this process, without those that watch."""
    frames = sys._current_frames()
    text = "".join(
        f"  {thread.name}:\n" + "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threading.enumerate()
        if thread.ident in frames and not thread.name.startswith("ddpbp ")
    )
    return text[-STACKS_CHARACTERS:]
