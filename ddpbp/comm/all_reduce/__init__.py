"""The all-reduce: the sum of the gradients of all leaves, and what travels with it.

`reducer.py`    the interface of all reducers, what a step sums (`Payload`), one rank alone
`choose.py`     which reducer suits the ranks and the size
`shared.py`     the ranks of one host, in shared memory
`bucketed.py`   several hosts: complete parts travel while the backward pass continues
`portable.py`   any ranks, by plain MPI collectives

A new way of transport is a subclass of `Reducer`, a line in `choose.py`, and a line in `KINDS` of
`tests/mpi/test_mpi_reduce.py`, which compares its bits with those of one process.
"""
