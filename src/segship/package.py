"""Read, write and verify a ``.segship`` package: a zip, or the same tree as a folder.

    manifest.json      the contract (segship.manifest)
    graphs/*.onnx      one per precision and ensemble member
    golden/            one small input and sub-sampled expected values after each stage
    provenance.json    where it came from, what was measured
    SHA256SUMS         `sha256sum -c SHA256SUMS` checks the folder form; its own hash names the package

The zip is stored, sorted and without timestamps, so equal content is an equal file. Nothing in a package
is ever unpickled, and nothing is used before its hash was checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import OutputError, PackageError, PackageMissing, PackageTampered
from segship.manifest import Manifest, dump_manifest, parse_manifest

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
SUMS = "SHA256SUMS"
GOLDEN_INDEX = "golden/golden.json"
GOLDEN_VALUES = "golden/expected.npz"

MAX_FILES = 10_000
MAX_FILE_BYTES = 8 << 30
MAX_TOTAL_BYTES = 32 << 30
MAX_TEXT_BYTES = 256 << 20
"""manifest, sums and provenance are read whole; anything larger is not ours"""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_NAME = re.compile(r"^(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$")
_SUM_LINE = re.compile(r"^([0-9a-f]{64})  (\S+)$")
_CHUNK = 1 << 20

FileContent = bytes | Path


# ------------------------------------------------------------------------------------------ small helpers


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dump_json(data: Any) -> bytes:
    """Canonical JSON bytes: sorted keys, two-space indent, final newline; NaN is refused."""
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


# ------------------------------------------------------------------------------------------------ storage


class _FolderStore:
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


class _ZipStore:
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
            if not _NAME.match(info.filename):
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


_Store = _FolderStore | _ZipStore


def _read_stored(store: _Store, path: Path, name: str) -> bytes:
    if store.size(name) > MAX_TEXT_BYTES and not name.endswith(".onnx"):
        raise PackageError(f"{path}: {name} is larger than any real one; do not use this package")
    try:
        with store.open(name) as stream:
            data: bytes = stream.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise PackageTampered(f"{path}: {name} cannot be read ({error}); fetch the package again") from None
    return data


# ----------------------------------------------------------------------------------------------- golden


@dataclass(frozen=True, kw_only=True)
class GoldenStage:
    """Sub-sampled values of one stage: ``values[i]`` is the flattened array's element ``index[i]``."""

    values: np.ndarray
    index: np.ndarray
    shape: tuple[int, ...]
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Golden:
    input_name: str
    input_bytes: bytes
    bundled: bool
    """True when segship's own sample was used because the exporter was given none"""
    stages: dict[str, GoldenStage]


def golden_files(
    input_name: str,
    input_bytes: bytes,
    bundled: bool,
    stages: Mapping[str, tuple[np.ndarray, float]],
    *,
    samples: int = 4096,
) -> dict[str, bytes]:
    """The ``golden/`` files for ``write_package``: at most ``samples`` evenly spread values a stage."""
    arrays: dict[str, np.ndarray] = {}
    index: dict[str, Any] = {}
    for stage, (array, tolerance) in stages.items():
        flat = np.asarray(array, dtype=np.float32).ravel()
        chosen = np.unique(np.linspace(0, flat.size - 1, min(samples, flat.size)).round().astype(np.int64))
        arrays[f"{stage}.values"] = flat[chosen]
        arrays[f"{stage}.index"] = chosen
        index[stage] = {"shape": list(np.shape(array)), "tolerance": tolerance}
    name = "golden/input" + Path(input_name).suffix.lower()
    return {
        GOLDEN_INDEX: dump_json({"input": name, "input_name": input_name, "bundled": bundled, "stages": index}),
        GOLDEN_VALUES: _npz_bytes(arrays),
        name: input_bytes,
    }


def _npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz with fixed timestamps (numpy's own carries the time of writing)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[key]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", _EPOCH), member.getvalue())
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ package


class Package:
    """An opened package. ``sha256`` (the hash of SHA256SUMS) identifies its content, zip and folder alike."""

    def __init__(self, path: Path, store: _Store) -> None:
        self.path = path
        self._store = store
        names = store.names()
        for needed in (MANIFEST, PROVENANCE, SUMS):
            if needed not in names:
                raise PackageError(
                    f"{path}: {needed} is missing; this is no .segship package (`segship export` makes one of a "
                    "checkpoint), or an incomplete one: fetch it again"
                )
        sums = _read_stored(store, path, SUMS)
        self.sha256 = sha256_bytes(sums)
        self._sums = _parse_sums(path, sums)
        if set(self._sums) != set(names) - {SUMS}:
            odd = sorted(set(self._sums) ^ (set(names) - {SUMS}))
            raise PackageTampered(
                f"{path}: {', '.join(odd[:5])}: in the package or in {SUMS} but not both; fetch it again"
            )
        self.manifest: Manifest = parse_manifest(self.read(MANIFEST))
        for variant in self.manifest.variants:
            for member, name in variant.graphs.items():
                if self._sums.get(name) != variant.sha256[member]:
                    raise PackageTampered(f"{path}: the hash of {name} is not the manifest's; fetch the package again")

    def names(self) -> list[str]:
        return sorted(self._sums)

    @property
    def network_sha256(self) -> str:
        """Names the trained network: a hash of the fp32 graphs alone, so that precisions and records may be added."""
        fp32 = self.manifest.variant("fp32")
        assert fp32 is not None  # every manifest has one
        return sha256_bytes("\n".join(f"{member} {digest}" for member, digest in sorted(fp32.sha256.items())).encode())

    def size_bytes(self, name: str) -> int:
        return self._store.size(name)

    def sha256_of(self, name: str) -> str:
        return self._sums[name]

    def read(self, name: str) -> bytes:
        """One file's bytes, hash-checked. Raises PackageTampered when a byte differs."""
        if name not in self._sums:
            raise PackageError(f"{self.path}: there is no {name} inside")
        data = _read_stored(self._store, self.path, name)
        if sha256_bytes(data) != self._sums[name]:
            raise PackageTampered(f"{self.path}: {name} was changed after the package was written; fetch it again")
        return data

    def check(self) -> None:
        """Check the hash of every file. Raises PackageTampered naming the first that differs."""
        for name in self.names():
            self.read(name)

    def provenance(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.read(PROVENANCE))
        return data

    def graph_path(self, precision: str, member: str = "model") -> Path:
        """A real, hash-checked file of the graph; for a zip it is unpacked once into the user's cache."""
        variant = self.manifest.variant(precision)
        if variant is None:
            have = ", ".join(v.precision for v in self.manifest.variants)
            raise PackageError(
                f"{self.path} has no {precision} variant (it has {have}); make one with `segship compile --precision {precision}`"
            )
        name = variant.graphs[member]
        real = self._store.real_path(name)
        if real is not None:
            if sha256_file(real) != self._sums[name]:
                raise PackageTampered(f"{self.path}: {name} was changed after the package was written; fetch it again")
            return real
        return self._unpacked(name)

    def _unpacked(self, name: str) -> Path:
        digest = self._sums[name]
        target = cache_folder() / "graphs" / f"{digest[:32]}{Path(name).suffix}"
        try:
            if target.is_file() and sha256_file(target) == digest:
                return target
            with replacing(target) as temporary:
                temporary.write_bytes(self.read(name))
            return target
        except (OutputError, OSError):
            # A cache that cannot be written is no error: a private temporary file does, for as long as we live.
            folder = tempfile.TemporaryDirectory(prefix="segship-")
            _temporary_folders.append(folder)
            path = Path(folder.name) / target.name
            path.write_bytes(self.read(name))
            return path

    def golden(self) -> Golden | None:
        if GOLDEN_INDEX not in self._sums:
            return None
        index = json.loads(self.read(GOLDEN_INDEX))
        with np.load(io.BytesIO(self.read(GOLDEN_VALUES)), allow_pickle=False) as arrays:
            stages = {
                stage: GoldenStage(
                    values=arrays[f"{stage}.values"],
                    index=arrays[f"{stage}.index"],
                    shape=tuple(about["shape"]),
                    tolerance=float(about["tolerance"]),
                )
                for stage, about in index["stages"].items()
            }
        return Golden(
            input_name=index["input_name"],
            input_bytes=self.read(index["input"]),
            bundled=bool(index["bundled"]),
            stages=stages,
        )


_temporary_folders: list[tempfile.TemporaryDirectory[str]] = []


def _parse_sums(path: Path, data: bytes) -> dict[str, str]:
    sums = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _SUM_LINE.match(line)
        if not match or not _NAME.match(match.group(2)):
            raise PackageTampered(f"{path}: {SUMS} is damaged; fetch the package again")
        sums[match.group(2)] = match.group(1)
    return sums


def open_package(path: Path | str, *, verify: bool = False) -> Package:
    """Open a package, zip or folder. ``verify`` checks every file's hash now rather than on first use."""
    path = Path(path)
    if not path.exists():
        raise PackageMissing(f"{path} does not exist; `segship export` makes a package from a checkpoint")
    store: _Store = _FolderStore(path) if path.is_dir() else _ZipStore(path)
    package = Package(path, store)
    if verify:
        package.check()
    return package


def write_package(
    path: Path | str,
    manifest: Manifest,
    files: Mapping[str, FileContent],
    provenance: Mapping[str, Any],
    *,
    folder: bool = False,
) -> Package:
    """Write a package in one step: it is there whole or not at all.

    ``files`` maps names inside the package (``graphs/fp32.onnx`` …) to bytes or to files to copy.
    """
    path = Path(path)
    everything: dict[str, FileContent] = dict(files)
    everything[MANIFEST] = dump_manifest(manifest)
    everything[PROVENANCE] = dump_json(dict(provenance))
    for name in everything:
        if not _NAME.match(name) or name == SUMS:
            raise PackageError(f"{name!r} cannot be the name of a file in a package")
    sums = "".join(f"{_hash(everything[name])}  {name}\n" for name in sorted(everything))
    everything[SUMS] = sums.encode()
    with replacing(path) as temporary:
        if folder:
            _write_folder(temporary, everything)
        else:
            _write_zip(temporary, everything)
    return open_package(path)


def _hash(content: FileContent) -> str:
    return sha256_file(content) if isinstance(content, Path) else sha256_bytes(content)


def _write_folder(root: Path, files: Mapping[str, FileContent]) -> None:
    for name in sorted(files):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        content = files[name]
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _write_zip(path: Path, files: Mapping[str, FileContent]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            content = files[name]
            archive.writestr(info, content if isinstance(content, bytes) else content.read_bytes())


def update_package(
    package: Package,
    *,
    manifest: Manifest | None = None,
    add: Mapping[str, FileContent] | None = None,
    remove: Iterable[str] = (),
    provenance: Mapping[str, Any] | None = None,
    output: Path | str | None = None,
) -> Package:
    """The same package with files added, replaced or removed, written to ``output`` or in its own place."""
    gone = {MANIFEST, PROVENANCE, *remove}
    files: dict[str, FileContent] = {name: package.read(name) for name in package.names() if name not in gone}
    files.update(add or {})
    return write_package(
        output or package.path,
        manifest or package.manifest,
        files,
        package.provenance() if provenance is None else provenance,
        folder=package.path.is_dir() if output is None else False,
    )
