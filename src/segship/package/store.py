"""The two forms of a package, zip and folder, as named bytes. Untrusted: limits, names and links are checked here."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from segship.errors import PackageError, PackageTampered
from segship.package.files import FILE_NAME

MAX_FILES = 10_000
MAX_FILE_BYTES = 8 << 30
MAX_TOTAL_BYTES = 32 << 30
MAX_TEXT_BYTES = 256 << 20
"""manifest, sums and provenance are read whole; anything larger is not ours"""

_CHUNK = 1 << 20


class FolderStore:
    """A package as a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        found = []
        for path in sorted(self.root.rglob("*")):
            if path.is_symlink():
                raise PackageError(f"{self.root}: {path.name} is a link; packages hold plain files only")
            if path.is_file():
                found.append(path.relative_to(self.root).as_posix())
        return found

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str) -> Any:
        return (self.root / name).open("rb")

    def real_path(self, name: str) -> Path | None:
        return self.root / name


class ZipStore:
    """A package as a zip; whatever of it could do harm is refused before a byte is unpacked."""

    def __init__(self, path: Path) -> None:
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise PackageError(f"{path} is not a .segship package ({error}); make one with `segship export`") from None
        if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in self.zip.namelist()):
            raise PackageError(
                f"{path} is a PyTorch file, not a package; `segship export {path} -o net.segship` makes one"
            )
        total = 0
        for info in self.zip.infolist():
            if not FILE_NAME.match(info.filename):
                raise PackageError(f"{path}: unsafe file name {info.filename!r} inside; do not use this package")
            if info.flag_bits & 1:
                raise PackageError(f"{path}: {info.filename} is encrypted; packages are not")
            # Ours are stored. A compressed member may be a bomb: judged by its declared size, which reading enforces.
            if info.file_size > 1000 * max(info.compress_size, 1) + _CHUNK:
                raise PackageError(
                    f"{path}: {info.filename} would unpack to {info.file_size} bytes; do not use this package"
                )
            total += info.file_size
        names = [info.filename for info in self.zip.infolist()]
        if len(names) > MAX_FILES or total > MAX_TOTAL_BYTES:
            raise PackageError(
                f"{path}: {len(names)} files, {total} bytes unpacked: beyond a package's limits; do not use it"
            )
        if len(set(names)) != len(names):
            raise PackageError(f"{path}: two files of the same name inside; export it again")

    def names(self) -> list[str]:
        return sorted(self.zip.namelist())

    def size(self, name: str) -> int:
        return self.zip.getinfo(name).file_size

    def open(self, name: str) -> Any:
        return self.zip.open(name)

    def real_path(self, name: str) -> Path | None:
        return None


Store = FolderStore | ZipStore


def read_stored(store: Store, path: Path, name: str) -> bytes:
    """One file, hash not yet checked. Raises PackageError for one too large, PackageTampered for one that cannot be read."""
    if store.size(name) > MAX_TEXT_BYTES and not name.endswith(".onnx"):
        raise PackageError(f"{path}: {name} is larger than any real one; do not use this package")
    try:
        with store.open(name) as stream:
            data: bytes = stream.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise PackageTampered(f"{path}: {name} cannot be read ({error}); fetch the package again") from None
    return data
