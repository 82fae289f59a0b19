"""What every server says of the package that it runs."""

from __future__ import annotations

from typing import Any

from segship import __version__
from segship.engines.processor import processor
from segship.inference.predictor import Predictor
from segship.manifest import Executed


def running(predictor: Predictor, executed: Executed | None) -> dict[str, Any]:
    """Version, precision and why, engine, device, processor, threads, and what executed, ready for JSON."""
    session = predictor.sessions[0]
    return {
        "segship": __version__,
        "precision": predictor.precision,
        "why": predictor.choice.reason,
        "engine": session.engine,
        "engine_version": session.version,
        "device": session.device,
        "processor": processor().label,
        "threads": predictor.options.threads,
        "executed": None if executed is None else executed.model_dump(mode="json"),
    }
