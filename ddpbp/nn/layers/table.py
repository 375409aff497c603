"""The names of the layers; to add one, write its file and give it an entry here."""

from ddpbp.nn.layers.dense import Dense
from ddpbp.nn.layers.layer import Layer

LAYERS: dict[str, type[Layer]] = {
    "dense": Dense,
}
