"""nnU-Net from model folder to label file, against the files that nnU-Net itself wrote."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunet_files import write_model
from PIL import Image
from seeded import State

from segship.convert.export import export
from segship.convert.precision import compile_package
from segship.inference.predictor import Predictor
from segship.inference.volume_batch import CaseOptions, predict_cases
from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import VolumePredictor

Open = Callable[..., VolumePredictor]
SMALL = ["2d", "aniso", "cascade", "png", "regions", "torchres"]
NO_MIRROR = TileOptions(mirror=False)


@pytest.fixture(scope="session")
def v2(
    shared: Path,
    reference_case: Callable[[str], Any],
    fill: Callable[..., State],
    tmp_path_factory: pytest.TempPathFactory,
) -> Open:
    """``v2(case, engine)``: that reference case's model folder, exported and opened."""
    packages: dict[str, Path] = {}

    def opened(case: str, engine: str = "openvino") -> VolumePredictor:
        if case not in packages:
            root = tmp_path_factory.mktemp(case)
            folder = write_model(root, reference_case(f"nnunet_v2_{case}")[0], fill)
            packages[case] = export(folder, root / "net.segship", engines=["openvino"]).package.path
        predictor = Predictor.open(packages[case], engine=engine)
        assert isinstance(predictor, VolumePredictor)
        return predictor

    return opened


@pytest.fixture(scope="session")
def v1(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """``v1(case)``: a real v1 model folder, exported and opened."""
    root = tmp_path_factory.mktemp("v1")

    def opened(case: str) -> VolumePredictor:
        path = root / f"{case}.segship"
        if not path.exists():
            export(shared / "reference" / f"{case}_model", path, engines=["openvino"])
        predictor = Predictor.open(path)
        assert isinstance(predictor, VolumePredictor)
        return predictor

    return opened


def files_of(about: dict[str, Any], shared: Path) -> list[Path]:
    return [shared.parent / name for name in about["inputs"]]


def previous_of(about: dict[str, Any], shared: Path) -> Path | None:
    name = about.get("previous_stage_segmentation")
    return shared.parent / name if name else None


@pytest.mark.parametrize("case", SMALL)
def test_labels_and_probabilities_of_v2(
    case: str, v2: Open, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    with v2(case) as predictor:
        found = predictor(files_of(about, shared), previous=previous_of(about, shared))
    assert found.labels.dtype == np.uint8
    assert found.labels.shape == arrays["labels_fp32"].shape
    assert np.mean(found.labels == arrays["labels_fp32"]) >= 0.999
    assert np.mean(found.labels == arrays["labels"]) >= 0.999
    # upstream sums in float16, which shows in single voxels of the probabilities: one in a hundred at most
    part = found.probabilities[tuple(slice(None, None, step) for step in about["strides"]["probabilities_sub"])]
    difference = np.abs(part - arrays["probabilities_sub"])
    assert np.mean(difference > 5e-3) <= 0.01
    assert difference.mean() <= 5e-4


@pytest.mark.parametrize("case", [*SMALL, "3d"])
def test_labels_of_v2_without_mirroring(
    case: str, v2: Open, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    with v2(case) as predictor:
        found = predictor(files_of(about, shared), previous=previous_of(about, shared), tiles=NO_MIRROR)
    assert np.mean(found.labels == arrays["labels_notta"]) >= 0.999


@pytest.mark.slow
def test_labels_of_v2_with_two_folds_and_eight_mirrorings(
    v2: Open, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case("nnunet_v2_3d")
    with v2("3d") as predictor:
        found = predictor(files_of(about, shared))
    assert np.mean(found.labels == arrays["labels_fp32"]) >= 0.999
    assert np.mean(found.labels == arrays["labels"]) >= 0.999


@pytest.mark.parametrize("case", ["png", "torchres", "2d", "aniso", "cascade"])
def test_half_precision_sums_reproduce_upstreams_own_labels(
    case: str, v2: Open, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    files, previous = files_of(about, shared), previous_of(about, shared)
    with v2(case, "pytorch") as predictor:
        exact = predictor(files, previous=previous, tiles=TileOptions(half_sums=True))
        plain = predictor(files, previous=previous)
    # one voxel may lie so that float32's last digit decides which half number its score becomes
    assert np.sum(exact.labels != arrays["labels"]) <= max(1, 1e-5 * arrays["labels"].size)
    assert np.mean(plain.labels == arrays["labels_fp32"]) >= 0.9999


@pytest.mark.parametrize("case", SMALL)
def test_logits_of_v2_on_openvino(case: str, v2: Open, shared: Path, reference_case: Callable[[str], Any]) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    with v2(case) as predictor:
        prepared = predictor.prepare(files_of(about, shared), previous_of(about, shared))
        found = predictor.scores(prepared)
    part = found[tuple(slice(None, None, step) for step in about["strides"]["logits_sub"])]
    assert np.abs(part - arrays["logits_fp32_sub"]).max() <= 2e-3


@pytest.mark.parametrize("case", ["nnunet_v1_2d", "nnunet_v1_3d"])
def test_labels_and_softmax_of_v1(case: str, v1: Open, shared: Path, reference_case: Callable[[str], Any]) -> None:
    about, arrays = reference_case(case)
    with v1(case) as predictor:
        found = predictor(files_of(about, shared))
        alone = predictor(files_of(about, shared), tiles=NO_MIRROR)
    assert np.mean(found.labels == arrays["labels"]) >= 0.9999
    assert np.mean(alone.labels == arrays["labels_notta"]) >= 0.999
    raw = type(found)(**{**vars_of(found), "clean": False})
    assert np.mean(raw.labels == arrays["labels_nopostprocessing"]) >= 0.9999
    if about["postprocessing"]:
        assert (raw.labels != found.labels).any()
    box = tuple(slice(low, high) for low, high in about["properties"]["crop_bbox"])
    softmax = found.probabilities[(slice(None), *box)][
        tuple(slice(None, None, step) for step in about["strides"]["softmax_sub"])
    ]
    assert np.abs(softmax - arrays["softmax_sub"].astype(np.float32)).max() <= 1e-3


def vars_of(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("scores", "frame", "recipe", "volume", "activated")}


def test_label_files_lie_where_their_case_lies(
    v2: Open, v1: Open, shared: Path, reference_case: Callable[[str], Any], tmp_path: Path
) -> None:
    """Affine, spacing and origin of oblique, flipped and turned files."""
    for name, opened in (("nnunet_v2_2d", v2), ("nnunet_v2_aniso", v2), ("nnunet_v1_2d", v1)):
        about, arrays = reference_case(name)
        case = name if opened is v1 else name.removeprefix("nnunet_v2_")
        source = files_of(about, shared)[0]
        options = CaseOptions(tiles=NO_MIRROR, probabilities=True)
        with opened(case) as predictor:
            summary = predict_cases(predictor, [source], tmp_path / name, options)
        assert (summary.done, summary.failed) == (1, ())
        stem = source.name.removesuffix("_0000.nii.gz")
        written, given = nibabel.load(tmp_path / name / f"{stem}.nii.gz"), nibabel.load(source)
        assert np.abs(written.affine - given.affine).max() <= 1e-6
        assert written.shape == given.shape
        assert np.allclose(written.header.get_zooms(), given.header.get_zooms(), atol=1e-6)
        labels = np.asarray(written.dataobj).transpose(2, 1, 0)
        if "nibabel_stuff" in about["properties"] and "reoriented_affine" in about["properties"]["nibabel_stuff"]:
            turned = written.as_reoriented(nibabel.io_orientation(written.affine))
            labels = np.asarray(turned.dataobj).transpose(2, 1, 0)
        assert np.mean(labels == arrays["labels_notta"]) >= 0.999
        with np.load(tmp_path / name / f"{stem}.npz") as kept:
            assert kept["probabilities"].dtype == np.float32
            assert kept["probabilities"].shape[1:] == arrays["labels_notta"].shape
        about_case = pickle.loads((tmp_path / name / f"{stem}.pkl").read_bytes())
        wanted = about["properties"]
        if opened is v2:
            assert np.allclose(about_case["spacing"], wanted["spacing"])
            for key in (
                "bbox_used_for_cropping", "shape_before_cropping", "shape_after_cropping_and_before_resampling",
            ):  # fmt: skip
                assert np.array_equal(about_case[key], wanted[key]), key
            affine = wanted["nibabel_stuff"]["original_affine"]
            assert np.abs(about_case["nibabel_stuff"]["original_affine"] - np.array(affine)).max() <= 1e-5
        else:
            assert np.allclose(about_case["sitk_stuff"]["spacing"], wanted["itk_spacing"], atol=1e-6)
            assert np.allclose(about_case["sitk_stuff"]["origin"], wanted["itk_origin"], atol=1e-5)
            assert np.allclose(about_case["sitk_stuff"]["direction"], wanted["itk_direction"], atol=1e-6)


def trained(shared: Path, package: Path, cases: list[str], out: Path, mirror: bool) -> float:
    """Mean Dice of some cases of the trained folder, each held to upstream's own file on the way."""
    folder = shared / "reference" / "nnunet_v2_trained"
    inputs = [folder / "images" / f"{case}_0000.png" for case in cases]
    with Predictor.open(package) as predictor:
        assert isinstance(predictor, VolumePredictor)
        summary = predict_cases(predictor, inputs, out, CaseOptions(tiles=TileOptions(mirror=mirror)))
    assert (summary.done, summary.failed) == (len(cases), ())
    dice = []
    for case in cases:
        found = np.asarray(Image.open(out / f"{case}.png"))
        theirs = np.asarray(
            Image.open(folder / ("predictions" if mirror else "predictions_disable_tta") / f"{case}.png")
        )
        truth = np.asarray(Image.open(folder / "labels" / f"{case}.png"))
        assert np.mean(found == theirs) >= 0.999, case
        dice.append(2 * np.sum((found == 1) & (truth == 1)) / (np.sum(found == 1) + np.sum(truth == 1)))
    return float(np.mean(dice))


@pytest.fixture(scope="session")
def trained_package(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "net.segship"
    export(shared / "reference" / "nnunet_v2_trained", path, engines=["openvino"])
    return path


def test_a_trained_folder_predicts_what_upstream_predicted(shared: Path, trained_package: Path, tmp_path: Path) -> None:
    trained(shared, trained_package, ["nuc_0bf4b144", "nuc_35ca5f14", "nuc_e5f8ad0f"], tmp_path, mirror=True)


@pytest.mark.slow
@pytest.mark.parametrize(("mirror", "wanted"), [(True, 0.90067), (False, 0.89777)])
def test_all_cases_of_the_trained_folder_and_their_dice(
    shared: Path, trained_package: Path, tmp_path: Path, mirror: bool, wanted: float
) -> None:
    folder = shared / "reference" / "nnunet_v2_trained"
    cases = [path.stem for path in sorted((folder / "labels").glob("*.png"))]
    assert len(cases) == 8
    assert abs(trained(shared, trained_package, cases, tmp_path, mirror) - wanted) <= 0.0005
    assert json.loads((tmp_path / "segship-run.json").read_text())["result"]["done"] == 8


@pytest.mark.slow
@pytest.mark.usefixtures("convolutions_alike")
def test_int8_loses_little_and_runs_in_integers(shared: Path, trained_package: Path, tmp_path: Path) -> None:
    """Calibrated on pictures of the training world, none of them a test case."""
    folder = shared / "reference" / "nnunet_v2_trained"
    cases = [path.stem for path in sorted((folder / "labels").glob("*.png"))]
    images = tmp_path / "calibration"
    images.mkdir()
    with zipfile.ZipFile(shared / "data" / "dsb2018" / "stage1_train.zip") as archive:
        names = sorted(name for name in archive.namelist() if "/images/" in name and name.endswith(".png"))
        for name in names[::8]:
            case = f"nuc_{Path(name).stem[:8]}"
            if case not in cases:
                Image.open(io.BytesIO(archive.read(name))).convert("RGB").save(images / f"{case}_0000.png")
    result = compile_package(
        trained_package, "int8", calibrate=images, engines=["openvino"], output=tmp_path / "int8.segship"
    )
    assert result.variant.executed[0].convolution_share.get("i8", 0) > 0.8
    with Predictor.open(tmp_path / "int8.segship", precision="int8") as predictor:
        assert isinstance(predictor, VolumePredictor)
        dice = []
        for case in cases:
            found = predictor(folder / "images" / f"{case}_0000.png").labels[0]
            truth = np.asarray(Image.open(folder / "labels" / f"{case}.png"))
            dice.append(2 * np.sum((found == 1) & (truth == 1)) / (np.sum(found == 1) + np.sum(truth == 1)))
    assert np.mean(dice) >= 0.90067 - 0.005
