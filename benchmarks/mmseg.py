"""mmseg's networks from a frame to a label file: segship beside mmseg's own `inference_model`, one run, one table.

    make .interop/mmseg/.ready
    python benchmarks/mmseg.py FRAME.png PHOTOS --cases unet-half,unet --prepare
    python benchmarks/mmseg.py FRAME.png PHOTOS --cases unet-half -o runs/mmseg.json --markdown runs/mmseg.md
    python benchmarks/mmseg.py FRAME.png PHOTOS --cases unet      -o runs/mmseg.json --markdown runs/mmseg.md

Every contestant has the same seeded weights and the same config, reads the same PNG and writes a PNG of train ids of the
frame's own size, batch 1. mmseg runs as a worker process in an environment of its own: as its users run it, and tuned
(inference_mode, channels_last). First all label maps are compared with mmseg's, then memory is read from a process each,
then times are taken in alternating turns. JSON and Markdown keep the cases of former runs, so that each case can be a
command of its own (2 to 8 minutes on two cores at rest, `--list` says which); `--prepare` makes weights and packages before
(2 to 4 minutes a net and mode).

int8 is calibrated on crops of PHOTOS, not on frames of a street: with seeded weights only its speed and memory are told
here, its label agreement is printed and proves nothing about a trained network.

Targets, PNG → label PNG, against `inference_model`: fp32 at least 2×, int8 at least 5×, peak memory at most half.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmseg_parts as parts
import numpy as np
import u2net_parts

from segship.engines.processor import processor
from segship.inference.batch import predict_files
from segship.inference.outputs import PredictOptions
from segship.inference.predictor import Predictor
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.tables import columns
from segship.measure.timing import Call, Plan, measure
from segship.package import dump_json

TARGETS = (("fp32", 2.0), ("int8", 5.0))
MEMORY_TARGET = 0.5
SAME_LABELS = 0.999
"""share of equal labels below which two fp32 rows are not one network; ties of seeded logits lie far below"""
USERS = "mmseg inference_model, fp32"
Run = Callable[[Path, Path], None]
"""(frame, output folder): writes <frame's stem>.png"""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    name: str
    run: Run
    peak: Callable[[Path, Path], float] | None = None
    """MiB of a process of its own that does the same once"""
    precision: str = ""
    """of a row of ours; empty for mmseg's"""


def prepared(case: parts.Case, options: argparse.Namespace, frame: Path) -> tuple[Path, Path]:
    """(weights, package with every precision), made once."""
    weights = parts.checkpoint(case, frame, options.work, options.threads)
    calibration = parts.calibration_folder(options.photos, options.work, options.calibration)
    return weights, parts.package(case, weights, precisions(options)[1:], calibration, options.work)


def precisions(options: argparse.Namespace) -> list[str]:
    return ["fp32", "bf16", "int8"] if options.bf16 else ["fp32", "int8"]


def contestants(stack: ExitStack, case: parts.Case, options: argparse.Namespace, frame: Path) -> list[Contestant]:
    config = parts.config_file(case, options.work)
    weights, package = prepared(case, options, frame)
    worker = stack.enter_context(parts.Mmseg(options.threads))
    worker("open", name="users", config=str(config), checkpoint=str(weights))
    worker("open", name="tuned", config=str(config), checkpoint=str(weights), tuned=True)

    def asked(do: str, name: str, **more: Any) -> Run:
        def run(file: Path, output: Path) -> None:
            worker(do, name=name, files=[str(file)], output=str(output), **more)

        return run

    def users_peak(file: Path, output: Path) -> float:
        return parts.mmseg_peak(config, weights, file, output, options.threads)

    found = [Contestant(name=USERS, run=asked("run", "users"), peak=users_peak)]
    found.append(Contestant(name="mmseg tuned, fp32", run=asked("tuned", "tuned")))
    if options.bf16:
        found.append(Contestant(name="mmseg tuned, bf16", run=asked("tuned", "tuned", bf16=True)))
    rows = [("openvino", precision) for precision in precisions(options)]
    for engine, precision in [*rows[:1], ("onnxruntime", "fp32"), *rows[1:]]:
        predictor = stack.enter_context(
            Predictor.open(package, precision=precision, engine=engine, threads=options.threads)
        )
        found.append(
            Contestant(
                name=f"segship {engine}, {precision}",
                run=our_run(predictor),
                peak=our_peak(package, precision, engine, options.threads),
                precision=precision,
            )
        )
    return found


def our_run(predictor: Predictor) -> Run:
    def run(file: Path, output: Path) -> None:
        summary = predict_files(predictor, [file], output, PredictOptions(resume=False))
        if summary.failed:
            sys.exit(f"segship: {summary.failed[0]}")

    return run


def our_peak(package: Path, precision: str, engine: str, threads: int) -> Callable[[Path, Path], float]:
    return lambda file, output: parts.segship_peak(package, precision, engine, file, output, threads)


# ----------------------------------------------------------------------------------------- comparing, timing


def compare(rows: Sequence[Contestant], frame: Path, scratch: Path) -> dict[str, float]:
    """Share of labels equal to those of mmseg as its users run it; stops where an fp32 row is another network's."""
    found: dict[str, float] = {}
    expected = None
    for number, row in enumerate(rows):
        output = scratch / f"compared{number}"
        output.mkdir()
        row.run(frame, output)
        labels = cv2.imread(str(output / f"{frame.stem}.png"), cv2.IMREAD_UNCHANGED)
        if labels is None:
            sys.exit(f"{row.name} wrote no label map")
        expected = labels if expected is None else expected
        if labels.shape != expected.shape:
            sys.exit(f"{row.name}: label map {labels.shape}, mmseg's {expected.shape}")
        found[row.name] = float(np.mean(labels == expected))
        if row.name.endswith("fp32") and found[row.name] < SAME_LABELS:
            sys.exit(f"{row.name}: {found[row.name]:.4%} of the labels are mmseg's; these are not the same networks")
    assert expected is not None
    found["classes"] = float(len(np.unique(expected)))
    return found


def peaks(rows: Sequence[Contestant], frame: Path, scratch: Path) -> dict[str, float]:
    found = {}
    for number, row in enumerate(rows):
        if row.peak is not None:
            output = scratch / f"peak{number}"
            output.mkdir()
            tell(f"memory of {row.name}")
            found[row.name] = row.peak(frame, output)
    return found


def times(rows: Sequence[Contestant], frame: Path, scratch: Path, repeat: int) -> dict[str, list[float]]:
    """Seconds of each timed frame; the comparison before was everyone's warm-up."""

    def call(run: Run) -> Callable[[], None]:
        def once() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as output:
                run(frame, Path(output))

        return once

    plan = Plan(warmup=0, iterations=1, repeat=repeat)
    calls = {row.name: Call(run=call(row.run), items=1) for row in rows}
    found = measure(calls, plan, lambda done, total, name: tell(f"{done}/{total} {name}"))
    return {name: [value / 1000 for value in timing.latencies_ms] for name, timing in found.items()}


def tell(text: str) -> None:
    print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- results


def frame_of(case: parts.Case, options: argparse.Namespace) -> tuple[tuple[int, int], Path]:
    size = (case.size[0] // options.shrink, case.size[1] // options.shrink)
    return size, parts.frame_file(options.frame, size, options.work)


def one_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    case = parts.CASES[name]
    size, frame = frame_of(case, options)
    about = environment()
    with tempfile.TemporaryDirectory(prefix="segship-mmseg-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        rows = contestants(stack, case, options, frame)
        agreement = compare(rows, frame, scratch)
        memory = {} if options.no_memory else peaks(rows, frame, scratch)
        seconds = times(rows, frame, scratch, options.repeat or case.repeat)
        print(file=sys.stderr)
    return {
        "net": case.net, "mode": case.mode, "size": list(size), "threads": options.threads, "seconds": seconds,
        "agreement": agreement, "peak_mib": memory, "environment": about, "load_after": environment()["load_average"],
        "precision": {row.name: row.precision for row in rows}, "calibration_crops": options.calibration,
    }  # fmt: skip


def verdicts(name: str, case: dict[str, Any]) -> list[tuple[str, bool]]:
    """Our fastest row of a precision, and its memory, against mmseg as its users run it."""
    middle = {row: float(np.median(values)) for row, values in case["seconds"].items()}
    found = []
    for precision, wanted in TARGETS:
        ours = [row for row, kind in case["precision"].items() if kind == precision]
        best = min(ours, key=lambda row: middle[row])
        times = middle[USERS] / middle[best]
        found.append((f"{name}: {best}: {times:.2f}× as fast as inference_model (target {wanted:g}×)", times >= wanted))
        if best in case["peak_mib"]:
            share = case["peak_mib"][best] / case["peak_mib"][USERS]
            text = f"{name}: {best}: {share:.2f} of inference_model's peak memory (target {MEMORY_TARGET:g})"
            found.append((text, share <= MEMORY_TARGET))
    return found


def table(name: str, case: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    height, width = case["size"]
    header = [f"{name}: {case['net']}, {width}×{height}, {case['mode']}", "s", "times", "peak MiB", "labels as mmseg's"]
    base = float(np.median(case["seconds"][USERS]))
    rows = []
    for row, values in case["seconds"].items():
        middle = float(np.median(values))
        memory = f"{case['peak_mib'][row]:.0f}" if row in case["peak_mib"] else "–"
        rows.append([row, f"{middle:.2f}", f"{base / middle:.2f}×", memory, f"{case['agreement'][row]:.4%}"])
    return header, rows


def markdown(found: dict[str, Any]) -> str:
    texts = []
    for name, case in found["cases"].items():
        texts.append(u2net_parts.markdown(*table(name, case)))
        texts.append("\n".join(f"- {'reached' if met else 'missed'}: {text}" for text, met in verdicts(name, case)))
    about = [case["environment"]["processor"] for case in found["cases"].values()]
    return "\n\n".join([*texts, f"Measured on {', '.join(dict.fromkeys(about))}; medians of alternating turns."]) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frame", type=Path, help="a street frame; it is brought to each case's size")
    parser.add_argument("photos", type=Path, help="folder of photos whose crops calibrate int8")
    parser.add_argument("--cases", default="unet-half", help=f"of {', '.join(parts.CASES)} [unet-half]")
    parser.add_argument("--list", action="store_true", help="the cases and about how long each takes")
    parser.add_argument("--work", type=Path, default=Path("runs/mmseg_benchmark"), help="weights and packages are kept")
    parser.add_argument("--prepare", action="store_true", help="only make weights and packages of the cases")
    parser.add_argument("--repeat", type=int, help="timed frames of each contestant [each case's own, 1 to 3]")
    parser.add_argument("--calibration", type=int, default=16, help="crops for int8 [16]")
    parser.add_argument("--threads", type=int, default=processor().cores, help="of every contestant [all cores]")
    bf16 = bool(processor().computes("bf16"))
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=bf16, help="rows in bfloat16 [where native]"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--shrink", type=int, default=1, help="divide the frame's sides, to try the program out [1]")
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON; cases of former runs are kept")
    parser.add_argument("--markdown", type=Path, help="the tables as Markdown")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases.split(",") if name not in parts.CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]}; there are {', '.join(parts.CASES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.list:
        for name, case in parts.CASES.items():
            print(f"{name:<14} {case.net} {case.size[1]}×{case.size[0]} {case.mode}, about {case.minutes} minutes")
        return 0
    if options.prepare:
        for case in (parts.CASES[name] for name in options.cases.split(",")):
            prepared(case, options, frame_of(case, options)[1])
        return 0
    judged: list[tuple[str, bool]] = []
    found: dict[str, Any] = {"cases": {}}
    for name in options.cases.split(","):
        print(f"{name}: about {parts.CASES[name].minutes} minutes on two cores at rest", file=sys.stderr)
        found["cases"][name] = case = one_case(name, options)
        print(columns(*table(name, case)))
        judged += verdicts(name, case)
        found = parts.merged(options.output, found)
        if options.output:
            write_bytes(options.output, dump_json(found))
        if options.markdown:
            write_bytes(options.markdown, markdown(found).encode())
    for text, met in judged:
        print(f"{'reached' if met else 'MISSED '}  {text}")
    return 3 if options.require and not all(met for _, met in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
