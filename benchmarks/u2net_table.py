"""Model × precision × batch, in the shape of the table that the vendor port publishes, and beside it.

    python benchmarks/u2net_table.py PHOTOS -o u2net_table.json --markdown u2net_table.md

Images per second of the bare network at 320 × 320 on prepared photos, batch 1, 4 and 8, for U²-NetP and U²-Net in
fp32, fp16, bf16, int16 and int8; what the convolutions really computed in stands beside each row. The published rows
are those of Cambricon/magicmind_cloud, buildin/cv/segmentation/u2net_pytorch (U²-Net on two accelerator cards): the
shape of the two tables is alike, the machines are not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import u2net_parts as parts

from segship.engines import get_engine
from segship.engines.processor import processor
from segship.inference.writers import write_bytes
from segship.measure.benchmark import benchmark
from segship.measure.rows import BenchmarkResult, executed_text
from segship.measure.tables import columns
from segship.package import dump_json

PRECISIONS = ("fp32", "fp16", "bf16", "int16", "int8")
BATCHES = (1, 4, 8)
PUBLISHED = (
    ("MLU370 S4", "fp32", (34.5137, 54.8677, 58.3338)),
    ("MLU370 S4", "fp16", (64.6213, 121.846, 141.88)),
    ("MLU370 S4", "qint16_mixed_float32", (53.3801, 86.3547, 96.3341)),
    ("MLU370 X4", "fp32", (37.7032, 68.5801, 77.643)),
    ("MLU370 X4", "fp16", (69.3775, 141.702, 174.42)),
    ("MLU370 X4", "qint16_mixed_float32", (56.8866, 97.7327, 111.602)),
)


def rows_of(net: str, result: BenchmarkResult) -> list[list[str]]:
    """One line a setting: rates, rates against fp32 of the same engine, what executed, how far the answer moved."""
    fp32 = next(row for row in result.rows if row.setting.precision == "fp32").network
    lines = []
    for row in result.rows:
        rates = [row.network[batch].rate for batch in BATCHES]
        gain = rates[0] / fp32[BATCHES[0]].rate
        lines.append(
            [
                net,
                f"{row.setting.engine} {row.setting.precision}",
                *(f"{rate:.2f}" for rate in rates),
                f"{gain:.2f}×",
                executed_text(row.executed),
                f"{row.max_abs:.1e}",
            ]
        )
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos; they also calibrate int8 and int16")
    parts.add_networks(parser)
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--engines", default="openvino,onnxruntime")
    parser.add_argument("--threads", type=int, default=processor().cores)
    parser.add_argument("--iterations", type=int, default=3, help="calls a turn [3]")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each setting [3]")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    parser.add_argument("--markdown", type=Path, help="both tables as Markdown")
    return parser.parse_args(arguments)


def one_net(net: str, options: argparse.Namespace) -> list[BenchmarkResult]:
    """One result an engine; their settings alternate within it, which is as many as fit into memory at batch 8."""
    photos = parts.find_photos(options.photos)
    checkpoint = getattr(options, net) or parts.seeded_checkpoint(net, photos, options.work)
    precisions = ["fp32", *(p for p in options.precisions.split(",") if p != "fp32")]
    made = parts.package(checkpoint, "upstream", precisions[1:], options.photos, options.work)

    def tell(done: int, total: int, name: str) -> None:
        print(f"\r{net}: {done}/{total} {name:<48}", end="", file=sys.stderr, flush=True)

    found = []
    for engine in options.engines.split(","):
        found.append(
            benchmark(
                made,
                photos,
                precision=[p for p in precisions if p in get_engine(engine).PRECISIONS],
                engine=engine,
                batch=BATCHES,
                threads=(options.threads,),
                iterations=options.iterations,
                warmup=1,
                repeat=options.repeat,
                files=False,
                progress=tell,
            )
        )
        print(file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    by_net = {net: one_net(net, options) for net in options.nets.split(",")}
    results = [result for found in by_net.values() for result in found]
    header = ["network", "engine, precision", *(f"batch {b}" for b in BATCHES), "of fp32, batch 1", "executed", "max Δ"]
    rows = [line for net, found in by_net.items() for result in found for line in rows_of(net, result)]
    theirs = [["u2net", f"{card}, {kind}", *(f"{rate:.1f}" for rate in rates)] for card, kind, rates in PUBLISHED]
    about = results[-1].environment
    print(columns(["images/s, network", *header[1:]], rows))
    print("\n" + columns(["published", "card, precision", *header[2:5]], theirs))
    notes = list(dict.fromkeys(note for result in results for note in result.notes))
    print("\n".join([f"\n{about['processor']}, {options.threads} threads, load {about['load_average']}", *notes]))
    if options.markdown:
        text = "\n\n".join(
            [parts.markdown(header, rows), parts.markdown(["published", "card, precision", *header[2:5]], theirs)]
        )
        write_bytes(options.markdown, f"{text}\n".encode())
    if options.output:
        data: dict[str, Any] = {net: [result.as_dict() for result in found] for net, found in by_net.items()}
        write_bytes(options.output, dump_json(data | {"published": PUBLISHED}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
