"""One process of a training run with several: `torchrun … -m segship.training.worker JOB.json`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from segship.errors import SegshipError
from segship.training import distributed
from segship.training.options import UnetPlusPlusOptions
from segship.training.unetplusplus import train_unetplusplus


def main(job_file: str) -> int:
    """Train by the job's options; its result, or a user's error, goes into the job's answer file."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    answer = Path(job["answer"])
    try:
        result = train_unetplusplus(_options(job["options"]), progress=job["progress"])
    except SegshipError as error:
        _write(answer, {"error": type(error).__name__, "message": str(error)})
        return error.exit_code
    if distributed.launched_rank() == 0:
        _write(answer, {"result": result.as_dict()})
    return 0


def _options(values: dict[str, Any]) -> UnetPlusPlusOptions:
    paths = {name: Path(values[name]) for name in ("data", "output", "train_list") if values[name] is not None}
    return UnetPlusPlusOptions(**values | paths | {"exclude": tuple(values["exclude"])})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
