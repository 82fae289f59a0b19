"""UNet++ training: golden losses, rates and files of upstream's recipe; resuming, processes, refusals of ours."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from segship.datasets import dsb2018
from segship.errors import DatasetError, SegshipError, SourceError, UsageError
from segship.metrics import nuclei
from segship.networks import unetplusplus as networks
from segship.training import augment, distributed, norms, runs, unetplusplus
from segship.training.averages import recalibrate
from segship.training.data import Samples, batches, network_input, normalisation, training_order, validation_order
from segship.training.losses import LOSSES, find_loss, mean_over_heads
from segship.training.options import UPSTREAM_FIELDS, UnetPlusPlusOptions
from segship.training.precision import Float32Conv2d, keep_ends_float32
from segship.training.release import write_release_checkpoint
from segship.training.schedules import make_optimizer, make_scheduler
from segship.training.unetplusplus import train_unetplusplus
from segship.training.validation import overlaps, scores, validation_sums


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((shared / "reference/nested_unet_training.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 15 images, 32×32: bright discs on dark ground, easy to learn."""
    root = tmp_path_factory.mktemp("cells")
    (root / "images").mkdir()
    (root / "masks/0").mkdir(parents=True)
    random = np.random.default_rng(3)
    for k in range(15):
        mask = np.zeros((32, 32), np.uint8)
        for _ in range(3):
            x, y, radius = (int(v) for v in random.integers((4, 4, 3), (28, 28, 7)))
            cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_AA)
        image = (mask[..., None] * 0.6 + random.normal(30, 8, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(root / f"images/c{k:02d}.png"), image)
        cv2.imwrite(str(root / f"masks/0/c{k:02d}.png"), mask)
    return root


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with few filters, so that an epoch takes a fraction of a second."""
    monkeypatch.setattr(networks, "FILTERS", (8, 8, 8, 16, 16))


def make_options(cells: Path, output: Path, **changes: Any) -> UnetPlusPlusOptions:
    values: dict[str, Any] = {
        "data": cells, "output": output, "epochs": 3, "batch_size": 4, "input_h": 32, "input_w": 32,
        "optimizer": "Adam", "lr": 3e-3, "num_workers": 1, "tensorboard": False,
    }  # fmt: skip
    return UnetPlusPlusOptions(**values | changes)


# --- golden numbers of upstream's recipe ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BCEDiceLoss", "LovaszHingeLoss", "BCEWithLogitsLoss"])
def test_losses_and_gradients_equal_upstream(golden: dict[str, Any], name: str) -> None:
    for case in golden["losses"]:
        index = np.arange(int(np.prod(case["shape"])))
        soft = ((7919 * index) % 256).astype(np.float32) / 255
        target = {
            "soft": soft, "hard": (soft > 0.5).astype(np.float32), "all zero": 0 * soft, "all one": 0 * soft + 1,
        }[case["target"]]  # fmt: skip
        logits = torch.tensor((3.0 * np.sin(0.37 * (index + 1))).astype(np.float32)).reshape(case["shape"])
        logits.requires_grad_()
        loss = LOSSES[name](logits, torch.tensor(target).reshape(case["shape"]))
        loss.backward()
        assert logits.grad is not None
        assert loss.item() == pytest.approx(case[name]["value"], abs=golden["tolerance"])
        assert float(logits.grad.double().abs().sum()) == pytest.approx(
            case[name]["gradient_abs_sum"], abs=golden["tolerance"]
        )
        both, either = overlaps(logits.detach(), torch.tensor(target).reshape(case["shape"]))
        assert float((both.sum() + 1e-5) / (either.sum() + 1e-5)) == pytest.approx(case["iou_score"], abs=1e-6)


def test_losses_of_the_pipeline_cases(shared: Path) -> None:
    facts = json.loads((shared / "reference/dsb2018_pipeline.json").read_text())
    arrays = np.load(shared / "reference/dsb2018_pipeline.npz")
    logits = torch.from_numpy(arrays["output0"])
    target = torch.from_numpy(arrays["mask"][:, None].astype(np.float32) / 255)
    for name, value in facts["losses_with_soft_targets"].items():
        assert find_loss(name)(logits, target).item() == pytest.approx(value, abs=1e-4)


def test_network_inputs_equal_the_reference(shared: Path) -> None:
    arrays = np.load(shared / "reference/dsb2018_pipeline.npz")
    for image, expected in zip(arrays["image"], arrays["input"], strict=True):
        found = network_input(image, normalisation(3))
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-7


@pytest.mark.parametrize("epochs", [100, 200])
def test_cosine_rates_equal_upstream(golden: dict[str, Any], epochs: int) -> None:
    options = UnetPlusPlusOptions(epochs=epochs)
    optimizer = make_optimizer(options, [torch.nn.Parameter(torch.zeros(1))])
    scheduler, rates = make_scheduler(options, optimizer, 33), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for epoch, rate in golden["learning_rate_used_in_epoch"][f"cosine_{epochs}_epochs"].items():
        assert rates[int(epoch)] == pytest.approx(rate, rel=1e-5)


def test_config_of_default_flags_is_upstreams_text(golden: dict[str, Any], tmp_path: Path) -> None:
    assert runs.config_text(UnetPlusPlusOptions()) == golden["config_yml_default"]
    (tmp_path / "config.yml").write_text(golden["config_yml_default"] + "somebody: else\n")
    known, unknown = runs.read_config(tmp_path / "config.yml")
    assert unknown == ["somebody"]
    assert runs.config_text(UnetPlusPlusOptions(**known)) == golden["config_yml_default"]
    assert golden["log_csv_header"] == ",".join(runs.LOG_HEADER)


def test_default_sgd_has_upstreams_settings() -> None:
    optimizer = make_optimizer(UnetPlusPlusOptions(), [torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (1e-3, 0.9, 1e-4, False)


def test_unreadable_configs_are_source_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    for text in ("- a\n- b\n", "a: [1,\n", "x: !!python/object/apply:os.system ['true']\n"):
        path.write_text(text)
        with pytest.raises(SourceError, match=r"by hand|expected upstream"):
            runs.read_config(path)


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_w": 100}, "multiple of 16, got 100; use 112"),
        ({"epochs": 0}, "at least 1"),
        ({"arch": "UNet", "deep_supervision": True}, "NestedUNet"),
        ({"optimizer": "adamw"}, "SGD, Adam, AdamW"),
        ({"scheduler": "MultiStepLR", "milestones": "a"}, "30,60"),
        ({"ema": 1.0}, "below 1"),
        ({"lr": 0.0}, "positive"),
        ({"batch_size": 15, "devices": 2}, "divided"),
        ({"input_channels": 4}, "3 .BGR. or 1"),
        ({"nesterov": True, "momentum": 0.0}, "momentum"),
        ({"loss": "DiceLoss"}, "BCEDiceLoss"),
        ({"recalibrate": -1}, "switches it off"),
        ({"input_h": 16, "input_w": 16, "batch_size": 1}, "batch norm"),
    ],
)
def test_unusable_options_name_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UnetPlusPlusOptions(**changes)


def test_every_option_has_help_and_upstreams_names_are_alphabetical() -> None:
    from dataclasses import fields

    assert all(entry.metadata["help"] for entry in fields(UnetPlusPlusOptions))
    assert list(UPSTREAM_FIELDS) == sorted(UPSTREAM_FIELDS)
    assert UnetPlusPlusOptions().run_folder == Path("models/dsb2018_96_NestedUNet_woDS")
    assert UnetPlusPlusOptions(deep_supervision=True).run_name == "dsb2018_96_NestedUNet_wDS"


# --- augmentation and batches -----------------------------------------------------------------------------


def test_upstream_geometry_moves_image_and_mask_together() -> None:
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[0, 3:9, 5:20] = 255
    image = np.repeat(mask[0][..., None], 3, 2) // 2 + 60
    seen = set()
    for seed in range(60):
        moved, target = augment.upstream(image, mask, np.random.default_rng(seed))
        assert target.dtype == np.float32
        grey = moved.astype(int).sum(2)
        assert grey[target[0] > 0.5].min() > grey[target[0] < 0.5].max()
        seen.add(target.tobytes())
    assert len(seen) == 8  # the symmetries of the square


def test_brightness_contrast_and_hue_follow_albumentations() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2)
    assert augment.linear(ramp, 1.0, 51.0)[0, :, 0].tolist() == [min(v + 51, 255) for v in range(256)]
    assert augment.linear(ramp, 0.8, 0.0)[0, 100, 0] == 80
    pixel = np.array([[[10, 200, 90]]], np.uint8)
    hsv = cv2.cvtColor(pixel, cv2.COLOR_RGB2HSV).astype(int)
    hsv[..., 0] = (hsv[..., 0] + 10) % 180
    expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    assert np.array_equal(augment.shift_hsv(pixel, 10, 0, 0), expected)
    assert np.abs(augment.shift_hsv(pixel, 0, 0, 0).astype(int) - pixel).max() <= 3  # 8-bit hue


@pytest.mark.parametrize("source_hw", [(256, 256), (256, 320), (520, 696), (603, 1272)])
def test_the_identity_warp_is_the_resize_of_prediction(source_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*source_hw, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (5, 5), 0)
    matrix = augment.warp_matrix(source_hw, (96, 96), np.eye(2), (0.0, 0.0))
    warped = cv2.warpAffine(image, matrix, (96, 96), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    # OpenCV's warp rounds positions to 1/32 pixel, its resize does not
    assert np.abs(warped.astype(int) - cv2.resize(image, (96, 96))).mean() < 0.5


def test_strong_samples_repeat_and_stay_in_range() -> None:
    mask = np.zeros((1, 80, 120), np.uint8)
    mask[0, 20:50, 30:60] = 255
    image = np.random.default_rng(1).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    for seed in range(30):
        first, target = augment.strong(image, mask, (32, 48), np.random.default_rng(seed))
        again, _ = augment.strong(image, mask, (32, 48), np.random.default_rng(seed))
        assert np.array_equal(first, again)
        assert (first.shape, first.dtype, target.shape, target.dtype) == (
            (32, 48, 3),
            np.uint8,
            (1, 32, 48),
            np.float32,
        )
        assert 0 <= target.min() <= target.max() <= 1


@pytest.mark.parametrize("augmentation", ["upstream", "strong"])
def test_batches_do_not_depend_on_the_number_of_threads(cells: Path, augmentation: Any) -> None:
    found = []
    for workers in (0, 1, 3):
        samples = Samples(cases=dsb2018.open_dataset(cells).cases, size_hw=(32, 32), augmentation=augmentation)
        order = training_order(41, 5, 15, 4)
        found.append([(x.numpy(), t.numpy()) for x, t in batches(samples, order, epoch=5, workers=workers)])
    assert len(found[0]) == 3  # 15 images: the incomplete fourth batch is dropped
    for other in found[1:]:
        for (x, t), (x2, t2) in zip(found[0], other, strict=True):
            assert np.array_equal(x, x2)
            assert np.array_equal(t, t2)


def test_an_error_of_one_sample_reaches_the_loop(cells: Path) -> None:
    samples = Samples(cases=dsb2018.open_dataset(cells).cases, size_hw=(32, 32))
    object.__setattr__(samples.cases[2], "read", lambda name: b"nothing")
    with pytest.raises(DatasetError, match="case c02"):
        list(batches(samples, validation_order(15, 4), workers=2))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_order(seed, epoch, 40, 8)).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert sorted(flat(1, 2)) == list(range(40))
    assert len({tuple(flat(s, e)) for s in (1, 2) for e in (0, 1)}) == 4


def test_grey_input_is_the_grey_reading_with_the_first_constants(cells: Path) -> None:
    case = dsb2018.open_dataset(cells).cases[0]
    samples = Samples(cases=[case], size_hw=(32, 32), channels=1)
    assert case.image_path is not None
    grey = cv2.imread(str(case.image_path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    expected = (grey - np.float32(0.485 * 255)) / np.float32(0.229 * 255) / 255
    assert samples.sample(0, 0)[0].shape == (1, 32, 32)
    assert np.abs(samples.sample(0, 0)[0][0] - expected).max() < 1e-8


# --- validation -------------------------------------------------------------------------------------------


def test_validation_equals_the_worlds_metrics() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (21, 2, 16, 16)).astype(np.float32)
    masks = random.integers(0, 256, (21, 2, 16, 16), dtype=np.uint8)
    masks[3] = 0
    logits[3] = -9
    parts = [
        (torch.from_numpy(logits[i : i + 16]), torch.from_numpy(masks[i : i + 16].astype(np.float32) / 255))
        for i in (0, 16)
    ]
    found = scores(validation_sums(lambda x: x, parts, find_loss("BCEDiceLoss"), torch.device("cpu")))
    expected = nuclei.summarise([nuclei.score_arrays(str(i), logits[i], masks[i]) for i in range(21)])
    assert found.iou == pytest.approx(expected["iou"], abs=1e-9)
    assert found.iou_batch16 == pytest.approx(expected["iou-batch16"], abs=1e-9)
    assert found.named("iou") == found.iou
    assert found.named("iou-batch16") == found.iou_batch16


def test_deep_supervision_averages_the_loss_and_answers_with_the_last_head() -> None:
    heads = [torch.full((1, 1, 4, 4), float(v)) for v in range(4)]
    target = torch.ones(1, 1, 4, 4)
    loss, last = mean_over_heads(find_loss("BCEWithLogitsLoss"), heads, target)
    assert loss.item() == pytest.approx(np.mean([np.log1p(np.exp(-v)) for v in range(4)]), abs=1e-6)
    assert last is heads[3] or torch.equal(last, heads[3])


# --- whole runs -------------------------------------------------------------------------------------------


def read_log(folder: Path, name: str = runs.LOG) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("narrow")
def test_a_run_learns_and_leaves_upstreams_files(cells: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = make_options(cells, tmp_path / "run", epochs=8, deep_supervision=True, tensorboard=True, recalibrate=3)
    result = train_unetplusplus(options, progress=False)
    log = read_log(result.folder)
    assert (result.folder / "log.csv").read_text().splitlines()[0] == "epoch,lr,loss,iou,val_loss,val_iou"
    assert [int(row["epoch"]) for row in log] == list(range(8))
    assert float(log[-1]["loss"]) < 0.8 * float(log[0]["loss"])
    assert float(log[3]["lr"]) < float(log[0]["lr"]) == 3e-3  # the rate that was really used
    assert float(log[-1]["iou"]) > max(0.5, float(log[0]["iou"]))
    assert result.value == max(float(row["val_iou"]) for row in log) > 0.5
    assert (result.metric, result.split, result.epochs) == ("iou-batch16", "default", 8)
    assert "validation iou-batch16" in caplog.text
    assert "best of 8 epochs" in caplog.text
    assert list((result.folder / "tensorboard").iterdir())
    assert {path.name for path in result.folder.iterdir()} == {
        "config.yml", "segship.yml", "log.csv", "validation.csv", "model.pth", "state.pt", "result.json", "tensorboard",
    }  # fmt: skip
    assert json.loads((result.folder / "result.json").read_text()) == result.as_dict()
    assert yaml.safe_load((result.folder / "segship.yml").read_text())["seed"] == 41

    weights = torch.load(result.model, weights_only=True)
    network = networks.NestedUNet(1, 3, True)
    network.load_state_dict(weights)
    samples = Samples(cases=dsb2018.open_dataset(cells).select(dsb2018.split([f"c{k:02d}" for k in range(15)]).validation),
                      size_hw=(32, 32))  # fmt: skip
    found = unetplusplus.validate(options, network, samples, torch.device("cpu"))
    assert found.iou_batch16 == pytest.approx(result.value, abs=1e-6)


class Killed(Exception):
    """Stands for the process's end."""


def kill_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    inner = unetplusplus._one_epoch

    def one_epoch(options: Any, run: Any, wrapped: Any, samples: Any, number: int, *rest: Any) -> Any:
        found = inner(options, run, wrapped, samples, number, *rest)
        if number == epoch:
            raise Killed  # the weights have moved on, nothing of it is saved
        return found

    monkeypatch.setattr(unetplusplus, "_one_epoch", one_epoch)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "SGD", "momentum": 0.9},
        {"optimizer": "AdamW", "scheduler": "OneCycleLR", "ema": 0.9, "precision": "bf16", "augmentation": "strong",
         "loss": "BCEDiceLovaszLoss", "deep_supervision": True, "clip_gradient": 1.0, "best_metric": "iou",
         "recalibrate": 2},
        {"scheduler": "ReduceLROnPlateau", "patience": 0, "hard_targets": True, "arch": "UNet"},
        {"scheduler": "MultiStepLR", "milestones": "1,3"},
        {"scheduler": "ConstantLR", "validate_every": 2},
    ],
    ids=["sgd", "ours", "plateau", "multistep", "constant"],
)  # fmt: skip
def test_a_killed_and_resumed_run_gives_the_same_numbers(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    whole = train_unetplusplus(make_options(cells, tmp_path / "whole", epochs=4, **recipe), progress=False)
    with monkeypatch.context() as patch:
        kill_in_epoch(patch, 2)
        with pytest.raises(Killed):
            train_unetplusplus(make_options(cells, tmp_path / "cut", epochs=4, **recipe), progress=False)
    assert len(read_log(tmp_path / "cut")) == 2
    torch.manual_seed(999)  # whatever happened in between
    cut = train_unetplusplus(make_options(cells, tmp_path / "cut", epochs=4, resume=True, **recipe), progress=False)
    assert (cut.value, cut.epoch) == (whole.value, whole.epoch)
    assert (whole.folder / "log.csv").read_text() == (cut.folder / "log.csv").read_text()
    assert (whole.folder / "validation.csv").read_text() == (cut.folder / "validation.csv").read_text()
    states = [torch.load(folder / runs.STATE, weights_only=True) for folder in (whole.folder, cut.folder)]
    for name, tensor in states[0]["network"].items():
        assert torch.equal(tensor, states[1]["network"][name]), name
    models = [torch.load(folder / runs.MODEL, weights_only=True) for folder in (whole.folder, cut.folder)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


@pytest.mark.usefixtures("narrow")
def test_rates_of_multistep_and_onecycle_are_really_stepped(cells: Path, tmp_path: Path) -> None:
    steps = train_unetplusplus(
        make_options(cells, tmp_path / "m", epochs=4, scheduler="MultiStepLR", milestones="1,3", gamma=0.5),
        progress=False,
    )
    assert [float(row["lr"]) for row in read_log(steps.folder)] == pytest.approx([3e-3, 1.5e-3, 1.5e-3, 7.5e-4])
    cycle = train_unetplusplus(make_options(cells, tmp_path / "o", epochs=4, scheduler="OneCycleLR"), progress=False)
    rates = [float(row["lr"]) for row in read_log(cycle.folder)]
    assert rates[0] < rates[1] > rates[2] > rates[3]


@pytest.mark.usefixtures("narrow")
def test_early_stopping_also_holds_after_a_resume(cells: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 30, "early_stopping": 1, "lr": 1e-12, "optimizer": "SGD", "scheduler": "ConstantLR",
                               "ema": 0.0}  # fmt: skip
    first = train_unetplusplus(make_options(cells, tmp_path / "run", **changes), progress=False)
    assert first.epochs < 30
    assert first.epochs - 1 - first.epoch == 1
    again = train_unetplusplus(make_options(cells, tmp_path / "run", resume=True, **changes), progress=False)
    assert again == first


@pytest.mark.usefixtures("narrow")
def test_grey_and_several_classes_train(cells: Path, tmp_path: Path) -> None:
    root = tmp_path / "two"
    for kind, invert in (("0", False), ("1", True)):
        (root / "masks" / kind).mkdir(parents=True)
        for path in (cells / "masks/0").iterdir():
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(root / "masks" / kind / path.name), 255 - mask if invert else mask)
    (root / "images").symlink_to(cells / "images")
    result = train_unetplusplus(
        make_options(
            root, tmp_path / "run", epochs=1, num_classes=2, input_channels=1, arch="UNet", upsample="nearest"
        ),
        progress=False,
    )
    weights = torch.load(result.model, weights_only=True)
    assert tuple(weights["final.weight"].shape[:2]) == (2, 8)
    assert weights["conv0_0.conv1.weight"].shape[1] == 1
    assert yaml.safe_load((result.folder / "segship.yml").read_text())["upsample"] == "nearest"


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("narrow")
def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(cells: Path, tmp_path: Path) -> None:
    train_unetplusplus(make_options(cells, tmp_path / "run", epochs=1), progress=False)
    with pytest.raises(UsageError, match=r"already holds a run.*--resume"):
        train_unetplusplus(make_options(cells, tmp_path / "run", epochs=1), progress=False)
    with pytest.raises(UsageError, match=r"epochs was 1, is 2, seed was 41, is 42"):
        train_unetplusplus(make_options(cells, tmp_path / "run", epochs=2, seed=42, resume=True), progress=False)
    with pytest.raises(UsageError, match="nothing to resume"):
        train_unetplusplus(make_options(cells, tmp_path / "new", resume=True), progress=False)
    (tmp_path / "run" / runs.STATE).write_bytes(b"not a state")
    with pytest.raises(SourceError, match="no state of a run"):
        train_unetplusplus(make_options(cells, tmp_path / "run", epochs=1, resume=True), progress=False)


def test_training_refuses_evaluation_ids_and_unknown_ids(cells: Path, tmp_path: Path) -> None:
    held_out = dsb2018.split([f"c{k:02d}" for k in range(15)]).validation
    (tmp_path / "train.txt").write_text(f"c00\nc01\n{held_out[0]}\n")
    with pytest.raises(DatasetError, match=f"used for training and for evaluation .*{held_out[0]}"):
        train_unetplusplus(make_options(cells, tmp_path / "a", train_list=tmp_path / "train.txt"), progress=False)
    with pytest.raises(UsageError, match="--exclude names nobody"):
        train_unetplusplus(make_options(cells, tmp_path / "a", exclude=("nobody",)), progress=False)
    with pytest.raises(UsageError, match="lower --batch_size"):
        train_unetplusplus(make_options(cells, tmp_path / "a", batch_size=16), progress=False)
    with pytest.raises(DatasetError, match="masks/1"):
        train_unetplusplus(make_options(cells, tmp_path / "a", num_classes=2), progress=False)
    assert not (tmp_path / "a").exists()


def test_excluded_ids_do_not_train(cells: Path, tmp_path: Path) -> None:
    ids = [f"c{k:02d}" for k in range(15)]
    split = dsb2018.split(ids)
    kept = unetplusplus._training_ids(make_options(cells, tmp_path, exclude=(split.training[2],)), split)
    assert split.training[2] not in kept
    assert len(kept) == len(split.training) - 1


@pytest.mark.usefixtures("narrow")
def test_a_diverged_loss_is_said_with_a_remedy(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(SegshipError, match=r"lower --lr"):
        train_unetplusplus(make_options(cells, tmp_path / "run", lr=1e30, optimizer="SGD"), progress=False)


# --- batch norm measured anew -----------------------------------------------------------------------------


def test_recalibration_is_the_mean_over_batches_and_leaves_the_rest(cells: Path) -> None:
    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.norm(x)
            return found

    plain = Samples(cases=dsb2018.open_dataset(cells).cases, size_hw=(32, 32))
    network = First().eval()
    network.norm.num_batches_tracked.fill_(700)
    parts = [x for x, _ in batches(plain, training_order(41, 0, 15, 4)[:2], workers=0)]
    recalibrate(network, parts)
    mean = torch.stack([x.mean((0, 2, 3)) for x in parts]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in parts]).mean(0)
    assert torch.allclose(network.norm.running_mean, mean, rtol=1e-4)
    assert torch.allclose(network.norm.running_var, variance, rtol=1e-4)
    assert int(network.norm.num_batches_tracked) == 700
    assert network.norm.momentum == 0.1
    assert not network.training


# --- several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does(cells: Path, tmp_path: Path) -> None:
    """The same global batch in one process and in two halves, batch norm over both halves. Float32 rounding grows fast with
    inputs of ±0.01 (another convolution routine alone moves these weights by 1e-4); exactness is shown below."""
    recipe: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 12,
        "optimizer": "SGD",
        "lr": 0.02,
        "arch": "UNet",
        "recalibrate": 1,
    }
    one = train_unetplusplus(make_options(cells, tmp_path / "one", **recipe, device="cpu"), progress=False)
    options = make_options(cells, tmp_path / "two", **recipe, device="cpu", devices=2)
    result = train_unetplusplus(options, progress=False)
    log = read_log(result.folder)
    assert [row["epoch"] for row in log] == ["0", "1"]
    assert float(log[1]["loss"]) < float(log[0]["loss"])
    for a, b in zip(read_log(one.folder), log, strict=True):
        assert a["lr"] == b["lr"]
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=2e-3)
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), abs=5e-3)
    states = [torch.load(r.folder / runs.STATE, weights_only=True)["network"] for r in (one, result)]
    start = unetplusplus.build_network(make_options(cells, tmp_path, arch="UNet")).state_dict()
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], atol=4e-3), name
    assert any(float((states[0][n] - start[n]).abs().max()) > 4e-2 for n in start if start[n].is_floating_point())
    # what two processes summed is what one finds
    network = networks.UNet(1)
    network.load_state_dict(torch.load(result.model, weights_only=True))
    split = dsb2018.split([f"c{k:02d}" for k in range(15)])
    held_out = Samples(cases=dsb2018.open_dataset(cells).select(split.validation), size_hw=(32, 32))
    found = unetplusplus.validate(options, network, held_out, torch.device("cpu"))
    assert found.iou_batch16 == pytest.approx(result.value, abs=1e-6)
    # a user's error in a process comes back as itself
    with pytest.raises(UsageError, match="already holds a run"):
        train_unetplusplus(options, progress=False)


def steps_in_double(share: slice) -> dict[str, torch.Tensor]:
    """Three steps of a small UNet++ in float64 on this ``share`` of each batch of 6."""
    networks.FILTERS = (4, 4, 4, 4, 4)
    torch.manual_seed(1)
    network = networks.NestedUNet(1, 3, deep_supervision=True).double()
    norms.synchronise(network)
    wrapped = distributed.wrap(network, torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        inputs = 0.01 * torch.randn(6, 3, 32, 32, dtype=torch.float64)
        target = torch.rand(6, 1, 32, 32, dtype=torch.float64)
        optimizer.zero_grad()
        heads = wrapped(inputs[share])
        torch.stack([find_loss("BCEDiceLoss")(head, target[share]) for head in heads]).mean().backward()
        optimizer.step()
    return network.state_dict()


def double_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(steps_in_double(slice(rank, None, 2)), f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_synchronised_batch_norm_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FILTERS", (4, 4, 4, 4, 4))
    alone = steps_in_double(slice(None))
    torch.multiprocessing.spawn(double_worker, (str(tmp_path),), 2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert list(found) == list(alone)
        for name, tensor in alone.items():
            assert torch.allclose(found[name], tensor, atol=1e-9, rtol=1e-9), name


# --- precision and shipping -------------------------------------------------------------------------------


def test_bf16_keeps_both_ends_in_float32_and_the_same_keys() -> None:
    network = networks.UNet(1).eval()
    before = list(network.state_dict())
    keep_ends_float32(network)
    assert list(network.state_dict()) == before
    seen = {}
    for name in ("conv0_0.conv1", "conv0_0.conv2", "final"):
        network.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: seen.__setitem__(name, out.dtype)
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.zeros(1, 3, 16, 16))
    assert seen == {"conv0_0.conv1": torch.float32, "conv0_0.conv2": torch.bfloat16, "final": torch.float32}
    assert isinstance(network.final, Float32Conv2d)


def test_release_checkpoint_is_small_and_spares_batch_norm(tmp_path: Path) -> None:
    network = networks.NestedUNet(1, deep_supervision=True)
    size = write_release_checkpoint({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "model.pth")
    assert size <= 20 * 2**20
    stored = torch.load(tmp_path / "model.pth", weights_only=True)
    assert stored["conv0_0.conv1.weight"].dtype == stored["final4.bias"].dtype == torch.float16
    assert stored["conv0_0.bn1.running_var"].dtype == stored["conv4_0.bn2.weight"].dtype == torch.float32
    assert stored["conv0_0.bn1.num_batches_tracked"].dtype == torch.int64
    networks.NestedUNet(1, deep_supervision=True).load_state_dict(stored)
    with pytest.raises(SourceError, match="fp16"):
        write_release_checkpoint({"final.weight": torch.tensor([1e9])}, tmp_path / "bad.pth")
    assert not (tmp_path / "bad.pth").exists()
