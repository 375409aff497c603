"""Communication: the ranks of a run, what they exchange, and how they watch each other.

`world.py`          the interface of all worlds, and one process alone
`join.py`           which world this process belongs to
`mpi.py`            ranks of an MPI job; the only module that imports mpi4py
`threads.py`        ranks that are threads of one process
`simulated.py`      ranks that take turns in one process, for debuggers and tests
`shared_memory.py`  memory that the processes of one host share
`all_reduce/`       the sum of the gradients over all ranks
`tree_sum.py`       the sum of small vectors over all leaves, for losses and metrics
`work.py`           work that the ranks divide
`compare_ranks.py`   whether all ranks hold the same bits
`heartbeat.py`      names a rank that died or stalled, and ends the run
`handshake.py`      connects the heartbeats, and nobody else
`peers.py`          what the heartbeats tell each other
`launcher_pulse.py` what they tell the launcher

It may import `base`. It knows nothing of networks, data or settings.
"""
