"""What stands around mmseg's tester and needs no mmseg: the config writer, the stand-in for mmcv's operators, the logits."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tiny_mmseg import CONFIG, MEAN, STD, slide, street_manifest, street_package
from torch.nn.functional import interpolate

from segship.errors import PackageError, SourceError, UsageError
from segship.inference.predictor import Predictor
from segship.integrations.mmseg_chain import check_preprocessor, head_logits, read_chain
from segship.integrations.mmseg_config import write_eval_config
from segship.manifest import Network, Normalize, Output


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    return street_package(tmp_path / "street.segship")


# ------------------------------------------------------------------------------------------- config writer


def test_the_written_config_inherits_the_networks_own_and_names_the_package(tmp_path, config, package):
    found = write_eval_config(config, package.path, tmp_path / "deep" / "eval.py", precision="int8", threads=2)
    text = found.config.read_text()
    # mmengine replaces the reference to the base before it reads the file as Python.
    values = {
        node.targets[0].id: node.value
        for node in ast.parse(text.replace("{{_base_.model.data_preprocessor}}", "None")).body
    }
    assert ast.literal_eval(values["_base_"]) == [str(config.resolve())]
    model = {keyword.arg: ast.literal_eval(keyword.value) for keyword in values["model"].keywords}
    assert model == {
        "_delete_": True, "type": "SegshipSegmentor", "package": str(package.path.resolve()), "precision": "int8",
        "threads": 2, "data_preprocessor": None,
    }  # fmt: skip
    imports = {keyword.arg: ast.literal_eval(keyword.value) for keyword in values["custom_imports"].keywords}
    assert imports == {"imports": ["segship.integrations.mmseg"], "allow_failed_imports": False}
    assert torch.load(found.checkpoint, weights_only=True) == {"meta": {}, "state_dict": {}}
    assert found.command.endswith(f"{found.config} {found.checkpoint}")


def test_imports_of_the_config_are_kept_behind_the_plug_in(tmp_path, config, package):
    child = tmp_path / "child.py"
    child.write_text("_base_ = './net.py'\ncustom_imports = dict(imports=['my_data', 'segship.integrations.mmseg'])\n")
    found = write_eval_config(child, package.path, tmp_path / "eval.py")
    assert "imports=['segship.integrations.mmseg', 'my_data']" in found.config.read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data = dict(test=dict())\nmodel = dict()\n", "0.x"),
        ("model = dict(", "not Python"),
        ("from mmengine.config import read_base\nwith read_base():\n    from .x import *\n", "lazy-import"),
        ("_base_ = './absent.py'\n", "absent"),
        ("_base_ = './net2.py'\n", "inherits itself"),
        ("_base_ = name\n", "no test_dataloader"),
        ("test_dataloader = dict(batch_size=1)\n", "no model.data_preprocessor"),
        (CONFIG.replace("num_classes=19", "num_classes=150"), "150 classes"),
        (CONFIG + "custom_imports = dict(imports=names)\n", "custom_imports"),
        (CONFIG.replace("test_dataloader", "other"), "no test_dataloader"),
    ],
)
def test_a_config_that_cannot_serve_is_one_clear_error(tmp_path, package, text, told):
    path = tmp_path / "net2.py"
    path.write_text(text)
    with pytest.raises((SourceError, UsageError), match=told):
        write_eval_config(path, package.path, tmp_path / "eval.py")
    assert not (tmp_path / "eval.py").exists()


def test_outputs_that_would_harm_are_refused(tmp_path, config, package):
    with pytest.raises(UsageError, match="write over"):
        write_eval_config(config, package.path, config)
    with pytest.raises(UsageError, match=r"eval\.py"):
        write_eval_config(config, package.path, tmp_path / "eval.yml")
    with pytest.raises(SourceError, match=r"none\.py"):
        write_eval_config(tmp_path / "none.py", package.path, tmp_path / "eval.py")


def test_the_number_of_classes_is_the_one_that_counts_last(tmp_path, config):
    child = tmp_path / "child.py"
    child.write_text("_base_ = ['./net.py']\nmodel = dict(decode_head=dict(num_classes=7))\n")
    grown = street_package(tmp_path / "seven.segship", classes=7)
    assert write_eval_config(child, grown.path, tmp_path / "eval.py").config.exists()
    with pytest.raises(UsageError, match="19 classes"):
        write_eval_config(config, grown.path, tmp_path / "eval.py")
    plain = tmp_path / "plain.py"  # says nothing of classes itself: the one that it inherits counts
    plain.write_text("_base_ = ['./net.py']\nmodel = dict(test_cfg=dict(mode='whole'))\n")
    with pytest.raises(UsageError, match="19 classes"):
        write_eval_config(plain, grown.path, tmp_path / "eval.py")


# ------------------------------------------------------------------------------------------------- logits


def expected_logits(predictor, x, align_corners=False):
    """What mmseg's segmentor gives: the head's logits brought to the input's size."""
    raw = torch.from_numpy(predictor.network(x[None]))
    return interpolate(raw, size=x.shape[1:], mode="bilinear", align_corners=align_corners)[0].numpy()


@pytest.mark.parametrize("size", [(40, 64), (33, 47)])
def test_whole_logits_lie_on_the_inputs_grid(package, size):
    x = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    with Predictor.open(package, threads=1) as predictor:
        found = head_logits(predictor, read_chain(package.manifest), x)
        assert found.shape == (19, *size)
        np.testing.assert_allclose(found, expected_logits(predictor, x), atol=1e-6)


@pytest.mark.parametrize("size", [(64, 128), (50, 91), (20, 91)])
def test_slide_averages_windows_that_are_moved_back_at_the_borders(tmp_path, package, size):
    tiled = street_package(tmp_path / "tiled.segship", tiling=slide())
    x = np.random.default_rng(1).normal(size=(3, *size)).astype(np.float32)
    total, seen = np.zeros((19, *size), np.float32), np.zeros(size, np.float32)
    (high, wide), (down, across) = (32, 48), (20, 30)
    with Predictor.open(tiled, threads=1) as predictor:
        for i in range(max(size[0] - high + down - 1, 0) // down + 1):
            for j in range(max(size[1] - wide + across - 1, 0) // across + 1):
                bottom, right = min(i * down + high, size[0]), min(j * across + wide, size[1])
                box = (slice(max(bottom - high, 0), bottom), slice(max(right - wide, 0), right))
                total[(slice(None), *box)] += expected_logits(predictor, x[(slice(None), *box)])
                seen[box] += 1
        found = head_logits(predictor, read_chain(tiled.manifest), x)
    np.testing.assert_allclose(found, total / seen, atol=1e-5)


def _network(package, **changes):
    return Network(**(package.manifest.network.model_dump() | changes))


def test_a_size_that_the_network_does_not_take_is_filled_up_with_zeros(tmp_path, package):
    made = street_package(tmp_path / "by16.segship", network=_network(package, size_multiple=(16, 16)))
    x = np.random.default_rng(2).normal(size=(3, 30, 40)).astype(np.float32)
    with Predictor.open(made, threads=1) as predictor:
        found = head_logits(predictor, read_chain(made.manifest), x)
        filled = np.pad(x, [(0, 0), (0, 2), (0, 8)])
        np.testing.assert_allclose(found, expected_logits(predictor, filled)[:, :30, :40], atol=1e-6)


def test_a_package_of_one_size_says_so(tmp_path, package):
    made = street_package(tmp_path / "fixed.segship", network=_network(package, size=(32, 64)))
    with Predictor.open(made, threads=1) as predictor:
        with pytest.raises(UsageError, match=r"scale=\(64, 32\)"):
            head_logits(predictor, read_chain(made.manifest), np.zeros((3, 32, 32), np.float32))
        assert head_logits(predictor, read_chain(made.manifest), np.zeros((3, 32, 64), np.float32)).shape == (
            19,
            32,
            64,
        )


def test_the_chain_is_read_from_the_manifest(package):
    chain = read_chain(package.manifest)
    np.testing.assert_allclose(chain.normalisation, (MEAN, STD), rtol=1e-6)
    assert (chain.channels, chain.align_corners, chain.order, chain.threshold) == (19, False, "rgb", 0.3)
    inside = street_manifest(b"", preprocess=())
    assert read_chain(inside).normalisation is None
    step = Normalize(subtract=MEAN, multiply=STD)
    with pytest.raises(PackageError, match="more than once"):
        read_chain(street_manifest(b"", preprocess=(step, step)))
    probabilities = _network(package, outputs=(Output(name="y", channels=19, values="probabilities"),))
    with pytest.raises(PackageError, match="logits"):
        read_chain(street_manifest(b"", network=probabilities))


def test_the_configs_preprocessor_must_be_the_packages(package):
    chain = read_chain(package.manifest)
    assert check_preprocessor(chain, (list(MEAN), list(STD)), True)
    for constants, swaps, told in (
        ((list(MEAN), [1.0, 1.0, 1.0]), True, "normalises with"),
        ((list(MEAN)[:1], list(STD)[:1]), True, "normalises with"),
        (None, True, "normalises with"),
        ((list(MEAN), list(STD)), False, "gives the network BGR"),
    ):
        with pytest.raises(UsageError, match=told):
            check_preprocessor(chain, constants, swaps)
    inside = read_chain(street_manifest(b"", preprocess=()))
    assert not check_preprocessor(inside, (list(MEAN), list(STD)), True)
    nothing = read_chain(street_manifest(b"", preprocess=(Normalize(subtract=(0, 0, 0), multiply=(1, 1, 1)),)))
    assert check_preprocessor(nothing, None, True)


# ------------------------------------------------------------------------------------ mmcv's operators


def test_the_stand_in_is_found_imported_and_refuses_to_compute(tmp_path):
    """In a fresh interpreter with a package called mmcv that has no operators, as mmcv-lite is."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    code = textwrap.dedent(
        """
        import importlib, importlib.util, sys
        from segship.families.mmcv_stub import install_stub
        assert install_stub() and install_stub()
        ext = importlib.import_module("mmcv._ext")
        assert importlib.util.find_spec("mmcv._ext").loader is not None
        assert all(hasattr(ext, name) for name in ("nms", "roi_align_forward"))
        try:
            ext.nms(1, 2)
        except NotImplementedError as error:
            assert "'nms'" in str(error), error
        else:
            sys.exit("the stand-in computed something")
        """
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operators_that_are_there_are_left_alone(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    (tmp_path / "mmcv" / "_ext.py").write_text("nms = 1\n")
    code = "from segship.families.mmcv_stub import install_stub; assert not install_stub(); import mmcv._ext as e; assert e.nms == 1"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("mmcv") is not None, reason="mmcv is installed here")
def test_without_mmcv_the_stand_in_says_what_to_install():
    from segship.families.mmcv_stub import install_stub

    with pytest.raises(ImportError, match="pip install mmcv-lite"):
        install_stub()
