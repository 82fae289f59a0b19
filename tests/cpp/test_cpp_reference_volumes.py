"""The reference cases for volumes: nnU-Net v2 and v1, and the MLPerf 3D U-Net, from the C++ runner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from cpp_cases import tiling, volume_package
from cpp_compare import Runner, check_stages, volume_stages
from cpp_sources import bare_network, volume_source
from nnunet_files import write_model
from PIL import Image
from seeded import State

from segship.families import load_source
from segship.inference.predictor import Predictor
from segship.inference.volume_network import TileOptions
from segship.networks.unet3d_mlperf import Unet3D
from segship.package import Package

Read = Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray]]]
Fill = Callable[..., State]
SMALL = ["2d", "aniso", "cascade", "png", "regions", "torchres"]
PREPARED = 2e-5
"""of a stage's largest value: splines are sums of many products, in another order on either side"""


@pytest.fixture(scope="module")
def nnunet(
    shared: Path, reference_case: Read, fill: Fill, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Package]:
    """``nnunet("v2_2d")``: that reference case's model folder as a package, made once."""
    made: dict[str, Package] = {}

    def make(case: str) -> Package:
        if case not in made:
            root = tmp_path_factory.mktemp(case)
            if case.startswith("v1"):
                folder = shared / "reference" / f"nnunet_{case}_model"
            else:
                folder = write_model(root, reference_case(f"nnunet_{case}")[0], fill)
            made[case] = volume_source(load_source(folder), root / "net.segship")
        return made[case]

    return make


def inputs_of(about: dict[str, Any], shared: Path, folder: Path) -> tuple[list[Path], str, dict[str, Any], Any]:
    """(files, case, options of the binary, the first stage's labels)"""
    files = [shared.parent / name for name in about["inputs"]]
    ending = ".png" if files[0].suffix == ".png" else ".nii.gz"
    case = files[0].name.removesuffix(ending).removesuffix("_0000")
    before = about.get("previous_stage_segmentation")
    if not before:
        return files, case, {}, None
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(shared.parent / before, folder / f"{case}.nii.gz")
    return files, case, {"prev_stage_predictions": folder}, shared.parent / before


@pytest.mark.parametrize("case", [*SMALL, "3d"])
def test_nnunet_v2(
    case: str, nnunet: Callable[[str], Package], shared: Path, reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    """Every stage of the small cases with all their mirrorings; of the large one without, which takes an eighth."""
    about, arrays = reference_case(f"nnunet_v2_{case}")
    files, name, options, before = inputs_of(about, shared, tmp_path / "before")
    mirror = case != "3d"
    package = nnunet(f"v2_{case}")
    found = run_cpp(package, *files, **options, **({} if mirror else {"disable_tta": True})).of(name)
    with Predictor.open(package) as predictor:
        wanted = volume_stages(predictor, files, previous=before, tiles=TileOptions(mirror=mirror))
    check_stages(found, wanted, prepared=PREPARED)
    assert list(found["preprocessed"].shape) == about["preprocessed_shape"]
    theirs = arrays["labels_fp32" if mirror else "labels_notta"]
    assert np.mean(found["decoded"] == theirs) >= 0.999


@pytest.mark.slow
def test_nnunet_v2_with_two_folds_and_eight_mirrorings(
    nnunet: Callable[[str], Package], shared: Path, reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    about, arrays = reference_case("nnunet_v2_3d")
    files, name, _, _ = inputs_of(about, shared, tmp_path)
    found = run_cpp(nnunet("v2_3d"), *files).of(name)
    assert np.mean(found["decoded"] == arrays["labels_fp32"]) >= 0.999
    part = found["network"][tuple(slice(None, None, step) for step in about["strides"]["logits_sub"])]
    assert np.abs(part - arrays["logits_fp32_sub"]).max() <= 1e-3 * max(1.0, float(np.abs(part).max()))


@pytest.mark.parametrize("case", ["v1_2d", "v1_3d"])
def test_nnunet_v1(
    case: str, nnunet: Callable[[str], Package], shared: Path, reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    about, arrays = reference_case(f"nnunet_{case}")
    files, name, _, _ = inputs_of(about, shared, tmp_path)
    ran = run_cpp(nnunet(case), *files, save_probabilities=True)
    with Predictor.open(nnunet(case)) as predictor:
        check_stages(ran.of(name), predictor.trace(files), prepared=PREPARED)
    assert np.mean(ran.of(name)["decoded"] == arrays["labels"]) >= 0.9999
    box = tuple(slice(low, high) for low, high in about["properties"]["crop_bbox"])
    with np.load(ran.folder / f"{name}.npz") as kept:
        softmax = kept["probabilities"][(slice(None), *box)]
    softmax = softmax[tuple(slice(None, None, step) for step in about["strides"]["softmax_sub"])]
    assert np.abs(softmax - arrays["softmax_sub"].astype(np.float32)).max() <= 1e-3


def test_label_files_lie_where_their_case_lies(
    nnunet: Callable[[str], Package], shared: Path, reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    for case in ("v2_2d", "v2_aniso", "v1_2d"):
        about, arrays = reference_case(f"nnunet_{case}")
        files, name, _, _ = inputs_of(about, shared, tmp_path)
        ran = run_cpp(nnunet(case), *files, trace=False, disable_tta=True)
        assert ran.code == 0, ran.err
        written, given = nibabel.load(ran.folder / f"{name}.nii.gz"), nibabel.load(files[0])
        assert np.abs(written.affine - given.affine).max() <= 1e-6
        assert written.shape == given.shape
        turned = "reoriented_affine" in about["properties"].get("nibabel_stuff", {})
        image = written.as_reoriented(nibabel.io_orientation(written.affine)) if turned else written
        assert np.mean(np.asarray(image.dataobj).transpose(2, 1, 0) == arrays["labels_notta"]) >= 0.999


def test_a_trained_folder_predicts_what_upstream_predicted(shared: Path, run_cpp: Runner, tmp_path: Path) -> None:
    folder = shared / "reference" / "nnunet_v2_trained"
    package = volume_source(load_source(folder), tmp_path / "net.segship")
    cases = ["nuc_0bf4b144", "nuc_35ca5f14", "nuc_e5f8ad0f"]
    ran = run_cpp(package, *(folder / "images" / f"{case}_0000.png" for case in cases))
    with Predictor.open(package) as predictor:
        for case in cases:
            check_stages(ran.of(case), predictor.trace(folder / "images" / f"{case}_0000.png"), prepared=PREPARED)
            found = np.asarray(Image.open(ran.folder / f"{case}.png"))
            theirs = np.asarray(Image.open(folder / "predictions" / f"{case}.png"))
            assert np.mean(found == theirs) >= 0.999, case


def test_a_cascade_runs_its_first_stage(
    nnunet: Callable[[str], Package], shared: Path, reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    """The first stage's package lies beside, is named, or gave its labels before: one answer."""
    from segship.manifest import PreviousStage
    from segship.package import write_package

    second, first = nnunet("v2_cascade"), nnunet("v2_aniso")
    labels = second.manifest.preprocess[-1]
    assert labels.step == "previous_stage_channels"
    ids = {label.id for label in first.manifest.labels}
    assert len(set(labels.labels) & ids) > 1, "another network stands in for the first stage's"
    link = PreviousStage(file="first.segship", sha256=first.network_sha256)
    manifest = second.manifest.model_copy(update={"previous_stage": link})
    files = {name: second.read(name) for name in second.names() if name.startswith("graphs/")}
    package = write_package(tmp_path / "second.segship", manifest, files, {})
    about = reference_case("nnunet_v2_cascade")[0]
    case, _, _, _ = inputs_of({**about, "previous_stage_segmentation": None}, shared, tmp_path)
    missing = run_cpp(package, *case)
    assert missing.code == 1
    assert "first.segship" in missing.err
    named = run_cpp(package, *case, previous_stage=first.path)
    shutil.copy(first.path, tmp_path / "first.segship")
    found = run_cpp(package, *case)
    with Predictor.open(package) as predictor:
        wanted = predictor.trace(case)
    check_stages(found.of("nnunet_v2_cascade"), wanted, prepared=PREPARED)
    check_stages(named.of("nnunet_v2_cascade"), wanted, prepared=PREPARED)


# -------------------------------------------------------------------------------------------------- MLPerf


def test_the_mlperf_network(reference_case: Read, fill: Fill, run_cpp: Runner, tmp_path: Path) -> None:
    about, arrays = reference_case("mlperf_unet3d")
    network = Unet3D().eval()
    network.load_state_dict(fill(network.state_dict(), about["gain"]))
    package, x = bare_network(network, arrays["input"], tmp_path / "net.segship")
    np.save(tmp_path / "case_x.npy", x)
    found = run_cpp(package, tmp_path / "case_x.npy")
    assert found.code == 0, found.err
    answer = next(iter(found.stages.values()))["network"]
    assert np.abs(answer - arrays["output0"][0]).max() <= 1e-3
    assert np.mean(answer.argmax(0) == arrays["output0"][0].argmax(0)) >= 0.9999


def test_mlperfs_preprocessing_of_a_real_ct(
    shared: Path, reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    """Resampled, clipped, normalised and padded as the original did it, every fourth voxel."""
    from segship.datasets.kits19_steps import reading, steps

    about = json.loads((shared / "reference" / "mlperf_preprocess.json").read_text())["cases"][0]
    arrays = reference_case("mlperf_preprocess")[1]
    assert about["transpose_of_the_array"] is None
    spec = reading().model_copy(update={"orientation": None, "folder_file": None})
    package = volume_package(
        tmp_path / "net.segship", *steps(), spec=spec, scale=0.3,
        windows=tiling((64, 64, 64), step=(64, 64, 64), weighting="uniform", gaussian_sigma_scale=None),
    )  # fmt: skip
    path = shared / "data" / "ct" / about["image"]
    found = run_cpp(package, path).of(about["image"].removesuffix(".nii.gz"))
    with Predictor.open(package) as predictor:
        check_stages(found, predictor.trace(path), prepared=2e-6)
    prepared = found["preprocessed"][0] / np.float32(0.3)
    assert list(prepared.shape) == about["shape_final"]
    assert np.abs(prepared[::4, ::4, ::4] - arrays["image0"]).max() <= 1e-4
