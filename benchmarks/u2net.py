"""U²-NetP and U²-Net from photos to mask files: segship beside rembg and PyTorch, one run, one table.

    make interop
    python benchmarks/u2net.py PHOTOS -o u2net.json --markdown u2net.md

Every contestant runs the same seeded weights on the same files and writes a PNG mask of each photo's own size. rembg
and PyTorch run as worker processes in environments of their own and are asked for whole folders; first all masks are
compared, then the times are taken in alternating turns. rembg is its `p -om` loop with a u2net_custom session on an
ONNX file with seven outputs; PyTorch is upstream's u2net_test.py ("as users run it") and a tuned loop around the same
pixels. segship runs the recipe of the one it stands beside: `rembg` or `upstream`.

Targets, files → mask files: int8 at least 3× rembg, fp32 at least 1.3× rembg.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import u2net_parts as parts

from segship.engines.processor import processor
from segship.inference.batch import predict_files
from segship.inference.outputs import PredictOptions
from segship.inference.predictor import Predictor
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.tables import columns
from segship.measure.timing import Call, Plan, Timing, measure
from segship.package import dump_json

TARGETS = (("int8", 3.0), ("fp32", 1.3))
SAME_LEVELS = 1.0
"""mean difference in grey levels below which two fp32 rows are one network and one chain"""
PRECISIONS = ("fp32", "bf16", "int8")
Run = Callable[[Sequence[Path], Path], None]
"""(photo files, output folder): writes one PNG mask a photo"""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    name: str
    recipe: str
    """whose masks it must give: 'rembg' or 'upstream'"""
    run: Run
    ours: str = ""
    """the precision of a row of ours; empty for the others"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    threads: int
    batch: int
    streams: int


# ---------------------------------------------------------------------------------------------- contestants


def peers(stack: ExitStack, net: str, checkpoint: Path, options: argparse.Namespace) -> tuple[list[Contestant], Any]:
    """rembg and PyTorch with their versions; each a worker process that lives as long as ``stack``."""
    models = options.work / "models"
    graph = parts.rembg_file(net, checkpoint, models)
    rembg = stack.enter_context(
        parts.Worker("rembg", "rembg_worker.py", options.threads, U2NET_HOME=str(models.resolve()))
    )
    torch = stack.enter_context(parts.Worker("pytorch", "pytorch_worker.py", options.threads))
    rembg("open", name=net, model_path=str(graph.resolve()))
    torch("open", name=net, architecture=parts.ARCHITECTURES[net], checkpoint=str(checkpoint))

    def asked(worker: parts.Worker, do: str, **more: Any) -> Run:
        return lambda files, output: void(worker(do, name=net, files=[*map(str, files)], output=str(output), **more))

    found = [
        Contestant(name="rembg session (ONNX Runtime fp32)", recipe="rembg", run=asked(rembg, "run")),
        Contestant(name="PyTorch as users run it, fp32", recipe="upstream", run=asked(torch, "users")),
        Contestant(name="PyTorch tuned fp32", recipe="upstream", run=asked(torch, "tuned")),
        Contestant(name="PyTorch tuned bf16", recipe="upstream", run=asked(torch, "tuned", bf16=True)),
    ]
    if options.compile:
        torch("compile", name=net)
        run = asked(torch, "tuned", kind="compiled")
        found.append(Contestant(name="PyTorch compiled fp32", recipe="upstream", run=run))
    return found, {"rembg": rembg("about"), "pytorch": torch("about")}


def void(_: object) -> None:
    return None


def ours(stack: ExitStack, package: Path, recipe: str, settings: Settings) -> list[Contestant]:
    found = []
    for precision in PRECISIONS:
        for engine in ("openvino", "onnxruntime") if precision == "fp32" else ("openvino",):
            predictor = stack.enter_context(
                Predictor.open(
                    package,
                    precision=precision,
                    engine=engine,
                    threads=settings.threads,
                    streams=settings.streams,
                    batch=settings.batch,
                )
            )
            name = f"segship {engine} {precision}, recipe {recipe}"
            found.append(Contestant(name=name, recipe=recipe, run=our_run(predictor), ours=precision))
    return found


def our_run(predictor: Predictor) -> Run:
    def run(files: Sequence[Path], output: Path) -> None:
        summary = predict_files(predictor, files, output, PredictOptions(resume=False))
        if summary.failed:
            sys.exit(f"segship: {summary.failed[0]}")

    return run


# ----------------------------------------------------------------------------------------- comparing, timing


def compare(contestants: Sequence[Contestant], files: Sequence[Path], scratch: Path) -> list[dict[str, Any]]:
    """Every contestant's masks against those of the first one with its recipe, in grey levels of 0..255."""
    first: dict[str, list[np.ndarray]] = {}
    rows = []
    for contestant in contestants:
        output = scratch / "compared"
        output.mkdir()
        contestant.run(files, output)
        masks = [cv2.imread(str(output / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) for path in files]
        if any(mask is None for mask in masks):
            sys.exit(f"{contestant.name} did not write a mask for every photo")
        expected = first.setdefault(contestant.recipe, [np.asarray(mask) for mask in masks])
        differences = [np.abs(a.astype(int) - b.astype(int)) for a, b in zip(expected, masks, strict=True)]  # type: ignore[union-attr]
        mean = float(np.mean([d.mean() for d in differences]))
        rows.append({"name": contestant.name, "mean": mean, "max": int(max(d.max() for d in differences))})
        shutil.rmtree(output)
        if contestant.name.endswith("fp32") and mean > SAME_LEVELS:
            sys.exit(
                f"{contestant.name}: masks differ by {mean:.2f} levels on average; these are not the same networks"
            )
    return rows


def time_all(
    contestants: Sequence[Contestant], files: Sequence[Path], plan: Plan, scratch: Path, net: str
) -> dict[str, Timing]:
    def call(run: Run) -> Callable[[], None]:
        def once() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as output:
                run(files, Path(output))

        return once

    def tell(done: int, total: int, name: str) -> None:
        print(f"\r{net}: {done}/{total} {name:<48}", end="", file=sys.stderr, flush=True)

    calls = {c.name: Call(run=call(c.run), items=len(files)) for c in contestants}
    found = measure(calls, plan, tell)
    print(file=sys.stderr)
    return found


def verdicts(contestants: Sequence[Contestant], timings: dict[str, Timing], net: str) -> list[tuple[str, bool]]:
    """The targets: our fastest row of a precision with rembg's recipe against rembg."""
    theirs = timings[contestants[0].name].rate
    found = []
    for precision, wanted in TARGETS:
        same = [c for c in contestants if c.ours == precision and c.recipe == "rembg"]
        rate, name = max((timings[c.name].rate, c.name) for c in same)
        text = f"{net}: {name} against {contestants[0].name}: {rate / theirs:.2f}× (target {wanted:g}×)"
        found.append((text, rate / theirs >= wanted))
    return found


# ----------------------------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos (.jpg, .jpeg, .png)")
    parts.add_networks(parser)
    parser.add_argument("--times", type=int, default=2, help="how often a turn takes the photos [2]")
    parser.add_argument("--batch", type=int, default=1, help="of segship [1]")
    parser.add_argument("--streams", type=int, default=1, help="of segship [1]")
    parser.add_argument("--threads", type=int, default=processor().cores, help="of every contestant [all cores]")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each contestant [5]")
    parser.add_argument("--compile", action="store_true", help="a row with torch.compile too (needs a C++ compiler)")
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    parser.add_argument("--markdown", type=Path, help="the tables as Markdown")
    return parser.parse_args(arguments)


def one_net(net: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    files = parts.lay_photos(options.photos, scratch / net / "photos", options.times)
    compared_files = files[: len(files) // options.times]
    checkpoint = getattr(options, net) or parts.seeded_checkpoint(net, compared_files, options.work)
    settings = Settings(threads=options.threads, batch=options.batch, streams=options.streams)
    with ExitStack() as stack:
        contestants, versions = peers(stack, net, checkpoint, options)
        for recipe in ("rembg", "upstream"):
            made = parts.package(checkpoint, recipe, PRECISIONS[1:], options.photos, options.work)
            contestants += ours(stack, made, recipe, settings)
        compared = compare(contestants, compared_files, scratch)
        print(
            columns(
                [f"{net}: masks against the recipe's own", "mean levels", "max"],
                [[row["name"], f"{row['mean']:.3f}", str(row["max"])] for row in compared],
            )
        )
        plan = Plan(warmup=1, iterations=1, repeat=options.repeat)
        timings = time_all(contestants, files, plan, scratch, net)
    base = timings[contestants[0].name].rate
    rows = [[name, f"{t.rate:.2f}", f"{t.rate / base:.2f}×", spread(t)] for name, t in timings.items()]
    header = [f"{net}: photos → mask files", "photos/s", "of rembg", "slowest … fastest turn"]
    judged = verdicts(contestants, timings, net)
    print("\n" + columns(header, rows))
    for text, met in judged:
        print(f"{'reached' if met else 'MISSED '}  {text}", flush=True)
    table = parts.markdown(
        [*header[:3], "masks: mean (max) levels apart"],
        [[*row[:3], f"{c['mean']:.3f} ({c['max']})"] for row, c in zip(rows, compared, strict=True)],
    )
    return {
        "photos_per_second": {name: list(t.rates_per_second) for name, t in timings.items()},
        "compared": compared,
        "targets": judged,
        "files_a_turn": len(files),
        "peers": versions,
        "markdown": table,
    }


def spread(timing: Timing) -> str:
    return f"{min(timing.rates_per_second):.2f} … {max(timing.rates_per_second):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    about = environment()
    with tempfile.TemporaryDirectory(prefix="segship-u2net-") as folder:
        found = {net: one_net(net, options, Path(folder)) for net in options.nets.split(",")}
    judged = [(text, bool(met)) for net in found.values() for text, met in net["targets"]]
    about["load_average_before"], about["load_average"] = about["load_average"], environment()["load_average"]
    print(f"\n{about['processor']}, {options.threads} threads, load {about['load_average_before']} before, "
          f"{about['load_average']} after; turns alternate")  # fmt: skip
    if options.markdown:
        targets = parts.markdown(
            ["target, files → mask files", ""], [[t, "reached" if met else "missed"] for t, met in judged]
        )
        text = "\n\n".join([*(net["markdown"] for net in found.values()), targets])
        write_bytes(options.markdown, f"{text}\n".encode())
    if options.output:
        data = {"nets": found, "environment": about, "threads": options.threads, "repeat": options.repeat}
        write_bytes(options.output, dump_json(data | {"batch": options.batch, "streams": options.streams}))
    return 3 if options.require and not all(met for _, met in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
