"""Many clients at one server for minutes: is an answer lost or mixed up, does memory grow, how fast is it?

    python benchmarks/serve_load.py net.segship [--clients 64] [--seconds 120] [--pictures 128] [--size 480x640]
                                    [--precision int8] [--json out.json] [--serve --streams 2 …]

Every client sends pictures of its own, no two alike, one after the other; each answer is compared byte for byte with
what `segship predict` wrote for that picture before. The server is a process of its own, on the same machine: its
speed here is shared with the clients. Memory is the server's own count, read twice a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import httpx
import numpy as np


@dataclass
class Tally:
    done: int = 0
    wrong: int = 0
    busy: int = 0
    """answers 429 and 503, asked again after a moment"""
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, MiB resident)"""


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): a few bright blobs on a dark ground; another picture for each number."""
    random = np.random.default_rng(number)
    image = np.full((height, width, 3), 14, np.uint8)
    for _ in range(14):
        centre = (int(random.integers(0, width)), int(random.integers(0, height)))
        axes = (int(random.integers(width // 40, width // 12)), int(random.integers(height // 40, height // 12)))
        tone = int(random.integers(70, 230))
        cv2.ellipse(image, centre, axes, float(random.integers(0, 180)), 0, 360, (tone, tone, tone), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def expected_masks(package: Path, folder: Path, count: int, size: tuple[int, int], precision: str) -> list:
    """(picture, mask) pairs as files' bytes, the masks by `segship predict`."""
    (folder / "in").mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / "in" / f"{number:04d}.png"), picture(number, *size))
    command = [sys.executable, "-m", "segship", "predict", str(package), str(folder / "in"), "-o", str(folder / "out")]
    subprocess.run([*command, "--precision", precision, "--batch", "1", "-q"], check=True)
    names = sorted(path.name for path in (folder / "in").iterdir())
    pairs = [((folder / "in" / name).read_bytes(), (folder / "out" / name).read_bytes()) for name in names]
    if len({mask for _, mask in pairs}) != count:
        sys.exit("two pictures have the same mask, so a mix-up would not show; use another package or --size")
    return pairs


async def client(http: httpx.AsyncClient, pairs: list, until: float, tally: Tally) -> None:
    turn = 0
    while time.monotonic() < until:
        data, mask = pairs[turn % len(pairs)]
        began = time.monotonic()
        try:
            answer = await http.post("/v1/predict", content=data, headers={"content-type": "image/png"})
        except httpx.TransportError as error:
            tally.lost.append(repr(error))
            continue
        if answer.status_code in (429, 503):
            tally.busy += 1
            await asyncio.sleep(0.2)
            continue
        tally.seconds.append(time.monotonic() - began)
        tally.done += 1
        tally.wrong += answer.content != mask
        turn += 1


async def watch(address: str, began: float, tally: Tally) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        while True:
            said = (await http.get("/metrics")).text
            found = re.search(r"^process_resident_memory_bytes (\S+)", said, re.MULTILINE)
            if found:
                tally.memory.append((time.monotonic() - began, float(found.group(1)) / 2**20))
            await asyncio.sleep(0.5)


async def load(address: str, pairs: list, clients: int, seconds: float) -> Tally:
    tally = Tally()
    began = time.monotonic()
    watching = asyncio.create_task(watch(address, began, tally))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        each = [pairs[number::clients] for number in range(clients)]
        await asyncio.gather(*(client(http, mine, began + seconds, tally) for mine in each))
    watching.cancel()
    return tally


def summary(tally: Tally, seconds: float) -> dict:
    times = np.array(tally.seconds)
    memory = np.array(tally.memory).reshape(-1, 2)
    result = {
        "answers": tally.done,
        "mixed_up": tally.wrong,
        "lost": len(tally.lost),
        "asked_again": tally.busy,
        "answers_per_second": round(tally.done / seconds, 1),
        "seconds_p50": round(float(np.percentile(times, 50)), 3),
        "seconds_p99": round(float(np.percentile(times, 99)), 3),
    }
    if len(memory):
        warm = memory[memory[:, 0] > seconds / 6]
        half = len(warm) // 2
        result["memory_mib"] = {
            "start": round(memory[0, 1], 1),
            "first_half_mean": round(float(warm[:half, 1].mean()), 1),
            "second_half_mean": round(float(warm[half:, 1].mean()), 1),
            "largest": round(float(memory[:, 1].max()), 1),
            "slope_per_minute": round(float(np.polyfit(warm[:, 0] / 60, warm[:, 1], 1)[0]), 2),
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--size", default="480x640", help="height x width of the pictures")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="the rest: options of segship serve")
    given = parser.parse_args()
    if given.pictures < given.clients:
        parser.error("each client needs at least one picture of its own")
    height, width = (int(part) for part in given.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        pairs = expected_masks(given.package, Path(folder), given.pictures, (height, width), given.precision)
    command = [sys.executable, "-m", "segship", "serve", str(given.package), "--port", "0"]
    command += ["--precision", given.precision, *given.serve]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = server.stderr.readline()
    address = re.search(r"http://\S+", line)
    if address is None:
        sys.exit(line + server.stderr.read())
    try:
        tally = asyncio.run(load(address.group(), pairs, given.clients, given.seconds))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(120)
    found = summary(tally, given.seconds) | {
        "clients": given.clients,
        "seconds": given.seconds,
        "picture": given.size,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_before_the_end": round(os.getloadavg()[0], 1),
        "exit_code": code,
    }
    text = json.dumps(found, indent=2)
    print(text)
    for reason in tally.lost[:5]:
        print(reason, file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps(found | {"memory_curve_mib": tally.memory}, indent=2) + "\n")
    return 0 if not (tally.wrong or tally.lost or code) and tally.done else 1


if __name__ == "__main__":
    sys.exit(main())
