"""A training from start to end: who takes part, how it starts, what it records, how it ends.

training   processes and their threads; goes on after ranks were lost
loop       learn, judge, save, stop: the loop, readable as prose
start      anew, or from a checkpoint whose numbers it continues bit for bit
ranks      how many ranks and threads a run may have
callbacks  what is done beside the learning, at each step and epoch
requests   requests to save or stop: signals, the end of `max_seconds`
faults     what is finished first when a run ends by a fault, and fault.json
report     the stream of records, handed to every sink
sinks/     console, bar, jsonl: one file each

May import every room below: base, nn, data, comm, metrics, config, store, engine. A sink is a file
in sinks/, a callback a subclass of `Callback`; both are passed to `train`, built-in ones by itself.
"""
