"""Several processes for one training run: torchrun starts them, DistributedDataParallel joins them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segship import errors
from segship.errors import DeviceMissing


class ProcessGone(errors.SegshipError):
    """A process of a run met an error that none of its own inputs explains: mostly, another process is gone."""


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
    """The device of this process, inside its process group when torchrun started it. ProcessGone where that breaks."""
    device = pick_device(wanted)
    if not inside():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise ProcessGone(f"process {launched_rank()} stopped: {text}; --resume goes on") from error
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


def gathered(found: dict[int, Any]) -> dict[int, Any]:
    """The entries of all processes together."""
    if world() == 1:
        return found
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def from_first(value: Any) -> Any:
    """The first process's ``value``, in all of them."""
    if world() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, 0)
    return shared[0]


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is gone: a killed run leaves none that trains on."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def launch(job: str, options: Any, *, progress: bool) -> dict[str, Any]:
    """Run ``options`` in ``options.devices`` processes under torchrun; returns the result of the first.

    ``job`` names the worker's function (see worker.JOBS), ``options`` is its dataclass. An error that a process met is
    raised here with its message; when one is killed, torchrun ends the others and that is said.
    """
    if options.device != "cpu" and 0 < torch.cuda.device_count() < options.devices:
        raise DeviceMissing(f"--devices {options.devices}, but there are {torch.cuda.device_count()} CUDA devices")
    with tempfile.TemporaryDirectory(prefix="segship-train-") as folder:
        file = Path(folder) / "job.json"
        values = {entry.name: _plain(getattr(options, entry.name)) for entry in fields(options)}
        file.write_text(json.dumps({"job": job, "options": values, "progress": progress}), encoding="utf-8")
        threads = max(1, (os.cpu_count() or 1) // options.devices)
        done = subprocess.run(
            [sys.executable, "-m", "segship.training.launcher", str(options.devices), str(file)],
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            check=False,
        )
        answers = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("answer-*.json"))]
    return _result(answers, done.returncode)


def _result(answers: list[dict[str, Any]], code: int) -> dict[str, Any]:
    """The result among what processes and launcher wrote; else the user's error, else what ended the run."""
    named = next((said for said in answers if "error" in said), None)
    if named is not None:
        raise getattr(errors, named["error"])(named["message"])
    result = next((said["result"] for said in answers if "result" in said), None)
    if code == 0 and result is not None:
        return dict(result)
    # the launcher's comes last in the list and knows who was first
    causes = [said["ended"] for said in reversed(answers) if "ended" in said] or [
        f"torchrun ended with exit code {code}"
    ]
    raise errors.SegshipError(
        f"{causes[0]}; all processes were stopped. What was finished is kept: the same command with --resume goes on"
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
