"""What one server holds: the opened package, the queue before it, the counts, and what it says about itself."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from segship.errors import EngineError, UsageError
from segship.inference.predictor import Predictor
from segship.manifest import Executed, Saliency
from segship.measure.environment import executed_by
from segship.measure.inspect import describe
from segship.serve.answers import possible_outputs
from segship.serve.body import Held
from segship.serve.jobs import Jobs
from segship.serve.metrics import Metrics
from segship.serve.options import ServeOptions
from segship.serve.running import running

_log = logging.getLogger(__name__)


class Service:
    """Opened once, used by every request. The predictor stays the caller's to close."""

    def __init__(self, predictor: Predictor, options: ServeOptions) -> None:
        """Runs one picture through the whole chain, so that a package that cannot work fails now and the first
        request is as quick as the others. Raises what that run raises, and UsageError for a package of volumes."""
        if predictor.manifest.input.kind != "image":
            raise UsageError(f"package '{predictor.manifest.name}' takes volumes; the server is for pictures")
        self.predictor = predictor
        self.options = options
        # One more thread than the engine takes at once: it decodes and encodes while the engine computes.
        self.workers = predictor.options.streams + 1
        self.jobs = Jobs(workers=self.workers, queue=options.queue, timeout=options.timeout)
        self.held = Held(options.max_held_bytes)
        self.name = predictor.manifest.name
        self.sha256 = predictor.package.sha256
        self.precision = predictor.precision
        self.engine = predictor.engine
        self.metrics = Metrics(self.jobs, self.held, self)
        self.about = self._describe(_warm_up(predictor))

    @property
    def saliency(self) -> bool:
        """True where the network gives a map of what stands out, which /api/remove needs."""
        return isinstance(self.predictor.manifest.decode.decision, Saliency)

    @property
    def rule(self) -> str:
        """How a map becomes a mask: 'saliency', 'threshold', 'argmax' or 'regions'."""
        return str(self.predictor.manifest.decode.decision.rule)

    def close(self) -> None:
        self.jobs.close()

    def _describe(self, executed: Executed | None) -> dict[str, Any]:
        return {
            **describe(self.predictor.package),
            "serving": running(self.predictor, executed)
            | {"streams": self.predictor.options.streams, "tta": self.predictor.tta},
            "outputs": possible_outputs(self.predictor.manifest),
            "limits": self.options.limits(),
        }


def _warm_up(predictor: Predictor) -> Executed | None:
    """One picture through everything; returns what its convolutions executed in, where the engine tells."""
    golden = predictor.package.golden()
    source = np.zeros((64, 64, 3), np.uint8) if golden is None else golden.input_bytes
    _ = predictor(source).decoded
    try:
        return executed_by(predictor, source)
    except EngineError as error:
        _log.info("what executed is not known: %s", error)
        return None
