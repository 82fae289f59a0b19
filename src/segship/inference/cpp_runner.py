"""The C++ runner beside Python: finding `segship-run`, and having it run a case and leave its stages.

`segship verify --runner cpp`, the contract suite in tests/cpp and benchmarks/cpp.py call the binary through here. This
is the one place of the library that starts a process, and nothing but those imports it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segship.errors import EngineMissing, SegshipError, UsageError
from segship.inference.views import check_recipe
from segship.manifest import Manifest
from segship.package import MANIFEST, PROVENANCE, Golden, Package, write_package

NAME = "segship-run"
VARIABLE = "SEGSHIP_RUN"
ENGINE = "openvino"
"""what the runner computes with"""
_CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """How the binary is to run; None: its own choice."""

    precision: str = "fp32"
    threads: int | None = None
    streams: int | None = None
    cache_dir: Path | str | None = None
    mirror: bool = True
    """volumes: test-time mirroring where the package has it"""

    def arguments(self) -> list[str]:
        found = ["--precision", self.precision]
        for name in ("threads", "streams", "cache_dir"):
            value = getattr(self, name)
            if value is not None:
                found += [f"--{name.replace('_', '-')}", str(value)]
        return found if self.mirror else [*found, "--disable-tta"]


def find_runner(binary: Path | str | None = None) -> Path:
    """The binary that was named, else that of ``$SEGSHIP_RUN``, of this checkout's ``cpp/build``, or of PATH.

    Raises UsageError for a named file that is no program, EngineMissing when there is none anywhere.
    """
    named = binary or os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file() or not os.access(path, os.X_OK):
            origin = "--binary" if binary else VARIABLE
            raise UsageError(f"{origin} names {path}, which is no program; `make cpp` builds cpp/build/{NAME}")
        return path.resolve()
    built = _CHECKOUT / "cpp" / "build" / NAME
    if built.is_file():
        return built
    found = shutil.which(NAME)
    if found is None:
        raise EngineMissing(
            f"the C++ runner {NAME} is not built here; type `make cpp` in a checkout of segship, or name it with --binary "
            f"or the environment variable {VARIABLE}"
        )
    return Path(found)


def run_stages(
    runner: Path,
    package: Path | str,
    inputs: Sequence[Path | str],
    options: RunnerOptions | None = None,
    more: Sequence[str] = (),
) -> dict[str, dict[str, np.ndarray]]:
    """Stages of each input by its name without suffix: the keys of `Predictor.trace`.

    ``more`` are further arguments of the binary. Raises SegshipError with the binary's own words and exit code.
    """
    options = options or RunnerOptions()
    with tempfile.TemporaryDirectory(prefix="segship-cpp-") as folder:
        stages = Path(folder) / "stages"
        command = [str(runner), str(package), *map(str, inputs), "-o", str(Path(folder) / "out")]
        command += [*options.arguments(), "--save-stages", str(stages), *more]
        _call(command)
        found = {}
        for path in sorted(stages.rglob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                name = path.relative_to(stages).with_suffix("").as_posix()
                found[name] = {key: arrays[key] for key in arrays.files}
        return found


def golden_stages(runner: Path, case: tuple[Path, Path], options: RunnerOptions) -> dict[str, np.ndarray]:
    """The stages of a package's golden sample; ``case`` comes from `golden_case`."""
    package, sample = case
    found = run_stages(runner, package, [sample], options)
    if len(found) != 1:
        raise SegshipError(
            f"{runner} left the stages of {len(found)} inputs where it was given one; build it anew: make cpp"
        )
    return next(iter(found.values()))


@contextmanager
def golden_case(package: Package, golden: Golden) -> Iterator[tuple[Path, Path]]:
    """(package, sample) as files, while they are needed.

    The package is the given one, unless it is proved at a smaller size than it works at (`Network.check_size`): then a copy
    whose recipe says so.
    """
    with tempfile.TemporaryDirectory(prefix="segship-golden-") as folder:
        sample = Path(folder) / f"sample{Path(golden.input_name).suffix.lower()}"
        sample.write_bytes(golden.input_bytes)
        recipe = check_recipe(package.manifest)
        if recipe is package.manifest:
            yield package.path, sample
            return
        assert isinstance(recipe, Manifest)
        files = {name: package.read(name) for name in package.names() if name not in (MANIFEST, PROVENANCE)}
        yield write_package(Path(folder) / "check.segship", recipe, files, {}).path, sample


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise EngineMissing(
            f"{command[0]} cannot be started ({error.strerror or error}); build it anew: make cpp"
        ) from None
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "failed:"))]
    said = lines[-1].partition(":")[2].strip() if lines else " ".join(done.stderr.split())[-500:]
    if done.returncode < 0:
        said = f"ended by signal {-done.returncode}: {said}"
    failure = SegshipError(f"{NAME}: {said or 'failed without a word'}")
    failure.exit_code = done.returncode if done.returncode in (1, 2, 3) else 1
    raise failure


__all__ = ["ENGINE", "NAME", "RunnerOptions", "find_runner", "golden_case", "golden_stages", "run_stages"]
