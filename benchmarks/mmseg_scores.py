"""Random label maps through MMSegmentation's own IoUMetric and through segship's: areas, means, the printed class table.

    make .interop/mmseg/.ready && .interop/mmseg/bin/python benchmarks/mmseg_scores.py [--cases 150]

Classes, metrics, beta, nan_to_num, ignore index, sizes, absent classes and numbers that are no class are drawn anew for each
case. Upstream sums and divides in float32, so a table may differ in a last digit where a value lies on a half.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from segship.families.mmcv_stub import install_stub
from segship.metrics import mmseg as ours

# a program of this folder is called mmseg.py too
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    install_stub()
    warnings.simplefilter("ignore", RuntimeWarning)
    printed = _printed()
    random = np.random.default_rng(options.seed)
    worst, equal, digits = 0.0, 0, 0
    for _ in range(options.cases):
        difference, theirs, mine = _case(random, printed)
        worst = max(worst, difference)
        equal += mine == theirs
        if mine != theirs:
            cells = [(a, b) for a, b in zip(theirs.split(), mine.split(), strict=True) if a != b]
            assert all(abs(float(a) - float(b)) < 0.0101 for a, b in cells), cells
            digits += len(cells)
    print(
        f"{options.cases} cases: areas equal, means within {worst:.1e} of a percent; {equal} class tables equal, in the other "
        f"{options.cases - equal} together {digits} last digits differ"
    )


def _printed() -> io.StringIO:
    """What mmengine's logger writes from now on."""
    from mmengine.logging import MMLogger

    log, text = MMLogger.get_instance("scores"), io.StringIO()
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.addHandler(logging.StreamHandler(text))
    return text


def _case(random: np.random.Generator, printed: io.StringIO) -> tuple[float, str, str]:
    """(largest difference of a mean in percent, upstream's class table, ours)."""
    import torch
    from mmseg.evaluation.metrics import IoUMetric

    count = int(random.integers(2, 25))
    names = tuple(f"class {'x' * int(random.integers(0, 9))}{k}" for k in range(count))
    metrics = [name for name in ours.GROUPS if random.random() < 0.6] or ["mIoU"]
    random.shuffle(metrics)
    beta, ignore = int(random.integers(1, 4)), int(random.choice([255, 0, 3]))
    nan = None if random.random() < 0.6 else int(random.integers(-1, 2))
    theirs: Any = IoUMetric(ignore_index=ignore, iou_metrics=metrics, nan_to_num=nan, beta=beta)
    theirs.dataset_meta = {"classes": names}
    how = ours.Settings(
        classes=names, metrics=tuple(metrics), beta=beta, nan_to_num=nan, ignore=ignore, unknown="upstream"
    )
    scores = []
    for number in range(int(random.integers(1, 4))):
        predicted, label = _maps(random, count)
        sample = {"pred_sem_seg": {"data": torch.from_numpy(predicted.astype(np.int64))}}
        theirs.process({}, [sample | {"gt_sem_seg": {"data": torch.from_numpy(label)}}])
        scores.append(ours.score_arrays(str(number), predicted, label, how))
        areas = scores[-1].areas
        assert areas is not None
        np.testing.assert_array_equal(areas.values, np.stack([part.numpy() for part in theirs.results[-1]]))
    printed.seek(0)
    printed.truncate()
    wanted, summary = theirs.compute_metrics(theirs.results), ours.summarise(scores)
    found: Any = ours.as_upstream(summary)["metrics"]
    assert list(wanted) == list(found), (list(wanted), list(found))
    assert all(np.isnan(wanted[name]) == (found[name] is None) for name in found)
    worst = max(abs(float(wanted[name]) - value) for name, value in found.items() if value is not None)
    text = printed.getvalue()
    return worst, text[text.index("+") :].strip(), ours.class_table(ours.by_class(summary))


def _maps(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, label) of one size: some classes absent, some pixels void, sometimes numbers that are no class."""
    height, width = random.integers(5, 60, 2)
    present = random.choice(count, size=int(random.integers(1, count + 1)), replace=False)
    label = random.choice([*present, 255], size=(height, width)).astype(np.uint8)
    right = np.where(label == 255, 0, label)
    predicted = np.where(random.random((height, width)) < 0.6, right, random.choice(present, size=(height, width)))
    if random.random() < 0.2:
        label[0] = 40
    return predicted.astype(np.uint8), label


if __name__ == "__main__":
    main()
