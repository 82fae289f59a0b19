"""Where a case's time and memory go, and what batching and overlap bring: segship alone, on a package that predicts volumes.

    python benchmarks/nnunet_chain.py NET.segship CASE... --precision int8 [--no-tta] -o runs/nnunet_chain.json

    stages     seconds of each stage of one case, and the process's peak memory while it runs
    batching   seconds of the network stage with 1, 2, 4 and 8 windows (or mirrorings of one) at once
    overlap    seconds for all cases one after another, and with reading, network and writing overlapped; the label
               files are compared first

--cases N repeats the given cases until there are N. A full-size network takes minutes a case: name a small crop.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import nnunet_parts as parts
import numpy as np

from segship.inference.predictor import Predictor
from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import CaseItem, VolumePredictor
from segship.inference.writers import write_bytes

T = TypeVar("T")


def stages(predictor: VolumePredictor, case: Path, tiles: TileOptions) -> list[dict[str, Any]]:
    """Each stage's seconds and memory in MiB: held before it, and the most while it ran."""
    rows: list[dict[str, Any]] = []

    def stage(name: str, work: Callable[[], T]) -> T:
        before = parts.forget_peak()
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
        rows.append({"stage": name, "seconds": seconds, "before_mib": before, "peak_mib": parts.own_peak_mib()})
        return found

    volume = stage("read", lambda: predictor.read(case))
    prepared = stage("prepare", lambda: prepare_volume(volume, predictor.manifest))
    stage("open the network", lambda: predictor.members.sessions(1))
    stage("one window", lambda: predictor.run_one_window(tiles))
    scores = stage("network", lambda: predictor.scores(prepared, tiles))
    found = predictor.predicted(volume, prepared, scores)
    stage("resample, decide", lambda: found.labels)
    content = stage("encode", found.encode)
    with tempfile.TemporaryDirectory() as folder:
        stage("write", lambda: write_bytes(Path(folder) / "labels", content))
    return rows


def batching(predictor: VolumePredictor, case: Path, tiles: TileOptions, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The network stage with so many windows at once; scores are compared with those of one at a time."""
    prepared = predictor.prepare(case)
    rows = []
    first: np.ndarray | None = None
    for size in sizes:
        options = TileOptions(mirror=tiles.mirror, batch=size)
        predictor.run_one_window(options)
        parts.forget_peak()
        start, spent = time.perf_counter(), time.process_time()
        scores = predictor.scores(prepared, options)
        seconds, spent = time.perf_counter() - start, time.process_time() - spent
        first = scores if first is None else first
        apart = float(np.abs(scores - first).max())
        rows.append(
            {
                "batch": size,
                "seconds": seconds,
                "processor_seconds": spent,
                "peak_mib": parts.own_peak_mib(),
                "scores_apart": apart,
            }
        )
    return rows


def overlap(predictor: VolumePredictor, cases: Sequence[Path], tiles: TileOptions) -> dict[str, Any]:
    out: dict[str, Any] = {"cases": len(cases)}
    files: dict[bool, list[bytes]] = {}
    for side_by_side in (False, True):
        with tempfile.TemporaryDirectory() as folder:

            def finish(item: CaseItem, place: str = folder) -> bytes:
                if item.error is not None:
                    raise item.error
                content: bytes = predictor.case_result(item).encode()  # type: ignore[union-attr]
                write_bytes(Path(place) / str(item.number), content)
                return content

            parts.forget_peak()
            start = time.perf_counter()
            files[side_by_side] = list(predictor.run_cases(cases, finish, tiles=tiles, overlap=side_by_side))
            name = "overlapped" if side_by_side else "one after another"
            out[name] = {"seconds": time.perf_counter() - start, "peak_mib": parts.own_peak_mib()}
    if files[False] != files[True]:
        sys.exit("overlapped runs wrote other labels")
    return out


def report(found: dict[str, Any]) -> str:
    texts = []
    if "stages" in found:
        rows = [
            [r["stage"], f"{r['seconds']:.3f}", f"{r['before_mib']:.0f}", f"{r['peak_mib']:.0f}"]
            for r in found["stages"]
        ]
        texts.append(parts.markdown(["stage of one case", "s", "MiB before", "MiB at most"], rows))
    if "batching" in found:
        base = found["batching"][0]["seconds"]
        rows = [
            [str(r["batch"]), f"{r['seconds']:.2f}", f"{base / r['seconds']:.2f}×", f"{r['processor_seconds']:.2f}",
             f"{r['peak_mib']:.0f}", f"{r['scores_apart']:.1e}"]
            for r in found["batching"]
        ]  # fmt: skip
        texts.append(
            parts.markdown(["windows at once", "network s", "gain", "processor s", "peak MiB", "scores apart"], rows)
        )
    if "overlap" in found:
        both = found["overlap"]
        base = both["one after another"]["seconds"]
        rows = [
            [
                name,
                f"{both[name]['seconds']:.2f}",
                f"{base / both[name]['seconds']:.2f}×",
                f"{both[name]['peak_mib']:.0f}",
            ]
            for name in ("one after another", "overlapped")
        ]
        texts.append(parts.markdown([f"{both['cases']} cases, files → label files", "s", "gain", "peak MiB"], rows))
    return "\n\n".join(texts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("case", nargs="+", type=Path, help="files, one a case")
    parser.add_argument("--parts", default="stages,batching,overlap")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--no-tta", action="store_true")
    parser.add_argument("-o", "--output", type=Path, help="all numbers as JSON")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    tiles = TileOptions(mirror=not options.no_tta)
    found: dict[str, Any] = {"precision": options.precision, "engine": options.engine}
    with Predictor.open(
        options.package, engine=options.engine, precision=options.precision, threads=options.threads
    ) as predictor:
        if not isinstance(predictor, VolumePredictor):
            sys.exit(f"{options.package} takes pictures")
        if "stages" in options.parts:
            found["stages"] = stages(predictor, options.case[0], tiles)
        if "batching" in options.parts:
            found["batching"] = batching(
                predictor, options.case[0], tiles, [int(n) for n in options.batches.split(",")]
            )
        if "overlap" in options.parts:
            cases = list(itertools.islice(itertools.cycle(options.case), options.cases))
            found["overlap"] = overlap(predictor, cases, tiles)
    from segship.measure.environment import environment

    found["about"] = environment() | {"threads": options.threads}
    text = report(found)
    print(text)
    if options.output:
        write_bytes(options.output, (json.dumps(found, indent=1) + "\n").encode())
    if options.markdown:
        write_bytes(options.markdown, f"{text}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
