"""UNet++ from files to mask files: segship beside PyTorch and ONNX Runtime, one run, one table.

    python benchmarks/unetplusplus.py net.segship models/dsb2018_96 stage1_train.zip --split ascend -o unetplusplus.json

Every contestant reads the same image files and writes a 0/255 PNG of each image's own size. First the masks are
compared with those of PyTorch fp32, then the times are taken in alternating turns. The PyTorch and ONNX Runtime
contestants are the loops that people write: read with OpenCV, resize and normalise in numpy, run a batch, sigmoid,
threshold, write. "tuned" adds what a careful user adds: inference_mode, channels_last, and bf16 beside it.

Targets (files → masks at batch 8): int8 at least 5× the better PyTorch fp32 row and 3× ONNX Runtime, with an IoU drop
of at most 0.002; fp32 on our fastest engine at least as fast as both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segship.datasets import Dataset, open_dataset
from segship.engines.processor import processor
from segship.families import load_source
from segship.inference.batch import predict_files
from segship.inference.outputs import PredictOptions
from segship.inference.predictor import Predictor
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.tables import columns
from segship.measure.timing import Call, Plan, Timing, measure
from segship.metrics import nuclei
from segship.package import Package, dump_json, open_package

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * np.float32(255)
SCALE = 1 / (np.array([0.229, 0.224, 0.225], np.float32) * np.float32(255))
BATCHES = (1, 4, 8, 16, 32, 64)
TARGET_BATCH = 8
TARGETS = (
    ("int8", "PyTorch fp32", 5.0),
    ("int8", "ONNX Runtime", 3.0),
    ("fp32", "PyTorch fp32", 1.0),
    ("fp32", "ONNX Runtime", 1.0),
)
MAX_DROP = 0.002
SAME_PIXELS = 0.999
"""share of equal mask pixels above which two fp32 rows are one network"""
Run = Callable[[Sequence[Path], Path, int], None]
"""(image files, output folder, batch): writes one PNG mask an image"""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    name: str
    group: str
    """which rows a target compares: 'PyTorch fp32', 'ONNX Runtime', 'fp32', 'int8', or '' """
    run: Run


# --------------------------------------------------------------------------------------- what people write


def batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def read(path: Path, size_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """As upstream's dataset.py with albumentations: BGR, resize, normalise, divide by 255 once more; CHW float32."""
    image = cv2.imread(str(path))
    x = cv2.resize(image, size_hw[::-1]).astype(np.float32)
    x = (x - MEAN) * SCALE
    return (x / 255).transpose(2, 0, 1), image.shape[:2]


def write(path: Path, logits: np.ndarray, original_hw: tuple[int, int]) -> None:
    probability = 1 / (1 + np.exp(-logits))
    probability = cv2.resize(probability, original_hw[::-1])
    cv2.imwrite(str(path), (probability > 0.5).astype(np.uint8) * 255)


def plain_loop(network: Callable[[np.ndarray], np.ndarray], size_hw: tuple[int, int]) -> Run:
    """The loop around any network: one batch after the other, nothing overlaps."""

    def run(files: Sequence[Path], output: Path, batch: int) -> None:
        for part in batches(files, batch):
            inputs, sizes = zip(*(read(path, size_hw) for path in part), strict=True)
            logits = network(np.stack(inputs))
            for path, one, size in zip(part, logits, sizes, strict=True):
                write(output / f"{path.stem}.png", one[0], size)

    return run


def torch_contestants(checkpoint: Path, options: dict[str, Any], threads: int, compiled: bool) -> list[Contestant]:
    import torch

    torch.set_num_threads(threads)
    source = load_source(checkpoint, options=options)
    size = (source.input_example_shape[-2], source.input_example_shape[-1])
    network = source.network.eval()

    def answer(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _first(network(torch.from_numpy(x))).numpy()

    def tuned(kind: Any, model: Any) -> Callable[[np.ndarray], np.ndarray]:
        def call(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is torch.bfloat16):
                return _first(model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last))).float().numpy()

        return call

    import copy

    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    found = [
        Contestant(name="PyTorch eager fp32", group="PyTorch fp32", run=plain_loop(answer, size)),
        Contestant(name="PyTorch tuned fp32", group="PyTorch fp32", run=plain_loop(tuned(torch.float32, last), size)),
        Contestant(name="PyTorch tuned bf16", group="", run=plain_loop(tuned(torch.bfloat16, last), size)),
    ]
    if compiled:
        model = torch.compile(last, dynamic=False)
        found.append(
            Contestant(
                name="PyTorch compiled fp32", group="PyTorch fp32", run=plain_loop(tuned(torch.float32, model), size)
            )
        )
    return found


def _first(output: Any) -> Any:
    return output[-1] if isinstance(output, (list, tuple)) else output


def onnxruntime_contestant(graph: Path, size_hw: tuple[int, int], threads: int) -> Contestant:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    network = lambda x: session.run(None, {name: x})[0]  # noqa: E731
    return Contestant(name="ONNX Runtime fp32", group="ONNX Runtime", run=plain_loop(network, size_hw))


# --------------------------------------------------------------------------------------------------- ours


def our_contestants(stack: ExitStack, package: Package, threads: int) -> list[Contestant]:
    found = []
    for variant in package.manifest.variants:
        for engine in ("openvino", "onnxruntime") if variant.precision == "fp32" else ("openvino",):
            predictor = stack.enter_context(
                Predictor.open(package, precision=variant.precision, engine=engine, threads=threads)
            )
            group = variant.precision if variant.precision in ("fp32", "int8") else ""
            found.append(Contestant(name=f"segship {engine} {variant.precision}", group=group, run=_our_run(predictor)))
    return found


def _our_run(predictor: Predictor) -> Run:
    def run(files: Sequence[Path], output: Path, batch: int) -> None:
        predict_files(predictor, files, output, PredictOptions(batch=batch, resume=False))

    return run


# ------------------------------------------------------------------------------------- comparing and timing


def compare(
    contestants: Sequence[Contestant], files: Sequence[Path], dataset: Dataset, scratch: Path
) -> list[dict[str, Any]]:
    """Masks of every contestant against the first one's, and against the ground truth (iou-full)."""
    truth = {case.id: case.target() for case in dataset.cases}
    rows, first = [], {}
    for contestant in contestants:
        output = scratch / contestant.name.replace(" ", "-")
        output.mkdir()
        contestant.run(files, output, TARGET_BATCH)
        masks = {path.stem: cv2.imread(str(output / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) > 127 for path in files}
        first = first or masks
        equal = [float((masks[name] == first[name]).mean()) for name in masks]
        scores = [nuclei.iou(masks[name][None], truth[name]) for name in masks]
        rows.append({"name": contestant.name, "equal": float(np.mean(equal)), "iou-full": float(np.mean(scores))})
    return rows


def require_one_network(compared: Sequence[dict[str, Any]]) -> None:
    """Stop where an fp32 row disagrees: then the package was not made from this checkpoint, or not with these options."""
    other = [row["name"] for row in compared if row["name"].endswith("fp32") and row["equal"] < SAME_PIXELS]
    if other:
        sys.exit(
            f"{', '.join(other)}: not the masks of {compared[0]['name']}; is the package made from this checkpoint?"
        )


def time_all(
    contestants: Sequence[Contestant], files: Sequence[Path], sizes: Sequence[int], repeat: int, scratch: Path
) -> dict[str, dict[int, Timing]]:
    found: dict[str, dict[int, Timing]] = {contestant.name: {} for contestant in contestants}
    for size in sizes:
        calls = {c.name: Call(run=_timed(c.run, files, size, scratch), items=len(files)) for c in contestants}

        def tell(done: int, total: int, name: str, size: int = size) -> None:
            print(f"\rbatch {size}: {done}/{total} {name:<32}", end="", file=sys.stderr, flush=True)

        for name, timing in measure(calls, Plan(warmup=1, iterations=1, repeat=repeat), tell).items():
            found[name][size] = timing
    print(file=sys.stderr)
    return found


def _timed(run: Run, files: Sequence[Path], size: int, scratch: Path) -> Callable[[], None]:
    def call() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            run(files, Path(output), size)

    return call


def verdicts(
    contestants: Sequence[Contestant], timings: dict[str, dict[int, Timing]], package: Package, batch: int
) -> list[tuple[str, bool]]:
    """The targets, each with what was reached: the fastest of ours against the fastest of theirs."""

    def fastest(group: str) -> tuple[float, str] | None:
        rates = [(timings[c.name][batch].rate, c.name) for c in contestants if c.group == group]
        return max(rates, default=None)

    found = []
    for ours, theirs, wanted in TARGETS:
        mine, other = fastest(ours), fastest(theirs)
        if mine is not None and other is not None:
            ratio = mine[0] / other[0]
            text = f"{mine[1]} against {other[1]}, batch {batch}: {ratio:.2f}× (target {wanted:g}×)"
            found.append((text, ratio >= wanted))
    variant = package.manifest.variant("int8")
    if variant is not None and variant.drop is not None:
        drop = variant.drop
        text = f"int8 {drop.metric} drop {drop.drop:+.4f} over {drop.cases} cases, as recorded (target ≤ {MAX_DROP})"
        found.append((text, drop.drop <= MAX_DROP))
    return found


# --------------------------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the .segship of the checkpoint")
    parser.add_argument("checkpoint", type=Path, help="its model.pth or run folder, for PyTorch")
    parser.add_argument("data", help="DSB2018: stage1_train.zip, its folder, or a prepared folder")
    parser.add_argument("--split", default=None, help="default, ascend or a file of ids")
    parser.add_argument("--images", type=int, default=64, help="how many images a turn [64]")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--threads", type=int, default=processor().cores, help="of every contestant [all cores]")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--upsample", choices=("bilinear", "nearest"), default="bilinear")
    parser.add_argument("--compile", action="store_true", help="a row with torch.compile too (needs a C++ compiler)")
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    sizes = [int(size) for size in options.batches.split(",")]
    package = open_package(options.package)
    dataset = open_dataset(options.data, split=options.split)
    dataset = dataset.select(dataset.ids[: options.images])
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segship-unetplusplus-")))
        files = lay_out(dataset, scratch / "images")
        contestants = torch_contestants(
            options.checkpoint, {"upsample": options.upsample}, options.threads, options.compile
        )
        size = package.manifest.network.size or (96, 96)
        contestants.append(onnxruntime_contestant(package.graph_path("fp32"), (size[0], size[1]), options.threads))
        contestants += our_contestants(stack, package, options.threads)
        compared = compare(contestants, files, dataset, scratch)
        print(
            columns(
                ["files → masks", "pixels equal", "iou-full"],
                [[r["name"], f"{r['equal']:.6f}", f"{r['iou-full']:.4f}"] for r in compared],
            )
        )
        require_one_network(compared)
        timings = time_all(contestants, files, sizes, options.repeat, scratch)
    batch = TARGET_BATCH if TARGET_BATCH in sizes else sizes[-1]
    judged = verdicts(contestants, timings, package, batch)
    show(timings, sizes, judged, len(files), options.threads)
    if options.output:
        told = {name: {str(b): t.rate for b, t in by.items()} for name, by in timings.items()}
        data = {"images_per_second": told, "compared": compared, "targets": judged, "environment": environment()}
        write_bytes(options.output, dump_json(data | {"threads": options.threads, "images": len(files)}))
    return 3 if options.require and not all(met for _, met in judged) else 0


def lay_out(dataset: Dataset, folder: Path) -> list[Path]:
    """The images as files, so that nobody reads from an archive."""
    folder.mkdir()
    files = []
    for case in dataset.cases:
        path = folder / f"{case.id}.png"
        path.write_bytes(case.read_bytes())
        files.append(path)
    return files


def show(
    timings: dict[str, dict[int, Timing]],
    sizes: Sequence[int],
    judged: Sequence[tuple[str, bool]],
    images: int,
    threads: int,
) -> None:
    header = ["images/s, files → masks", *(f"batch {size}" for size in sizes)]
    rows = [[name, *(f"{by[size].rate:.1f}" for size in sizes)] for name, by in timings.items()]
    about = environment()
    print("\n" + columns(header, rows))
    print(
        f"\n{about['processor']}, {threads} threads, load {about['load_average']}; {images} images a turn, alternating"
    )
    print(json.dumps(about["versions"]))
    for text, met in judged:
        print(f"{'reached' if met else 'MISSED '}  {text}")


if __name__ == "__main__":
    sys.exit(main())
