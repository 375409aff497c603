"""What computes a step, and how it is built: from settings to objects, once.

build       from settings and data to the parts; the only file here that sees a `Config`'s tables
data        from settings to the examples of a run, the same on all ranks
loading     from rows to columns of the workspace
trainer     one rank's part in every step; the parts it is made of
evaluator   scores and predictions over leaves of a fixed size
canary      a hash by which machines that compute other bits are found
divergence  where a step left the finite numbers

May import base, nn, data, comm, metrics, config and store. A part of a new kind is built in
`build.assemble` and added to `trainer.Parts`; `Trainer` and `Evaluator` see no settings, so a
script can build the same parts by itself.
"""
