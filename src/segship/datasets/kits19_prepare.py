"""`segship prepare kits19 SRC OUT`: MLPerf's arrays from KiTS19's files, several cases at a time, resumed where it stopped.

A case is two files, each there whole or not at all, the labels' written last. One that is there already and is not
older than its source is left alone; a broken one is a line in the result and the others go on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets import kits19_steps
from segship.datasets.kits19 import HINT, Files, is_known, raw_files
from segship.datasets.kits19_verify import Verification, verify_kits19
from segship.errors import DatasetError, DatasetMissing, OutputError, SegshipError, UsageError
from segship.inference.volume_chain import prepare_steps
from segship.inference.volume_labels import labels_on_network_grid
from segship.inference.volumes import read_labels, read_volume
from segship.manifest import Step, VolumeInput

Progress = Callable[[int, int, str], None]
BYTES_A_VOXEL = 18
"""of the file and of the resampled grid together, at the peak: 8, 13 and 14 were measured on three grids"""
MEMORY_SHARE = 0.5
"""of the memory that is free, for all cases together"""


@dataclass(frozen=True, kw_only=True)
class CaseStats:
    """What a prepared image is like."""

    id: str
    shape: tuple[int, int, int]
    mean: float
    std: float
    made: bool
    """now; False: it was there already"""

    @property
    def text(self) -> str:
        side = "×".join(str(n) for n in self.shape)
        return f"{self.id}  {side}  mean {self.mean:.2f}  std {self.std:.2f}" + ("" if self.made else "  (was there)")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Every case's numbers, and what could not be prepared."""

    cases: tuple[CaseStats, ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: float
    verification: Verification | None = None

    @property
    def medians(self) -> dict[str, float]:
        """Over cases: mean, std and the three sides, as upstream prints them at the end."""
        if not self.cases:
            return {}
        sides = np.array([case.shape for case in self.cases])
        return {
            "mean": float(np.median([round(case.mean, 2) for case in self.cases])),
            "std": float(np.median([round(case.std, 2) for case in self.cases])),
            **{name: float(np.median(sides[:, axis])) for axis, name in enumerate("dhw")},
        }

    def as_dict(self) -> dict[str, object]:
        return {
            "cases": [
                {"case": c.id, "shape": list(c.shape), "mean": c.mean, "std": c.std, "made": c.made} for c in self.cases
            ],
            "failed": [{"case": case, "error": text} for case, text in self.failed],
            "medians": self.medians,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "verification": self.verification.as_dict() if self.verification else None,
        }

    def __str__(self) -> str:
        lines = [case.text for case in self.cases]
        lines += [f"failed: {case}: {text}" for case, text in self.failed]
        if self.cases:
            found = self.medians
            side = "×".join(f"{found[name]:g}" for name in "dhw")
            made = sum(case.made for case in self.cases)
            lines.append(
                f"{len(self.cases)} cases, {made} of them prepared now in {self.seconds:.1f} s; median mean "
                f"{found['mean']:.2f}, std {found['std']:.2f}, shape {side}"
            )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *([str(self.verification)] if self.verification else [])])


def prepare_kits19(
    source: Path | str,
    out: Path | str,
    *,
    workers: int | None = None,
    reorient: bool = False,
    minimum: int = kits19_steps.MINIMUM,
    verify: bool | str | Path = False,
    progress: Progress | None = None,
) -> Preparation:
    """Prepare every labelled case under ``source`` as ``case_00000_x.npy`` and ``_y.npy`` in ``out``.

    ``workers`` cases at a time [one a core, four at most], as memory allows. ``reorient`` turns files that are not
    stored as KiTS19's are; upstream takes them as they are. ``minimum`` is what every side is padded to at least.
    ``verify``: also compare, with the published list (True) or another (see `verify_kits19`). Raises DatasetError where
    there is no case at all, OutputError where nothing can be written; a broken case is in the result's ``failed``.
    """
    root, target = Path(source), Path(out)
    if minimum < 1 or (workers is not None and workers < 1):
        raise UsageError("--pad-to and --workers are at least 1")
    if not root.is_dir():
        raise DatasetMissing(f"there is no folder of cases at {root}; check the path")
    listed = raw_files(root, empty=True)
    if not listed:
        raise DatasetError(f"{root} holds no KiTS19 case; {HINT}")
    start = time.perf_counter()
    _make_folder(target)
    todo, failed, notes = _divide(listed)
    plan = _Plan(
        out=target,
        steps=kits19_steps.steps((minimum,) * 3),
        spec=kits19_steps.reading(reorient=reorient),
        minimum=minimum,
        budget=_Budget(_free_memory()),
    )
    found, broken = _run(todo, plan, workers or min(4, os.cpu_count() or 1), progress)
    turned = tuple(dict.fromkeys(plan.turned))
    if turned and not reorient:
        first, axes = turned[0]
        notes.append(
            f"{len(turned)} cases are not stored as KiTS19's are (I,P,L) and were taken as they are, first {first} "
            f"({axes}); --reorient turns them, as prediction does"
        )
    reference = None if isinstance(verify, bool) else Path(verify)
    return Preparation(
        cases=tuple(sorted(found, key=lambda case: case.id)),
        failed=tuple(sorted([*failed, *broken])),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
        verification=verify_kits19(target, reference, recompute=_recomputer(todo, plan)) if verify else None,
    )


def _divide(listed: Sequence[Files]) -> tuple[list[Files], list[tuple[str, str]], list[str]]:
    """(complete cases, what is missing of others, notes)."""
    todo, failed, unlabelled = [], [], []
    for files in listed:
        if files.image is not None and files.labels is not None:
            todo.append(files)
        elif files.labels is None and files.image is not None and not is_known(files.id):
            unlabelled.append(files.id)  # published without labels
        else:
            lacking = [
                name
                for name, path in (("imaging.nii.gz", files.image), ("segmentation.nii.gz", files.labels))
                if path is None
            ]
            failed.append((files.id, f"{' and '.join(lacking)} missing; copy or download that case again"))
    notes = []
    if unlabelled:
        notes.append(f"{len(unlabelled)} cases have no published labels and were left out ({unlabelled[0]} …)")
    return todo, failed, notes


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What every case's work needs, and what it tells on the side."""

    out: Path
    steps: tuple[Step, ...]
    spec: VolumeInput
    minimum: int
    budget: _Budget
    turned: list[tuple[str, str]] = field(default_factory=list)
    """(case, orientation) of files that are not stored as KiTS19's"""
    stopped: threading.Event = field(default_factory=threading.Event)


def _run(
    todo: Sequence[Files], plan: _Plan, workers: int, progress: Progress | None
) -> tuple[list[CaseStats], list[tuple[str, str]]]:
    found: list[CaseStats] = []
    broken: list[tuple[str, str]] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running: dict[Future[CaseStats], str] = {pool.submit(_case, files, plan): files.id for files in todo}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                name = running[future]
                try:
                    found.append(future.result())
                except OutputError:
                    raise  # no other case could be written either
                except SegshipError as error:
                    broken.append((name, str(error)))
                except MemoryError:
                    broken.append((name, "does not fit into this machine's memory; use --workers 1 or a larger one"))
                if progress is not None:
                    progress(done, len(running), name)
        except BaseException:
            plan.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return found, broken


def _case(files: Files, plan: _Plan) -> CaseStats:
    assert files.image is not None
    assert files.labels is not None
    image, labels = (plan.out / f"{files.id}_{kind}.npy" for kind in "xy")
    newest = max(files.image.stat().st_mtime, files.labels.stat().st_mtime)
    there = _finished(image, labels, newest, plan.minimum)
    if there is not None:
        return _stats(files.id, there, made=False)
    with plan.budget.held(_bytes_needed(files.image)):
        if plan.stopped.is_set():
            raise DatasetError("not prepared: the run was stopped")
        x, y = prepare_pair(files, plan.steps, plan.spec, plan.turned)
        labels.unlink(missing_ok=True)
        _save(image, x)
        _save(labels, y)
        return _stats(files.id, x, made=True)


def prepare_pair(
    files: Files, steps: Sequence[Step], spec: VolumeInput, turned: list[tuple[str, str]] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(image (1, D, H, W) float32, labels (1, D, H, W) uint8) of one case. Raises SegshipError naming what is wrong."""
    assert files.image is not None
    assert files.labels is not None
    volume = read_volume([files.image], spec, name=files.id)
    truth = read_labels(files.labels, spec)
    if truth.shape != volume.shape:
        raise DatasetError(
            f"imaging.nii.gz has {_text(volume.shape)} voxels and segmentation.nii.gz {_text(truth.shape)}; they are not "
            "of one case, download both again"
        )
    low, high = int(truth.min()), int(truth.max())
    if low < 0 or high > 2:
        raise DatasetError(f"{files.labels.name} holds values from {low} to {high}; labels are 0, 1 and 2")
    if turned is not None and volume.geometry is not None:
        from nibabel.orientations import aff2axcodes

        axes = "".join(str(code) for code in aff2axcodes(volume.geometry.affine))
        if axes != kits19_steps.ORIENTATION:
            turned.append((files.id, ",".join(axes)))
    prepared = prepare_steps(volume, steps)
    labels = labels_on_network_grid(truth.astype(np.uint8), prepared.frame)
    return prepared.x, np.asarray(labels[None], np.uint8)


def _text(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)


def _stats(name: str, x: NDArray[np.float32], *, made: bool) -> CaseStats:
    shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    mean = float(np.mean(x, dtype=np.float64))
    squares = sum(float(np.square(part - mean, dtype=np.float64).sum()) for part in x[0])  # slice by slice: small
    return CaseStats(id=name, shape=shape, mean=mean, std=float(np.sqrt(squares / x.size)), made=made)


def _recomputer(todo: Sequence[Files], plan: _Plan) -> Callable[[str], NDArray[np.float32] | None]:
    """Case -> its image made again from the source; None for a case that is not there."""
    known = {files.id: files for files in todo}

    def recompute(name: str) -> NDArray[np.float32] | None:
        return prepare_pair(known[name], plan.steps, plan.spec)[0] if name in known else None

    return recompute


# -------------------------------------------------------------------------------------------------- files


def _finished(image: Path, labels: Path, newest: float, minimum: int) -> NDArray[np.float32] | None:
    """The image (on disk) of a case that is there whole, and not older than its source."""
    try:
        if min(image.stat().st_mtime, labels.stat().st_mtime) < newest:
            return None
        x, y = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (image, labels))
    except (OSError, ValueError, EOFError):
        return None
    whole = x.shape == y.shape and x.ndim == 4 and x.dtype == np.float32 and y.dtype == np.uint8
    return x if whole and min(x.shape[1:]) >= minimum else None


def _save(path: Path, array: NDArray[np.generic]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder"
        ) from None


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        for left in path.glob(".case_*.npy.part"):  # of a run that was killed
            left.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {path}: {error.strerror or error}; choose another folder") from None


def _bytes_needed(path: Path) -> int:
    """By the file's header; 0 for a file that has none, which reading will tell."""
    import nibabel

    try:
        header: Any = nibabel.load(path).header  # type: ignore[attr-defined]
        sides = [(int(n), float(mm)) for n, mm in zip(header.get_data_shape(), header.get_zooms(), strict=True)]
        made = [n * mm / target for (n, mm), target in zip(sides, kits19_steps.SPACING, strict=True)]
        return int(BYTES_A_VOXEL * (np.prod([float(n) for n, _ in sides]) + np.prod(made)))
    except Exception:  # nibabel raises many kinds on hostile bytes
        return 0


class _Budget:
    """Bytes that all cases together may hold; one that needs more than there is runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def held(self, need: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + need <= self._limit)
            self._used += need
        try:
            yield
        finally:
            with self._changed:
                self._used -= need
                self._changed.notify_all()


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return int(kilobytes * 1024 * MEMORY_SHARE)
    except (OSError, StopIteration, ValueError):
        return 4 << 30
