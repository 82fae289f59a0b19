"""torchrun around `segship.training.worker`: `python -m segship.training.launcher PROCESSES JOB.json`.

As `torchrun`, but the end of a process becomes one sentence in an answer file instead of a traceback.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from segship.training.distributed import die_with_parent

INTERRUPTED = 130


def main(processes: str, job_file: str) -> int:
    """Start the processes and wait; 0, or 1 when one of them ended early (all are gone then)."""
    die_with_parent()
    logging.disable(logging.ERROR)  # torchrun says in a table what becomes one sentence here
    command = ["--standalone", "--nproc-per-node", processes, "-m", "segship.training.worker", job_file]
    try:
        torchrun.run(torchrun.parse_args(command))
    except ChildFailedError as error:
        said = {"ended": _cause(error, int(processes), Path(job_file).parent)}
        Path(job_file).with_name("answer-launcher.json").write_text(json.dumps(said), encoding="utf-8")
        return 1
    except (SignalException, KeyboardInterrupt):
        return INTERRUPTED
    return 0


def _cause(error: ChildFailedError, processes: int, folder: Path) -> str:
    """One sentence: a process that was killed comes first, the others failed because it was gone."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return f"process {rank} (pid {failure.pid}) of {processes} was ended by signal {name}"
    rank, failure = error.get_first_failure()
    own = folder / f"answer-{rank}.json"
    if own.is_file():
        return str(json.loads(own.read_text(encoding="utf-8")).get("ended", f"process {rank} failed"))
    return f"process {rank} (pid {failure.pid}) of {processes} ended early with exit code {failure.exitcode}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
