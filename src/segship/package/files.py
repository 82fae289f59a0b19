"""Hashes, canonical JSON, the cache folder, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segship.errors import OutputError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""the time of writing that every zip carries: equal content is an equal file"""
FILE_NAME = re.compile(r"^(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$")
"""what a file inside a package may be called"""


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dump_json(data: Any) -> bytes:
    """Canonical JSON bytes: sorted keys, two-space indent, final newline; NaN is refused.

    File names that are no UTF-8 have lone surrogates, which are written as JSON's own escapes, ``\\udcXX``.
    """
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")


def cache_folder() -> Path:
    """The user's cache folder for segship: ``$SEGSHIP_CACHE_DIR``, else the platform's usual place."""
    if os.environ.get("SEGSHIP_CACHE_DIR"):
        return Path(os.environ["SEGSHIP_CACHE_DIR"])
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "segship"


@contextmanager
def replacing(path: Path) -> Any:
    """Yield a temporary path beside ``path``; rename it into place on success, remove it on any failure.

    Works for a file or a folder. Raises OutputError when the place cannot be written or is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose another place with -o or free some room"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # its folder may be a file, or read-only: the first error says so
                temporary.unlink()
