"""Every error that a user of segship can meet. Each message says what is wrong and what to do next.

    SegshipError
    ├── UsageError            exit 2  arguments that cannot work together, or name nothing
    ├── SourceError           exit 1  a checkpoint, model folder or ONNX file that cannot be taken
    │   ├── SourceMissing     exit 2  nothing is there
    │   ├── UnknownSource             not recognised; lists what was looked for and what was found
    │   └── UnsafePickle              a pickle that wants more than tensors
    ├── PackageError          exit 1  a .segship that cannot be used
    │   ├── PackageMissing    exit 2  nothing is there
    │   ├── PackageTampered           a byte differs from its recorded hash
    │   └── PackageTooNew             written by a newer manifest version
    ├── InputError            exit 1  one image or volume that cannot be read or does not fit
    ├── DatasetError          exit 1  a data set whose layout or content is not what it should be
    │   └── DatasetMissing    exit 2  nothing is there
    ├── OutputError           exit 1  a place that cannot be written
    ├── EngineError           exit 1
    │   ├── EngineMissing             the engine's library is not installed
    │   ├── DeviceMissing             the device asked for is not there; never replaced silently
    │   └── PrecisionMissing          the package or engine has no such precision
    └── BarMissed             exit 3  parity, verification or accuracy below its bar

A library's own exception is translated where the library is called, never higher up.
"""

from __future__ import annotations


class SegshipError(Exception):
    """Base of all errors that are the user's to solve; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(SegshipError):
    exit_code = 2


class SourceError(SegshipError):
    pass


class SourceMissing(SourceError):
    exit_code = 2


class UnknownSource(SourceError):
    pass


class UnsafePickle(SourceError):
    pass


class PackageError(SegshipError):
    pass


class PackageMissing(PackageError):
    exit_code = 2


class PackageTampered(PackageError):
    exit_code = 3


class PackageTooNew(PackageError):
    pass


class InputError(SegshipError):
    pass


class DatasetError(SegshipError):
    pass


class DatasetMissing(DatasetError):
    exit_code = 2


class OutputError(SegshipError):
    pass


class EngineError(SegshipError):
    pass


class EngineMissing(EngineError):
    pass


class DeviceMissing(EngineError):
    pass


class PrecisionMissing(EngineError):
    pass


class BarMissed(SegshipError):
    exit_code = 3


def last_line(error: BaseException, limit: int = 200) -> str:
    """The line of a library's message that says most: many print a trace of calls first and the cause last."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    quoted = [
        line.lstrip("> ") for line in lines if line.startswith(">")
    ]  # OpenCV: the cause first, then where it stands
    text = quoted[0] if quoted else lines[-1] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
