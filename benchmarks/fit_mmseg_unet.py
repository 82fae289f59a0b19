"""Fit a small FCN-UNet for a short while on the nuclei of DSB2018 as two classes: a stand-in, nothing to ship.

    python benchmarks/fit_mmseg_unet.py --data stage1_train.zip -o runs/mmseg_standin
    segship export runs/mmseg_standin/net.pth --config runs/mmseg_standin/net.py --shape dynamic -o runs/mmseg_standin/net.segship
    segship compile runs/mmseg_standin/net.segship --precision int8 --calibrate runs/mmseg_standin/calibration \\
        --max-drop 0.003 --validate runs/mmseg_standin/data --layout mmseg

What int8 costs in mIoU can only be measured on weights that mean something, and released weights may not be at hand. The
network, its losses (cross-entropy of the decode head plus 0.4 of the auxiliary head's) and its optimiser (SGD 0.01, momentum
0.9, weight decay 5e-4, polynomial decay of power 0.9) are those of mmseg's unet-s5-d16_fcn configs. What differs is said
here: nuclei in place of streets, fewer channels (--base), crops of 256 that are only turned and flipped, few steps, bf16
convolutions where that is faster.

Seeded, and resumable: a killed run goes on where its last saved step was. The output folder holds the checkpoint in mmseg
1.x's form, its config, both parts of the data as mmseg keeps them, and crops of the training part to calibrate on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from segship.datasets import Case, open_dataset
from segship.inference.writers import write_bytes, write_label_png, write_png
from segship.networks.mmseg import FCNHead
from segship.networks.mmseg_segmentor import HeadShape, NetworkShape, Segmentor, joined
from segship.networks.mmseg_unet import UNetShape
from segship.package import dump_json

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES, PALETTE = ("background", "nucleus"), ((0, 0, 0), (220, 220, 60))
AUXILIARY_WEIGHT, POWER, LEAST_LR = 0.4, 0.9, 1e-4
SAVE_EVERY = 25
MODEL, CONFIG, STATE, RESULT = "net.pth", "net.py", "state.pt", "result.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the numbers of a run."""

    base: int
    steps: int
    batch: int
    crop: int
    lr: float
    seed: int
    split: str
    precision: str


# ------------------------------------------------------------------------------------------------------ data


def lay_out(data: str, split: str, folder: Path, calibration: Path, count: int, crop: int) -> None:
    """``img_dir/<part>`` and ``ann_dir/<part>`` as mmseg keeps them, and ``count`` crops of the training pictures."""
    if (folder / "done").exists():
        return
    for part, name in (("training", "train"), ("validation", "val")):
        for case in tqdm(open_dataset(data, split=split, part=part).cases, desc=f"laying out {name}", unit="image"):  # type: ignore[arg-type]
            write_png(folder / "img_dir" / name / f"{case.id}.png", picture(case))
            write_label_png(
                folder / "ann_dir" / name / f"{case.id}.png", np.any(case.target(), axis=0).astype(np.uint8)
            )
    training = sorted((folder / "img_dir" / "train").iterdir())
    for number, path in enumerate(training[:: max(1, len(training) // count)][:count]):
        pixels = cv2.cvtColor(padded(np.asarray(cv2.imread(str(path))), crop), cv2.COLOR_BGR2RGB)
        write_png(calibration / f"{number:03d}.png", pixels[:crop, :crop])
    (folder / "done").write_text("")


def picture(case: Case) -> np.ndarray:
    """(H, W, 3) uint8 RGB; the constant alpha plane of these files is dropped."""
    stored = np.asarray(case.decoded())
    return np.repeat(stored[..., None], 3, axis=2) if stored.ndim == 2 else np.ascontiguousarray(stored[..., 2::-1])


def padded(pixels: np.ndarray, side: int) -> np.ndarray:
    """At least ``side`` × ``side``, mirrored at the right and below."""
    down, across = (max(0, side - n) for n in pixels.shape[:2])
    return np.pad(pixels, [(0, down), (0, across), *[(0, 0)] * (pixels.ndim - 2)], mode="symmetric")


class Pictures:
    """The training part, read once."""

    def __init__(self, folder: Path, crop: int) -> None:
        self.pairs = []
        for path in sorted((folder / "img_dir" / "train").iterdir()):
            pixels = cv2.cvtColor(np.asarray(cv2.imread(str(path))), cv2.COLOR_BGR2RGB)
            labels = np.asarray(cv2.imread(str(folder / "ann_dir" / "train" / path.name), cv2.IMREAD_UNCHANGED))
            self.pairs.append((padded(pixels, crop), padded(labels, crop)))

    def batch(self, step: int, options: Options) -> tuple[Tensor, Tensor]:
        """A pure function of the seed and the step: crops, turned by quarters and flipped."""
        rng = np.random.default_rng((options.seed, step))
        images, labels = [], []
        for number in rng.integers(0, len(self.pairs), options.batch):
            pixels, truth = self.pairs[number]
            top, left = (int(rng.integers(0, n - options.crop + 1)) for n in truth.shape)
            box = (slice(top, top + options.crop), slice(left, left + options.crop))
            turns, flip = int(rng.integers(0, 4)), bool(rng.integers(0, 2))
            cut = [np.rot90(array[box], turns) for array in (pixels, truth)]
            x, y = (array[:, ::-1] if flip else array for array in cut)
            images.append(((x.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))
            labels.append(y.astype(np.int64))
        x = torch.from_numpy(np.stack(images)).contiguous(memory_format=torch.channels_last)
        return x, torch.from_numpy(np.stack(labels))


# --------------------------------------------------------------------------------------------------- fitting


class Trained(nn.Module):
    """The network with its auxiliary head, named as mmseg's checkpoints name them."""

    def __init__(self, base: int) -> None:
        super().__init__()
        head = HeadShape(kind="fcn", inputs=base, channels=base, classes=2, maps=(4,))
        shape = NetworkShape(backbone=UNetShape(base=base, encoder=(2,) * 5, decoder=(2,) * 4), heads=(head,))
        built = Segmentor(shape)
        self.shape = shape
        self.backbone, self.decode_head = built.backbone, built.decode_head
        self.auxiliary_head = FCNHead(2 * base, base, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(x)
        return self.decode_head(joined(maps, self.shape.heads[0])), self.auxiliary_head(maps[3])


def loss_of(network: Trained, x: Tensor, labels: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        answers = network(x)
    total = torch.zeros(())
    for logits, weight in zip(answers, (1.0, AUXILIARY_WEIGHT), strict=True):
        full = functional.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
        total = total + weight * functional.cross_entropy(full, labels, ignore_index=255)
    return total


def rate(step: int, options: Options) -> float:
    return (options.lr - LEAST_LR) * (1 - step / options.steps) ** POWER + LEAST_LR


def fit(options: Options, out: Path, pictures: Pictures, minutes: float | None) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    network = Trained(options.base).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4)
    first = resume(out / STATE, network, optimizer, options)
    started, losses, step = time.monotonic(), [], first
    bar = tqdm(total=options.steps, initial=first, unit="step", desc="stand-in")
    network.train()
    while step < options.steps and (minutes is None or time.monotonic() - started < 60 * minutes):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options)
        loss = loss_of(network, *pictures.batch(step, options), options.precision == "bf16")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        if step % SAVE_EVERY == 0:
            save(out, network, optimizer, options, step)
    bar.close()
    save(out, network, optimizer, options, step)
    seconds = time.monotonic() - started
    return {
        "steps_done": step,
        "loss": float(np.mean(losses[-20:])) if losses else None,
        "minutes_of_this_start": seconds / 60,
    }


def resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, options: Options) -> int:
    """Steps done; a state of other options is refused."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["options"] != asdict(options):
        sys.exit(f"{path} was started with other options ({state['options']}); give the same ones or another -o")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(out: Path, network: nn.Module, optimizer: torch.optim.Optimizer, options: Options, step: int) -> None:
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    meta = {"iter": step, "dataset_meta": {"classes": CLASSES, "palette": [list(color) for color in PALETTE]}}
    state = {"options": asdict(options), "step": step, "network": weights, "optimizer": optimizer.state_dict()}
    for name, content in ((STATE, state), (MODEL, {"meta": meta, "state_dict": weights})):
        torch.save(content, out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)


def config_text(base: int, data: Path) -> str:
    """The network's config in mmseg 1.x's form."""
    head = f"num_convs=1, concat_input=False, norm_cfg=dict(type='BN'), num_classes={len(CLASSES)}, align_corners=False"
    return f"""# The stand-in of benchmarks/fit_mmseg_unet.py, as mmseg describes its network.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean={list(MEAN)}, std={list(STD)}, bgr_to_rgb=True, pad_val=0,
                           seg_pad_val=255, test_cfg=dict(size_divisor=16)),
    backbone=dict(type='UNet', in_channels=3, base_channels={base}, num_stages=5, norm_cfg=dict(type='BN')),
    decode_head=dict(type='FCNHead', in_channels={base}, in_index=4, channels={base}, {head}),
    auxiliary_head=dict(type='FCNHead', in_channels={2 * base}, in_index=3, channels={base}, {head}),
    test_cfg=dict(mode='whole'))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
    type='BaseSegDataset', img_suffix='.png', metainfo=dict(classes={CLASSES}, palette={[list(color) for color in PALETTE]}),
    data_root={str(data.resolve())!r}, data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'), pipeline=test_pipeline))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_cfg = dict(type='TestLoop')
default_scope = 'mmseg'
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="DSB2018: stage1_train.zip or its folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/mmseg_standin"))
    parser.add_argument("--split", default="ascend", help="fit on its training part, the other is for scores [ascend]")
    parser.add_argument("--base", type=int, default=16, help="channels of the first stage; released networks: 64 [16]")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, help="stop (and save) after this long; run again to go on")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--calibration", type=int, default=64, help="crops of training pictures to calibrate on [64]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    if given.crop % 16 or given.crop < 32:
        sys.exit("--crop is a multiple of 16, at least 32")
    names = ("base", "steps", "batch", "crop", "lr", "seed", "split", "precision")
    options = Options(**{name: getattr(given, name) for name in names})
    out: Path = given.output
    out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(asdict(options)))
    lay_out(given.data, options.split, out / "data", out / "calibration", given.calibration, options.crop)
    (out / CONFIG).write_text(config_text(options.base, out / "data"))
    found = fit(options, out, Pictures(out / "data", options.crop), given.minutes)
    note = "a stand-in for accuracy checks, not released weights"
    write_bytes(out / RESULT, dump_json(asdict(options) | found | {"note": note}))
    print(
        f"stand-in: {found['steps_done']} of {options.steps} steps, loss {found['loss']}; {out / MODEL} and {out / CONFIG}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
