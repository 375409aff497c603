"""Does every rank answer, and get on? MPI would wait for ever; a thread of each process looks.

Every process is connected to rank 0 by TCP and says now and then what it is doing; rank 0 answers.
A connection that breaks is a process that died, silence is one that is stopped or cut off. A rank
that answers but neither gets on nor waits for others is stuck. It is named, and all end: with exit
code 4, or 1 after a death.
"""

import contextlib
import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self

from ddpbp.base.phases import PHASES, START
from ddpbp.comm.world import World

CONNECT_SECONDS = 5.0
# A slow phase, and the first step, may take this many times longer without visible progress; the
# first step is over at this much progress.
SLOW = 10.0
SLOW_UNTIL = 8
# A process that is told to end leaves rank 0 this time to speak, and the launcher to end it.
GRACE_SECONDS = 3.0
# The most that this thread waits for the interpreter: MPICH kills all within
# milliseconds after a death.
SWITCH_SECONDS = 5e-4

Fault = dict[str, Any]


class _Peer:
    """A process as another one sees it; `beats` has one entry for each of its ranks."""

    def __init__(self, rank: int, host: str, connection: socket.socket | None) -> None:
        self.rank, self.host, self.connection = rank, host, connection
        self.heard_seconds = time.monotonic()
        self.left = False
        self.beats: list[tuple[int, str, int, int]] = []  # step, phase, progress, waits
        self.moved_seconds: list[float] = []
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send without waiting; who cannot be reached will be missed soon enough."""
        if self.connection:
            with contextlib.suppress(OSError):
                self.connection.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come.

        Raises
        ------
        ConnectionError
            If the other side is gone.
        """
        assert self.connection
        try:
            found = self.connection.recv(2**16)
        except BlockingIOError:
            return []
        if not found:
            raise ConnectionResetError
        *lines, self._rest = (self._rest + found).split(b"\n")
        return [json.loads(line) for line in lines]

    def update(self, beats: list[tuple[int, str, int, int]], now: float) -> None:
        """Take note of what its ranks are doing."""
        self.heard_seconds = now
        if len(beats) != len(self.beats):
            self.beats, self.moved_seconds = beats, [now] * len(beats)
        for i, (before, beat) in enumerate(zip(self.beats, beats, strict=True)):
            if beat[2] != before[2]:
                self.moved_seconds[i] = now
        self.beats = beats

    def stands(self, i: int, now: float, stall_seconds: float) -> bool:
        """Tell whether its rank i has not got on for too long."""
        _, phase, progress, _ = self.beats[i]
        slow = PHASES[phase].slow or progress < SLOW_UNTIL
        return now - self.moved_seconds[i] > stall_seconds * (SLOW if slow else 1.0)

    def waits(self, i: int) -> bool:
        """Tell whether its rank i waits for others."""
        return bool(self.beats[i][3]) or PHASES[self.beats[i][1]].waits

    def fault(self, i: int, what: str, code: int) -> Fault:
        """Describe a fault of its rank i."""
        step, phase = self.beats[i][:2] if self.beats else (0, START.name)
        rank = self.rank * max(1, len(self.beats)) + i
        cause = f"rank {rank} on {self.host} {what}; last seen at step {step}, phase {phase}"
        return {
            "rank": rank,
            "host": self.host,
            "step": step,
            "phase": phase,
            "cause": cause,
            "exit_code": code,
        }


class Heartbeat:
    """Watches the processes of a world while it is entered; all of them enter and leave it.

    Parameters
    ----------
    world : World
        Of the processes; `world.pulses` tells what the ranks in one are doing.
    stall_seconds : float
        0 is off.
    leave : callable
        Called with the fault (rank, host, step, phase, cause, exit_code) before the process ends;
        tells whether this one is the first to notice it, and so shall say it.

    Attributes
    ----------
    notes : list of str
        Rank 0: to be said once.
    """

    def __init__(self, world: World, stall_seconds: float, leave: Callable[[Fault], bool]) -> None:
        self._world, self._stall_seconds, self._leave = world, stall_seconds, leave
        self._interval_seconds = min(1.0, stall_seconds / 5)
        # Simulated ranks are one process: there is nobody else to answer.
        processes = world.shares_memory or world.survives
        self._on = stall_seconds > 0 and world.world_size > 1 and processes
        self._me = _Peer(world.rank, world.host, None)
        self._peers: list[_Peer] = []  # of rank 0: all others; of the others: rank 0
        self._stacks: dict[int, str] = {}
        self._ending = False
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        if self._on:
            self._selector = selectors.DefaultSelector()
            self._end, end = socket.socketpair()
            self._selector.register(end, selectors.EVENT_READ)
            self._connect()
            self._thread = threading.Thread(target=self._run, name="ddpbp heartbeat", daemon=True)
            self._thread.start()
            self._switch_seconds = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._on:
            return
        try:
            if kind is None:  # nobody shall be missed because it is done already
                self._world.all_gather_object(None)
        finally:
            self._stop()

    def _stop(self) -> None:
        sys.setswitchinterval(self._switch_seconds)
        self._end.close()
        self._thread.join()
        for peer in self._peers:
            peer.send({"bye": True})
            if peer.connection:  # closed with something unread, it would be reset, the word lost
                with contextlib.suppress(OSError):
                    peer.receive()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    # --- connections -----------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connect all processes to rank 0; note those that cannot be."""
        world = self._world
        if world.rank == 0:
            with socket.create_server(("", 0), backlog=world.world_size) as server:
                offer = ([*_addresses(), world.host], server.getsockname()[1], os.urandom(16).hex())
                world.broadcast(offer)
                end = time.monotonic() + CONNECT_SECONDS + 1.0
                while len(self._peers) < world.world_size - 1 and time.monotonic() < end:
                    server.settimeout(max(0.01, end - time.monotonic()))
                    with contextlib.suppress(OSError, ValueError, KeyError):
                        self._accept(server, offer[2])
        else:
            addresses, port, token = world.broadcast(None)
            for address in addresses:
                with contextlib.suppress(OSError, ValueError):
                    self._call(address, port, token, CONNECT_SECONDS / len(addresses))
                    break
        for peer in self._peers:
            assert peer.connection
            peer.connection.setblocking(False)
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        found = world.all_gather_object((world.host, world.rank == 0 or bool(self._peers)))
        missing = [f"rank {r} on {host}" for r, (host, there) in enumerate(found) if not there]
        if missing:
            self.notes.append(
                f"{', '.join(missing)} cannot reach rank 0 by TCP, so a stall there is not seen"
            )

    def _accept(self, server: socket.socket, token: str) -> None:
        connection, _ = server.accept()
        connection.settimeout(1.0)
        hello = json.loads(_line(connection))
        if hello["token"] != token:
            connection.close()
            return
        connection.sendall(json.dumps({"token": token, "host": self._world.host}).encode() + b"\n")
        self._peers.append(_Peer(hello["rank"], hello["host"], connection))

    def _call(self, address: str, port: int, token: str, seconds: float) -> None:
        connection = socket.create_connection((address, port), timeout=seconds)
        hello = {"token": token, "rank": self._world.rank, "host": self._world.host}
        connection.sendall(json.dumps(hello).encode() + b"\n")
        answer = json.loads(_line(connection))
        if answer["token"] != token:  # the rank 0 of another job
            connection.close()
            raise ValueError
        self._peers.append(_Peer(0, answer["host"], connection))

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        looked_seconds = time.monotonic()
        while True:
            for key, _ in self._selector.select(self._interval_seconds):
                if key.data is None:
                    return
                self._hear(key.data)
            now = time.monotonic()
            if now - looked_seconds < self._interval_seconds:
                continue
            beats = [(p.step, p.phase.name, p.progress, p.waits) for p in self._world.pulses]
            self._me.update(beats, now)
            for peer in self._peers:
                peer.send({"beats": beats})
                if now - looked_seconds > 3 * self._interval_seconds + 1.0:
                    peer.update(peer.beats, now)  # it was this process that did not run
                    peer.moved_seconds = [now] * len(peer.beats)
            looked_seconds = now
            self._judge(now)

    def _hear(self, peer: _Peer) -> None:
        try:
            messages = peer.receive()
        except (ConnectionError, TimeoutError):
            assert peer.connection
            self._selector.unregister(peer.connection)
            peer.connection.close()
            peer.connection = None
            # The others of a world that survives learn it from MPI, or else miss it by its silence.
            if not peer.left and not self._ending and not self._world.survives:
                self._finish(
                    [peer.fault(0, "has ended without a word (killed? out of memory?)", 1)], []
                )
            return
        for message in messages:
            if "beats" in message:
                peer.update([tuple(beat) for beat in message["beats"]], time.monotonic())
            elif "bye" in message:
                peer.left = True
            elif "end" in message:
                if message["stack"]:
                    peer.send({"stack": _stacks()})
                time.sleep(GRACE_SECONDS)
                os._exit(message["end"])
            elif "stack" in message:
                self._stacks[peer.rank] = message["stack"]

    def _judge(self, now: float) -> None:
        """End all if somebody is silent, or stuck."""
        watched = [peer for peer in self._peers if not peer.left]
        extra = 2 * self._interval_seconds if self._world.rank else 0.0  # rank 0 shall speak first
        faults = []
        for peer in watched:
            # Code that loads data may keep the interpreter to itself.
            loads = not peer.beats or peer.beats[0][1] == START.name
            silence_seconds = now - peer.heard_seconds
            if silence_seconds > self._stall_seconds * (SLOW if loads else 1.0) + extra:
                what = f"has not answered for {silence_seconds:.0f} s (stopped, or cut off)"
                faults.append(peer.fault(0, what, 4))
        if faults:
            self._finish(faults, [])
        if self._world.rank:
            return
        if any(now - peer.heard_seconds > 3 * self._interval_seconds for peer in watched):
            return  # it may become a silent one: others then only wait for it
        ranks = [(p, i) for p in (self._me, *watched) for i in range(len(p.beats))]
        stuck = [
            (peer, i)
            for peer, i in ranks
            if peer.stands(i, now, self._stall_seconds) and not peer.waits(i)
        ]
        what = "does not get on"
        everybody = len(watched) == self._world.world_size - 1
        if everybody and all(
            p.waits(i) and p.stands(i, now, self._stall_seconds) for p, i in ranks
        ):
            first = min(peer.beats[i][0] for peer, i in ranks)
            stuck = [(peer, i) for peer, i in ranks if peer.beats[i][0] == first]
            what = "waits like all others (a lost message, or a network that is cut?)"
        if stuck:
            faults = [
                p.fault(i, f"{what}, for {now - p.moved_seconds[i]:.0f} s now", 4) for p, i in stuck
            ]
            self._finish(faults, [peer for peer, _ in stuck])

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self, faults: list[Fault], stuck: list[_Peer]) -> NoReturn:
        """Say who is at fault, if no other process has, and end all."""
        self._ending = True
        code = faults[0]["exit_code"]
        first = self._leave({**faults[0], "cause": "; ".join(f["cause"] for f in faults)})
        if self._me in stuck:
            self._stacks[0] = _stacks()
        for peer in self._peers:
            peer.send({"end": code, "stack": peer in stuck})
        end = time.monotonic() + 1.0
        while len(self._stacks) < len(set(stuck)) and time.monotonic() < end:
            for key, _ in self._selector.select(0.1):
                if key.data is not None:
                    self._hear(key.data)
        if first:
            text = "".join(f"ddpbp: {fault['cause']}\n" for fault in faults)
            for rank, stacks in self._stacks.items():
                text += f"ddpbp: process of rank {rank} stands here:\n{stacks}"
            sys.stdout.flush()
            sys.stderr.write(text)
            sys.stderr.flush()
            time.sleep(0.2)  # the launcher has to pass it on before it hears of the end
        if code != 4:  # after a death most launchers end the job themselves
            time.sleep(GRACE_SECONDS)
        threading.Timer(1.0, os._exit, (code,)).start()
        self._world.abort(code)  # exiting alone would mix the codes of those the launcher kills
        os._exit(code)


def _line(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        if not (more := connection.recv(1)):
            raise ConnectionResetError
        found += more
    return found


def _stacks() -> str:
    """Return where the threads of this process are, but for those that watch."""
    frames = sys._current_frames()
    return "".join(
        f"  {thread.name}:\n" + "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threading.enumerate()
        if thread.ident in frames and not thread.name.startswith("ddpbp ")
    )


def _addresses() -> list[str]:
    """List the IPv4 addresses of this machine, its own for itself last."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(any_, 0x8915, request)  # SIOCGIFADDR
                found.append(socket.inet_ntoa(answer[20:24]))
    return sorted(found, key=lambda address: address.startswith("127."))
