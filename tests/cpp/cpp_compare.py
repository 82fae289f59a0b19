"""One call of the C++ runner, and its stages held to Python's."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import VolumePredictor

Stages = Mapping[str, np.ndarray]
STAGES = ("read", "preprocessed", "network", "decoded")
AGREEMENT = 0.9999
"""share of labels that must be equal"""
SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one call of the binary ended."""

    code: int
    out: str
    err: str
    folder: Path
    """what it wrote"""
    stages: dict[str, dict[str, np.ndarray]]

    @property
    def error(self) -> str:
        """The one line that an error is."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]

    def failure(self, name: str) -> str:
        """The line about an input that could not be done."""
        lines = [line for line in self.err.splitlines() if line.startswith("failed:") and name in line]
        assert len(lines) == 1, self.err
        return lines[0]

    def of(self, name: str) -> dict[str, np.ndarray]:
        """The stages of one input."""
        assert self.code == 0, self.err
        assert name in self.stages, f"{name} is not among {sorted(self.stages)}"
        return self.stages[name]


@dataclass(kw_only=True)
class Runner:
    binary: Path
    folder: Path
    sanitized: Path | None = None
    """a build with sanitizers that runs every call once more, into folders of its own"""
    count: int = field(default=0)

    def __call__(self, package: Any, *inputs: Any, trace: bool = True, **options: Any) -> Ran:
        """``options`` are the binary's: ``disable_tta=True`` is --disable-tta, ``folds="0"`` is --folds 0."""
        self.count += 1
        words = [str(getattr(package, "path", package)), *map(str, inputs)]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
        ran = self._call(self.folder / f"{self.count}", words, trace)
        if self.sanitized is not None:
            again = replace(self, binary=self.sanitized)._call(self.folder / f"{self.count}-sanitized", words, trace)
            assert (again.code, written(again.folder)) == (ran.code, written(ran.folder)), again.err
            assert again.stages.keys() == ran.stages.keys()
        return ran

    def _call(self, folder: Path, words: list[str], trace: bool) -> Ran:
        stages = ["--save-stages", str(folder / "stages")] if trace else []
        ran = self.words(*words, "-o", str(folder / "out"), *stages)
        return replace(ran, folder=folder / "out", stages=read_stages(folder / "stages"))

    def words(self, *arguments: str) -> Ran:
        """The binary with these very arguments."""
        done = subprocess.run(
            [str(self.binary), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr[-2000:]}"
        for word in ("AddressSanitizer", "runtime error:", "terminate called"):
            assert word not in done.stderr, done.stderr[-4000:]
        return Ran(code=done.returncode, out=done.stdout, err=done.stderr, folder=self.folder, stages={})


def written(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def read_stages(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.relative_to(folder).with_suffix("").as_posix()] = {key: arrays[key] for key in arrays.files}
    return found


def volume_stages(
    predictor: Any, source: Any, previous: Any = None, tiles: TileOptions | None = None
) -> dict[str, np.ndarray]:
    """`Predictor.trace` of a case with labels of a first stage, other mirrorings or single members."""
    assert isinstance(predictor, VolumePredictor)
    volume = predictor.read(source)
    prepared = predictor.prepare(volume, previous)
    found = predictor.predicted(volume, prepared, predictor.scores(prepared, tiles))
    return {
        "read": volume.channels,
        "preprocessed": prepared.x,
        "network": np.asarray(found.scores, np.float32),
        "decoded": found.decoded,
    }


def check_stages(
    found: Stages, wanted: Stages, *, prepared: float = 1e-6, network: float = 1e-4, levels: float = 1.0,
    agreement: float = AGREEMENT,
) -> None:  # fmt: skip
    """Every stage in turn, so that the first one that differs is the one that fails.

    ``prepared`` and ``network`` are the largest differences, relative to the stage's largest value where that is above 1;
    ``levels`` the largest one of a saliency map in grey levels, ``agreement`` the share of equal labels.
    """
    for name in STAGES:
        a, b = np.asarray(found[name]), np.asarray(wanted[name])
        assert a.shape == b.shape, f"{name}: {a.shape} where Python has {b.shape}"
    assert np.array_equal(found["read"], np.asarray(wanted["read"], np.float64)), told(found, wanted, "read")
    for name, allowed in (("preprocessed", prepared), ("network", network)):
        scale = max(1.0, float(np.abs(wanted[name]).max()))
        assert largest(found[name], wanted[name]) <= allowed * scale, told(found, wanted, name)
    check_decoded(found["decoded"], wanted["decoded"], levels=levels, agreement=agreement)


def check_decoded(found: np.ndarray, wanted: np.ndarray, *, levels: float = 1.0, agreement: float = AGREEMENT) -> None:
    """Labels and masks by the share of equal ones; a float32 map by its values of 0..1.

    A uint8 array with more than 40 levels is a map, not labels.
    """
    assert found.shape == wanted.shape
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    if wanted.dtype.kind == "f":
        assert difference.max(initial=0) <= levels / 255
    elif wanted.dtype == np.uint8 and len(np.unique(wanted)) > 40:
        assert difference.max(initial=0) <= levels
        assert difference.mean() <= 0.05
    else:
        equal = float(np.mean(difference == 0))
        assert equal >= agreement, f"{equal:.6f} of the labels are equal"


def largest(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64)).max(initial=0))


def told(found: Stages, wanted: Stages, name: str) -> str:
    """Where a stage differs most, for a failure's message."""
    a, b = np.asarray(found[name], np.float64), np.asarray(wanted[name], np.float64)
    gap = np.abs(a - b)
    place = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(gap)), gap.shape))
    share = float(np.mean(gap > 0))
    return f"{name}: {share:.4f} of the values differ, most at {place}: {a[place]!r} where Python has {b[place]!r}"


def same(ours: Ran, theirs: tuple[int, str], *words: str) -> None:
    """One exit code, and in both runners' words those that say what is wrong. ``theirs`` is the fixture ``python``'s."""
    assert ours.code == theirs[0], f"{ours.code} where Python ends with {theirs[0]}: {ours.err} | {theirs[1]}"
    for word in words:
        assert word.lower() in theirs[1].lower(), f"Python does not say '{word}': {theirs[1]}"
        assert word.lower() in ours.err.lower(), f"'{word}' is not in: {ours.err}"
