"""Logs of an MLPerf 3D U-Net run: MLPerf's own lines (`--mllog`) and dllogger's log.json.

Keys and order follow mlcommons/training: retired_benchmarks/unet3d/pytorch (main.py, runtime/logging.py,
runtime/callbacks.py); the lines are written by the package mlperf-logging. A resumed run goes on behind the last finished
epoch's lines.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segship.errors import EngineMissing, OutputError
from segship.training.mlperf_options import Unet3dOptions

SOURCE = Path(__file__).resolve().parents[2]
PERCENTILES = (90, 95, 99)


class MlperfLog:
    """MLPerf's lines to a file and, if asked for, to stdout; to nowhere without either."""

    def __init__(self, path: Path | None, *, stdout: bool = False, keep_bytes: int = 0) -> None:
        self.path = path
        self._handlers: list[logging.Handler] = []
        self._logger: Any = None
        if path is None and not stdout:
            return
        try:
            from mlperf_logging.mllog.mllog import MLLogger
        except ImportError:
            raise EngineMissing("--mllog needs mlperf-logging; type: pip install 'segship[train]'") from None
        target = logging.Logger("segship.mllog", logging.INFO)
        if path is not None:
            _cut(path, keep_bytes)
            self._handlers.append(logging.FileHandler(path))
        if stdout:
            self._handlers.append(logging.StreamHandler(sys.stdout))
        for handler in self._handlers:
            target.addHandler(handler)
        self._logger = MLLogger(target, default_stack_offset=2, root_dir=str(SOURCE))

    def start(self, key: str, value: Any = None, **metadata: Any) -> None:
        self._write("start", key, value, metadata)

    def end(self, key: str, value: Any = None, **metadata: Any) -> None:
        self._write("end", key, value, metadata)

    def event(self, key: str, value: Any = None, **metadata: Any) -> None:
        self._write("event", key, value, metadata)

    def _write(self, kind: str, key: str, value: Any, metadata: dict[str, Any]) -> None:
        if self._logger is not None:
            getattr(self._logger, kind)(key=key, value=value, metadata=metadata)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def close(self) -> None:
        for handler in self._handlers:
            handler.close()


class DllLog:
    """``DLLL {json}`` lines as dllogger 1.0 writes them."""

    def __init__(self, path: Path | None, *, keep_bytes: int = 0) -> None:
        self.path = path
        self._started = time.perf_counter()
        if path is not None:
            _cut(path, keep_bytes)

    def write(self, step: Any, data: dict[str, Any]) -> None:
        if self.path is None:
            return
        now = time.time()
        line = {
            "timestamp": str(now),
            "datetime": str(datetime.datetime.fromtimestamp(now)),
            "elapsedtime": str(time.perf_counter() - self._started),
            "type": "LOG",
            "step": step,
            "data": data,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"DLLL {json.dumps(line)}\n")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0


def _cut(path: Path, keep_bytes: int) -> None:
    """Start the file anew, or keep its first ``keep_bytes``: what the last finished epoch had written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(min(keep_bytes, path.stat().st_size))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error


# ------------------------------------------------------------------------------------- what a run says when


def start_of_run(log: MlperfLog, options: Unet3dOptions, seed: int) -> None:
    """Everything before run_start, seed, submission, hyperparameters and the layers whose weights were drawn."""
    log.event("seed", options.seed if options.seed >= 0 else seed)
    log.event("submission_benchmark", "unet3d")
    for name in ("org", "division", "status", "platform"):
        log.event(f"submission_{name}", getattr(options, f"submission_{name}"))
    for key, value in {
        "opt_name": options.optimizer,
        "opt_base_learning_rate": options.learning_rate,
        "opt_learning_rate_warmup_epochs": options.lr_warmup_epochs,
        "opt_learning_rate_decay_boundary_epochs": list(options.lr_decay_epochs),
        "opt_learning_rate_decay_factor": options.lr_decay_factor,
        "opt_weight_decay": options.weight_decay,
        "opt_momentum": options.momentum,
        "oversampling": options.oversampling,
        "training_input_shape": list(options.input_shape),
        "validation_input_shape": list(options.val_input_shape),
        "validation_overlap": options.overlap,
    }.items():
        log.event(key, value)
    for name in drawn_layers(options.normalization):
        log.event("weights_initialization", tensor=name)


def sizes_of_run(log: MlperfLog, train: int, held_out: int, per_epoch: int, global_batch: int, ga_steps: int) -> None:
    """The counts after run_start."""
    log.event("train_samples", train)
    log.event("eval_samples", held_out)
    log.event("samples_per_epoch", per_epoch)
    log.event("global_batch_size", global_batch)
    log.event("gradient_accumulation_steps", ga_steps)


def drawn_layers(normalization: str = "instancenorm") -> list[str]:
    """The 50 names under which the reference logs its layers."""
    parts = [f"{block}_{kind}" for block in "01" for kind in ("conv", normalization)]
    down = [f"down{k}_block_{part}" for k in range(5) for part in parts]
    up = [name for k in range(5) for name in (f"up{k}_deconv", *(f"up{k}_block_{part}" for part in parts))]
    return [*(f"input_block_{part}" for part in parts), *down, *up, "output_conv"]


def drop_cached(paths: Iterable[Path]) -> bool:
    """Ask the system to forget its cached pages of these files (no privilege needed); whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
    return True


def speed(seconds: list[float], global_batch: int) -> dict[str, float]:
    """The reference's figures of ``--benchmark``: images a second and latencies of a step in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    mean = sum(ordered) / len(ordered)
    out = {"throughput_train": global_batch / mean, "latency_train_mean": 1000 * mean}
    for share in PERCENTILES:
        out[f"latency_train_{share}"] = 1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
    return out
