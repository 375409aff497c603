"""The one exception of the launcher."""


class LaunchError(Exception):
    """Wrong use, or a host that cannot be used: one message, exit code 2."""
