"""The errors a user can meet. Each message says what was found, what was expected and what to do.

The command line prints the message without a traceback and exits with ``exit_code``.
"""


class MomentDETRError(Exception):
    """Base of every error that is the world's fault and not a defect of the program."""

    exit_code = 2


class BadInput(MomentDETRError, ValueError):
    """An argument, query, annotation or configuration that cannot be used."""


class BadVideo(MomentDETRError, ValueError):
    """A file that is missing, damaged, unsupported or has no video."""


class BadCheckpoint(MomentDETRError, ValueError):
    """Weights that are damaged, of the wrong kind, or do not fit the model or the features."""


class StoreError(MomentDETRError, OSError):
    """A cache or output folder that cannot be read or written."""

    exit_code = 4


class OutOfResources(MomentDETRError, RuntimeError):
    """A limit on memory, time or size was reached."""

    exit_code = 4


class WeightsUnavailable(MomentDETRError, RuntimeError):
    """Weights that are neither given, nor cached, nor reachable."""

    exit_code = 4


__all__ = [
    "BadCheckpoint",
    "BadInput",
    "BadVideo",
    "MomentDETRError",
    "OutOfResources",
    "StoreError",
    "WeightsUnavailable",
]
