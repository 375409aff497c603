"""Examples: their sources, their form for the network, and the order in which they are learned.

rows        the interface `Rows` (schema, len, read), and the contents of an opened source
formats/    one file per format, and their table: a new format is added there
files       opening files, and the messages for those that cannot be read
options     how a source is opened
builtin     digits, fashion-mnist, synthetic: a new named source is added there
synthetic   the numbers of the synthetic examples
columns     which columns of a table are features and which are targets
checks      values finite and of a kept type, targets that fit the task
sources     open_rows, open_source, read_features: from a name or path to checked arrays
dataset     split, standardisation, the data set of a run
order       the order of the examples as a function of seed, epoch and position
shards      a rank's shard of every step: its leaves, and the rows they hold

Imports `base` and `errors` only; sums over ranks come in as an argument.
"""
