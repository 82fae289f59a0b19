"""What the nnU-Net benchmarks share: child processes with their time and memory, label files, one growing JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
INTEROP = REPOSITORY / ".interop" / "nnunet" / "bin"
WORKERS = REPOSITORY / "benchmarks" / "interop"
LOOK_SECONDS, SUM_SECONDS = 0.05, 0.25


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a command took, start and imports included."""

    seconds: float
    processor_seconds: float
    """user and system time of the process and the children that it waited for"""
    largest_mib: float
    """most resident memory of any one of its processes (high-water mark)"""
    together_mib: float
    """most of all its processes at one moment, each shared page counted once (proportional set sizes, four times a second)"""
    load: float
    """on the machine when the command began"""


def spend(command: Sequence[str], threads: int, words: Path, **variables: str) -> Spent:
    """Run a command with ``threads`` threads on as many cores; its words go into a file, shown when it fails."""
    words.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    start = time.perf_counter()
    with words.open("wb") as log:
        process = subprocess.Popen(
            pinned(command, threads), env=settings(threads) | variables, stdout=log, stderr=subprocess.STDOUT
        )
        watch = _Watch(process.pid)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        finally:
            watch.ended.set()
    seconds = time.perf_counter() - start
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{words.read_text()[-3000:]}")
    return Spent(
        seconds=round(seconds, 3),
        processor_seconds=round(usage.ru_utime + usage.ru_stime, 3),
        largest_mib=round(watch.largest, 1),
        together_mib=round(watch.together, 1),
        load=round(load, 2),
    )


def settings(threads: int) -> dict[str, str]:
    """The environment of a contestant that is to use so many threads."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def pinned(command: Sequence[str], threads: int) -> list[str]:
    """On the first so many cores: some programs start a thread a core whatever they are told."""
    cores = sorted(os.sched_getaffinity(0))
    if threads >= len(cores):
        return [*command]
    return ["taskset", "-c", ",".join(map(str, cores[:threads])), *command]


class _Watch(threading.Thread):
    """Looks at a process and its children from outside."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.ended = threading.Event()
        self.largest = 0.0
        self.together = 0.0

    def run(self) -> None:
        summed = 0.0
        while not self.ended.wait(LOOK_SECONDS):
            family = _family(self.pid)
            self.largest = max(self.largest, *[_kept(pid, "status", "VmHWM") for pid in family])
            if time.perf_counter() - summed > SUM_SECONDS:
                self.together = max(self.together, sum(_kept(pid, "smaps_rollup", "Pss") for pid in family))
                summed = time.perf_counter()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(child) for child in listed.read_text().split()]
            except OSError:
                continue
            found += [child for child in children if child not in found]
    return found


def _kept(pid: int, file: str, what: str) -> float:
    """A process's memory in MiB; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0.0
    match = re.search(rf"^{what}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def own_peak_mib() -> float:
    """This process's high-water mark since `forget_peak`."""
    return _kept(os.getpid(), "status", "VmHWM")


def forget_peak() -> float:
    """Begin a new high-water mark; returns what is held now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return own_peak_mib()


# ------------------------------------------------------------------------------------------------------ notes


class Notes:
    """All numbers in one JSON file, written after every run, so that a benchmark can be done in pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def at(self, *keys: str) -> dict[str, Any]:
        place = self.data
        for key in keys:
            place = place.setdefault(key, {})
        return place

    def add(self, spent: Spent, *keys: str) -> None:
        self.at(*keys).setdefault("runs", []).append(asdict(spent))
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1, sort_keys=True) + "\n")
        temporary.replace(self.path)


def finish(notes: Notes, report: Callable[[Notes], str], options: argparse.Namespace) -> int:
    """Note the machine, tell the report (``options.markdown``: also a file); 3 where ``options.require`` and a target is missed."""
    from segship.measure.environment import environment

    notes.data["about"] = environment() | {"threads": options.threads}
    notes.save()
    text = report(notes)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"{text}\n")
    return 3 if options.require and "MISSED" in text else 0


def middle(entry: Mapping[str, Any], what: str) -> float:
    """The median over a contestant's runs; NaN where there is none."""
    values = [run[what] for run in entry.get("runs", ())]
    return float(statistics.median(values)) if values else float("nan")


def most(entry: Mapping[str, Any], what: str) -> float:
    return max((float(run[what]) for run in entry.get("runs", ())), default=float("nan"))


# ----------------------------------------------------------------------------------------------------- labels


def read_label_file(path: Path) -> np.ndarray:
    """Whole numbers on the file's own axes."""
    if path.suffix == ".png":
        from PIL import Image

        return np.asarray(Image.open(path))
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def agreement(ours: Path, theirs: Path, ending: str) -> float:
    """Part of all voxels of a folder's label files that have the same label in another's; both hold the same files."""
    names = sorted(path.name for path in theirs.glob(f"*{ending}"))
    if not names or names != sorted(path.name for path in ours.glob(f"*{ending}")):
        sys.exit(f"{ours} and {theirs} do not hold the same label files")
    same = total = 0
    for name in names:
        a, b = read_label_file(ours / name), read_label_file(theirs / name)
        if a.shape != b.shape:
            sys.exit(f"{name}: shapes differ, {a.shape} and {b.shape}")
        same, total = same + int((a == b).sum()), total + a.size
    return same / total


def mean_dice(found: Path, truth: Path, ending: str) -> float:
    """Of label 1, the mean over cases."""
    values = []
    for path in sorted(truth.glob(f"*{ending}")):
        a, b = read_label_file(found / path.name) == 1, read_label_file(path) == 1
        values.append(2 * int((a & b).sum()) / max(1, int(a.sum()) + int(b.sum())))
    return float(np.mean(values))


# ------------------------------------------------------------------------------------------------------ words


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, form: str = ".1f", unit: str = "") -> str:
    return "–" if value != value else f"{value:{form}}{unit}"


def verdict(name: str, value: float, wanted: float, *, at_least: bool = True, form: str = ".2f") -> list[str]:
    """A line of the table of targets; nothing is said of what was not measured."""
    sign = "≥" if at_least else "≤"
    if value != value:
        return [name, "–", f"{sign} {wanted:g}", "not measured"]
    met = value >= wanted if at_least else value <= wanted
    return [name, f"{value:{form}}", f"{sign} {wanted:g}", "reached" if met else "MISSED"]


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder that is made when it is not there; unfinished work leaves nothing under its name."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}")
        if half.is_dir():
            import shutil

            shutil.rmtree(half)
        make(half)
        half.replace(path)
    return path
