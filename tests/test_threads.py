"""Ranks as threads: a fault that all of them have reaches all of them."""

import contextlib

from ddpbp.comm import threads
from ddpbp.comm.world import World
from ddpbp.errors import DdpbpError


def test_a_fault_after_an_exchange_is_every_thread_s_own():
    def main(world: World) -> None:
        try:
            world.all_gather_object(None)
            raise DdpbpError("of all ranks")
        except BaseException as fault:
            ended.append(type(fault))
            raise

    for _ in range(300):  # the thread that wakes up first must not take the others' fault away
        ended: list[type] = []
        with contextlib.suppress(DdpbpError):
            threads.run(World(), 3, main)
        assert ended == [DdpbpError] * 3
