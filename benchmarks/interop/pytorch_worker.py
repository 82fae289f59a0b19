"""U²-Net in PyTorch as a worker process of benchmarks/u2net.py; runs in an environment with scikit-image.

One JSON request a line on stdin, one JSON answer a line on stdout. The network is segship's torch module, which
equals upstream's; the chain around it is that of xuebinqin/U-2-Net, u2net_test.py, written anew:

users   a DataLoader with one process reads ahead (scikit-image reads, resizes with anti-aliasing, divides by the
        maximum), batch 1, all seven maps, min-max, Pillow's bilinear resize of an RGB picture, the photo is read
        again for its size, three-plane PNG. The resize of upstream's empty label is left out: it only costs time.
tuned   the same pixels with what a careful user adds: inference_mode, channels_last, the fused map alone, the size
        remembered, one grey plane written. "bf16" computes convolutions in bf16; "compiled" adds torch.compile.
"""

import copy
import os
from pathlib import Path

import answering
import numpy as np
import torch
from PIL import Image
from skimage import io, transform
from torch.utils.data import DataLoader, Dataset

from segship.networks import u2net

SIZE = 320
networks = {}


class Photos(Dataset):
    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        photo = io.imread(self.files[index])
        image = transform.resize(photo, (SIZE, SIZE), mode="constant")
        image = image / np.max(image)
        planes = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
        planes = (planes - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return {"image": torch.from_numpy(planes.transpose(2, 0, 1).copy()), "size": photo.shape[:2]}


def open_model(name, architecture, checkpoint):
    network = getattr(u2net, architecture)()
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    networks[name] = network.eval()
    last = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    last.all_outputs = False
    networks[f"{name} tuned"] = last
    return {}


def compile_model(name):
    networks[f"{name} compiled"] = torch.compile(networks[f"{name} tuned"], dynamic=False)
    return {}


def stretched(answer):
    low, high = torch.min(answer), torch.max(answer)
    return ((answer - low) / (high - low)).squeeze().numpy()


def run_users(name, files, output):
    for file, sample in zip(files, DataLoader(Photos(files), batch_size=1, num_workers=1), strict=True):
        with torch.no_grad():
            maps = networks[name](sample["image"].type(torch.FloatTensor))
        mask = Image.fromarray(stretched(maps[0][:, 0]) * 255).convert("RGB")
        photo = io.imread(file)
        mask.resize((photo.shape[1], photo.shape[0]), resample=Image.BILINEAR).save(
            Path(output, Path(file).stem + ".png")
        )
    return {}


def run_tuned(name, files, output, kind="tuned", bf16=False):
    network = networks[f"{name} {kind}"]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        for file, sample in zip(files, DataLoader(Photos(files), batch_size=1, num_workers=1), strict=True):
            answer = network(sample["image"].float().contiguous(memory_format=torch.channels_last)).float()
            mask = Image.fromarray((stretched(answer) * 255).astype(np.uint8))
            height, width = (int(side) for side in sample["size"])
            mask.resize((width, height), resample=Image.BILINEAR).save(Path(output, Path(file).stem + ".png"))
    return {}


def about():
    return answering.versions("torch", "scikit-image", "pillow", "numpy")


REQUESTS = {"open": open_model, "compile": compile_model, "users": run_users, "tuned": run_tuned, "about": about}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    answering.answer(REQUESTS)
