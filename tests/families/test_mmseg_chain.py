"""Small segmentors from checkpoint to label files: any picture size, slide mode, static graphs, int8, augmentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmseg_files import new_config, resnet_shape, save, seeded, unet_shape
from torch.nn import functional

from segship.cli import run
from segship.convert.export import export
from segship.convert.precision import compile_package
from segship.errors import BarMissed, DatasetError, EngineError, SourceError
from segship.families.mmseg import build_network
from segship.families.mmseg_config import Config
from segship.families.mmseg_native import complete
from segship.families.mmseg_syntax import read_assignments
from segship.inference.predictor import Failure, Predictor
from segship.inference.verify import verify_package
from segship.measure.environment import executed_by
from segship.measure.evaluate import evaluate
from segship.package import Package, open_package

SLIDE = "dict(mode='slide', crop_size=(24, 32), stride=(14, 20))"
KINDS = {"unet": unet_shape(), "d8": resnet_shape()}
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
Make = Callable[..., Package]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make(kind, **config)``: a small segmentor as a package, made once."""
    made: dict[str, Package] = {}

    def build(kind: str = "unet", **config: object) -> Package:
        key = f"{kind} {config}"
        if key not in made:
            folder = tmp_path_factory.mktemp("mmseg")
            path = save(folder / "net.pth", seeded(KINDS[kind]), {"cfg": new_config(kind, **config)})
            export(path, folder / "net.segship", engines=["onnxruntime"])
            made[key] = open_package(folder / "net.segship")
        return made[key]

    return build


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: smooth blobs."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def upstream(
    kind: str, image: np.ndarray, size: tuple[int, int] | None, multiple: int, aligned: bool = False
) -> torch.Tensor:
    """Logits (1, K, H, W) of a picture in whole mode, by MMSegmentation's order of steps; size as (height, width)."""
    values = read_assignments(new_config(kind, align=aligned), {})[0]
    network = build_network(complete(KINDS[kind], Config(values=values, origin="c")))
    network.load_state_dict(seeded(KINDS[kind]))
    resized = image if size is None else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    x = torch.from_numpy(((resized.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None].copy())
    height, width = x.shape[2:]
    x = functional.pad(x, (0, -width % multiple, 0, -height % multiple))
    with torch.inference_mode():
        logits = functional.interpolate(network(x), size=x.shape[2:], mode="bilinear", align_corners=aligned)
        logits = logits[:, :, :height, :width]
        return functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=aligned)


def agreement(labels: np.ndarray, logits: torch.Tensor) -> float:
    """Share of equal labels, near ties left out."""
    best = logits[0].sort(dim=0).values
    clear = (best[-1] - best[-2] > 1e-4).numpy()
    return float(np.mean((labels == logits[0].argmax(0).numpy())[clear]))


def test_pictures_of_any_size(make: Make) -> None:
    """A keep-ratio fit into 64×32, of wide, tall, tiny and odd pictures, in one stream."""
    fits = {(40, 100): (26, 64), (90, 31): (64, 22), (7, 5): (45, 32), (33, 65): (32, 63), (32, 64): (32, 64)}
    package = make("unet")
    multiple = package.manifest.network.size_multiple[0]
    images = [picture(*size) for size in fits]
    with Predictor.open(package, engine="onnxruntime", batch=4) as predictor:
        found = list(predictor.stream([*images, images[0]]))
        assert not any(isinstance(one, Failure) for one in found)
        for image, size, one in zip(images, fits.values(), found, strict=False):
            assert one.frame.geometry == () or one.frame.geometry[0].after_hw in (size, image.shape[:2])
            assert agreement(one.labels, upstream("unet", image, size, multiple)) == 1
        assert np.array_equal(found[-1].labels, found[0].labels)
        assert np.array_equal(predictor(images[0]).labels, found[0].labels)


def test_the_package_says_all_that_the_runtime_needs(make: Make) -> None:
    package = make("d8", test=SLIDE, align=True)
    manifest = package.manifest
    assert manifest.tiling is not None
    assert (manifest.tiling.window, manifest.tiling.step) == ((24, 32), (14.0, 20.0))
    assert [step.step for step in manifest.preprocess] == ["resize_keep_ratio", "normalize"]
    assert manifest.metric.scorer == "mmseg"
    assert manifest.augmentation is not None
    assert package.provenance()["source"]["found_in"]["settings"] == "the checkpoint's cfg text"
    assert all(row.passed for row in verify_package(package.path, engine="onnxruntime"))


def test_a_package_of_large_pictures_is_proved_small_and_says_what_ran(make: Make) -> None:
    """Its graph is opened for the one size that its pictures have; the proof and a profiled run have others."""
    package = make("unet", scale="(2048, 1024)")
    assert package.manifest.network.check_size == (256, 512)
    assert all(row.passed for row in verify_package(package.path, engine="onnxruntime"))
    with Predictor.open(package, engine="onnxruntime") as predictor:
        assert executed_by(predictor, picture(30, 90)).convolution_share
        assert predictor(picture(30, 90)).labels.shape == (30, 90)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "pytorch"])
def test_slide_mode_from_file_to_labels(make: Make, engine: str) -> None:
    package = make("d8", test=SLIDE, align=True)
    image = picture(50, 91)  # becomes 32x58: windows of 24x32 at 0 and 8, 0, 20 and 26
    resized = cv2.resize(image, (58, 32), interpolation=cv2.INTER_LINEAR)
    total, seen = torch.zeros(1, 3, 32, 58), torch.zeros(32, 58)
    for top in (0, 8):
        for left in (0, 20, 26):
            part = resized[top : top + 24, left : left + 32]
            total[:, :, top : top + 24, left : left + 32] += upstream("d8", part, None, 1, aligned=True)
            seen[top : top + 24, left : left + 32] += 1
    logits = functional.interpolate(total / seen, size=(50, 91), mode="bilinear", align_corners=True)
    with Predictor.open(package, engine=engine, batch=4) as predictor:
        found = predictor(image)
        assert agreement(found.labels, logits) == 1
        assert agreement(next(iter(predictor.stream([image]))).labels, logits) == 1
        assert np.abs(found.probabilities - logits.softmax(1)[0].numpy()).max() < 1e-4


@pytest.mark.parametrize("version", ["1.x", "0.x"])
def test_augmentation(make: Make, version: str) -> None:
    package, image, total = make("unet"), picture(30, 54, 3), torch.zeros(1, 3, 30, 54)
    sizes = {"1.x": {0.5: (15, 27), 1.5: (45, 81)}, "0.x": {0.5: (16, 29), 1.5: (48, 86)}}[version]
    for size in sizes.values():
        for mirror in (False, True):
            small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            shown = np.ascontiguousarray(small[:, ::-1]) if mirror else small
            logits = upstream("unet", shown, None, 4)
            logits = functional.interpolate(
                logits.flip(3) if mirror else logits, size=(30, 54), mode="bilinear", align_corners=False
            )
            total += logits.softmax(1)
    total /= 4
    with Predictor.open(package, engine="onnxruntime", tta=version, tta_ratios=tuple(sizes)) as predictor:
        found = predictor(image)
        assert np.abs(found.probabilities - total[0].numpy()).max() < 1e-5
        assert agreement(found.labels, total) == 1
        streamed = list(predictor.stream([image, picture(20, 20)], keep_images=True))
        assert np.array_equal(streamed[0].labels, found.labels)
        assert streamed[0].image is not None
        assert streamed[1].labels.shape == (20, 20)


def test_a_static_variant_takes_every_size(make: Make, tmp_path: Path) -> None:
    package = make("unet")
    result = compile_package(
        package, "fp16", shape="static", batches=(1, 2), output=tmp_path / "s.segship", engines=["onnxruntime"]
    )
    images = [picture(32, 64), picture(40, 40), picture(64, 32), picture(32, 64, 1)]
    with Predictor.open(result.package, precision="fp16", engine="onnxruntime", batch=2) as static:
        found = [one.labels for one in static.stream(images)]
    with Predictor.open(package, engine="onnxruntime") as free:
        assert all(np.mean(one == free(image).labels) > 0.99 for one, image in zip(found, images, strict=True))


def test_int8_is_calibrated_on_pictures_of_mixed_sizes(make: Make, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(8):
        cv2.imwrite(str(tmp_path / "train" / f"{number}.png"), picture(40 + 3 * number, 90 - 2 * number, number))
    package = make("unet")
    result = compile_package(package, "int8", calibrate=tmp_path / "train", output=tmp_path / "i.segship")
    assert result.variant.quantization is not None
    assert result.variant.quantization.calibration_images == 8
    for folder in ("img_dir", "ann_dir"):
        (tmp_path / "val" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "val/img_dir/0.png"), picture(40, 90, 0))
    cv2.imwrite(str(tmp_path / "val/ann_dir/0.png"), np.zeros((40, 90), np.uint8))
    with pytest.raises(DatasetError, match=r"also stand in the evaluation data"):
        compile_package(
            package, "int8", calibrate=tmp_path / "train", validate=tmp_path / "val", output=tmp_path / "j.segship"
        )


def street_folders(root: Path, package: Package, count: int = 4) -> tuple[Path, Path]:
    """(pictures to calibrate on, mmseg folders whose labels are what fp32 answers, so that any rounding is a loss)."""
    for folder in ("train", "val/img_dir", "val/ann_dir"):
        (root / folder).mkdir(parents=True)
    with Predictor.open(package, engine="onnxruntime") as fp32:
        for number in range(count):
            image = picture(36 + 3 * number, 90 - 4 * number, 50 + number)
            cv2.imwrite(str(root / "train" / f"{number}.png"), picture(40, 80, number))
            cv2.imwrite(str(root / "val/img_dir" / f"{number}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            cv2.imwrite(str(root / "val/ann_dir" / f"{number}.png"), fp32(image).labels)
    return root / "train", root / "val"


@pytest.mark.slow
@pytest.mark.parametrize("slides", [False, True])
def test_a_drop_of_mean_iou_is_gated_fail_closed(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], slides: bool
) -> None:
    package = make("unet", test=SLIDE) if slides else make("unet")
    train, val = street_folders(tmp_path, package)
    out = tmp_path / "int8.segship"
    command = ["compile", str(package.path), "--precision", "int8", "--calibrate", str(train), "--validate", str(val)]
    command += ["--engine", "onnxruntime", "-o", str(out), "--max-drop"]
    assert run([*command, "0.9"]) == 0
    made = open_package(out).manifest.variant("int8")
    assert made is not None
    assert made.drop is not None
    assert (made.drop.metric, made.drop.fp32, made.drop.cases) == ("mIoU", 1.0, 4)
    assert 0 < made.drop.drop < 0.9
    scored = evaluate(open_package(out), val, precision=("fp32", "int8"), engine="onnxruntime", record=False)
    after = scored.variant("int8")
    assert after is not None
    assert after.evaluation.value == pytest.approx(made.drop.value)
    before = out.read_bytes()
    capsys.readouterr()
    assert run([*command, "0"]) == 3
    told = capsys.readouterr().err
    assert "int8 loses more than the allowed 0; nothing was written" in told
    assert "mIoU" in told
    assert "in float32: " in told, "what was tried"
    assert "Traceback" not in told
    assert out.read_bytes() == before


def test_labels_that_score_nothing_pass_no_gate(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every pixel ignored: the drop is no number, and no number passes."""
    package = make("unet")
    train, val = street_folders(tmp_path, package)
    for path in (val / "ann_dir").iterdir():
        cv2.imwrite(str(path), np.full(cv2.imread(str(path), 0).shape, 255, np.uint8))
    command = ["compile", str(package.path), "--precision", "int8", "--calibrate", str(train), "--validate", str(val)]
    command += ["--engine", "onnxruntime", "-o", str(tmp_path / "int8.segship"), "--max-drop", "1"]
    assert run(command) != 0
    assert "error" in capsys.readouterr().err.lower()
    assert not (tmp_path / "int8.segship").exists()


def test_a_package_of_windows_gains_precisions(make: Make, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(4):
        cv2.imwrite(str(tmp_path / "train" / f"{number}.png"), picture(30 + 9 * number, 90, number))
    package, image = make("d8", test=SLIDE, align=True), picture(50, 91)
    calibrated = compile_package(
        package, "int8", calibrate=tmp_path / "train", output=tmp_path / "i.segship", engines=["onnxruntime"]
    )
    assert calibrated.variant.precision == "int8"
    assert all(row.passed for row in verify_package(calibrated.package.path, engine="onnxruntime"))
    with (
        Predictor.open(calibrated.package, precision="int8", engine="onnxruntime") as small,
        Predictor.open(package, engine="onnxruntime") as whole,
    ):
        assert np.mean(small(image).labels == whole(image).labels) > 0.9


def test_the_command_line(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package, folder = make("unet"), tmp_path / "in"
    folder.mkdir()
    sizes = {"a": (40, 100), "b": (64, 20), "c": (33, 33)}
    for name, size in sizes.items():
        cv2.imwrite(str(folder / f"{name}.png"), cv2.cvtColor(picture(*size), cv2.COLOR_RGB2BGR))
    common = ["predict", str(package.path), str(folder), "--engine", "onnxruntime"]
    for out, more in {"plain": [], "tta": ["--tta", "--tta-ratios", "0.5,1"], "old": ["--tta", "0.x"]}.items():
        assert run([*common, "-o", str(tmp_path / out), *more]) == 0
        for name, size in sizes.items():
            labels = cv2.imread(str(tmp_path / out / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            assert labels.shape == size
            assert labels.max() < 3
    capsys.readouterr()
    assert run([*common, "-o", str(tmp_path / "plain"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3
    assert run([*common, "-o", str(tmp_path / "plain"), "--tta", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 3
    for wrong, message in {("--tta-ratios", "1"): "are the sizes of --tta", ("--tta", "2.x"): "2.x"}.items():
        assert run([*common, "-o", str(tmp_path / "x"), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_becomes_a_package_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "work_dir"
    folder.mkdir()
    save(folder / "iter_10.pth", seeded(unet_shape()))
    (folder / "unet.py").write_text(new_config())
    arguments = ["export", str(folder), "-o", str(tmp_path / "net.segship"), "--engine", "onnxruntime"]
    assert run(arguments) == 0
    assert "FCN-UNet; settings from config unet.py" in capsys.readouterr().out
    (folder / "unet.py").write_text(new_config("d8"))
    assert run(arguments) == 1
    assert "describes another network" in capsys.readouterr().err


def test_an_export_that_is_right_at_one_size_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an upsampling to a computed size would do: the graph bakes the number in."""

    class Baked(torch.nn.Module):
        def __init__(self, scale_factor: float, **_: object) -> None:
            super().__init__()
            self.factor = int(scale_factor)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            size = [int(side) * self.factor for side in x.shape[2:]]
            return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)

    monkeypatch.setattr(torch.nn, "Upsample", Baked)
    path = save(tmp_path / "net.pth", seeded(unet_shape()), {"cfg": new_config()})
    with pytest.raises((BarMissed, EngineError, SourceError)):
        export(path, tmp_path / "net.segship", engines=["onnxruntime"])
    assert not (tmp_path / "net.segship").exists()
