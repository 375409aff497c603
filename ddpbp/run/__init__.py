"""A training from start to end.

training       processes and their threads; continues after ranks were lost
loop           the loop, readable as prose: learn, judge, save, stop
start          from the beginning, or from a checkpoint, bit for bit
ranks          how many ranks and threads a run may have
callbacks      hooks at the start, each step, each epoch and the end
save_requests  requests to save or stop: signals, the end of `max_seconds`
faults         the end by a fault: a checkpoint write is finished, fault.json written
report         the stream of records, handed to every sink
output         writing to standard output
sinks/         console, bar, jsonl: one file each

May import every room below: base, nn, data, comm, metrics, config, store, engine. A sink is a file
in sinks/, a callback a subclass of `Callback`; both are passed to `train`, which adds its own.
"""
