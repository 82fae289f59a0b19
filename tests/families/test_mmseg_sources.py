"""Checkpoints of MMSegmentation: where what the weights do not say is found, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmseg_files import (
    COLORS,
    NAMES,
    State,
    auxiliary,
    hrnet_shape,
    new_config,
    old_config,
    resnet_shape,
    save,
    save_training_checkpoint,
    seeded,
    unet_shape,
)

from segship.datasets.label_rules import rules_in
from segship.errors import SourceError, UnknownSource, UsageError
from segship.families import Source, load_source
from segship.families.checkpoint import open_checkpoint
from segship.families.mmseg_keys import NotNative, recognise
from segship.networks.mmseg_segmentor import Segmentor

META = {"CLASSES": NAMES, "PALETTE": [list(color) for color in COLORS], "mmseg_version": "0.30.0"}


@pytest.fixture(scope="module")
def unet() -> State:
    return seeded(unet_shape())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "unet.py"
    path.write_text(new_config())
    return path


def load(path: Path, **options: Any) -> Source:
    return load_source(path, options=options)


def test_a_configuration_beside_the_weights(unet: State, config: Path, tmp_path: Path) -> None:
    source = load(save(tmp_path / "net.pth", unet), config=str(config))
    assert source.recipe.network.architecture == "FCN-UNet"
    assert [label.name for label in source.recipe.labels] == list(NAMES)
    assert [label.color for label in source.recipe.labels] == list(COLORS)
    assert source.recipe.options["settings_from"] == source.recipe.options["classes_from"] == "config"
    assert source.provenance["found_in"] == {"settings": "config unet.py", "classes": "config unet.py"}
    assert [step.step for step in source.recipe.preprocess] == ["resize_keep_ratio", "normalize", "pad"]
    assert source.recipe.decode.restore_path == "by-input-size"
    assert source.recipe.network.size is None
    assert source.recipe.network.size_multiple == (4, 4)


@pytest.mark.parametrize("wrapping", ["0.x", "1.x", "training", "prefix"])
def test_what_a_checkpoint_says_of_itself(unet: State, tmp_path: Path, wrapping: str) -> None:
    path = tmp_path / "latest.pth"
    state = unet | auxiliary()
    if wrapping == "0.x":
        save(path, state, {**META, "config": old_config()})
    elif wrapping == "prefix":
        save(path, {f"module.{key}": value for key, value in state.items()}, {**META, "config": old_config()})
    else:
        about = {"classes": NAMES, "palette": META["PALETTE"]}
        meta = {"cfg": new_config(), "dataset_meta": about, "mmengine_version": "0.10.7"}
        save(path, state, meta) if wrapping == "1.x" else save_training_checkpoint(path, state, meta)
    source = load(path)
    assert tuple(label.name for label in source.recipe.labels) == NAMES
    assert source.recipe.options["settings_from"] == source.recipe.options["classes_from"] == "meta"
    assert "text" in source.provenance["found_in"]["settings"]
    assert source.provenance["auxiliary_parameters"] > 0
    assert sum(p.numel() for p in source.network.parameters()) == source.recipe.network.parameters
    if wrapping == "training":
        assert source.provenance["checkpoint"]["read_by"] == "restricted unpickler, the rest left inert"
    x = torch.zeros(1, 3, 16, 20)
    with torch.inference_mode():
        expected = load(save(tmp_path / "plain.pth", unet, {"cfg": new_config()})).network(x)
        assert torch.equal(source.network(x), expected)


@pytest.mark.parametrize("kind", ["unet", "hrnet", "d8", "d16"])
def test_both_dialects_give_equal_manifests(tmp_path: Path, kind: str) -> None:
    shape = {"unet": unet_shape, "hrnet": hrnet_shape}.get(kind, resnet_shape)()
    path = save(tmp_path / "net.pth", seeded(shape))
    (tmp_path / "new.py").write_text(new_config(kind))
    (tmp_path / "old.py").write_text(old_config(kind))
    new, old = (load(path, config=str(tmp_path / name)).recipe for name in ("new.py", "old.py"))
    assert new == old
    expected = {"d8": "1,2,1,1", "d16": "1,2,2,1"}.get(kind)
    assert new.options.get("backbone_strides") == expected
    assert new.options["align_corners"] is False


def test_the_training_checkpoint_brings_no_foreign_object(unet: State, tmp_path: Path) -> None:
    path = save_training_checkpoint(tmp_path / "iter_7.pth", unet, {"cfg": new_config(), "epoch": 3, "odd": {1, 2}})
    checkpoint = open_checkpoint(path)
    assert checkpoint.meta["epoch"] == 3
    assert checkpoint.meta["odd"] is None
    assert len(checkpoint.state_dict) == len(unet)


def test_the_order_of_sources(unet: State, config: Path, tmp_path: Path) -> None:
    inside = new_config(scale="(128, 64)")
    path = save(tmp_path / "net.pth", unet, {"cfg": inside})
    assert load(path).recipe.preprocess[0].long_side == 128
    assert load(path, config=str(config)).recipe.preprocess[0].long_side == 64
    assert load(path, scale="96x48").recipe.preprocess[0].short_side == 48
    assert [step.step for step in load(path, scale="none").recipe.preprocess] == ["normalize", "pad"]
    warned = load(path, arch="fcn_unet_s5-d16")
    assert any("was not needed" in warning for warning in warned.warnings)


def test_nothing_is_guessed(tmp_path: Path, unet: State) -> None:
    with pytest.raises(
        SourceError, match=r"does not say how its network is used .*; give its configuration with --config"
    ) as caught:
        load(save(tmp_path / "net.pth", unet))
    assert "--arch" not in str(caught.value)  # no released network has these weights


def test_ambiguous_dilations_are_told_not_guessed(tmp_path: Path) -> None:
    """Released DeepLabV3-R50: D8 of both crops have the same tensors."""
    from segship.families.mmseg_config import Config
    from segship.families.mmseg_known import known_config
    from segship.families.mmseg_native import complete
    from segship.families.mmseg_sources import _fitting
    from segship.networks.mmseg_resnet import ResNetShape
    from segship.networks.mmseg_segmentor import HeadShape, NetworkShape

    head = HeadShape(kind="aspp", inputs=2048, channels=512, classes=19, maps=(3,), dilations=(1, 12, 24, 36))
    shape = NetworkShape(backbone=ResNetShape(depth=101, stem="v1c"), heads=(head,))
    fitting = ["deeplabv3_r101-d8_512x1024", "deeplabv3_r101-d8_769x769", "deeplabv3_r101-d16-mg124_512x1024"]
    assert _fitting(shape) == fitting
    strides = {name: complete(shape, Config(values=known_config(name), origin=name)).stride for name in fitting}
    assert list(strides.values()) == [8, 8, 16]
    with pytest.raises(UsageError, match="none of the released networks"):
        load(save(tmp_path / "net.pth", seeded(resnet_shape())), arch="deeplabv3_r101-d8")


def test_released_settings_for_other_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", seeded(unet_shape(classes=2, base=64, stages=5), gain=1.0))
    with pytest.raises(SourceError, match=r"and its 2 classes with --class-names with --arch: fcn_unet"):
        load(path)
    with pytest.raises(SourceError, match="says 19 classes and the weights have 2"):
        load(path, arch="fcn_unet_s5-d16")
    streets = load(path, arch="fcn_unet_s5-d16", class_names="road,sky").recipe  # not that they are Cityscapes'
    assert "label_map" not in streets.metric.options
    assert [label.file_value for label in streets.labels] == [None] * 2
    recipe = load(path, arch="fcn_unet_s5-d16", class_names="road,else").recipe
    assert [label.name for label in recipe.labels] == ["road", "else"]
    assert recipe.options["settings_from"] == recipe.options["classes_from"] == "flag"
    with pytest.raises(
        SourceError, match=r"not those of --arch ocrnet_hr18_512x1024; --arch takes fcn_unet_s5-d16_512x1024"
    ):
        load(path, arch="ocrnet_hr18")


def test_a_released_name_is_believed_and_its_hash_checked(tmp_path: Path) -> None:
    state = seeded(unet_shape(classes=19, base=64, stages=5), gain=1.0)
    plain = save(tmp_path / "plain.pth", state)
    start = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    names = {
        f"fcn_unet_s5-d16_4x4_512x1024_160k_cityscapes_20211210_145204-{start}.pth": 0,
        "fcn_unet_s5-d16_4x4_512x1024_160k_cityscapes_20211210_145204-00000000.pth": 1,
    }
    for name, warnings in names.items():
        plain.rename(tmp_path / name)
        plain = tmp_path / name
        source = load(plain)
        assert len(source.warnings) == warnings
        assert source.recipe.options["settings_from"] == source.recipe.options["classes_from"] == "name"
        assert source.recipe.labels[13].name == "car"
    assert "should have a sha256 that begins with 00000000" in source.warnings[0]
    plain.rename(tmp_path / "net.pth")
    assert load(tmp_path / "net.pth", arch="fcn_unet_s5-d16").recipe.labels == source.recipe.labels
    with pytest.raises(SourceError, match=r"--arch: fcn_unet_s5-d16_512x1024$"):
        load(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("d8", {}, "describes another network than the weights hold: a ResNetV1c where the weights have a UNet"),
        ("hrnet", {}, "2 decode head(s) where the weights have 1"),
        ("unet", {"classes": 2}, "says 2 classes and the weights have 3"),
    ],
)
def test_a_configuration_of_another_network(
    unet: State, tmp_path: Path, kind: str, options: dict, message: str
) -> None:
    (tmp_path / "c.py").write_text(new_config(kind, **options))
    with pytest.raises(SourceError) as caught:
        load(save(tmp_path / "net.pth", unet), config=str(tmp_path / "c.py"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_channels=4", "base_channels=8", "8 base channels"),
        ("num_stages=3", "num_stages=5", "5 stages"),
        ("channels=4, num_convs", "channels=16, num_convs", "channels 16"),
        ("in_index=2", "in_index=1", "a head on 8 channels (in_index 1)"),
        ("in_index=2", "in_index=9", "which is no sensible number"),
        (
            "strides=(1, 1, 1)",
            "strides=(1, 2, 1)",
            "stages that halve by stride, pool where the weights have pool, pool",
        ),
        ("strides=(1, 1, 1)", "strides=(1, 1, 3)", "has strides (1, 1, 3)"),
        ("strides=(1, 1, 1)", "strides=(1, 1)", "backbone.strides should be 3 whole numbers"),
        ("num_stages=3", "num_stages=3, upsample_cfg=dict(type='DeconvModule')", "enlarges by DeconvModule"),
        ("num_stages=3", "num_stages=3, upsample_cfg=dict(type='InterpConv', conv_first=True)", "the other side"),
        ("num_stages=3", "num_stages=3, upsample_cfg=dict(type='InterpConv', stride=2)", "enlarges in another way"),
        ("num_stages=3", "num_stages=3, dec_dilations=(1, 0)", "backbone.dec_dilations holds (1, 0)"),
        ("num_stages=3", "num_stages=3, downsamples=True", "backbone.downsamples should be 2 of True or False"),
        ("type='FCNHead'", "type='FCNHead', act_cfg=None", "no activations"),
        ("type='FCNHead'", "type='FCNHead', norm_cfg=dict(type='BN', eps=0)", "batch norms of eps 0"),
        ("type='FCNHead'", "type='FCNHead', act_cfg=dict(type='GELU')", "GELU activations"),
        ("model = dict(", "model_ = dict(", "has no 'model'"),
    ],
)
def test_settings_that_contradict_the_weights(unet: State, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = new_config()
    assert old in text
    (tmp_path / "c.py").write_text(text.replace(old, new))
    with pytest.raises(SourceError) as caught:
        load(save(tmp_path / "net.pth", unet), config=str(tmp_path / "c.py"))
    assert message in str(caught.value)


def test_classes(unet: State, tmp_path: Path) -> None:
    text = new_config().replace("metainfo=dict(", "other=dict(")
    with pytest.raises(SourceError, match="names the classes; give the names of all 3 with --class-names"):
        load(save(tmp_path / "a.pth", unet, {"cfg": text}))
    named = load(tmp_path / "a.pth", class_names="x,y,z")
    assert [label.name for label in named.recipe.labels] == ["x", "y", "z"]
    assert any("made-up" in warning for warning in named.warnings)
    assert named.recipe.labels == load(tmp_path / "a.pth", class_names="x,y,z").recipe.labels
    with pytest.raises(SourceError, match="--class-names names 2 classes and the weights have 3"):
        load(tmp_path / "a.pth", class_names="x,y")
    with pytest.raises(SourceError, match="the checkpoint's CLASSES names 2 classes and the weights have 3"):
        load(save(tmp_path / "b.pth", unet, {"config": old_config(), "CLASSES": NAMES[:2]}))
    with pytest.raises(SourceError, match="its palette has 1 colours for 3 classes"):
        load(save(tmp_path / "c.pth", unet, {"config": old_config(), "CLASSES": NAMES, "PALETTE": [[1, 2, 3]]}))
    no_colors = load(save(tmp_path / "d.pth", unet, {"cfg": new_config().replace("palette=", "colors=")}))
    assert any("names no colours" in warning for warning in no_colors.warnings)


def test_a_part_of_a_data_sets_classes(unet: State, tmp_path: Path) -> None:
    """The numbers in its label maps are those of all its classes, as upstream's data sets read them."""
    text = new_config().replace("'BaseSegDataset'", "'CityscapesDataset'").replace("palette=", "colours=")
    some = text.replace(repr(NAMES), "('car', 'road', 'sky')")
    recipe = load(save(tmp_path / "a.pth", unet, {"cfg": some})).recipe
    rules = rules_in(recipe.metric.options)
    assert rules.label_map == {k: {13: 0, 0: 1, 10: 2}.get(k, 255) for k in range(19)}
    assert [(label.name, label.file_value) for label in recipe.labels] == [("car", 26), ("road", 7), ("sky", 23)]
    truth = np.uint8([[0, 10, 13], [1, 255, 0]])
    assert rules.apply(truth).tolist() == [[1, 2, 0], [255, 255, 1]]
    others = load(save(tmp_path / "b.pth", unet, {"cfg": text})).recipe
    assert "label_map" not in others.metric.options
    assert [label.file_value for label in others.labels] == [None] * 3
    said = load(tmp_path / "a.pth", class_names="road,sky,car").recipe  # their numbers are the user's own
    assert "label_map" not in said.metric.options
    assert [label.file_value for label in said.labels] == [None] * 3


def test_one_channel_stands_for_two_classes(tmp_path: Path) -> None:
    state = seeded(unet_shape(classes=1))
    text = new_config(classes=2).replace("num_classes=2", "num_classes=2, out_channels=1, threshold=0.4")
    # An auxiliary head may tell the two apart by two channels; it is left out.
    recipe = load(save(tmp_path / "a.pth", state | auxiliary(classes=2), {"cfg": text})).recipe
    assert recipe.decode.activation == "sigmoid"
    assert recipe.decode.decision.threshold == 0.4
    assert [label.id for label in recipe.labels] == [0, 1]
    recipe = load(save(tmp_path / "b.pth", state, {"cfg": new_config(classes=1)})).recipe
    assert recipe.decode.decision.threshold == 0.3
    assert [(label.id, label.name) for label in recipe.labels] == [(1, "ground")]


def test_a_configuration_without_weights(config: Path) -> None:
    with pytest.raises(SourceError, match=r"unet\.py is a configuration without weights; give the checkpoint"):
        load(config)


def test_grey_pictures_and_a_colour_network_do_not_go_together(unet: State, tmp_path: Path) -> None:
    text = new_config().replace("type='LoadImageFromFile'", "type='LoadImageFromFile', color_type='grayscale'")
    with pytest.raises(SourceError, match=r"takes 3 channel\(s\) and its test pipeline reads pictures in grey"):
        load(save(tmp_path / "net.pth", unet, {"cfg": text}))
    first = "backbone.encoder.0.0.convs.0.conv.weight"
    one = text.replace("mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]", "mean=[100.0], std=[50.0]")
    recipe = load(save(tmp_path / "grey.pth", unet | {first: unet[first][:, :1]}, {"cfg": one})).recipe
    assert recipe.input.reader == "opencv:grey"
    assert recipe.network.input_channels == 1


def test_folders(unet: State, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work_dir"
    folder.mkdir()
    (folder / "unet.py").write_text(config.read_text())
    with pytest.raises(SourceError, match="holds a configuration and no checkpoint"):
        load(folder)
    save(folder / "iter_1.pth", unet)
    assert load(folder).recipe.options["settings_from"] == "config"
    save(folder / "iter_2.pth", unet)
    with pytest.raises(SourceError, match=r"several checkpoints \(iter_1.pth, iter_2.pth\)"):
        load(folder)
    save(folder / "latest.pth", unet)
    assert load(folder).provenance["checkpoint"]["file"] == "latest.pth"
    (folder / "last_checkpoint").write_text("/gone/work_dirs/unet/iter_2.pth")
    assert load(folder).provenance["checkpoint"]["file"] == "iter_2.pth"
    save(folder / "best_mIoU_iter_1.pth", unet)
    assert load(folder).provenance["checkpoint"]["file"] == "best_mIoU_iter_1.pth"
    (folder / "second.py").write_text(config.read_text())
    with pytest.raises(SourceError, match="several configurations"):
        load(folder)
    assert load(folder, config=str(config)).recipe.network.architecture == "FCN-UNet"


def test_options_that_do_not_go_together(unet: State, config: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", unet)
    with pytest.raises(UsageError, match="give one of the two"):
        load(path, config=str(config), arch="ocrnet_hr18")
    with pytest.raises(UsageError, match="--trust-config is about the file"):
        load(path, trust_config=True)
    with pytest.raises(UsageError, match="--scale takes WIDTHxHEIGHT"):
        load(path, config=str(config), scale="large")
    config.write_text(new_config(test="dict(mode='slide', crop_size=(16, 16), stride=(8, 8))"))
    with pytest.raises(SourceError, match="slide mode with windows of 16x16"):
        load(path, config=str(config), input_size="32x32")
    config.write_text(new_config())
    with pytest.raises(SourceError, match="multiples of 4; use 32x32"):
        load(path, config=str(config), input_size="30x32")
    assert load(path, config=str(config), input_size="32x36").recipe.network.size == (32, 36)


def without(state: State, part: str) -> State:
    return {key: value for key, value in state.items() if part not in key}


def test_networks_that_are_not_defined_here(tmp_path: Path, unet: State) -> None:
    psp = without(unet, "decode_head.convs") | {"decode_head.psp_modules.0.1.conv.weight": torch.ones(1, 4, 1, 1)}
    path = save(tmp_path / "psp.pth", psp, {"cfg": new_config()})
    with pytest.raises(SourceError, match=r"does not define itself \(its decode head is PSP .*built by mmseg"):
        load(path)
    plus = seeded(resnet_shape()) | {"decode_head.c1_bottleneck.conv.weight": torch.ones(1, 1, 1, 1)}
    for state, message in (
        (plus, "DeepLabV3+"),
        (without(unet, "decoder.1.conv_block.convs.1.conv"), "decoder.1.conv_block.convs.1.conv.weight is missing"),
        (unet | {"backbone.extra.weight": torch.ones(1)}, "it also holds backbone.extra.weight"),
        (unet | auxiliary(classes=7), "has 7 classes, the decode head 3"),
        (
            {"backbone.block.weight": torch.ones(1), "decode_head.conv_seg.weight": torch.ones(3, 1, 1, 1)},
            "none of HRNet",
        ),
    ):
        with pytest.raises(NotNative, match=message):
            recognise(state)
    with pytest.raises(UnknownSource, match=r"backbone\.\* and decode_head\.\*"):
        load(save(tmp_path / "other.pth", {"layer.weight": torch.ones(1)}))


@pytest.mark.parametrize("shape", [unet_shape(5, 3, 4), hrnet_shape(3, 4), resnet_shape(6, 34)])
def test_recognition_from_names_and_shapes(shape) -> None:
    found = recognise(seeded(shape))
    assert found.shape.classes == shape.classes
    assert type(found.shape.backbone) is type(shape.backbone)
    assert Segmentor(found.shape).state_dict().keys() == Segmentor(shape).state_dict().keys()


def test_broken_weights(unet: State, config: Path, tmp_path: Path) -> None:
    key = "decode_head.conv_seg.bias"
    with pytest.raises(SourceError, match=f"{key} holds NaN"):
        load(save(tmp_path / "nan.pth", unet | {key: torch.full((3,), float("nan"))}), config=str(config))
