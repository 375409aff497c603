"""What every room stands on: pure arithmetic and small tables.

tree      the canonical tree: the owner of each leaf, and the order of sums
draws     random bits as a function of a key and a counter
rounding  gradients rounded to 16 bits
blocks    long vectors in blocks that fit in the cache
hashing   SHA-256 over arrays
files     opening files that others made
spelling  the word that a misspelt one means
version   of ddpbp
blas      threads and kernel of BLAS
phases    what a rank can be doing
tasks     what the targets of a data set can be

Imports nothing of ddpbp but `errors`. A new phase or task is an entry of its table.
"""
