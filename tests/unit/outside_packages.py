"""Packages of others, as if they were installed: a module and its metadata, in a folder on the path."""

from __future__ import annotations

import importlib
from pathlib import Path
from textwrap import dedent


class OutsidePackages:
    """Each brings one entry point of ``group``; ``good`` is the code of a module that lacks nothing."""

    def __init__(self, folder: Path, group: str, good: str) -> None:
        self.folder, self.group, self.good = folder, group, good

    def add(self, code: str | None = None, *, package: str = "theirs", entry: str = "theirs = {module}") -> None:
        module = f"module_of_{package}"
        (self.folder / f"{module}.py").write_text(dedent(self.good if code is None else code))
        metadata = self.folder / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{self.group}]\n{entry.format(module=module)}\n")
        importlib.invalidate_caches()
