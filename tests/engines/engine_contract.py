"""What every engine must do. An engine's test file inherits `EngineContract` and names its engine."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from engine_graphs import CHANNELS, PRECISIONS, SIZE, Graphs, images

from segship.engines import Session, SessionOptions, get_engine, open_session
from segship.engines.processor import processor
from segship.errors import DeviceMissing, EngineError, EngineMissing, PrecisionMissing, UsageError


def spread(reference: np.ndarray) -> float:
    return max(1.0, float(reference.max() - reference.min()))


class EngineContract:
    engine: str
    library: str | None
    """what is imported for it; None for an engine that needs nothing"""
    device = "cpu"
    """where everything is run; an engine of a package's own, or a machine's GPU, may need another"""
    computes = True
    """False: fixed answers, whatever the graph says"""
    evidence: tuple[str, ...] | None = None
    """what its records of execution may rest on; None: a profile where it computes, else its settings"""
    kinds: dict[str, set[str]]
    """precision -> number types that its convolutions may run in here"""

    @pytest.fixture
    def module(self) -> ModuleType:
        if self.library is not None:
            pytest.importorskip(self.library)
        return get_engine(self.engine)

    def open(self, graph: Path, **options: object) -> Session:
        return open_session(self.engine, graph, SessionOptions(**{"device": self.device, **options}))  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------ answers

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_agrees_with_pytorch_or_refuses_the_precision(self, module, graphs: Graphs, precision: str):
        if precision not in module.PRECISIONS:
            with pytest.raises(PrecisionMissing, match="--engine"):
                self.open(graphs.files[precision], precision=precision)
            return
        session = self.open(graphs.files[precision], precision=precision)
        for count in (1, 3):
            x = images(count, seed=count)
            outputs, reference = session.run(x), graphs.reference(x)
            assert [o.shape for o in outputs] == [r.shape for r in reference]
            for output, expected in zip(outputs, reference, strict=True):
                assert output.dtype == np.float32
                if self.computes:
                    assert np.abs(output - expected).max() <= module.TOLERANCE[precision] * spread(expected)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_says_what_it_executed(self, module, bilinear: Graphs, precision: str):
        if precision not in module.PRECISIONS:
            return
        session = self.open(bilinear.files[precision], precision=precision)
        executed = session.executed(images(2))
        assert set(executed.convolution_share) <= self.kinds[precision]
        assert sum(executed.convolution_share.values()) == pytest.approx(1, abs=1e-5)
        assert (executed.engine, executed.version, executed.device) == (self.engine, session.version, session.device)
        assert executed.processor == processor().label
        assert executed.evidence in (self.evidence or (("profile",) if self.computes else ("settings",)))
        assert (executed.rounding is None) == (precision != "int16")
        assert executed.elsewhere is None or self.device != "cpu"

    def test_profiled_session_gives_the_same_answer(self, module, bilinear: Graphs):
        x = images(2)
        plain, profiled = (self.open(bilinear.files["fp32"], profile=flag) for flag in (False, True))
        np.testing.assert_array_equal(plain.run(x)[0], profiled.run(x)[0])
        assert profiled.executed(x).convolution_share

    def test_same_input_same_answer_and_outputs_belong_to_the_caller(self, module, bilinear: Graphs):
        session = self.open(bilinear.files["fp32"])
        first = session.run(images(2, 1))
        kept = [o.copy() for o in first]
        session.run(images(2, 2))
        for output, copy, again in zip(first, kept, session.run(images(2, 1)), strict=True):
            np.testing.assert_array_equal(output, copy)
            np.testing.assert_array_equal(output, again)
            output[:] = 0  # must be writable, and touch nothing of the engine's
        np.testing.assert_array_equal(session.run(images(2, 1))[0], kept[0])

    def test_an_image_s_answer_does_not_depend_on_its_batch(self, module, bilinear: Graphs):
        session = self.open(bilinear.files["fp32"])
        together = session.run(images(3))[-1]
        for i in range(3):
            np.testing.assert_allclose(session.run(images(3)[i : i + 1])[-1][0], together[i], atol=1e-5)

    def test_input_may_be_read_only_or_strided_and_is_left_alone(self, module, bilinear: Graphs):
        session = self.open(bilinear.files["fp32"])
        x = images(2)
        expected = session.run(x.copy())[0]
        strided = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        strided.flags.writeable = False
        np.testing.assert_array_equal(session.run(strided)[0], expected)
        np.testing.assert_array_equal(strided, x)

    def test_nan_passes_through_and_stays_in_its_image(self, module, bilinear: Graphs):
        session = self.open(bilinear.files["fp32"])
        x = images(2)
        clean = session.run(x)[-1]
        x[0, 0, 5, 5] = np.nan
        answer = session.run(x)[-1]
        np.testing.assert_allclose(answer[1], clean[1], atol=1e-5)

    @pytest.mark.parametrize("streams", [1, 2])
    def test_threads_may_run_it_at_once(self, module, bilinear: Graphs, streams: int):
        session = self.open(bilinear.files["fp32"], streams=streams, threads=2)
        inputs = [images(1 + i % 3, seed=i) for i in range(12)]
        expected = [session.run(x)[-1] for x in inputs]
        with ThreadPoolExecutor(4) as pool:  # more threads than streams: the others wait
            answers = list(pool.map(lambda x: session.run(x)[-1], inputs))
        for answer, wanted in zip(answers, expected, strict=True):
            np.testing.assert_allclose(answer, wanted, atol=1e-5)

    def test_static_shape(self, module, bilinear: Graphs):
        shape = (2, CHANNELS, SIZE, SIZE)
        session = self.open(bilinear.files["fp32"], static_shape=shape)
        dynamic = self.open(bilinear.files["fp32"])
        np.testing.assert_allclose(session.run(images(2))[0], dynamic.run(images(2))[0], atol=1e-5)
        with pytest.raises(EngineError, match=r"expected input of shape \(2, 3, 32, 32\), got \(1, 3, 32, 32\)"):
            session.run(images(1))

    # ------------------------------------------------------------------------------- faults

    @pytest.mark.parametrize(
        "shape", [(1, 4, SIZE, SIZE), (1, CHANNELS, SIZE, SIZE + 1), (CHANNELS, SIZE, SIZE), (0, CHANNELS, SIZE, SIZE)]
    )
    def test_wrong_shape_names_expected_and_given(self, module, bilinear: Graphs, shape: tuple[int, ...]):
        session = self.open(bilinear.files["fp32"])
        with pytest.raises(EngineError) as caught:
            session.run(np.zeros(shape, np.float32))
        assert "(any, 3, 32, 32)" in str(caught.value)
        assert str(shape) in str(caught.value)
        assert session.run(images(1))  # and goes on

    @pytest.mark.parametrize("dtype", [np.float64, np.uint8])
    def test_wrong_dtype(self, module, bilinear: Graphs, dtype: type):
        with pytest.raises(EngineError, match=f"float32.*{np.dtype(dtype).name}"):
            self.open(bilinear.files["fp32"]).run(images(1).astype(dtype))

    def test_static_shape_that_does_not_fit_the_graph(self, module, bilinear: Graphs):
        with pytest.raises(EngineError, match=r"\(1, 3, 48, 48\).*\(any, 3, 32, 32\)"):
            self.open(bilinear.files["fp32"], static_shape=(1, CHANNELS, 48, 48))

    @pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
    def test_damaged_graph(self, module, bilinear: Graphs, damage: str, tmp_path: Path):
        graph = tmp_path / "graph.onnx"
        whole = bilinear.files["fp32"].read_bytes()
        if damage != "missing":
            graph.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"not a graph"}[damage])
        if damage in ("cut", "text") and not self.computes:
            return
        for options in ({}, {"cache_dir": tmp_path / "cache"}, {"static_shape": (1, CHANNELS, SIZE, SIZE)}):
            with pytest.raises(EngineError, match=r"graph\.onnx.*segship verify"):
                self.open(graph, **options)

    @pytest.mark.parametrize("device", ["gpu:7", "cuda:7", "npu:7", "toaster", "cpu:x"])
    def test_absent_device_is_never_replaced(self, module, bilinear: Graphs, device: str):
        with pytest.raises(DeviceMissing) as caught:
            self.open(bilinear.files["fp32"], device=device)
        told = str(caught.value)
        assert f"'{device}'" in told  # what was asked for, what is there, what to do
        assert self.device in told
        assert ";" in told
        assert "\n" not in told

    def test_device_auto_runs(self, module, bilinear: Graphs):
        session = self.open(bilinear.files["fp32"], device="auto")
        assert session.device
        assert session.run(images(1))

    def test_unknown_precision(self, module, bilinear: Graphs):
        with pytest.raises(PrecisionMissing, match="fp8"):
            self.open(bilinear.files["fp32"], precision="fp8")

    @pytest.mark.parametrize("options", [{"streams": 0}, {"threads": 0}])
    def test_useless_options(self, module, bilinear: Graphs, options: dict[str, int]):
        with pytest.raises(UsageError, match=next(iter(options))):
            self.open(bilinear.files["fp32"], **options)

    def test_closed_session(self, module, bilinear: Graphs):
        session = self.open(bilinear.files["fp32"])
        session.close()
        session.close()
        for call in (session.run, session.executed):
            with pytest.raises(EngineError, match="closed"):
                call(images(1))

    def test_missing_library(self, module, bilinear: Graphs, monkeypatch: pytest.MonkeyPatch):
        if self.library is None:
            return
        self.forget(module)
        monkeypatch.setitem(sys.modules, self.library, None)
        try:
            with pytest.raises(EngineMissing, match="pip install"):
                self.open(bilinear.files["fp32"])
            found = module.availability()
            assert (found.version, found.install) == (None, module.INSTALL)
        finally:
            self.forget(module)

    def forget(self, module: ModuleType) -> None:
        """Drop what the module remembers of its library."""

    def test_availability(self, module):
        found = module.availability()
        assert found.engine == module.NAME == self.engine
        assert found.version
        kinds = {device.name.partition(":")[0]: device for device in found.devices}
        assert self.device.partition(":")[0] in kinds
        if "cpu" in kinds:
            assert found.devices[0].name == "cpu"
            assert found.devices[0].precisions[0] == "fp32"
        assert set(module.TOLERANCE) == set(module.PRECISIONS)
