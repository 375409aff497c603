"""What every room stands on.

tree.py      the canonical tree: the owner of each leaf, and the order of sums
draws.py     random bits as a function of a key and a counter
rounding.py  gradients rounded to 16 bits
blocks.py    long vectors in blocks that fit in the cache
hashing.py   SHA-256 over arrays
blas.py      threads and kernel of BLAS
phases.py    what a rank can be doing
tasks.py     what targets can be

Imports no other room.
"""
