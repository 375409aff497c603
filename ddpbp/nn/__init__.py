"""The text in code: networks, their forward and backward pass, losses and optimizers.

activations.py      σ, σ′                       to add one: an entry in ACTIVATIONS
losses.py           L, ∂L/∂a, settings, targets to add one: a class and its entry in LOSSES
optimizers.py       θ from the gradient         to add one: a class and its entry in OPTIMIZERS
schedules.py        η at a step                 to add one: an entry in SCHEDULES
initializations.py  the first weights           to add one: an entry in INITIALIZATIONS
layers/             forward and backward of a layer   to add one: a file and its entry in table.py
norms.py            the norms of LARS, LAMB and clipping
dropout.py          the masks of dropout
network.py          the layers, and θ as one flat vector with named views
workspace.py        the memory of a forward and backward pass
backprop.py         the walk over the layers, and the sums over leaves

Imports `base` only: no data, no MPI, no settings.
"""
