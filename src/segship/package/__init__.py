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

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import OutputError, PackageError, PackageMissing, PackageTampered
from segship.manifest import Manifest, dump_manifest, parse_manifest
from segship.package.files import EPOCH, FILE_NAME, cache_folder, dump_json, replacing, sha256_bytes, sha256_file
from segship.package.golden_sample import GOLDEN_INDEX, GOLDEN_VALUES, Golden, GoldenStage, golden_files
from segship.package.store import FolderStore, Store, ZipStore, read_stored

__all__ = [
    "MANIFEST",
    "PROVENANCE",
    "SUMS",
    "FileContent",
    "Golden",
    "GoldenStage",
    "Package",
    "cache_folder",
    "dump_json",
    "golden_files",
    "open_package",
    "replacing",
    "sha256_bytes",
    "sha256_file",
    "update_package",
    "write_package",
]

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
SUMS = "SHA256SUMS"

_SUM_LINE = re.compile(r"^([0-9a-f]{64})  (\S+)$")

FileContent = bytes | Path


class Package:
    """An opened package. ``sha256`` (the hash of SHA256SUMS) identifies its content, zip and folder alike."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path = path
        self._store = store
        names = store.names()
        for needed in (MANIFEST, PROVENANCE, SUMS):
            if needed not in names:
                raise PackageError(
                    f"{path}: {needed} is missing; this is no .segship package (`segship export` makes one of a "
                    "checkpoint), or an incomplete one: fetch it again"
                )
        sums = read_stored(store, path, SUMS)
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
        data = read_stored(self._store, self.path, name)
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
        if not match or not FILE_NAME.match(match.group(2)):
            raise PackageTampered(f"{path}: {SUMS} is damaged; fetch the package again")
        sums[match.group(2)] = match.group(1)
    return sums


def open_package(path: Path | str, *, verify: bool = False) -> Package:
    """Open a package, zip or folder. ``verify`` checks every file's hash now rather than on first use."""
    path = Path(path)
    if not path.exists():
        raise PackageMissing(f"{path} does not exist; `segship export` makes a package from a checkpoint")
    store: Store = FolderStore(path) if path.is_dir() else ZipStore(path)
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
        if not FILE_NAME.match(name) or name == SUMS:
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
            info = zipfile.ZipInfo(name, EPOCH)
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
