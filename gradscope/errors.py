"""Exceptions, as one tree.

GradscopeError
├── AttachError           attach(): the model, a pattern or an argument is unusable
├── RecordError           the run folder cannot be written
│   └── FolderTakenError  the folder already has the steps, or another scope writes it
├── LoadError             a folder cannot be read as a run
├── MissingPackageError   a package of an extra is not installed
└── AnalysisError         a failure inside gradscope, raised only with strict=True

GradscopeWarning          the same failures without strict: `notes` records them, and one warning appears
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class GradscopeError(Exception):
    """Root of all exceptions that gradscope raises on purpose."""


class AttachError(GradscopeError):
    """`attach` cannot use an argument; the message says what to do."""


class RecordError(GradscopeError):
    """A run folder cannot be written."""


class FolderTakenError(RecordError):
    """A folder belongs to another run.

    Args:
        why: the obstacle.
        advice: a way around the obstacle.
    """

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"{why}: {advice}")
        self.why = why


class LoadError(GradscopeError):
    """A folder cannot be read as a run."""


class MissingPackageError(GradscopeError, ModuleNotFoundError):
    """A package beyond the base install is missing; the message says how to install it."""


@contextmanager
def from_extra(extra: str) -> Generator[None]:
    """Surround imports of an extra's packages.

    Raises:
        MissingPackageError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        message = f"{package} is not installed; install it with: pip install 'gradscope-rnn[{extra}]'"
        raise MissingPackageError(message, name=package) from None


class AnalysisError(GradscopeError):
    """A failure inside gradscope itself, raised only with `strict=True`; `__cause__` is the failure."""


class GradscopeWarning(UserWarning):
    """gradscope could not observe something; `notes` has the details."""
