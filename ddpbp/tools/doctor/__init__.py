"""Can these ranks train? One table: pass, warn or fail, and the fix of what is wrong.

Every check runs on all ranks, in the same order, and finds the same on each; rank 0 prints. NumPy
is imported late: a launcher that does not fit must be reported before anything else.

examine       the table: all checks in their order
finding       one line of it
limits        no check may hang
installation  launcher, versions, environment
training      ranks, memory, shared memory, reduction
machines      cores, clock, run folder, links
"""
