"""Examples: where they come from, how they are prepared, and in which order they are learned.

rows        the interface `Rows` (schema, len, read) and what an opened source holds
formats/    one file per format, and their table: a new format is added there
named       digits, fashion-mnist, synthetic: a new named source is added there
columns     which columns of a table are features and which are targets
checks      values finite and of a kept type, targets that fit the task
sources     open_rows, open_source, read_features: from a name or path to checked arrays
dataset     split, standardisation, the data set of a run
order       the order of the examples as a function of seed, epoch and position
batches     the leaves of a step, and those that this rank owns

Imports `base` and `errors` only; sums over ranks come in as an argument.
"""
