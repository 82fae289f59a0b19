"""Fit U²-NetP for a short while on the nuclei of DSB2018 as a salient-object task: a stand-in, nothing to ship.

    python benchmarks/fit_u2netp.py --data stage1_train.zip -o runs/u2netp_standin
    python benchmarks/fit_u2netp.py --data stage1_train.zip --sod runs/nuclei_sod    # Image/ + Mask/ of each part

Quantisation needs weights that mean something: a random network is no basis for an accuracy check, and the released
weights may not be at hand. The loss is that of xuebinqin/U-2-Net (u2net_train.py): the sum of seven binary
cross-entropies on the seven sigmoid maps, Adam with rate 1e-3. What differs from there is said here: nuclei in place
of DUTS-TR, small crops, flips along both axes, a rate that falls to zero over the last third, bf16 convolutions.
The input is made exactly as the `upstream` recipe makes it (320 × 320, anti-aliased, divided by the maximum).

Seeded, and resumable: a killed run goes on where its last saved step was and gives the same numbers.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from segship.datasets import Case, Dataset, open_dataset
from segship.inference.resize import resize
from segship.inference.writers import write_bytes, write_png
from segship.networks.u2net import U2NETP
from segship.package import dump_json
from segship.training.precision import Float32Conv2d

SIZE = 320
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MODEL, STATE, LOG, RESULT = "u2netp_standin.pth", "state.pt", "log.csv", "result.json"
SAVE_EVERY = 25
FALLING = 1 / 3
"""share of the steps over which the learning rate falls to zero"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the numbers of a run."""

    split: str
    steps: int
    batch: int
    crop: int
    lr: float
    seed: int
    precision: str


# ------------------------------------------------------------------------------------------------------ data


def picture(case: Case) -> np.ndarray:
    """(H, W, 3) uint8 RGB; the constant alpha plane of these files is dropped."""
    stored = np.asarray(case.decoded())
    if stored.ndim == 2:
        return np.repeat(stored[..., None], 3, axis=2)
    return np.ascontiguousarray(stored[..., 2::-1])


def union(case: Case) -> np.ndarray:
    """(H, W) uint8: 255 where any nucleus is."""
    return np.where(np.any(case.target(), axis=0), np.uint8(255), np.uint8(0))


def network_input(rgb: np.ndarray) -> np.ndarray:
    """(3, 320, 320) float32, as the `upstream` recipe prepares a picture."""
    small = resize(rgb, (SIZE, SIZE), "skimage:linear-antialias")  # 0..1, float64
    small = small / max(float(small.max()), 1e-6)
    return np.ascontiguousarray(((small - MEAN) / STD).transpose(2, 0, 1), np.float32)


def target(case: Case) -> np.ndarray:
    """(1, 320, 320) float32 of 0 and 1: the union of all nuclei, nearest neighbours as upstream resizes labels."""
    return cv2.resize(union(case) // 255, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST).astype(np.float32)[None]


def sample(case: Case, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One augmented training pair: a random crop, flipped along each axis with probability one half."""
    top, left = rng.integers(0, SIZE - crop + 1, 2)
    flips = rng.random(2) < 0.5
    box = (slice(None), slice(top, top + crop), slice(left, left + crop))
    pair = []
    for array in (network_input(picture(case)), target(case)):
        cut = array[box]
        cut = cut[:, ::-1] if flips[0] else cut
        pair.append(cut[:, :, ::-1] if flips[1] else cut)
    return pair[0], pair[1]


def training_batch(cases: Sequence[Case], step: int, options: Options) -> tuple[Tensor, Tensor]:
    """The batch of a step, a pure function of the seed and the step: epochs are permutations laid end to end."""
    pairs = []
    for position in range(step * options.batch, (step + 1) * options.batch):
        epoch, place = divmod(position, len(cases))
        order = np.random.default_rng((options.seed, 0, epoch)).permutation(len(cases))
        rng = np.random.default_rng((options.seed, 1, position))
        pairs.append(sample(cases[order[place]], options.crop, rng))
    images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    return images.contiguous(memory_format=torch.channels_last), masks


def ahead(cases: Sequence[Case], first: int, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches from step ``first`` on, each made while the step before it runs."""
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(training_batch, cases, first, options)
        for step in range(first + 1, options.steps + 1):
            ready = waiting.result()
            if step < options.steps:
                waiting = executor.submit(training_batch, cases, step, options)
            yield ready


def lay_out(dataset: Dataset, folder: Path) -> None:
    """``Image/<id>.png`` and ``Mask/<id>.png`` (0/255): the form in which salient-object sets are passed around."""
    for case in tqdm(dataset.cases, desc=str(folder), unit="image"):
        write_png(folder / "Image" / f"{case.id}.png", picture(case))
        write_png(folder / "Mask" / f"{case.id}.png", union(case))


# --------------------------------------------------------------------------------------------------- fitting


def build(seed: int) -> U2NETP:
    """The network with torch's own initialisation; the maps are made in float32 whatever the precision."""
    torch.manual_seed(seed)
    network = U2NETP()
    for name, module in network.named_modules():
        # a sigmoid in bf16 rounds to 1 and its cross-entropy to nothing; these layers cost little
        if isinstance(module, nn.Conv2d) and name.startswith(("side", "outconv")):
            module.__class__ = Float32Conv2d
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def rate(step: int, options: Options) -> float:
    left = (options.steps - step) / max(1.0, options.steps * FALLING)
    return options.lr * min(1.0, left)


def fit_step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], bf16: bool) -> float:
    images, masks = batch
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        maps = network(images)
    loss = torch.stack([functional.binary_cross_entropy(found.float(), masks) for found in maps]).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss)


def mae(network: nn.Module, cases: Sequence[Case], told: str, bf16: bool) -> float:
    """Mean over ``cases`` of |map − mask| at 320 × 320, the map stretched to 0..1 as every user of this net does."""
    network.eval()
    found = []
    for case in tqdm(cases, desc=told, unit="image", leave=False):
        x = torch.from_numpy(network_input(picture(case)))[None].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            answer = network(x)[0][0].float().numpy()
        low, high = answer.min(), answer.max()
        answer = (answer - low) / (high - low) if high > low else np.zeros_like(answer)
        found.append(float(np.abs(answer - target(case)).mean()))
    return float(np.mean(found))


def fit(options: Options, arguments: argparse.Namespace) -> int:
    out: Path = arguments.output
    training = open_dataset(arguments.data, split=options.split, part="training")
    validation = open_dataset(arguments.data, split=options.split)
    some = validation.cases[:: max(1, len(validation.cases) // arguments.validate_images)]
    out.mkdir(parents=True, exist_ok=True)
    network = build(options.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
    first, rows = resume(out / STATE, network, optimizer, options)
    bf16 = options.precision == "bf16"
    start, losses, step = time.monotonic(), [], first
    bar = tqdm(ahead(training.cases, first, options), total=options.steps, initial=first, unit="step", desc="stand-in")
    for batch in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options)
        losses.append(fit_step(network, optimizer, batch, bf16))
        step += 1
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        over = arguments.minutes is not None and time.monotonic() - start > 60 * arguments.minutes
        if step % arguments.validate_every == 0 or step == options.steps or over:
            row = {"step": step, "lr": rate(step - 1, options), "loss": float(np.mean(losses))}
            rows.append(row | {"images": len(some), "mae": mae(network, some, "validation", bf16)})
            bar.write(", ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()))
            losses.clear()
        if step % SAVE_EVERY == 0 or step == options.steps or over:
            save(out, network, optimizer, options, step, rows)
        if over:
            break
    bar.close()
    value = mae(network, validation.cases, "all validation images", bf16=False)
    result = asdict(options) | {"steps_done": step, "mae": value, "images": len(validation.cases)}
    result |= {"note": "a stand-in for accuracy checks, not released weights", "data": training.name}
    write_bytes(out / RESULT, dump_json(result | {"minutes_of_this_start": (time.monotonic() - start) / 60}))
    print(f"stand-in: MAE {value:.4f} on {len(validation.cases)} images (320 × 320, fp32) after {step} steps")
    if step < options.steps:
        print(f"stopped after {arguments.minutes} minutes at step {step} of {options.steps}; run again to go on")
    return 0


def resume(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, options: Options
) -> tuple[int, list[dict[str, Any]]]:
    """(steps done, log so far); a state of other options is refused."""
    if not path.is_file():
        return 0, []
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["options"] != asdict(options):
        sys.exit(f"{path} was started with other options ({state['options']}); give the same ones or another -o")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on after step {state['step']}")
    return state["step"], state["rows"]


def save(
    out: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: Options,
    step: int,
    rows: list[dict[str, Any]],
) -> None:
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    state = {"options": asdict(options), "step": step, "rows": rows, "network": weights}
    for name, content in ((STATE, state | {"optimizer": optimizer.state_dict()}), (MODEL, weights)):
        torch.save(content, out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)
    if rows:
        with (out / f"{LOG}.tmp").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (out / f"{LOG}.tmp").replace(out / LOG)


# ------------------------------------------------------------------------------------------------------ main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="DSB2018: stage1_train.zip or its folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/u2netp_standin"))
    parser.add_argument("--split", default="ascend", help="fit on its training part, validate on the other [ascend]")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, help="stop (and save) after this long; run again to go on")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=160, help="side of the random crop of 320; upstream: 288 [160]")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--validate-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--validate-images", type=int, default=12, help="of the validations on the way [12]")
    parser.add_argument("--sod", type=Path, metavar="FOLDER", help="only lay both parts out as Image/ + Mask/ there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parse(arguments)
    torch.set_num_threads(parsed.threads)
    cv2.setNumThreads(0)
    if parsed.sod is not None:
        for part in ("validation", "training"):
            lay_out(open_dataset(parsed.data, split=parsed.split, part=part), parsed.sod / part)  # type: ignore[arg-type]
        return 0
    if not 32 <= parsed.crop <= SIZE:
        sys.exit(f"--crop lies between 32 and {SIZE}")
    names = ("split", "steps", "batch", "crop", "lr", "seed", "precision")
    options = Options(**{name: getattr(parsed, name) for name in names})
    print(json.dumps(asdict(options)))
    return fit(options, parsed)


if __name__ == "__main__":
    sys.exit(main())
