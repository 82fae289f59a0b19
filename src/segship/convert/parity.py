"""The proof that a package answers as its source does: stage by stage, on a real picture, in every engine.

Both sides read, prepare and decode with the same functions of ours; those rows are marked, and only the network
row compares two implementations. (The shared stages are held to outside truth by the tests.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.errors import BarMissed, SourceError
from segship.families.onnx_source import OnnxNetwork
from segship.inference.images import read_image
from segship.inference.prediction import Prediction, decode
from segship.inference.preprocess import Prepared, apply_step, prepare
from segship.inference.windows import run_picture
from segship.manifest import Argmax, Divide, DivideByMaximum, Normalize, Recipe, Regions, Saliency, Threshold

if TYPE_CHECKING:
    from torch import nn

LABEL_AGREEMENT = 0.9999
OWN_ROUNDING = 4
"""how many times further than PyTorch lies from itself an engine may lie from PyTorch; ``own_rounding`` is one trial's worst, and
another engine sums in another order"""
MOST_ROUNDING = 5e-3
"""of the logits' spread: what is never put down to rounding. Graphs that are wrong at other sizes are off by more"""
STAGES = ("read", "preprocessed", "network", "decoded")


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One stage on one engine. Differences are in the stage's own units; probabilities for ``decoded``."""

    engine: str
    stage: str
    max_abs: float
    mean_abs: float
    tolerance: float
    label_agreement: float | None = None
    """share of equal decisions among those that the tolerance cannot turn over; decided stages only"""
    shared_code: bool
    """both sides ran our own code here, so agreement proves little"""

    @property
    def passed(self) -> bool:
        # NaN compares false, as it must
        return self.max_abs <= self.tolerance and (
            self.label_agreement is None or self.label_agreement >= LABEL_AGREEMENT
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the source network gives for one picture, at each stage."""

    pixels: np.ndarray
    prepared: Prepared
    outputs: tuple[np.ndarray, ...]
    """(K, h, w) float32 each, the answer first"""
    prediction: Prediction

    def stages(self) -> dict[str, np.ndarray]:
        """By the names that ``Predictor.trace`` uses."""
        return {
            "read": self.pixels,
            "preprocessed": self.prepared.x,
            "network": self.outputs[0],
            "decoded": self.prediction.decoded,
        }


def run_source(network: nn.Module | OnnxNetwork, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every output of the source network for x (N, C, H, W) float32, as float32 arrays.

    A torch network runs in PyTorch, a ready-made graph as it came in ONNX Runtime. Raises SourceError for an input that the
    network itself refuses, such as a picture smaller than what it pools.
    """
    if isinstance(network, OnnxNetwork):
        return network(x)
    import torch

    try:
        with torch.inference_mode():
            result = network(torch.from_numpy(np.ascontiguousarray(x)))
    except (RuntimeError, ValueError, AssertionError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"the network does not run at {'x'.join(map(str, x.shape[2:]))} ({lines[0][:200]}); export with --input-size HxW, "
            "a size that it takes"
        ) from error
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    return tuple(output.float().numpy() for output in outputs)


def reference(network: nn.Module | OnnxNetwork, recipe: Recipe, picture: Any, name: str) -> Reference:
    """Run the source network on one picture. Raises InputError for a picture that cannot be read."""
    assert recipe.input.kind == "image"
    image = read_image(picture, recipe.input, name=name)
    prepared = prepare(image, recipe)
    outputs = run_picture(lambda x: run_source(network, x), prepared.x, recipe)
    return Reference(
        pixels=image.pixels, prepared=prepared, outputs=outputs, prediction=decode(outputs, prepared, recipe)
    )


def network_tolerance(engine_tolerance: float, logits: np.ndarray) -> float:
    """An engine's tolerance in the logits' own units: relative to their standard deviation where that exceeds 1."""
    return engine_tolerance * max(1.0, float(np.std(logits, dtype=np.float64)))


def own_rounding(network: nn.Module, x: np.ndarray) -> float:
    """How far PyTorch's answers for x (N, C, H, W) float32 lie from PyTorch's, as a share of their spread, at most.

    Two trials that change nothing but rounding: the inputs one by one in place of a batch, and their last bit changed.
    """
    together = run_source(network, x)[0]
    alone = np.concatenate([run_source(network, x[number : number + 1])[0] for number in range(len(x))])
    nudged = run_source(network, np.nextafter(x, np.float32(np.inf)))[0]
    furthest = max(float(np.abs(together.astype(np.float64) - other).max()) for other in (alone, nudged))
    return furthest / max(float(np.std(together, dtype=np.float64)), float(np.finfo(np.float32).tiny))


def rounding_tolerance(network: nn.Module, x: np.ndarray) -> float:
    """What `own_rounding` lets an engine differ by, as a share of the logits' spread; never more than MOST_ROUNDING."""
    return min(OWN_ROUNDING * own_rounding(network, x), MOST_ROUNDING)


def compare_trace(
    engine: str, expected: Reference, trace: Mapping[str, np.ndarray], engine_tolerance: float, recipe: Recipe
) -> list[ParityRow]:
    """Four rows for one engine: ``trace`` is ``Predictor.trace`` of the same picture."""
    tolerance = network_tolerance(engine_tolerance, expected.outputs[0])
    stages = expected.stages()
    rows = [
        difference_row(engine, "read", stages["read"], trace["read"], 0.0, shared_code=True),
        difference_row(engine, "preprocessed", stages["preprocessed"], trace["preprocessed"], 0.0, shared_code=True),
        difference_row(engine, "network", stages["network"], trace["network"], tolerance, shared_code=False),
    ]
    found = decode((trace["network"], *expected.outputs[1:]), expected.prepared, recipe)
    slack = decoded_slack(expected.outputs[0], recipe, tolerance)
    agreement = label_agreement(expected.prediction, trace["decoded"], slack)
    values = difference_row(
        engine, "decoded", expected.prediction.probabilities, found.probabilities, slack, shared_code=True
    )
    rows.append(ParityRow(**{**asdict(values), "label_agreement": agreement}))
    return rows


def decoded_slack(raw: np.ndarray, recipe: Recipe, tolerance: float) -> float:
    """How far a decoded probability may move when the raw output (K, h, w) moves by ``tolerance``."""
    # A probability moves by at most a quarter of what its logit moved; the rest is float32 rounding.
    slack = (0.25 if recipe.decode.activation == "sigmoid" else 1.0) * tolerance + 1e-6
    rule = recipe.decode.decision
    if isinstance(rule, Saliency):
        if rule.min_max:  # a map of little contrast is stretched, and every difference with it
            slack /= max(float(raw[0].max() - raw[0].min()), slack)
        if rule.to_uint8 != "none":  # a value at a level's edge falls to either side; enlarging may add to that
            slack = (2 + 255 * slack) / 255
    return min(slack, 1.0)


def difference_row(
    engine: str, stage: str, expected: np.ndarray, got: np.ndarray, tolerance: float, *, shared_code: bool
) -> ParityRow:
    """Largest and mean absolute difference; infinite where the shapes differ."""
    if expected.shape != got.shape:
        largest = mean = float("inf")
    else:
        gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        largest, mean = float(gap.max(initial=0.0)), float(gap.mean()) if gap.size else 0.0
    return ParityRow(
        engine=engine, stage=stage, max_abs=largest, mean_abs=mean, tolerance=tolerance, shared_code=shared_code
    )


def label_agreement(expected: Prediction, got: np.ndarray, slack: float) -> float:
    """Share of equal decisions, leaving out those that a change of ``slack`` in a probability could turn over."""
    labels = expected.decoded
    if labels.shape != got.shape:
        return 0.0
    rule = expected.recipe.decode.decision
    scores = expected.probabilities
    sure: np.ndarray
    if isinstance(rule, Threshold):
        sure = np.asarray(np.abs(scores - np.float32(rule.threshold)) > slack)
    elif isinstance(rule, Argmax) and len(scores) > 1:
        best = np.partition(scores, len(scores) - 2, axis=0)
        sure = best[-1] - best[-2] > 2 * slack
    elif isinstance(rule, Regions):
        sure = np.asarray((np.abs(scores - np.float32(rule.threshold)) > slack).all(axis=0))
    elif isinstance(rule, Saliency) and rule.threshold is not None:
        sure = np.asarray(np.abs(scores[0] - np.float32(rule.threshold)) > slack)
        limit = rule.threshold * (255 if got.dtype == np.uint8 else 1)
        labels, got = labels > limit, got > limit
    else:
        return float(
            np.mean(np.abs(labels.astype(np.float64) - got) <= slack * (255 if labels.dtype == np.uint8 else 1))
        )
    return float(np.mean(labels[sure] == got[sure])) if sure.any() else 1.0


def golden_stages(
    stages: Mapping[str, np.ndarray], recipe: Recipe, engine_tolerance: float
) -> dict[str, tuple[np.ndarray, float]]:
    """What ``package.golden_files`` keeps. Another build of a decoder or of OpenCV may differ by one grey level."""
    network = network_tolerance(engine_tolerance, stages["network"])
    saliency = isinstance(recipe.decode.decision, Saliency)
    levels = 255 if stages["decoded"].dtype == np.uint8 else 1
    tolerances = {
        "read": 1.0,
        "preprocessed": 1.01 * _one_grey_level(recipe, stages["read"]),
        "network": network,
        "decoded": levels * decoded_slack(stages["network"], recipe, network) if saliency else 0.5,
    }
    return {name: (stages[name], tolerances[name]) for name in STAGES}


def _one_grey_level(recipe: Recipe, pixels: np.ndarray) -> float:
    """How far one grey level of the picture (H, W, C) moves the network's input."""
    pair = []
    for value in (0.0, 1.0):
        array = np.full((1, 1, pixels.shape[2]), value, np.float64)
        for step in recipe.preprocess:
            if isinstance(step, Normalize | Divide):
                array = apply_step(array, step)
            elif isinstance(step, DivideByMaximum):
                array = array / max(float(pixels.max()), 1.0)
        pair.append(array)
    return float(np.abs(pair[1] - pair[0]).max())


def require(rows: Sequence[ParityRow], what: str) -> None:
    """Raise BarMissed naming the worst stage unless every row passed."""
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    worst = max(failed, key=lambda row: row.max_abs / max(row.tolerance, 1e-12))
    agreement = "" if worst.label_agreement is None else f", labels agree {worst.label_agreement:.6f}"
    raise BarMissed(
        f"{what}: {worst.engine}, stage {worst.stage}: differs by {worst.max_abs:.3g} where {worst.tolerance:.3g} is "
        f"allowed{agreement} ({len(failed)} of {len(rows)} checks failed); nothing was written"
    )


def table(rows: Sequence[ParityRow]) -> str:
    """The rows as text; a star marks stages where both sides ran our own code."""
    lines = [f"{'engine':<12} {'stage':<24} {'max abs':>10} {'mean abs':>10} {'allowed':>10} {'labels':>9}"]
    for row in rows:
        agreement = "" if row.label_agreement is None else f"{row.label_agreement:.6f}"
        stage = row.stage + (" *" if row.shared_code else "")
        mark = "" if row.passed else "  MISSED"
        lines.append(
            f"{row.engine:<12} {stage:<24} {row.max_abs:>10.3g} {row.mean_abs:>10.3g} {row.tolerance:>10.3g} "
            f"{agreement:>9}{mark}"
        )
    return "\n".join([*lines, "* both sides run segship's own code"])
