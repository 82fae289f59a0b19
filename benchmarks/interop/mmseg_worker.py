"""mmseg as a worker process of benchmarks/mmseg.py; runs in .interop/mmseg (`make interop-mmseg`).

One JSON request a line on stdin, one JSON answer a line on stdout. ``run`` is what mmseg's users write: `init_model` once,
`inference_model` for each file, the label map saved as a grey PNG (as its IoUMetric saves them). ``tuned`` adds what a
careful user adds: inference_mode and channels_last; "bf16" computes convolutions in bfloat16.
"""

import os
import runpy
import zlib
from pathlib import Path

# The one file, not the package around it: what is measured here is mmseg's memory.
STUB = Path(__file__).resolve().parents[2] / "src" / "segship" / "families" / "mmcv_stub.py"
runpy.run_path(str(STUB))["install_stub"]()

import answering  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model.utils import revert_sync_batchnorm  # noqa: E402
from mmseg.apis import inference_model, init_model  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.utils import get_classes, get_palette, register_all_modules  # noqa: E402
from PIL import Image  # noqa: E402

BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm
"""what SyncBN becomes is a class of mmengine's own and no BatchNorm2d"""
LEAST_VARIANCE = 1e-6
"""of a settled batch norm"""
models = {}


def make_checkpoint(config, checkpoint, picture, gain=2.0, size=(512, 256)):
    """Seeded weights: by each entry's name, batch norms settled on the picture, the classifier balanced on it.

    Random weights alone give one class everywhere and logits of any size; settled and balanced they give every class its
    share, and values like a trained network's, so that labels can be compared. ``size`` (width, height) is the picture's.
    """
    register_all_modules()
    described = Config.fromfile(config)
    described.model.pretrained = described.model.train_cfg = None
    described.model.backbone.init_cfg = None
    network = revert_sync_batchnorm(MODELS.build(described.model))
    network.load_state_dict({key: _seeded(key, value, gain) for key, value in network.state_dict().items()})
    x = _prepared(picture, size)
    norms = [module for module in network.eval().modules() if isinstance(module, BATCH_NORM)]
    hooks = [module.register_forward_pre_hook(_settle) for module in norms]
    heads = network.decode_head if isinstance(network.decode_head, torch.nn.ModuleList) else [network.decode_head]
    with torch.no_grad():
        _answer(network, x)
        for hook in hooks:
            hook.remove()
        logits = _answer(network, x)
        if getattr(heads[-1], "conv_seg", None) is not None:
            heads[-1].conv_seg.bias -= logits.mean(dim=(0, 2, 3))
    meta = {}
    if len(get_classes("cityscapes")) == network.num_classes:  # other data sets' names stand in the config
        meta["dataset_meta"] = {"classes": tuple(get_classes("cityscapes")), "palette": get_palette("cityscapes")}
    torch.save({"meta": meta, "state_dict": network.state_dict()}, checkpoint)
    return {"parameters": sum(p.numel() for p in network.parameters())}


def _answer(network, x):
    """The head's logits, or those of all of mmseg's inference where a network has no 'tensor' mode (PointRend)."""
    size = x.shape[2:]
    try:
        found = network(x, mode="tensor")
    except TypeError:
        found = network.encode_decode(x, [{"img_shape": size, "pad_shape": size}])
    while isinstance(found, (list, tuple)):  # a head with further outputs for its loss gives the logits first
        found = found[0]
    return found


def _settle(module, inputs):
    """Brings a layer's values to a mean square of 1, all channels by one factor: no channel's rounding is blown up."""
    module.running_mean.zero_()
    module.running_var.fill_(float(inputs[0].pow(2).mean().clamp(min=LEAST_VARIANCE)))


def _seeded(key, value, gain):
    if not value.is_floating_point():
        return torch.zeros_like(value)
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(value.shape) or (1,))
    noise = torch.from_numpy(noise.astype(np.float32)).reshape(value.shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ("running_mean", "bias"):
        return 0.05 * noise
    if leaf == "running_var":
        return 1 + 0.1 * noise.abs()
    return 1 + 0.1 * noise if noise.ndim <= 1 else noise * (gain / noise[0].numel()) ** 0.5


def _prepared(picture, size):
    width, height = size
    pixels = np.asarray(Image.open(picture).convert("RGB").resize(size), np.float32)
    x = (pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    whole = torch.from_numpy(x.astype(np.float32).transpose(2, 0, 1))[None]
    part = torch.nn.functional.interpolate(
        whole[:, :, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4], size=whole.shape[2:], mode="bilinear"
    )
    return torch.cat([whole, part])  # two, and unlike: one value alone, after a global pooling, has no variance


def open_model(name, config, checkpoint, tuned=False):
    models[name] = init_model(config, checkpoint, device="cpu")
    if tuned:
        models[name] = models[name].to(memory_format=torch.channels_last)
    return {}


def run(name, files, output, bf16=False):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        for file in map(Path, files):
            _write(inference_model(models[name], str(file)), file, output)
    return {}


def run_tuned(name, files, output, bf16=False):
    with torch.inference_mode():
        return run(name, files, output, bf16)


def _write(result, file, output):
    labels = result.pred_sem_seg.data.squeeze().cpu().numpy().astype(np.uint8)
    Image.fromarray(labels).save(Path(output, f"{file.stem}.png"))


def peak():
    """MiB of this process at most, since it began; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"mib": 0.0}
    return {"mib": next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)}


def about():
    return answering.versions("mmsegmentation", "mmengine", "mmcv-lite", "torch", "numpy", "pillow")


REQUESTS = {"make": make_checkpoint, "open": open_model, "run": run, "tuned": run_tuned, "peak": peak, "about": about}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    answering.answer(REQUESTS)
