"""Networks of released shapes with the reference cases' seeded weights, as packages of any size.

To export one takes half a minute; two modules hold the same packages to the references, in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from mmseg_files import save
from seeded import State

from segship.convert.export import export
from segship.families import load_source
from segship.package import Package, open_package

UNET, OCR, DEEPLAB = "fcn_unet_s5-d16_512x1024", "ocrnet_hr18_512x1024", "deeplabv3_r101-d16-mg124_512x1024"
Read = Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray]]]
Fill = Callable[..., State]


def seeded_state(about: dict[str, Any], fill: Fill) -> State:
    shapes = about["state_dict"].items()
    kinds = {key: torch.int64 if key.endswith("num_batches_tracked") else torch.float32 for key, _ in shapes}
    return fill({key: torch.zeros(shape, dtype=kinds[key]) for key, shape in shapes}, about["gain"])


def segmentor(folder: Path, case: str, arch: str, fill: Fill, read: Read) -> Package:
    """A case's weights as ``folder/ARCH.segship``, from an example of another size than any case has.

    Made by the first that asks. Cases of one architecture share their weights.
    """
    path = folder / f"{arch}.segship"
    with FileLock(folder / f"{arch}.lock"):
        if not path.is_file():
            checkpoint = save(folder / f"{arch}.pth", seeded_state(read(case)[0], fill))
            export(load_source(checkpoint, options={"arch": arch, "scale": "96x64"}), path, engines=["onnxruntime"])
            checkpoint.unlink()
    return open_package(path)
