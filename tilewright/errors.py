"""Every error tilewright raises on purpose, as one tree.

    TilewrightError
    ├── LanguageError          text in the tilewright language is wrong (carries line, column and the caret picture)
    ├── ShapeError             a size, rank or dtype of an argument does not fit (also a ValueError)
    ├── UnsupportedError       legal, but nothing here can do it yet on this device
    ├── DeviceError            no driver, no such device, a device that cannot do what is asked
    │   └── KernelError        a generated kernel failed to build or to run
    ├── ModelError             an ONNX file is missing, broken or invalid
    │   └── UnsupportedOperatorError   lists every node that cannot be run
    ├── InputError             a wrong input name, shape or dtype handed to a session (also a ValueError)
    └── DatabaseError          the tuning database cannot be opened or read

Each message is one clear sentence that names the thing and the place, followed by a way out. The command line
prints it without a traceback and exits with status 2.
"""

from __future__ import annotations


class TilewrightError(Exception):
    """Base of all errors raised on purpose."""


class LanguageError(TilewrightError):
    """Text in the tilewright language is wrong.

    ``line`` and ``column`` count from 1 and are 0 where the whole text is meant.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class ShapeError(TilewrightError, ValueError):
    """A size, rank or dtype of an argument does not fit the program."""


class UnsupportedError(TilewrightError):
    """A legal request that nothing here can serve on this device."""


class DeviceError(TilewrightError):
    """No driver, no such device, or a device that cannot do what is asked."""


class KernelError(DeviceError):
    """A generated kernel failed to build or to run."""


class ModelError(TilewrightError):
    """An ONNX file is missing, broken or invalid."""


class UnsupportedOperatorError(ModelError):
    """The network has nodes that cannot be run; the message lists all of them."""


class InputError(TilewrightError, ValueError):
    """A wrong input name, shape or dtype was handed to a session."""


class DatabaseError(TilewrightError):
    """The tuning database cannot be opened or read."""
