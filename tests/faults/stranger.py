"""What a stranger does to a job, until it is killed: `python stranger.py WAY FOLDER`.

It runs as a user without rights, with the standard library alone. FOLDER/ports has, as soon as rank
0 listens, the addresses at which it does; FOLDER/hello the first hello that a rank sends. A real
stranger would have to look for both.
"""

import contextlib
import json
import os
import random
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

HELLO_BYTES = 68
SHARED = Path("/dev/shm")

Address = tuple[str, int]


def send(address: Address, content: bytes, *, hold: list[socket.socket] | None = None) -> None:
    """Send something once; close the connection, or hold it."""
    connection = socket.create_connection(address, timeout=1.0)
    connection.settimeout(1.0)
    connection.sendall(content)
    if hold is None:
        connection.close()
    else:
        hold.append(connection)


def drip(address: Address, folder: Path) -> None:
    """Send a byte each 0.4 s, on ten connections."""
    drops = [socket.create_connection(address, timeout=1.0) for _ in range(10)]
    for _ in range(100):
        for drop in drops:
            with contextlib.suppress(OSError):
                drop.send(b"{")
        time.sleep(0.4)


def flood(address: Address, folder: Path) -> None:
    """Send without an end, and without the end of a line."""
    connection = socket.create_connection(address, timeout=1.0)
    while True:
        connection.sendall(b'"' * 2**20)


def idle(address: Address, folder: Path) -> None:
    """Hold 1,000 connections, and send nothing; replace the oldest, as they may be closed."""
    held: list[socket.socket] = []
    while True:
        send(address, b"", hold=held)
        if len(held) > 1000:
            del held[0]
            time.sleep(0.005)


def replay(address: Address, folder: Path) -> None:
    """Send what a rank has sent, as soon as that is known."""
    with contextlib.suppress(FileNotFoundError):
        send(address, (folder / "hello").read_bytes())


def rank(address: Address, folder: Path) -> None:
    """Send the right form, for a rank that there is, another one or none."""
    number = random.choice([0, 1, 2, 3, 2**32 - 1]).to_bytes(4, "big")
    send(address, number + os.urandom(HELLO_BYTES - 4))


def shared_memory(address: Address, folder: Path) -> None:
    """Open, replace, link and remove every file of a run in /dev/shm."""
    target = folder / "target"
    for path in SHARED.glob("ddpbp.*"):
        for harm in (
            lambda path: path.read_bytes(),
            lambda path: path.write_bytes(b"harm"),
            lambda path: path.unlink(),
            lambda path: (SHARED / f"{path.name}.link").hardlink_to(path),
            lambda path: path.rename(SHARED / f"{path.name}.moved"),
            lambda path: path.symlink_to(target),
        ):
            with contextlib.suppress(OSError):
                harm(path)


WAYS: dict[str, Callable[[Address, Path], None]] = {
    "a line of JSON": lambda address, folder: send(address, b"[1]\n"),
    "deep JSON": lambda address, folder: send(address, b"[" * 100_000 + b"\n"),
    "a byte each 0.4 s": drip,
    "a flood": flood,
    "1,000 idle connections": idle,
    "a wrong token": lambda address, folder: send(address, os.urandom(HELLO_BYTES)),
    "a wrong rank": rank,
    "an early close": lambda address, folder: send(address, b""),
    "a replayed hello": replay,
    "files in /dev/shm": shared_memory,
}


def main() -> None:
    """Do harm in one way, again and again."""
    way, folder = sys.argv[1], Path(sys.argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack = WAYS[way]
    addresses: list[Address] = [("", 0)] * (attack is shared_memory)
    while True:
        with contextlib.suppress(FileNotFoundError):
            addresses = [tuple(address) for address in json.loads((folder / "ports").read_text())]
        for address in addresses:
            with contextlib.suppress(OSError):
                attack(address, folder)
        time.sleep(0.001)


if __name__ == "__main__":
    main()
