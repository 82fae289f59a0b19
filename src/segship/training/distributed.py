"""Several processes for one training run: torchrun starts them, DistributedDataParallel joins them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segship import errors
from segship.errors import DeviceMissing

if TYPE_CHECKING:
    from segship.training.options import UnetPlusPlusOptions


def inside() -> bool:
    """Whether this process was started by torchrun."""
    return "LOCAL_RANK" in os.environ and "RANK" in os.environ


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def launched_rank() -> int:
    """The rank that torchrun gave this process, also after the group was left."""
    return int(os.environ.get("RANK", "0"))


def pick_device(wanted: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a device of this process; DeviceMissing where CUDA is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing("--device cuda, but torch finds no CUDA device here; use --device cpu")
    if wanted != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


@contextlib.contextmanager
def group(wanted: str) -> Iterator[torch.device]:
    """The device of this process, inside its process group when torchrun started it."""
    device = pick_device(wanted)
    if not inside():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wrap(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, its gradients averaged over all processes."""
    if world() == 1:
        return network
    return nn.parallel.DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)


def add(sums: Tensor) -> Tensor:
    """The sum of ``sums`` over all processes, float64 on the CPU."""
    if world() == 1:
        return sums
    shared = sums.cuda() if dist.get_backend() == "nccl" else sums.clone()
    dist.all_reduce(shared)
    return shared.cpu()


def same_weights(network: nn.Module) -> None:
    """Give every process the first one's tensors (batch-norm statistics differ between them)."""
    if world() > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def launch(options: UnetPlusPlusOptions, *, progress: bool) -> dict[str, Any]:
    """Run ``options`` in ``options.devices`` processes under torchrun; returns the run's result.json.

    An error that a process met is raised here with its message.
    """
    if options.device != "cpu" and 0 < torch.cuda.device_count() < options.devices:
        raise DeviceMissing(f"--devices {options.devices}, but there are {torch.cuda.device_count()} CUDA devices")
    with tempfile.TemporaryDirectory(prefix="segship-train-") as folder:
        job, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        values = {entry.name: _plain(getattr(options, entry.name)) for entry in fields(options)}
        job.write_text(json.dumps({"options": values, "progress": progress, "answer": str(answer)}), encoding="utf-8")
        threads = max(1, (os.cpu_count() or 1) // options.devices)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        done = subprocess.run(
            [*command, str(options.devices), "-m", "segship.training.worker", str(job)],
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            check=False,
        )
        said = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    if "error" in said:
        raise getattr(errors, said["error"])(said["message"])
    if done.returncode or "result" not in said:
        raise errors.SegshipError(
            f"torchrun ended with exit code {done.returncode}; its messages stand above. Go on with --resume"
        )
    result: dict[str, Any] = said["result"]
    return result


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
