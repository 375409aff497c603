"""The parts that compute a step, built once: from settings to objects.

build       from settings and data to the parts of a run
data        from settings to the examples of a run, the same on all ranks
team        the ranks that load the data together
loading     from rows to columns of the workspace
trainer     one rank's part in every step; the parts it is made of
update      θ from the averaged gradient: by each rank for itself, or by a host's ranks together
evaluator   scores and predictions over leaves of a fixed size
canary      a hash that differs where machines compute other bits
divergence  where a step left the finite numbers

May import base, nn, data, comm, metrics, config and store. A part of a new kind is built in
`build.assemble` and added to `trainer.Parts`; `Trainer` and `Evaluator` see no settings, so a
script can build the same parts by itself.
"""
