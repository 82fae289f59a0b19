"""What surrounds a network that mmseg builds, as far as it needs no mmseg: the config's clean-up, probing, one fixed size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from segship.convert import parity
from segship.convert.export import bundled_sample, export
from segship.errors import BarMissed, SourceError
from segship.families import mmseg, mmseg_generic
from segship.inference.predictor import Predictor
from segship.manifest import Normalize, Pad, Resize, ResizeKeepRatio
from segship.package import open_package


def test_nothing_is_fetched_and_nothing_of_training_is_built():
    model = {
        "type": "EncoderDecoder",
        "pretrained": "open-mmlab://resnet50_v1c",
        "backbone": {"type": "X", "init_cfg": {"type": "Pretrained", "checkpoint": "http://…"}, "stages": [{"pretrained": 1}]},
        "decode_head": [{"type": "A", "init_cfg": {}}, {"type": "B", "num_classes": 3}],
        "auxiliary_head": {"type": "C"},
        "train_cfg": {"a": 1},
        "test_cfg": {"mode": "whole"},
    }  # fmt: skip
    found = mmseg_generic.without_training(model)
    assert found["pretrained"] is None
    assert found["train_cfg"] is None
    assert "auxiliary_head" not in found
    assert found["backbone"] == {"type": "X", "init_cfg": None, "stages": [{"pretrained": None}]}
    assert found["decode_head"] == [{"type": "A", "init_cfg": None}, {"type": "B", "num_classes": 3}]
    assert found["test_cfg"] == {"mode": "whole"}
    assert model["pretrained"] == "open-mmlab://resnet50_v1c"


class Strided(nn.Module):
    """Stride 2^levels, rounded up; refuses sides that are no multiple of ``multiple``."""

    def __init__(self, levels: int, multiple: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(levels)))
        self.multiple = multiple

    def forward(self, x):
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise AssertionError("The size does not fit")
        return self.convs(x)


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("multiple", [1, 2, 16, 32])
def test_stride_and_multiple_are_found_by_running(levels, multiple):
    stride, found, size = mmseg_generic._probe(Strided(levels, multiple), 3, "net")
    assert (stride, found) == (2**levels, multiple)
    assert all(side % multiple == 0 and side < 97 + 2 * 96 for side in size)


def test_a_network_that_pools_large_squares_is_tried_at_larger_sizes():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

        def forward(self, x):
            half = self.conv(x)
            return half + functional.avg_pool2d(half, 151).mean()

    assert mmseg_generic._probe(Pools(), 3, "net") == (2, 1, (417, 545))


def test_a_network_that_never_runs_says_why():
    with pytest.raises(SourceError, match=r"does not run at any size.*The size does not fit"):
        mmseg_generic._probe(Strided(1, 999), 3, "net")


class Segmentor(nn.Module):
    """What is asked of one of mmseg's: a head at half size, and an inference that may do more or not run as a plain network."""

    align_corners = False

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.conv, self.rule = nn.Conv2d(3, 4, 3, stride=2, padding=1), rule

    def forward(self, x, mode):
        if self.rule == "refines":
            raise TypeError("only inference runs")
        return (self.conv(x), None)

    def encode_decode(self, x, metas):
        logits = functional.interpolate(self.conv(x), size=metas[0]["img_shape"], mode="bilinear")
        if self.rule == "random":
            return logits + torch.rand_like(logits)
        return logits if self.rule == "plain" else torch.where(logits > 0, 2 * logits, logits)


@pytest.mark.parametrize(("rule", "stride"), [("plain", 2), ("doubles", 1), ("refines", 1)])
def test_a_graph_stands_for_all_of_the_inference_where_the_head_is_not_all_of_it(rule, stride):
    segmentor = Segmentor(rule).eval()
    network, found, multiple = mmseg_generic._one_graph(segmentor, 3, "net")
    assert (found, multiple) == (stride, 1)
    x = torch.randn(1, 3, 20, 31, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        logits = functional.interpolate(network(x), size=x.shape[2:], mode="bilinear")
        assert torch.allclose(logits, segmentor.encode_decode(x, [{"img_shape": x.shape[2:]}]), atol=1e-6)


def test_what_answers_otherwise_each_time_is_refused():
    with pytest.raises(SourceError, match="draws random numbers"):
        mmseg_generic._one_graph(Segmentor("random").eval(), 3, "net")


@pytest.mark.parametrize("factor", [2.0, 4.0])
@pytest.mark.parametrize("align", [False, True])
def test_the_replaced_enlargement_is_mmsegs_to_the_bit(factor, align):
    x = torch.randn(1, 2, 13, 7, generator=torch.Generator().manual_seed(1))
    theirs = functional.interpolate(x, [int(n * factor) for n in x.shape[2:]], None, "bilinear", align)
    assert torch.equal(mmseg_generic.ScaledUpsample(factor, "bilinear", align)(x), theirs)


@pytest.mark.parametrize("bins", [(2, 2), (3, 3), (6, 6), (1, 5)])
@pytest.mark.parametrize("size", [(4, 5), (6, 6), (13, 7), (64, 33)])
def test_the_replaced_pooling_is_torchs(bins, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    theirs = functional.adaptive_avg_pool2d(x, bins)
    assert torch.allclose(mmseg_generic.AveragedBins(bins)(x), theirs, atol=1e-6)


def test_which_poolings_have_bins():
    assert mmseg_generic._bins(nn.AdaptiveAvgPool2d(6)) == (6, 6)
    assert mmseg_generic._bins(nn.AdaptiveAvgPool2d((2, 3))) == (2, 3)
    assert mmseg_generic._bins(nn.AdaptiveAvgPool2d((2, None))) is None


# -------------------------------------------------------------------------------------------- at one size


def tiny(**recipe):
    source = mmseg.tiny()
    free = source.recipe.network.model_copy(update={"size": None, "check_size": (48, 64)})
    return replace(source, recipe=source.recipe.model_copy(update={"network": free, **recipe}))


def test_pictures_are_brought_to_what_the_pipeline_fits_them_into():
    normalize = next(step for step in tiny().recipe.preprocess if isinstance(step, Normalize))
    keep = ResizeKeepRatio(long_side=130, short_side=64, method="opencv:linear")
    pad = Pad(minimum=None, multiple_of=4, where="end", mode="constant", value=0)
    fixed = mmseg_generic.at_one_size(tiny(preprocess=(keep, normalize, pad)))
    assert fixed.recipe.network.size == (64, 132)
    assert fixed.recipe.preprocess == (Resize(height=64, width=132, method="opencv:linear"), normalize)
    assert fixed.input_example_shape == (3, 64, 132)
    assert "64x132 alone" in fixed.warnings[-1]
    without = mmseg_generic.at_one_size(tiny(preprocess=(normalize,)))
    assert without.recipe.network.size == (48, 64)


def test_windows_keep_their_size_and_small_pictures_are_filled_up():
    from tiny_mmseg import slide

    normalize = next(step for step in tiny().recipe.preprocess if isinstance(step, Normalize))
    fixed = mmseg_generic.at_one_size(tiny(preprocess=(normalize,), tiling=slide((32, 48), (20, 30))))
    assert fixed.recipe.network.size == (32, 48)
    last = fixed.recipe.preprocess[-1]
    assert isinstance(last, Pad)
    assert last.minimum == (32, 48)
    with pytest.raises(SourceError, match="no multiple"):
        mmseg_generic.at_one_size(tiny(tiling=slide((30, 48), (20, 30))))


class Baked(nn.Module):
    """Right at the size that it is exported at, elsewhere resized to that size on the way: what mmseg's Upsample becomes."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x):
        if torch.compiler.is_exporting() and x.shape[2:] != self.size:
            small = functional.interpolate(x, size=self.size, mode="nearest")
            x = functional.interpolate(small, size=x.shape[2:], mode="nearest")
        return self.network(x)


@pytest.mark.slow
def test_a_graph_that_holds_at_one_size_becomes_a_package_of_that_size(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    normalize = next(step for step in tiny().recipe.preprocess if isinstance(step, Normalize))
    resize = Resize(height=48, width=64, method="opencv:linear")
    fill = Pad(minimum=None, multiple_of=4, where="end", mode="constant", value=0)
    source = tiny(preprocess=(resize, normalize, fill))
    source = replace(source, network=Baked(source.network, (48, 64)).eval(), input_example_shape=(3, 32, 32))
    with pytest.raises(BarMissed, match="differs from its source"):
        export(source, tmp_path / "free.segship", engines=["onnxruntime"])
    assert not (tmp_path / "free.segship").exists()
    held = replace(source, at_one_size=lambda: mmseg_generic.at_one_size(source))
    found = export(held, tmp_path / "fixed.segship", engines=["onnxruntime"])
    assert found.package.manifest.network.size == (48, 64)
    assert "with height and width free" in found.notes[-1]
    assert "alone" in found.warnings[-1]
    assert open_package(tmp_path / "fixed.segship").manifest.network.check_size is None
    with pytest.raises(BarMissed):
        export(held, tmp_path / "asked.segship", engines=["onnxruntime"], shape="dynamic")


# ------------------------------------------------------------------------------------- a batch that is fixed


class CountsWindows(nn.Module):
    """Takes its batch from a division that ends in Python's int, as Swin's windows do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        height, width = x.shape[2:]
        windows = x.reshape(-1, x.shape[1], height // 2, width)
        batch = int(windows.shape[0] / (height * width / (height // 2) / width))
        return self.network(windows.reshape(batch, -1, height, width))


@pytest.mark.slow
def test_a_network_that_fixes_its_batch_becomes_a_package_for_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    plain = mmseg.tiny()
    source = replace(plain, network=CountsWindows(plain.network).eval())
    found = export(source, tmp_path / "one.segship", engines=["onnxruntime"])
    assert [variant.batches for variant in found.package.manifest.variants] == [(1,)]
    assert any("made for a batch of 1" in warning for warning in found.warnings)
    x = np.random.default_rng(3).normal(0, 1, (3, 3, 64, 64)).astype(np.float32)
    with Predictor.open(found.package, engine="onnxruntime") as predictor:
        answer = predictor.network(x)
    with torch.inference_mode():
        wanted = plain.network(torch.from_numpy(x)).numpy()
    assert np.allclose(answer[0] if isinstance(answer, tuple) else answer, wanted, atol=1e-4)


# --------------------------------------------------------------------------------------- rounding of its own


class Grained(nn.Module):
    """Logits of spread 1, off by ``wrong`` in the graph alone; rounded to multiples of ``grain``, if any."""

    def __init__(self, network: nn.Module, spread: float, grain: float, wrong: float) -> None:
        super().__init__()
        self.network, self.spread, self.wrong = network, spread, wrong
        self.large = grain * 2**23

    def forward(self, x):
        logits = self.network(x) / self.spread
        if self.large:
            logits = (logits + self.large) - self.large
        return logits + self.wrong if torch.compiler.is_exporting() else logits


def grained(grain: float, wrong: float):
    source = mmseg.tiny()
    spread = float(np.std(parity.reference(source.network, source.recipe, bundled_sample(), "x").outputs[0]))
    return replace(
        source, network=Grained(source.network, spread, grain, wrong).eval(), relative_tolerance=mmseg_generic.OF_ANY_NETWORK
    )  # fmt: skip


def test_how_far_pytorch_lies_from_itself():
    x = np.random.default_rng(5).normal(0, 1, (3, 3, 64, 64)).astype(np.float32)
    assert parity.own_rounding(grained(0, 0).network, x) < 1e-4
    own = parity.own_rounding(grained(2.0**-9, 0).network, x)
    with torch.inference_mode():
        spread = float(grained(2.0**-9, 0).network(torch.from_numpy(x)).std())
    assert own == pytest.approx(2.0**-9 / spread, rel=0.01)  # one step to the other multiple
    assert parity.rounding_tolerance(grained(2.0**-9, 0).network, x) == pytest.approx(4 * own)
    assert parity.rounding_tolerance(grained(2.0**-4, 0).network, x) == parity.MOST_ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grain", "wrong", "passes"), [(0, 2e-3, False), (2.0**-9, 2e-3, True), (2.0**-9, 8e-3, False)]
)
def test_an_engine_may_differ_by_what_rounding_does_and_no_more(tmp_path, monkeypatch, grain, wrong, passes):
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    if not passes:
        with pytest.raises(BarMissed, match="differs from its source"):
            export(grained(grain, wrong), tmp_path / "net.segship", engines=["onnxruntime"])
        return
    found = export(grained(grain, wrong), tmp_path / "net.segship", engines=["onnxruntime"])
    assert all(row.passed for row in found.parity)
    assert any("rounding alone" in warning for warning in found.warnings)


class PyramidPool(nn.Module):
    """Adds a pooled map, brought back to size: what a pyramid pooling head does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.pool = network, mmseg_generic.AveragedBins((3, 3))

    def forward(self, x):
        logits = self.network(x)
        return logits + functional.interpolate(self.pool(logits), size=logits.shape[2:], mode="bilinear")


@pytest.mark.slow
def test_a_pyramid_pooling_is_right_at_every_size(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    normalize = next(step for step in tiny().recipe.preprocess if isinstance(step, Normalize))
    resize = Resize(height=48, width=64, method="opencv:linear")
    source = tiny(
        preprocess=(resize, normalize, Pad(minimum=None, multiple_of=4, where="end", mode="constant", value=0))
    )
    source = replace(source, network=PyramidPool(source.network).eval(), input_example_shape=(3, 48, 64))
    found = export(source, tmp_path / "net.segship")
    assert found.package.manifest.network.size is None
    assert {row.engine for row in found.parity} >= {"onnxruntime", "openvino"}
    assert all(row.passed for row in found.parity)
