"""What can go wrong, in words. Each message names the thing, what came and what was wanted.

The command line prints the message alone and exits with ``exit_code``.
"""


class StadfastError(Exception):
    """Base of every error that stadfast raises on purpose."""

    exit_code = 1


class UsageError(StadfastError, ValueError):
    """An argument is wrong: unknown method, impossible size, options that exclude each other."""

    exit_code = 2


class DataError(StadfastError, ValueError):
    """An image, a mask or a folder cannot be used."""


class WeightsError(StadfastError, ValueError):
    """A weights file is missing, damaged, or does not fit the network."""


class BundleError(StadfastError, ValueError):
    """A saved detector or a checkpoint is damaged, hostile, or from another format version."""


class ExtensionError(StadfastError, ImportError):
    """A compiled part that has no Python twin cannot be had; says what is missing."""


class RingError(StadfastError, RuntimeError):
    """An acquisition ring is used in a way that cannot go on: by two threads on one side, or all of it in views."""


class RingClosedError(RingError):
    """Lines are pushed after the end of the stream."""


class RingTimeoutError(RingError, TimeoutError):
    """The lines asked for did not come in time."""


class SourceError(StadfastError, RuntimeError):
    """A source of lines is not there, is gone, or delivers what nobody can inspect."""


class SinkError(StadfastError, RuntimeError):
    """Events cannot be delivered where they should go."""
