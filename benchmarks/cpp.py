"""`segship-run` beside `segship predict`: the same package, the same files, each a process of its own, in turns.

    make cpp
    python benchmarks/cpp.py net.segship PICTURES                      # a folder or files
    python benchmarks/cpp.py nnunet.segship case_0000.nii.gz --no-tta --repeat 3

What both wrote is compared first. Then, with warm caches and alternating turns:

start-up   from the process's start to the first input's files, the first input alone
all        from the process's start to the last input's files
peak       the largest resident memory of a run over all inputs, in runs of their own

Targets: C++ is not slower over all inputs, starts in 0.3 s, and its peak is at most Python's. The start-up holds the first
input's own inference, so its target is for networks of a few milliseconds; others are told and not judged.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segship.engines.processor import processor
from segship.inference.cpp_runner import find_runner
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.tables import columns
from segship.package import dump_json, open_package

START_SECONDS, SLOWER, SAME = 0.3, 1.0, 0.9999
LOOK_SECONDS = 0.004
"""between two looks at a process's memory; the kernel keeps the peak itself, so only the last moment can be missed"""


@dataclass(kw_only=True)
class Contestant:
    name: str
    command: Callable[[Sequence[Path], Path], list[str]]
    """(inputs, output folder) to the words of a process"""
    start: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    """MiB"""

    def row(self, inputs: int) -> list[str]:
        whole, first = median(self.all), median(self.start)
        each = (whole - first) / (inputs - 1) if inputs > 1 else float("nan")
        return [self.name, f"{first:.3f}", f"{whole:.3f}", f"{each:.4f}", f"{median(self.peak):.0f}"]


HEADER = ["", "start-up and first input, s", "all inputs, s", "a further input, s", "peak, MiB"]


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def contestants(options: argparse.Namespace, scratch: Path) -> list[Contestant]:
    package = str(options.package)
    common = ["--precision", options.precision, "--threads", str(options.threads), "--streams", str(options.streams)]
    volumes = open_package(options.package).manifest.input.kind == "volume"
    if not volumes:
        common += ["--batch", str(options.batch)]

    def python(inputs: Sequence[Path], output: Path) -> list[str]:
        words = [sys.executable, "-m", "segship", "predict", package, *map(str, inputs), "-o", str(output), *common]
        words += ["--overwrite", "-q", "--cache-dir", str(scratch / "cache-python")]
        return [*words, "--no-tta"] if options.no_tta else words

    def cpp(inputs: Sequence[Path], output: Path) -> list[str]:
        words = [str(options.runner), package, *map(str, inputs), "-o", str(output), *common]
        words += ["--cache-dir", str(scratch / "cache-cpp")]
        return [*words, "--disable-tta"] if options.no_tta else words

    return [
        Contestant(name="Python, segship predict", command=python),
        Contestant(name="C++, segship-run", command=cpp),
    ]


# ------------------------------------------------------------------------------------------------ measuring


def timed(contestant: Contestant, inputs: Sequence[Path], scratch: Path) -> float:
    """Seconds of one process, from its start to its end."""
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        start = time.perf_counter()
        done = subprocess.run(contestant.command(inputs, Path(output)), capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{contestant.name} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def peak_of(contestant: Contestant, inputs: Sequence[Path], scratch: Path) -> float:
    """MiB: the kernel's own high-water mark of the process, read until it is gone.

    Not what wait4 tells: that counts this process's memory as well, which the new one shares until it is another program,
    and it is that before Popen returns.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        process = subprocess.Popen(
            contestant.command(inputs, Path(output)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = 0.0
        while process.poll() is None:
            peak = high_water(process.pid) or peak
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        sys.exit(f"{contestant.name} ended with {process.returncode}")
    return peak


def high_water(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measure(both: Sequence[Contestant], inputs: Sequence[Path], options: argparse.Namespace, scratch: Path) -> None:
    for turn in range(options.repeat):
        for contestant in both if turn % 2 == 0 else reversed(both):
            print(f"\rturn {turn + 1} of {options.repeat}: {contestant.name:<26}", end="", file=sys.stderr, flush=True)
            contestant.start.append(timed(contestant, inputs[:1], scratch))
            contestant.all.append(timed(contestant, inputs, scratch))
    for _ in range(options.memory_repeat):
        for contestant in both:
            contestant.peak.append(peak_of(contestant, inputs, scratch))
    print(file=sys.stderr)


# ------------------------------------------------------------------------------------------------ comparing


def compare(both: Sequence[Contestant], inputs: Sequence[Path], scratch: Path) -> tuple[float, int]:
    """(smallest share of equal values, files) of what both write. Ends the program where they differ."""
    folders = []
    for number, contestant in enumerate(both):
        folder = scratch / f"compared{number}"
        done = subprocess.run(contestant.command(inputs, folder), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{contestant.name} ended with {done.returncode}:\n{done.stderr}")
        folders.append(folder)
    names = [result_names(folder) for folder in folders]
    if names[0] != names[1] or not names[0]:
        sys.exit(f"not the same files: {sorted(names[0] ^ names[1])[:5]}")
    shares = [equal_share(folders[0] / name, folders[1] / name) for name in sorted(names[0])]
    if min(shares) < SAME:
        sys.exit(f"only {min(shares):.6f} of a file's values are equal; the times would compare two different things")
    return min(shares), len(shares)


def result_names(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith((".json", ".jsonl"))}


def equal_share(one: Path, other: Path) -> float:
    """Of a map's grey levels those count as equal that lie one level apart."""
    a, b = values_of(one), values_of(other)
    if a.shape != b.shape:
        return 0.0
    allowed = 1 if one.suffix == ".png" and len(np.unique(a)) > 40 else 0
    return float(np.mean(np.abs(a.astype(np.int64) - b) <= allowed))


def values_of(path: Path) -> np.ndarray:
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    import cv2

    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


# ----------------------------------------------------------------------------------------------------- main


def inputs_of(options: argparse.Namespace) -> list[Path]:
    spec = open_package(options.package).manifest.input
    if spec.kind == "image":
        from segship.inference.images import find_inputs

        return find_inputs(options.inputs)
    from segship.inference.volume_cases import group_cases

    cases = group_cases(options.inputs, spec)
    if any(len(case.files) > 1 for case in cases):
        sys.exit("give a package of one file a case: this program counts an input as a file")
    return [case.files[0] for case in cases]


def verdicts(both: Sequence[Contestant]) -> list[tuple[str, bool]]:
    python, cpp = both
    ratio = median(cpp.all) / median(python.all)
    return [
        (f"C++ over all inputs takes {ratio:.2f} of Python's time (target ≤ {SLOWER:g})", ratio <= SLOWER),
        (
            f"C++ starts and does the first input in {median(cpp.start):.3f} s (target ≤ {START_SECONDS:g} s)",
            median(cpp.start) <= START_SECONDS,
        ),
        (
            f"C++ peaks at {median(cpp.peak):.0f} MiB, Python at {median(python.peak):.0f} MiB (target: at most Python's)",
            median(cpp.peak) <= median(python.peak),
        ),
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("inputs", nargs="+", help="files or folders; volumes of one file a case")
    parser.add_argument("--binary", type=Path, help="the C++ runner [as `segship verify --runner cpp` finds it]")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=processor().cores, help="of both [all cores]")
    parser.add_argument("--streams", type=int, default=1, help="of both [1]")
    parser.add_argument("--batch", type=int, default=1, help="pictures per inference, of both [1]")
    parser.add_argument("--no-tta", action="store_true", help="volumes: without mirroring")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each [5]")
    parser.add_argument("--memory-repeat", type=int, default=3, help="runs that memory is read of [3]")
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    parser.add_argument("--markdown", type=Path, help="the table as Markdown")
    options = parser.parse_args(arguments)
    options.runner = find_runner(options.binary)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    inputs = inputs_of(options)
    before = environment()
    with tempfile.TemporaryDirectory(prefix="segship-cpp-") as folder:
        scratch = Path(folder)
        both = contestants(options, scratch)
        share, files = compare(both, inputs, scratch)
        print(f"{files} files of both compared: at least {share:.6f} of the values equal", flush=True)
        measure(both, inputs, options, scratch)
    rows, judged = [contestant.row(len(inputs)) for contestant in both], verdicts(both)
    print(columns(HEADER, rows))
    for text, met in judged:
        print(f"{'reached' if met else 'MISSED '}  {text}")
    after = environment()
    print(
        f"{before['processor']}, {options.threads} threads, {options.streams} streams, {options.precision}, "
        f"{len(inputs)} inputs, medians of {options.repeat} alternating turns, load {before['load_average']} before, "
        f"{after['load_average']} after"
    )
    if options.markdown:
        lines = ["| " + " | ".join(cells) + " |" for cells in [HEADER, ["---"] * len(HEADER), *rows]]
        write_bytes(options.markdown, ("\n".join(lines) + "\n").encode())
    if options.output:
        write_bytes(options.output, dump_json(record(options, both, inputs, share, judged, before, after)))
    return 3 if options.require and not all(met for _, met in judged) else 0


def record(
    options: argparse.Namespace,
    both: Sequence[Contestant],
    inputs: Sequence[Path],
    share: float,
    judged: Sequence[tuple[str, bool]],
    before: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any]:
    version = subprocess.run([str(options.runner), "--version"], capture_output=True, text=True, check=False)
    return {
        "package": {"name": options.package.name, "sha256": open_package(options.package).sha256},
        "inputs": len(inputs),
        "settings": {
            "precision": options.precision, "threads": options.threads, "streams": options.streams,
            "batch": options.batch, "mirroring": not options.no_tta, "repeat": options.repeat,
        },
        "equal_share": share,
        "runs": {c.name: {"start_s": c.start, "all_s": c.all, "peak_mib": c.peak} for c in both},
        "targets": [{"text": text, "met": met} for text, met in judged],
        "runner": version.stdout.strip(),
        "environment": before | {"load_average_after": after["load_average"]},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
