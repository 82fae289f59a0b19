"""Memory over 1,000 pictures: segship beside rembg, as a command over a folder and as a server. Curves and a figure.

    make interop
    python benchmarks/u2net_memory.py PHOTOS -o memory.csv --figure docs/u2net_memory.svg

The pictures are made of the photos: crops of unlike sizes (200 to 800 pixels a side), each size seeded, so that every
buffer has another length, as with real uploads. Both sides run the same seeded U²-NetP in fp32 and write masks. What is
read is the resident memory of the process, twice a second, beside the number of pictures that are done.

folder   one command over all pictures. A line fitted over the last three quarters says what 1,000 pictures add.
server   POST /api/remove; the pictures come in equal parts from 1, then 4, then 16 clients at once. The line is
         fitted within the last part, so it tells growth over time from growth with the number of clients.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import u2net_parts as parts

from segship.engines.processor import processor
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.tables import columns

EVERY_SECONDS = 0.5
START_SECONDS = 120
SETTLED = 0.25
"""share of the pictures that belongs to starting up and is not part of the fitted line"""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Resident memory of one process: (pictures done, seconds, MiB) at each look."""

    way: str
    name: str
    points: list[tuple[int, float, float]] = field(default_factory=list)
    parts: list[tuple[str, int]] = field(default_factory=list)
    """name of each part and how many pictures were done at its end; the line is fitted within the last one"""

    def settled(self) -> np.ndarray:
        points = np.array(self.points)
        first = self.parts[-2][1] if len(self.parts) > 1 else 0
        return points[points[:, 0] >= first + SETTLED * (points[:, 0].max() - first)]

    def at_end_of_parts(self) -> str:
        """MiB as each part ended: "690 → 1100 → 3300"."""
        reached = [max(point for point in self.points if point[0] <= end)[2] for _, end in self.parts]
        return " → ".join(f"{memory:.0f}" for memory in reached)

    def growth(self) -> float:
        """MiB per 1,000 pictures, least squares over the settled part."""
        points = self.settled()
        if len(points) < 3 or np.ptp(points[:, 0]) == 0:
            return float("nan")
        return float(np.polyfit(points[:, 0], points[:, 2], 1)[0] * 1000)

    def row(self) -> list[str]:
        peak = max(point[2] for point in self.points)
        done, seconds, _ = self.points[-1]
        numbers = [str(done), f"{seconds:.0f}", self.at_end_of_parts(), f"{peak:.0f}", f"{self.growth():+.0f}"]
        return [self.way, self.name, *numbers]


HEADER = ["way", "program", "pictures", "s", "MiB at the end of each part", "peak", "MiB more per 1,000"]


def resident(process: int) -> float:
    """MiB of a process and its children."""
    total = 0.0
    for task in [process, *children(process)]:
        try:
            status = Path(f"/proc/{task}/status").read_text()
        except OSError:
            continue
        total += sum(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def children(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            direct = [int(number) for number in path.read_text().split()]
        except OSError:
            continue
        found += direct + [below for number in direct for below in children(number)]
    return found


@contextmanager
def watched(curve: Curve, process: int, done: Callable[[], int], total: int) -> Iterator[None]:
    """Note the process's memory until the block ends, or all pictures are done (it may be gone by then)."""
    over = threading.Event()
    start = time.monotonic()

    def look() -> None:
        memory, count = resident(process), done()
        if memory and count < total:
            curve.points.append((count, time.monotonic() - start, memory))
            print(f"\r{curve.way} {curve.name:<10} {curve.points[-1][0]:5d} {memory:8.0f} MiB", end="", file=sys.stderr)

    def keep_looking() -> None:
        while not over.wait(EVERY_SECONDS):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print(file=sys.stderr)


# ------------------------------------------------------------------------------------------------- pictures


def make_pictures(photos: Path, folder: Path, count: int) -> list[Path]:
    """JPEG crops of the photos, sides 200 to 800, seeded."""
    from PIL import Image

    opened = [Image.open(path).convert("RGB") for path in parts.find_photos(photos)]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    made = []
    for number in range(count):
        photo = opened[number % len(opened)]
        width, height = (min(side, int(rng.integers(200, 801))) for side in photo.size)
        left, top = (
            int(rng.integers(0, whole - side + 1)) for whole, side in zip(photo.size, (width, height), strict=True)
        )
        path = folder / f"{number:05d}.jpg"
        photo.crop((left, top, left + width, top + height)).save(path, quality=90)
        made.append(path)
    return made


# --------------------------------------------------------------------------------------------------- ways


def over_folder(name: str, command: Sequence[str], pictures: Path, output: Path, settings: dict[str, str]) -> Curve:
    """A command that takes a folder and writes a PNG for each of its pictures."""
    curve = Curve(way="folder", name=name)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    process = subprocess.Popen(
        [*command, str(pictures), *(["-o"] if name == "segship" else []), str(output)],
        env=settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted = sum(1 for _ in pictures.iterdir())
    with watched(curve, process.pid, lambda: sum(1 for _ in output.glob("*.png")), wanted):
        process.wait()
    written = sum(1 for _ in output.glob("*.png"))
    curve.parts.append(("all", wanted))
    if process.returncode or written != wanted:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {written} of {wanted} masks")
    return curve


def over_http(
    name: str, command: Sequence[str], url: str, fields: dict[str, str], pictures: Sequence[Path],
    clients: Sequence[int], settings: dict[str, str],
) -> Curve:  # fmt: skip
    """A server that answers POST /api/remove; so many requests as ``clients`` says are under way in each part."""
    curve = Curve(way="server", name=name)
    process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished = 0
    lock = threading.Lock()

    def one(picture: Path) -> None:
        nonlocal finished
        answer = post(url, picture.read_bytes(), fields)
        if not answer.startswith(b"\x89PNG"):
            raise RuntimeError(f"{name} answered {answer[:100]!r}")
        with lock:
            finished += 1

    try:
        wait_for(url, pictures[0], fields, process)
        with watched(curve, process.pid, lambda: finished, len(pictures)):
            for number, count in enumerate(clients):
                first, last = (len(pictures) * n // len(clients) for n in (number, number + 1))
                with ThreadPoolExecutor(count) as executor:
                    for _ in executor.map(one, pictures[first:last]):
                        pass
                curve.parts.append((f"{count} clients", finished))
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    return curve


def post(url: str, picture: bytes, fields: dict[str, str]) -> bytes:
    """A multipart form with the picture as ``file``; returns the answer's body."""
    boundary = "segship-benchmark"
    body = io.BytesIO()
    for key, value in fields.items():
        body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode())
    body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="picture.jpg"\r\n'.encode())
    body.write(b"Content-Type: image/jpeg\r\n\r\n" + picture + f"\r\n--{boundary}--\r\n".encode())
    request = urllib.request.Request(url, body.getvalue())
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    with urllib.request.urlopen(request, timeout=300) as answer:
        return bytes(answer.read())


def wait_for(url: str, picture: Path, fields: dict[str, str], process: subprocess.Popen[bytes]) -> None:
    """Until a first picture is answered: then the model is loaded as well."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            post(url, picture.read_bytes(), fields)
            return
        except urllib.error.HTTPError as error:
            sys.exit(f"{url} answers {error.code}: {error.read()[:300]!r}")
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the server of {url} did not start (exit code {process.poll()})")
            time.sleep(0.3)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ----------------------------------------------------------------------------------------------------- main


def figure(curves: Sequence[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = list(dict.fromkeys(curve.way for curve in curves))
    drawn, axes = pyplot.subplots(1, len(ways), figsize=(5 * len(ways), 3.6), squeeze=False, sharey=True)
    for axis, way in zip(axes[0], ways, strict=True):
        for curve in (c for c in curves if c.way == way):
            done, _, memory = zip(*curve.points, strict=True)
            axis.plot(done, memory, label=curve.name)
        for told, end in curves[-1].parts if len(curves[-1].parts) > 1 and way == curves[-1].way else []:
            axis.axvline(end, color="grey", lw=0.6, ls=":")
            axis.annotate(told, (end, 0), xytext=(-4, 4), textcoords="offset points", ha="right", fontsize=8)
        axis.set(title=way, xlabel="pictures done", ylim=(0, None))
        axis.legend(loc="lower right", fontsize=8)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("resident memory, MiB")
    drawn.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, metadata={"Date": None})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos (.jpg, .jpeg, .png)")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--ways", default="folder,server")
    parser.add_argument("--clients", default="1,4,16", help="requests at once in each part, of the servers [1,4,16]")
    parser.add_argument("--precision", default="fp32", help="of segship [fp32]")
    parser.add_argument("--batch", default="1", help="of segship over the folder [1]")
    parser.add_argument("--work", type=Path, default=Path("runs/u2net_benchmark"), help="weights and packages are kept")
    parser.add_argument("--threads", type=int, default=processor().cores)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/u2net_memory.csv"), help="the curves as CSV")
    parser.add_argument("--figure", type=Path, help="the curves as .svg or .png")
    parser.add_argument("--markdown", type=Path, help="the table as Markdown")
    return parser.parse_args(arguments)


def curves_of(options: argparse.Namespace, scratch: Path) -> list[Curve]:
    pictures = make_pictures(options.photos, scratch / "pictures", options.pictures)
    models = (options.work / "models").resolve()
    checkpoint = parts.seeded_checkpoint("u2netp", parts.find_photos(options.photos), options.work)
    extras = json.dumps({"model_path": str(parts.rembg_file("u2netp", checkpoint, models))})
    wanted = [] if options.precision == "fp32" else [options.precision]
    package = parts.package(checkpoint, "rembg", wanted, options.photos, options.work)
    rembg = str(parts.INTEROP / "rembg" / "bin" / "rembg")
    if not Path(rembg).exists():
        sys.exit(f"{rembg} is missing; type: make interop")
    settings = os.environ | {"U2NET_HOME": str(models), "OMP_NUM_THREADS": str(options.threads)}
    own = [sys.executable, "-m", "segship"]
    same = ["--precision", options.precision, "--threads", str(options.threads)]
    found = []
    if "folder" in options.ways:
        command = [rembg, "p", "-m", "u2net_custom", "-om", "-x", extras]
        found.append(over_folder("rembg", command, scratch / "pictures", scratch / "rembg", settings))
        command = [*own, "predict", str(package), *same, "--batch", options.batch, "-q"]
        found.append(over_folder("segship", command, scratch / "pictures", scratch / "segship", dict(os.environ)))
    if "server" in options.ways:
        clients = [int(number) for number in options.clients.split(",")]
        port = free_port()
        query = urllib.parse.urlencode({"extras": extras})
        url = f"http://127.0.0.1:{port}/api/remove?{query}"
        command = [rembg, "s", "-h", "127.0.0.1", "-p", str(port), "--no-ui", "-l", "error"]
        fields = {"model": "u2net_custom", "om": "true"}
        found.append(over_http("rembg", command, url, fields, pictures, clients, settings))
        port = free_port()
        command = [*own, "serve", str(package), *same, "--port", str(port), "-q"]
        url = f"http://127.0.0.1:{port}/api/remove"
        fields = {"om": "true"}
        found.append(over_http("segship", command, url, fields, pictures, clients, dict(os.environ)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="segship-memory-") as folder:
        curves = curves_of(options, Path(folder))
    about = environment()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["way", "program", "pictures", "seconds", "resident_mib"])
    for curve in curves:
        for done, seconds, memory in curve.points:
            writer.writerow([curve.way, curve.name, done, f"{seconds:.1f}", f"{memory:.1f}"])
    write_bytes(options.output, text.getvalue().encode())
    rows = [curve.row() for curve in curves]
    print(columns(HEADER, rows))
    print(f"{about['processor']}, {options.threads} threads; curves in {options.output}")
    if options.figure:
        figure(curves, options.figure)
    if options.markdown:
        write_bytes(options.markdown, f"{parts.markdown(HEADER, rows)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
