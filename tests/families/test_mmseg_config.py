"""Configurations are read, never run: syntax, inheritance, both dialects."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmseg_files import new_config, old_config

from segship.errors import SourceError, UsageError
from segship.families.mmseg_config import Config, parse_text, read_config
from segship.families.mmseg_known import KNOWN, known_config, released_name, short_name, voc_color
from segship.families.mmseg_settings import RATIOS, read_settings
from segship.families.mmseg_syntax import Unreadable, read_assignments
from segship.manifest import Resize, ResizeByFactor, ResizeKeepRatio


def values(text: str) -> dict:
    return read_assignments(text, {})[0]


def test_what_configurations_are_written_with() -> None:
    found = values("""
'''a text'''
crop_size = (512, 1024)
norm = dict(type='BN', **dict(eps=1e-3))
channels = [18 * 2 ** 0 if False else 18]
widths = [18, 36, 72, 144]
total = sum(widths)
half = crop_size[0] // 2, -crop_size[1] / 2
ratios = [0.5, 1.0]
steps = [dict(type='Resize', scale_factor=r) for r in ratios]
a, b = 1, 'x'
norm['eps'] = 1e-4
widths += [288]
joined = [*widths, *ratios]
pairs = {f: 1 for f in (1, 2)}
text: str = 'ok'
keyed = {'type': 'A', **norm}
part = widths[1:3]
""")
    assert found["norm"] == {"type": "BN", "eps": 1e-4}
    assert found["total"] == 270
    assert found["half"] == (256, -512.0)
    assert found["steps"] == [{"type": "Resize", "scale_factor": 0.5}, {"type": "Resize", "scale_factor": 1.0}]
    assert (found["a"], found["b"], found["text"]) == (1, "x", "ok")
    assert found["joined"] == [18, 36, 72, 144, 288, 0.5, 1.0]
    assert found["keyed"] == {"type": "BN", "eps": 1e-4}
    assert found["part"] == [36, 72]
    assert "channels" not in found  # a condition
    assert "pairs" not in found


def test_what_is_left_out_is_told_and_no_longer_there() -> None:
    found, notes = read_assignments("import os\nx = 1\nx = os.environ['HOME']\ny = x\nz = 3", {})
    assert found == {"z": 3}
    assert [note.split(":")[0] for note in notes] == ["line 1", "line 3", "line 4"]


@pytest.mark.parametrize(
    "text",
    [
        "x = __import__('os').system('touch /tmp/segship-pwned')",
        "x = (lambda: 1)()",
        "x = open('/etc/passwd').read()",
        "x = ().__class__.__bases__",
        "x = [0] * 10 ** 9",
        "x = list(range(10 ** 9))",
        "x = 'a' * 10 ** 9",
        "x = 2 ** 10 ** 9",
        "x = [[j for j in range(90000)] for i in range(90000)]",
        "exec('x = 1')",
        "x = dict.fromkeys(range(3))",
        "x = '%1000000000d' % 1",
    ],
)
def test_nothing_of_a_configuration_runs(text: str) -> None:
    found, notes = read_assignments(text, {})
    assert found == {}
    assert len(notes) == 1


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        read_assignments("model = dict(", {})
    (tmp_path / "a.py").write_text("model = dict(")
    with pytest.raises(SourceError, match=r"a\.py is no configuration that can be read \(line 1"):
        read_config(tmp_path / "a.py")
    with pytest.raises(SourceError, match="is not there; check --config"):
        read_config(tmp_path / "b.py")


def test_inheritance(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.py").write_text(
        "norm_cfg = dict(type='SyncBN')\nmodel = dict(backbone=dict(type='A', depth=50, norm=norm_cfg), head=dict(n=19), l=[1, 2])"
    )
    (tmp_path / "base" / "data.json").write_text('{"data": {"test": {"pipeline": [1]}}}')
    (tmp_path / "middle.py").write_text(
        "_base_ = ['base/model.py', 'base/data.json']\nmodel = dict(backbone=dict(depth=101), l=[3])"
    )
    (tmp_path / "child.py").write_text(
        "_base_ = './middle.py'\nmodel = dict(head=dict(_delete_=True, k=1))\n"
        "inside = {{_base_.model.backbone}}\nworded = '{{_base_.model.l}}'\nfirst = _base_.model.backbone.depth\n"
    )
    found = read_config(tmp_path / "child.py")
    assert found.get("model.backbone") == {"type": "A", "depth": 101, "norm": {"type": "SyncBN"}}
    assert found.get("model.head") == {"k": 1}
    assert found.get("model.l") == [3]
    assert found.get("inside.depth") == found.get("first") == 101
    assert found.get("worded") == [3]
    assert found.get("data.test.pipeline") == [1]
    assert found.get("model.nothing.at.all") is None


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ("_base_ = 'missing.py'", "missing.py, which child.py inherits, is not there"),
        ("_base_ = 'child.py'", "inherits itself"),
        ("_base_ = 'mmseg::unet/unet.py'", "from an installed package"),
        ("_base_ = 3", "is not a file name"),
        ("_base_ = 'base.py'\nx = dict(a=1)", "'x' is a dict here and a int in the file it inherits"),
        ("_base_ = ['base.py', 'base.py']", "two of its _base_ files set 'x'"),
    ],
)
def test_inheritance_that_fails(tmp_path: Path, child: str, message: str) -> None:
    (tmp_path / "base.py").write_text("x = 1")
    (tmp_path / "child.py").write_text(child)
    with pytest.raises(SourceError) as caught:
        read_config(tmp_path / "child.py")
    assert message in str(caught.value)


def test_text_that_inherits_falls_through_and_joined_files_do_not() -> None:
    assert parse_text("_base_ = 'x.py'\nmodel = dict()", "meta") is None
    assert parse_text("model = dict(", "meta") is None
    joined = "/home/me/base.py\nmodel = dict(a=1, b=2)\n\n/home/me/child.py\n_base_ = './base.py'\nmodel = dict(b=3)\n"
    found = parse_text(joined, "meta")
    assert found is not None
    assert found.values == {"model": {"a": 1, "b": 3}}


@pytest.mark.parametrize("test", ["dict(mode='whole')", "dict(mode='slide', crop_size=(32, 48), stride=(20, 30))"])
@pytest.mark.parametrize("kind", ["unet", "hrnet", "d8", "d16"])
def test_both_dialects_say_the_same(kind: str, test: str) -> None:
    found = [
        read_settings(Config(values=values(text), origin="config"))
        for text in (new_config(kind, test=test, align=True), old_config(kind, test=test, align=True))
    ]
    assert found[0] == found[1]
    assert found[0].resize == ResizeKeepRatio(long_side=64, short_side=32, method="opencv:linear")
    assert found[0].crop == (None if "whole" in test else (32, 48))
    assert found[0].ratios == RATIOS


def settings(text: str) -> object:
    return read_settings(Config(values=values(text), origin="config"))


def test_further_settings() -> None:
    whole_numbers = settings(new_config(test="dict(mode='slide', crop_size=256, stride=170)"))
    assert (whole_numbers.crop, whole_numbers.stride) == ((256, 256), (170, 170))
    padded = settings(new_config().replace("size=(32, 32))", "size=(32, 32), test_cfg=dict(size_divisor=32))"))
    assert (padded.pad_multiple, padded.pad_size) == (32, None)
    fixed = settings(new_config().replace("size=(32, 32))", "test_cfg=dict(size=(40, 48)))"))
    assert (fixed.pad_multiple, fixed.pad_size) == (1, (40, 48))
    stretched = settings(new_config().replace("keep_ratio=True", "keep_ratio=False"))
    assert stretched.resize == Resize(height=32, width=64, method="opencv:linear")
    factor = settings(new_config().replace("scale=(64, 32), keep_ratio=True", "scale_factor=0.5"))
    assert factor.resize == ResizeByFactor(factor=0.5, keep_ratio=False, method="opencv:linear")
    assert settings(new_config(more="img_ratios = [0.5, 2]")).ratios == (0.5, 2.0)
    tta = "tta_pipeline = [dict(type='TestTimeAug', transforms=[[dict(type='Resize', scale_factor=r) for r in [1.0, 3.0]]])]"
    assert settings(new_config(more=tta)).ratios == (1.0, 3.0)
    assert settings(new_config().replace("bgr_to_rgb=True", "bgr_to_rgb=False")).rgb is False
    assert settings(old_config().replace("to_rgb=True", "to_rgb=False")).rgb is False
    behind = "dict(type='Pad', size_divisor=8), dict(type='ImageToTensor'"
    assert settings(old_config().replace("dict(type='ImageToTensor'", behind)).pad_multiple == 8
    with pytest.raises(SourceError, match="pads before Normalize"):
        settings(old_config().replace("dict(type='RandomFlip')", "dict(type='Pad', size_divisor=8)"))
    for zero in ("dict(type='LoadAnnotations', reduce_zero_label=True)", "dict(type='LoadAnnotations')"):
        assert settings(new_config().replace("dict(type='LoadAnnotations')", zero)).reduce_zero_label == (
            "True" in zero
        )
    assert settings(new_config().replace("'BaseSegDataset'", "'ADE20KDataset'")).reduce_zero_label
    for said in (0.6, 0.0):
        threshold = settings(new_config(classes=1).replace("num_convs=1", f"num_convs=1, threshold={said}"))
        assert threshold.threshold == said


def test_one_number_is_a_square_in_new_pipelines_and_a_factor_in_old_ones() -> None:
    """open-mmlab/mmcv: transforms/processing.py, Resize; open-mmlab/mmsegmentation 0.30: datasets/pipelines/test_time_aug.py"""
    square = settings(new_config(scale="48"))
    assert square.resize == ResizeKeepRatio(long_side=48, short_side=48, method="opencv:linear")
    stretched = settings(new_config(scale="48").replace("keep_ratio=True", "keep_ratio=False"))
    assert stretched.resize == Resize(height=48, width=48, method="opencv:linear")
    old = old_config().replace("img_scale=(64, 32)", "img_scale=None, img_ratios=0.5")
    assert settings(old).resize == ResizeByFactor(factor=0.5, keep_ratio=True, method="opencv:linear")
    both = settings(new_config().replace("scale=(64, 32), keep_ratio=True", "scale_factor=(0.5, 0.5)"))
    assert both.resize == ResizeByFactor(factor=0.5, keep_ratio=False, method="opencv:linear")


def test_names_with_their_scope() -> None:
    scoped = new_config()
    for name in ("LoadImageFromFile", "Resize", "LoadAnnotations", "PackSegInputs"):
        scoped = scoped.replace(f"type='{name}'", f"type='mmseg.{name}'")
    assert "mmseg.Resize" in scoped
    assert settings(scoped) == settings(new_config())
    ade = new_config().replace("'BaseSegDataset'", "'mmseg.ADE20KDataset'")
    assert settings(ade).reduce_zero_label


def test_what_augmentation_mirrors() -> None:
    text = "tta_pipeline = [dict(type='TestTimeAug', transforms=[[dict(type='Resize', scale_factor=1.0)], [{}]])]"
    once, twice = "dict(type='RandomFlip', prob=0.)", "dict(type='RandomFlip', prob=1., direction='{}')"
    cases = {
        f"{once}, {twice.format('horizontal')}": (True, ()),
        f"{once}, dict(type='mmcv.RandomFlip', prob=1.)": (True, ()),
        once: (False, ()),
        f"{once}, {twice.format('vertical')}": (False, ("tta_pipeline: views turned over vertical are left out",)),
    }
    for flips, (mirror, notes) in cases.items():
        found = settings(new_config(more=text.replace("{}", flips)))
        assert (found.mirror, found.notes) == (mirror, notes)
    assert settings(new_config()).mirror


def test_a_part_of_a_data_set_keeps_its_colours() -> None:
    text = new_config(classes=2).replace("'BaseSegDataset'", "'CityscapesDataset'").replace("palette=", "colours=")
    found = settings(text.replace("('ground', 'wall')", "('car', 'road')")).classes
    assert (found.names, found.palette) == (("car", "road"), ((0, 0, 142), (128, 64, 128)))
    assert settings(text).classes.palette == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dict(mode='whole')", "dict(mode='tiles')", "test_cfg.mode is 'tiles'"),
        ("dict(mode='whole')", "dict(mode='slide', crop_size=(0, 3), stride=(1, 1))", "test_cfg.crop_size holds"),
        ("dict(mode='whole')", "dict(mode='slide', crop_size=(8, 8), stride=(8, 9))", "which leaves gaps"),
        ("dict(type='PackSegInputs')", "dict(type='GaussianNoise')", "has the step GaussianNoise"),
        (
            "dict(type='LoadImageFromFile')",
            "dict(type='LoadImageFromFile', imdecode_backend='pillow')",
            "reads with pillow",
        ),
        ("std=[58.395, 57.12, 57.375]", "std=[58.395, 0, 57.375]", "is no normalisation"),
        ("pipeline=test_pipeline", "pipeline=[1]", "is no list of steps"),
        ("scale=(64, 32)", "scale=(64, 'x')", "Resize.scale holds"),
        ("[200, 0, 0]", "[200, 0, 300]", "which is no colour"),
        ("dict(type='LoadAnnotations')", "dict(type='Pad', size_divisor=8)", "before they are normalised"),
        (", [200, 0, 0]", "", "2 colours for 3 classes"),
        ("type='LoadImageFromFile'", "type='LoadImageFromFile', to_float32=True", "without rounding them"),
        ("pad_val=0", "pad_val=(0, 1, 2)", "padded with (0, 1, 2), which is no number"),
        ("scale=(64, 32)", "scale_factor=(0.5, 0.6)", "a scale_factor for each axis"),
    ],
)
def test_settings_that_make_no_sense(old: str, new: str, message: str) -> None:
    assert old in new_config()
    with pytest.raises(SourceError) as caught:
        settings(new_config().replace(old, new))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("type='LoadImageFromFile'", "type='LoadImageFromFile', to_float32=True"),
        ("scale=(64, 32)", "scale_factor=(0.5, 0.6)"),
    ],
)
def test_what_another_scale_leaves_aside(old: str, new: str) -> None:
    config = parse_text(new_config().replace(old, new), "net.py")
    assert config is not None
    assert read_settings(config, "none").resize is None
    if "to_float32" in new:  # resized it would not be rounded, at whatever size
        with pytest.raises(SourceError, match="without rounding them"):
            read_settings(config, "96x48")
    else:
        assert read_settings(config, "96x48").resize is not None


def test_grey_pictures() -> None:
    text = new_config().replace("type='LoadImageFromFile'", "type='LoadImageFromFile', color_type='grayscale'")
    assert settings(text).grey
    assert not settings(new_config()).grey


def test_released_names() -> None:
    old = "deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes_20200908_005644-57bb8425"
    released = released_name(old)
    assert released is not None
    assert (short_name(released.config), released.sha256_start) == ("deeplabv3_r101-d16-mg124_512x1024", "57bb8425")
    names = {
        "ocrnet_hr18s_4xb2-160k_cityscapes-512x1024": "ocrnet_hr18s_512x1024",
        "ocrnet_hr48_512x1024_160k_cityscapes": "ocrnet_hr48_512x1024",
        "unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024": "fcn_unet_s5-d16_512x1024",
        "fcn_unet_s5-d16_4x4_512x1024_160k_cityscapes": "fcn_unet_s5-d16_512x1024",
        "deeplabv3_r50-d8_769x769_40k_cityscapes": "deeplabv3_r50-d8_769x769",
        "deeplabv3_r101-d16-mg124": "deeplabv3_r101-d16-mg124_512x1024",
        "deeplabv3_r101-d8": None,  # two crops, which differ in align_corners
        "deeplabv3_r101-d8_512x512_80k_ade20k": None,
        "model": None,
    }
    assert {name: short_name(name) for name in names} == names
    assert released_name("model") is None


def test_every_known_name_has_settings() -> None:
    for name in KNOWN:
        found = read_settings(Config(values=known_config(name), origin=name))
        assert found.crop == ((769, 769) if "769" in name else None)
        assert found.classes is not None
        assert len(found.classes.names) == len(found.classes.palette) == 19
    assert [voc_color(k) for k in (0, 1, 15, 20)] == [(0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128)]


def test_trusting_needs_mmengine(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    with pytest.raises((SourceError, UsageError), match="mmengine"):
        read_config(tmp_path / "a.py", trust=True)
