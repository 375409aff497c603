"""A rank is bound to its own share of the cores of its host."""

import os

from launch import rank


def test_each_rank_has_its_own_share_of_the_cores(monkeypatch):
    bound = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(set(cores)))
    for number in range(3):
        rank.bind(*rank.place(number, "h1:1,h2:2"))
    rank.bind(0, 6)  # more ranks than cores wander
    assert bound[0] == {0, 1, 2, 3, 4}
    assert len(bound) == 3
    assert bound[1] | bound[2] == bound[0]
    assert not bound[1] & bound[2]
