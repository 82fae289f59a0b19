"""How near other precisions' answers are to fp32's, case by case, whatever the ground truth says."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segship.inference.prediction import Prediction
from segship.inference.volume_prediction import VolumePrediction
from segship.manifest import Argmax, Recipe, Saliency

Kind = Literal["labels", "maps"]
MEMORY_BYTES = 256 << 20
"""fp32 answers kept on the network's grid; cases beyond it are not compared"""


def kind_of(recipe: Recipe) -> Kind:
    """What a package's answers are: labels (one bit a pixel and class), or maps of grey levels."""
    return "maps" if isinstance(recipe.decode.decision, Saliency) else "labels"


class Reference:
    """fp32's answers on the network's grid: masks packed to one bit a pixel, maps as bytes, exclusive classes as their
    numbers, compressed; a volume's labels on its own grid, compressed."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}
        self._labels: dict[str, tuple[bytes, tuple[int, ...], np.dtype[np.generic]]] = {}
        self._held = 0

    def keep(self, case_id: str, prediction: Prediction | VolumePrediction) -> None:
        labels = _exclusive(prediction)
        if labels is not None:
            packed = zlib.compress(np.ascontiguousarray(labels).tobytes(), 1)
            if self._held + len(packed) <= MEMORY_BYTES:
                self._labels[case_id] = (packed, labels.shape, labels.dtype)
                self._held += len(packed)
            return
        assert isinstance(prediction, Prediction)
        answer = _answer(prediction)
        if self._held + answer.nbytes <= MEMORY_BYTES:
            self._kept[case_id] = answer
            self._held += answer.nbytes

    def labels(self, case_id: str) -> NDArray[np.generic] | None:
        """fp32's labels of a volume or of exclusive classes, where they were kept."""
        if case_id not in self._labels:
            return None
        packed, shape, dtype = self._labels[case_id]
        return np.frombuffer(zlib.decompress(packed), dtype).reshape(shape)

    def agreement(self, case_id: str, prediction: Prediction | VolumePrediction) -> float | None:
        """1 where the answers are equal: the share of equal bits or voxels, or 1 − mean |difference| of maps on 0..1."""
        found = _exclusive(prediction)
        if found is not None:
            labels = self.labels(case_id)
            return None if labels is None else float(np.mean(labels == found))
        before = self._kept.get(case_id)
        if before is None:
            return None
        assert isinstance(prediction, Prediction)
        after = _answer(prediction)
        if kind_of(prediction.recipe) == "maps":
            return 1.0 - float(np.abs(before.astype(np.int16) - after).mean()) / 255
        different = np.unpackbits(before ^ after, count=prediction.on_grid("network").masks.size)
        return 1.0 - float(different.mean())


def _exclusive(prediction: Prediction | VolumePrediction) -> NDArray[np.generic] | None:
    """The one map of numbers that an answer is; None where it is several masks or a map of greys."""
    if isinstance(prediction, VolumePrediction):
        return prediction.labels
    if isinstance(prediction.recipe.decode.decision, Argmax):
        return prediction.on_grid("network").labels
    return None


def _answer(prediction: Prediction) -> NDArray[np.uint8]:
    on_network = prediction.on_grid("network")
    if kind_of(prediction.recipe) == "labels":
        return np.packbits(on_network.masks)
    found = on_network.saliency
    return found if found.dtype == np.uint8 else np.rint(found * 255).astype(np.uint8)
