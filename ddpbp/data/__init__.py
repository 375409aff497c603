"""Examples: their sources, their form for the network, and the order in which they are learned.

rows        the interface `Rows` (schema, len, read), and the contents of an opened source
formats/    one file per format, and their table: a new format is added there
files       opening files, and the messages for those that cannot be read
options     how a source is opened
builtin     digits, fashion-mnist, synthetic: a new named source is added there
synthetic   the numbers of the synthetic examples
columns     which columns of a table are features and which are targets
checks      values finite, of a kept type, in the range of the model
sources     open_rows, open_source, open_features: from a name or path to examples, not read yet
labels      what targets mean: the classes of a source, and the form the network takes
team        what loading needs of the ranks
spool       numbers of sources that are slow to read, kept while loading
split       which examples are held out
standardization  each feature to mean 0 and deviation 1
fill        the copies of the examples, one for the ranks of a host
dataset     the data set of a run
order       the order of the examples as a function of seed, epoch and position
shards      a rank's shard of every step: its leaves, and the rows they hold

Imports `base` and `errors` only; sums over ranks come in as an argument.
"""
