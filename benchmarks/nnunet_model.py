"""A full-size nnU-Net v2 model folder with seeded weights, in the form that its training leaves: for benchmarks/nnunet.py.

    python benchmarks/nnunet_model.py CT.nii.gz FOLDER

PlainConvUNet as nnU-Net plans it for a 3D CT at 1.5 mm: six stages of 32 to 320 features, two convolutions each, patch
128 × 128 × 128, two classes. Random weights would do for the times; but a deep random network blows the smallest
rounding up and gives noise for labels. So the seeded network takes a few steps towards "what is bright in this CT".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from nnunet_folder import DATASET, FEATURES, INTENSITIES, SPACING, plans
from scipy import ndimage

from segship.networks.nnunet import Architecture, PlannedUNet

BRIGHT = 120.0
"""Hounsfield units: bone and contrast-filled vessels"""
STEPS, CROP, RATE = 24, 64, 1e-3


def architecture() -> Architecture:
    stages = len(FEATURES)
    return Architecture(
        kind="plain", axes=3, input_channels=1, output_channels=2, features=FEATURES, kernels=((3, 3, 3),) * stages,
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)), encoder_convs=(2,) * stages, decoder_convs=(2,) * (stages - 1),
        decoder_kernels=((3, 3, 3),) * (stages - 1),
    )  # fmt: skip


def fitted(ct: Path) -> dict[str, torch.Tensor]:
    """The network's weights after its few steps, on as many threads as torch is given; seeded."""
    import nibabel

    image = nibabel.load(ct)  # type: ignore[attr-defined]
    array = np.asarray(image.dataobj, np.float32).T
    zoom = [side / SPACING for side in image.header.get_zooms()[::-1]]
    values = ndimage.zoom(array, zoom, order=1, mode="nearest", grid_mode=True)
    bright = ndimage.gaussian_filter(values, 1.0) > BRIGHT
    low, high = INTENSITIES["percentile_00_5"], INTENSITIES["percentile_99_5"]
    x = torch.from_numpy((np.clip(values, low, high) - INTENSITIES["mean"]) / INTENSITIES["std"])
    target = torch.from_numpy(bright.astype(np.int64))
    torch.manual_seed(0)
    network = PlannedUNet(architecture())
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    generator = np.random.default_rng(0)
    centres = np.argwhere(bright)
    for step in range(STEPS):
        middle = centres[generator.integers(len(centres))]
        start = [int(np.clip(m - CROP // 2, 0, side - CROP)) for m, side in zip(middle, bright.shape, strict=True)]
        box = tuple(slice(a, a + CROP) for a in start)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x[box][None, None])
        loss = torch.nn.functional.cross_entropy(logits.float(), target[box][None])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return {name: value.detach() for name, value in network.state_dict().items()}


def with_twins(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state as upstream's modules name it: each block lists its layers twice, and the decoder holds the encoder."""
    out = {}
    for name, value in state.items():
        out[name] = value
        for layer, place in ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
            if layer in name:
                out[name.replace(layer, place)] = value
    encoder = {f"decoder.{name}": value for name, value in out.items() if name.startswith("encoder.")}
    return out | encoder


def write(folder: Path, state: dict[str, torch.Tensor]) -> None:
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans(), indent=1))
    (folder / "dataset.json").write_text(json.dumps(DATASET, indent=1))
    checkpoint = {
        "network_weights": with_twins(state),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 1,
        "init_args": {
            "plans": plans(), "configuration": "3d_fullres", "fold": 0, "dataset_json": DATASET,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit(f"type: python {sys.argv[0]} CT.nii.gz FOLDER")
    ct, folder = Path(sys.argv[1]), Path(sys.argv[2])
    write(folder, fitted(ct))
    return 0


if __name__ == "__main__":
    sys.exit(main())
