"""The version of ddpbp: every room may ask for it, so it stands below all of them."""

__version__ = "0.3.0"
