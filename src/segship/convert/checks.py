"""What export and compile check in the same way: which engines, which sizes and batches, and the environment's record."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from segship.engines import BUILT_IN, get_engine
from segship.engines.processor import processor
from segship.errors import EngineMissing, OutputError, PackageError, UsageError
from segship.inference.views import told_size
from segship.manifest import Manifest, Recipe, Resize, ResizeKeepRatio, Step
from segship.package import MANIFEST, Package, write_package

TOOLS = ("numpy", "opencv-python-headless", "openvino", "onnxruntime", "torch", "onnx", "onnxscript", "nncf")


def checking_engines(names: Sequence[str] | None, precision: str) -> list[str]:
    """Installed engines of segship's own that run ``precision``, best first; with ``names`` exactly those.

    Engines of other packages are checked when they are named: a broken one stops nobody's export.
    Raises EngineMissing for a named engine that is not installed, or when there is none at all.
    """
    if names:
        for name in names:
            module = get_engine(name)
            if module.availability().version is None:
                raise EngineMissing(f"engine '{name}' is not installed; type: {module.INSTALL}")
            if precision not in module.PRECISIONS:
                raise UsageError(f"engine '{name}' does not run {precision}; it runs {', '.join(module.PRECISIONS)}")
        return list(names)
    found = []
    for name in BUILT_IN:
        if name == "fake":
            continue
        module = get_engine(name)
        if precision in module.PRECISIONS and module.availability().version is not None:
            found.append(name)
    if not found:
        raise EngineMissing(f"no installed engine runs {precision}; type: pip install openvino")
    return found


def check_output(path: Path) -> None:
    """Refuse an existing folder that is no package: writing would replace all of it."""
    if path.is_dir() and not (path / MANIFEST).is_file():
        raise OutputError(f"{path} is a folder; name the package itself with -o, such as {path / 'net.segship'}")


def with_size(recipe: Recipe, height: int, width: int) -> Recipe:
    """The same recipe at another network size: its resize steps and, where fixed, the network's size."""
    multiple = recipe.network.size_multiple
    if height % multiple[0] or width % multiple[1]:
        raise UsageError(
            f"input size {height}x{width}: the network takes multiples of {multiple[0]}x{multiple[1]}; use "
            f"{-(-height // multiple[0]) * multiple[0]}x{-(-width // multiple[1]) * multiple[1]}"
        )
    steps = tuple(_resized(step, height, width) for step in recipe.preprocess)
    size = None if recipe.network.size is None else (height, width)
    network = recipe.network.model_copy(update={"size": size})
    return recipe.model_copy(update={"preprocess": steps, "network": network})


def _resized(step: Step, height: int, width: int) -> Step:
    if isinstance(step, Resize):
        return step.model_copy(update={"height": height, "width": width})
    if isinstance(step, ResizeKeepRatio):
        return step.model_copy(update={"long_side": max(height, width), "short_side": min(height, width)})
    return step


def network_size(recipe: Recipe) -> tuple[int, int]:
    """(height, width) that the recipe feeds the network with, or a lying picture where the ratio is kept.

    PackageError where every picture has its own.
    """
    if recipe.network.size is not None and len(recipe.network.size) == 2:
        return recipe.network.size[0], recipe.network.size[1]
    for step in reversed(recipe.preprocess):
        sides = told_size(step)
        if sides is not None:
            return sides
    raise PackageError(f"package '{recipe.name}' brings pictures to no one size; give --input-size")


def other_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Two more sizes to try a dynamic graph at: one smaller and oblong, one larger."""
    (height, width), (down, across) = network_size(recipe), recipe.network.size_multiple
    small = (max(2 * down, height // 2 // down * down), max(4 * across, width // across * across))
    return [small, (height + down, width + 2 * across)]


def bare_input(x: np.ndarray, recipe: Recipe) -> np.ndarray:
    """What the bare network takes of a prepared picture (C, h, w): of one in windows the first, at a size that it takes."""
    if recipe.tiling is None:
        return x
    sides = zip(x.shape[1:], recipe.tiling.window, recipe.network.size_multiple, strict=True)
    height, width = (max(multiple, min(side, window) // multiple * multiple) for side, window, multiple in sides)
    return np.ascontiguousarray(x[:, :height, :width])


@contextmanager
def temporary_package(manifest: Manifest, files: Mapping[str, bytes | Path]) -> Iterator[Package]:
    """A package that exists while it is tried, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="segship-") as folder:
        yield write_package(Path(folder) / "try.segship", manifest, files, {}, folder=True)


def environment() -> dict[str, Any]:
    """Versions and processor, for provenance."""
    versions = {"python": platform.python_version()}
    for tool in ("segship", *TOOLS):
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "processor": processor().label, "system": platform.system()}
