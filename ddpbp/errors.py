"""What can go wrong, and the exit code each fault ends with.

0 done, 1 failure, 2 usage, configuration or data, 3 diverged (NaN or infinity),
4 ranks out of step or stalled, 75 checkpointed on request (please requeue),
128 + n killed by signal n.
"""


class DdpbpError(Exception):
    """Base of all faults that end with one message instead of a traceback."""

    code = 1


class ConfigError(DdpbpError):
    """A setting, an argument or the environment is wrong."""

    code = 2


class DataError(DdpbpError):
    """A file is missing, or its content is not as it should be."""

    code = 2


class Diverged(DdpbpError):  # noqa: N818 - what happened, not a mistake of the caller
    """A loss, gradient or weight is no longer finite."""

    code = 3


class OutOfStep(DdpbpError):  # noqa: N818
    """The ranks no longer hold the same bits, or one of them stopped answering."""

    code = 4


class Stopped(DdpbpError):  # noqa: N818
    """The run was asked to stop, and saved its state to continue from."""

    code = 75
