"""The MLPerf 3D U-Net's arithmetic beside the golden numbers of the reference: seeds, rates, crops, items, loss, windows."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.errors import DatasetError, UsageError
from segship.inference.tiling import axis_starts, padding, remainder_crop
from segship.metrics.kits19 import dice_scores
from segship.training.mlperf_data import Items, batches, find_cases, shares
from segship.training.mlperf_items import crop_box, foreground_boxes, make_item
from segship.training.mlperf_losses import dice_ce_loss
from segship.training.mlperf_options import Unet3dOptions
from segship.training.mlperf_recipe import (
    epoch_order,
    evaluation_schedule,
    is_evaluated,
    item_seeds,
    learning_rate,
    make_seeds,
    mean_over_shards,
    samples_per_epoch,
    shard_sizes,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((shared / "reference/mlperf_training.json").read_text())
    return loaded


# --- numbers ----------------------------------------------------------------------------------------------


def test_seeds(golden: dict[str, Any]) -> None:
    for case in golden["seeds"]:
        seeds = make_seeds(case["master_seed"], case["world_size"])
        assert list(seeds.workers) == case["worker_seeds"]
        assert seeds.order == case["shuffling_seed_used"]
    assert make_seeds(-1).master != make_seeds(-1).master


def test_learning_rates(golden: dict[str, Any]) -> None:
    for case in golden["learning_rates"]:
        for epoch, rate in case["lr_in_epoch"].items():
            found = learning_rate(
                int(epoch),
                rate=case["learning_rate"],
                initial=case["init_learning_rate"],
                warmup=case["lr_warmup_epochs"],
                decay_epochs=case["lr_decay_epochs"],
                decay_factor=case["lr_decay_factor"],
            )
            assert found == pytest.approx(rate, rel=1e-12)


@settings(deadline=None)
@given(
    warmup=st.integers(0, 6),
    decays=st.lists(st.integers(1, 9), max_size=4),
    factor=st.floats(0.1, 1.0),
)
def test_learning_rates_are_those_of_torchs_scheduler(warmup: int, decays: list[int], factor: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, decays, factor)
    for epoch in range(1, 12):
        if epoch <= warmup:
            optimizer.param_groups[0]["lr"] = 1e-3 + (0.7 - 1e-3) * epoch / warmup
        found = learning_rate(epoch, rate=0.7, initial=1e-3, warmup=warmup, decay_epochs=decays, decay_factor=factor)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_evaluation_schedules(golden: dict[str, Any]) -> None:
    for case in golden["evaluation_schedule"]:
        per_epoch = samples_per_epoch(168, case["batch_size"], case["world_size"])
        assert per_epoch == case["samples_per_epoch"]
        assert evaluation_schedule(per_epoch) == (case["start_eval_at"], case["evaluate_every"])


def test_scored_epochs() -> None:
    scored = [e for e in range(1, 16) if is_evaluated(e, first=4, every=5, last=15)]
    assert scored == [4, 9, 14, 15]
    assert [e for e in range(1, 4) if is_evaluated(e, first=1000, every=20, last=3)] == [3]


def test_shards(golden: dict[str, Any]) -> None:
    for world, sizes in golden["cases_per_shard_of_42"].items():
        assert shard_sizes(42, int(world)) == sizes
    values = np.random.default_rng(0).random(42)
    parts = np.array_split(values, 8)
    assert mean_over_shards(values.tolist(), 8) == pytest.approx(np.mean([p.mean() for p in parts]), abs=1e-15)
    assert mean_over_shards(values.tolist(), 8) != pytest.approx(values.mean(), abs=1e-6)
    assert mean_over_shards(values.tolist(), 1) == pytest.approx(values.mean(), abs=1e-15)
    with pytest.raises(UsageError, match="64 processes"):
        mean_over_shards(values.tolist(), 64)


@settings(deadline=None)
@given(cases=st.integers(1, 60), batch=st.integers(1, 3), world=st.integers(1, 4), epoch=st.integers(1, 5))
def test_order_is_torchs_and_global_batches_do_not_depend_on_processes(
    cases: int, batch: int, world: int, epoch: int
) -> None:
    order = epoch_order(77, epoch, cases)
    one = shares(order, batch * world, 0, 1)
    parts = [shares(order, batch, rank, world) for rank in range(world)]
    assert [sorted(step) for step in one] == [sorted(np.concatenate(step)) for step in zip(*parts, strict=True)]
    assert sum(map(len, one)) == samples_per_epoch(cases, batch, world)
    for rank in range(world):
        sampler = torch.utils.data.DistributedSampler(range(cases), world, rank, seed=77, drop_last=True)
        sampler.set_epoch(epoch)
        dealt = list(sampler)
        assert np.concatenate([*parts[rank], []]).tolist() == dealt[: len(parts[rank]) * batch]


def test_every_item_has_draws_of_its_own() -> None:
    seeds = {item_seeds(5, epoch, index) for epoch in range(1, 20) for index in range(20)}
    assert len(seeds) == 19 * 20
    assert item_seeds(5, 3, 4) == item_seeds(5, 3, 4)


# --- crops and items --------------------------------------------------------------------------------------


def boxes_label(shape: list[int], boxes: list[Any]) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    for kind, (z0, z1), (y0, y1), (x0, x1) in boxes:
        label[z0:z1, y0:y1, x0:x1] = kind
    return label


def assert_crops(label: np.ndarray, patch: int, cases: list[dict[str, Any]]) -> None:
    boxes = foreground_boxes(label)
    for case in cases:
        python, numeric = random.Random(case["seed"]), np.random.RandomState(case["seed"])
        assert (random.Random(case["seed"]).random() < 0.4) == case["foreground"]
        found = crop_box(label.shape, boxes, (patch,) * 3, 0.4, python, numeric)
        assert [edge for side in found for edge in (side.start, side.stop)] == case["z0 z1 y0 y1 x0 x1"], case


def test_crops(golden: dict[str, Any]) -> None:
    crops = golden["crops"]
    label = boxes_label(crops["label_shape"], crops["boxes_class_z_y_x"])
    assert_crops(label, 128, crops["patch_128"])
    assert_crops(label, 64, crops["patch_64"])
    big = boxes_label(crops["label_shape"], [[1, [2, 148], [10, 150], [1, 140]], [2, [60, 75], [60, 75], [60, 75]]])
    assert_crops(big, 64, crops["big_patch_64"])


def test_items(golden: dict[str, Any]) -> None:
    about = golden["items"]
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in about["volume"]["shape"]), indexing="ij")
    wave = 0.9 * np.sin(0.11 * z + 0.3) + 0.8 * np.sin(0.07 * y - 0.5) * np.cos(0.05 * x)
    image = np.clip(wave + 0.6 * np.sin(0.023 * (z + 2 * y + 3 * x)) - 0.4, -2.340702, 2.639792).astype(np.float32)
    label = boxes_label(
        about["volume"]["shape"], [[1, [20, 50], [18, 40], [22, 60]], [2, [30, 40], [25, 34], [30, 44]]]
    )
    boxes = foreground_boxes(label)
    for case in about["values"]:
        found, target = make_item(
            image[None],
            label[None],
            boxes,
            patch=about["patch"],
            oversampling=about["oversampling"],
            python=random.Random(case["seed"]),
            numeric=np.random.RandomState(case["seed"]),
        )
        assert [str(found.dtype), str(target.dtype)] == case["dtypes"]
        assert found.shape == target.shape == (1, *about["patch"])
        assert hashlib.md5(target.tobytes()).hexdigest() == case["label_md5"]
        assert np.bincount(target.ravel(), minlength=3).tolist() == case["label_counts"]
        assert found.mean(dtype=np.float64) == pytest.approx(case["image_mean"], abs=1e-5)
        assert found.std(dtype=np.float64) == pytest.approx(case["image_std"], abs=1e-5)
        assert found.flat[0] == pytest.approx(case["image_first"], abs=1e-5)
        assert found.flat[-1] == pytest.approx(case["image_last"], abs=1e-5)


@settings(deadline=None)
@given(data=st.data())
def test_a_crop_always_has_the_patchs_size_and_lies_inside(data: st.DataObject) -> None:
    shape = [data.draw(st.integers(6, 20)) for _ in range(3)]
    patch = [data.draw(st.integers(1, n)) for n in shape]
    label = np.zeros(shape, np.uint8)
    for _ in range(data.draw(st.integers(0, 4))):
        start = [data.draw(st.integers(0, n - 1)) for n in shape]
        label[tuple(slice(s, s + data.draw(st.integers(1, 9))) for s in start)] = data.draw(st.sampled_from([1, 2, 5]))
    seed = data.draw(st.integers(0, 999))
    box = crop_box(shape, foreground_boxes(label), patch, 1.0, random.Random(seed), np.random.RandomState(seed))
    assert [side.stop - side.start for side in box] == patch
    assert all(side.start >= 0 and side.stop <= n for side, n in zip(box, shape, strict=True))


def test_a_case_without_foreground_gives_a_random_crop_and_a_small_one_is_refused() -> None:
    empty = foreground_boxes(np.zeros((8, 8, 8), np.uint8))
    assert empty == {}
    box = crop_box((8, 8, 8), empty, (4, 4, 8), 1.0, random.Random(1), np.random.RandomState(1))
    assert box[2] == slice(0, 8)
    with pytest.raises(DatasetError, match="8×8×8 voxels is smaller than the patch of 4×4×9"):
        crop_box((8, 8, 8), empty, (4, 4, 9), 1.0, random.Random(1), np.random.RandomState(1))


# --- loss and windows -------------------------------------------------------------------------------------


def targets(shape: list[int], kind: str) -> np.ndarray:
    v = (7919 * np.arange(int(np.prod(shape))) // 13) % 7
    made = {
        "three": np.where(v < 4, 0, np.where(v < 6, 1, 2)),
        "background": 0 * v,
        "no tumour": np.where(v < 4, 0, 1),
        "only tumour": 0 * v + 2,
    }
    return made[kind].reshape(shape).astype(np.uint8)


def test_losses_gradients_and_scores(golden: dict[str, Any]) -> None:
    for case in golden["losses"]:
        n, k, *grid = case["prediction_shape"]
        wave = 2.5 * np.sin(0.611 * (np.arange(n * k * int(np.prod(grid))) + 1))
        target = targets([n, 1, *grid], case["target"])
        for key, background in (("loss", False), ("include_background", True)):
            logits = torch.from_numpy(wave.astype(np.float32).reshape(n, k, *grid)).requires_grad_()
            loss = dice_ce_loss(logits, torch.from_numpy(target), include_background=background)
            loss.backward()
            assert logits.grad is not None
            assert loss.item() == pytest.approx(case[key]["value"], abs=golden["tolerance"])
            total = float(logits.grad.double().abs().sum())
            assert total == pytest.approx(case[key]["gradient_abs_sum"], abs=golden["tolerance"])
        won = logits.detach().argmax(1).numpy()
        per_class = np.mean([dice_scores(won[i], target[i, 0]) for i in range(n)], 0)
        assert per_class == pytest.approx(case["score_per_class"], abs=golden["tolerance"])


def test_the_window_plan_of_the_options(golden: dict[str, Any]) -> None:
    tiling = Unet3dOptions().tiling
    for plan in golden["window_plans"]:
        kept = remainder_crop(plan["shape"], tiling)
        out = [part.stop - part.start for part in kept]
        assert out == plan["out"]
        padded = [n + sum(w) for n, w in zip(out, padding(out, tiling), strict=True)]
        assert [len(axis_starts(n, 128, 64, "stride-multiple")) for n in padded] == plan["windows"]


def test_batches_do_not_depend_on_threads_and_epochs_differ(tmp_path: Path) -> None:
    from mlperf_cases import write_cases

    cases = find_cases(write_cases(tmp_path, (1, 2, 4, 7), (34, 36, 40)))
    order = shares(epoch_order(9, 2, 4), 2, 0, 1)

    def made(workers: int, epoch: int = 2) -> torch.Tensor:
        items = Items(cases=cases, patch=(32, 32, 32), oversampling=0.4, seed=9)
        parts = list(batches(items, order, epoch=epoch, workers=workers))
        assert all(x.dtype == torch.float32 and y.dtype == torch.uint8 for x, y in parts)
        return torch.cat([torch.cat([x, y.float()]) for x, y in parts])

    assert made(0).shape == (8, 1, 32, 32, 32)
    assert torch.equal(made(0), made(3))
    assert not torch.equal(made(0), made(0, epoch=3))
