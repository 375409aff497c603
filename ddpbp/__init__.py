"""ddpbp: distributed data-parallel backpropagation."""

__version__ = "0.1.0"
