"""What every room may use: pure arithmetic and small tables.

`tree.py`      the canonical tree: the owner of each leaf, and the order of sums
`draws.py`     random bits as a function of seed and place
`rounding.py`  sums in 16 bits
`blocks.py`    big vectors in cache-sized pieces
`hashing.py`   hashes of arrays
`blas.py`      BLAS threads and kernel
`phases.py`    what a rank is doing
`tasks.py`     what the targets of a data set are

It imports nothing of ddpbp but `errors`. A new phase or task is an entry of its table.
"""
