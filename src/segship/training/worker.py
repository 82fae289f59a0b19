"""One process of a training run with several: `torchrun … -m segship.training.worker JOB.json`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from segship.errors import SegshipError
from segship.training import distributed

INTERRUPTED = 130


def main(job_file: str) -> int:
    """Train by the job's options; its result, or what went wrong, goes into this process's answer file."""
    distributed.die_with_parent()
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rank = distributed.launched_rank()
    answer = Path(job_file).with_name(f"answer-{rank}.json")
    try:
        result = JOBS[job["job"]](job["options"], job["progress"])
    except distributed.ProcessGone as error:
        _write(answer, {"ended": str(error).removesuffix("; --resume goes on")})
        return 1
    except SegshipError as error:
        _write(answer, {"error": type(error).__name__, "message": str(error)})
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    if rank == 0:
        _write(answer, {"result": result})
    return 0


def _unetplusplus(values: dict[str, Any], progress: bool) -> dict[str, Any]:
    from segship.training.options import UnetPlusPlusOptions
    from segship.training.unetplusplus import train_unetplusplus

    paths = {name: Path(values[name]) for name in ("data", "output", "train_list") if values[name] is not None}
    options = UnetPlusPlusOptions(**values | paths | {"exclude": tuple(values["exclude"])})
    return train_unetplusplus(options, progress=progress).as_dict()


def _unet3d(values: dict[str, Any], progress: bool) -> dict[str, Any]:
    from segship.training.mlperf_options import Unet3dOptions
    from segship.training.unet3d_mlperf import train_unet3d

    return train_unet3d(Unet3dOptions.from_plain(values), progress=progress).as_dict()


JOBS = {"unetplusplus": _unetplusplus, "unet3d_mlperf": _unet3d}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
