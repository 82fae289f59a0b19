"""The predictor over an engine whose answers the tests choose: batches, order, failures, members, precision."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import manifest_data
from stub_engine import NAME, StubSession, first_channel, install, open_stub, stub_package

from segship.errors import EngineError, InputError, PackageError, PrecisionMissing, UsageError
from segship.inference import views
from segship.inference.pipeline import batches, helper_threads, in_order, ordered_map
from segship.inference.precision import PRECISION_ALIASES, canonical_precision
from segship.inference.prediction import Prediction
from segship.inference.predictor import Failure, Item, Predictor

RNG = np.random.default_rng(5)


def pictures(count: int, height: int = 20, width: int = 30) -> list[np.ndarray]:
    return [np.full((height, width, 3), value, np.uint8) for value in range(10, 10 + count)]


def variants(*precisions: str, **changes: Any) -> list[dict[str, Any]]:
    first = manifest_data()["variants"][0]
    return [
        first | {"precision": p, "graphs": {"model": f"graphs/{p}.onnx"}, "sha256": {}} | changes for p in precisions
    ]


def free_size(multiple: int = 1, **changes: Any) -> dict[str, Any]:
    network = manifest_data()["network"] | {"size": None, "size_multiple": [multiple, multiple]} | changes
    return {"network": network, "preprocess": [{"step": "divide", "by": 1.0}]}


def drop(value: float) -> dict[str, Any]:
    return {
        "metric": "iou",
        "fp32": 0.9,
        "value": 0.9 - value,
        "drop": value,
        "interval95": [value, value],
        "worst_case": "a",
        "worst_drop": value,
        "cases": 10,
        "dataset_sha256": "0" * 64,
        "engine": NAME,
    }


# -------------------------------------------------------------------------------------------- one picture


def test_masks_of_the_reference_logits(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case dsb2018_pipeline: masks on the network's grid are those of the original's logits."""
    case = np.load(shared / "reference/dsb2018_pipeline.npz")
    logits = {x.tobytes(): y for x, y in zip(case["input"], case["output0"], strict=True)}

    def nearest(x: np.ndarray) -> list[np.ndarray]:
        found = [min(case["input"], key=lambda known, one=one: np.abs(known - one).max()) for one in x]
        assert max(np.abs(a - b).max() for a, b in zip(found, x, strict=True)) <= 1e-7
        return [np.stack([logits[known.tobytes()] for known in found])]

    install(monkeypatch, nearest)
    data = manifest_data()
    data["network"]["size"] = [96, 96]
    data["preprocess"][0] |= {"height": 96, "width": 96}
    data["preprocess"][1] |= {
        "subtract": [255 * m for m in (0.485, 0.456, 0.406)],
        "multiply": [1 / (255 * s) for s in (0.229, 0.224, 0.225)],
    }
    changes = {"network": data["network"], "preprocess": data["preprocess"]}
    with open_stub(tmp_path / "p", changes=changes, array_order="bgr") as model:
        for i, found in enumerate(model.stream(case["image"], batch=3, grid="network")):
            assert isinstance(found, Prediction)
            clear = np.abs(case["output0"][i]) >= 2e-4
            probability = 1 / (1 + np.exp(-case["output0"][i].astype(np.float64)))
            assert ((found.masks == (probability > 0.5)) | ~clear).all()


def test_call_trace_and_network_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    picture = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with open_stub(tmp_path / "p") as model:
        found = model(picture, probabilities=True)
        assert "probabilities" in found.__dict__
        stages = model.trace(picture)
        assert list(stages) == ["read", "preprocessed", "network", "decoded"]
        assert (stages["read"] == picture[..., ::-1]).all()
        assert stages["preprocessed"].shape == (3, 32, 32)
        assert (stages["preprocessed"] == model.prepare(picture).x).all()
        assert (stages["network"] == stages["preprocessed"][:1]).all()
        assert (stages["decoded"] == found.masks).all()
        assert (model.network(stages["preprocessed"][None]) == stages["network"][None]).all()
        assert len(model.network(stages["preprocessed"][None], all_outputs=True)) == 1
        assert found.image is not None
        assert model(picture, grid="network").masks.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 32, 32), np.float32), "NCHW arrays"),
        (np.zeros((0, 3, 32, 32), np.float32), "NCHW arrays"),
        (np.zeros((1, 4, 32, 32), np.float32), r"4 channel\(s\), the network takes 3"),
        (np.zeros((1, 3, 33, 32), np.float32), "exactly 32x32"),
        (np.full((1, 3, 32, 32), np.nan, np.float32), "finite"),
        (np.full((1, 3, 32, 32), "x"), "finite float32"),
    ],
)
def test_network_refuses_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: np.ndarray, message: str
) -> None:
    install(monkeypatch)
    with open_stub(tmp_path / "p") as model, pytest.raises(InputError, match=message):
        model.network(x)


def test_a_graph_that_does_not_keep_the_manifests_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        (lambda x: [], "0 outputs, the manifest names 1"),
        (lambda x: [x[:, :2]], r"'y' has shape \(1, 2, 32, 32\) where the manifest says \(1, 1, 32, 32\)"),
        (lambda x: [x[:, :1, ::2, ::2]], "where the manifest says"),
    ]
    for number, (answer, message) in enumerate(answers):
        install(monkeypatch, answer)
        with open_stub(tmp_path / str(number)) as model, pytest.raises(PackageError, match=message):
            model(pictures(1)[0])


def test_outputs_of_a_stride_are_expected_coarser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda x: [x[:, :1, ::4, ::4].copy()])
    outputs = [{"name": "y", "channels": 1, "values": "logits", "stride": 4}]
    changes = {"network": manifest_data()["network"] | {"outputs": outputs}}
    with open_stub(tmp_path / "p", changes=changes) as model:
        assert model(pictures(1)[0]).masks.shape == (1, 20, 30)


def test_closing_closes_the_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    with open_stub(tmp_path / "p") as model:
        assert model.sessions == opened
    assert [session.closed for session in opened] == [True]


# ----------------------------------------------------------------------------------------------- streams


def test_stream_keeps_order_whatever_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    rng = np.random.default_rng(1)
    sources = [np.full((8 * rng.integers(1, 4), 8 * rng.integers(1, 3), 3), value, np.uint8) for value in range(1, 120)]
    with open_stub(tmp_path / "p", changes=free_size(), streams=2) as model:
        found = list(model.stream(sources, batch=4))
    assert [int(p.logits[0, 0, 0]) for p in found if isinstance(p, Prediction)] == list(range(1, 120))
    assert all(p.size_hw == s.shape[:2] for p, s in zip(found, sources, strict=True) if isinstance(p, Prediction))
    counts = [shape[0] for session in opened for shape in session.shapes]
    assert max(counts) == 4
    assert sum(counts) == len(sources)
    assert opened[0].most_in_flight <= 2


def test_failures_travel_in_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    good = pictures(5)
    sources: list[Any] = [
        good[0],
        b"no picture",
        good[1],
        tmp_path / "missing.png",
        *good[2:],
        np.zeros((4, 4, 2), np.uint8),
    ]
    with open_stub(tmp_path / "p") as model:
        found = list(model.stream(sources, batch=2))
    failed = [isinstance(item, Failure) for item in found]
    assert failed == [False, True, False, True, False, False, False, True]
    assert isinstance(found[1], Failure)
    assert isinstance(found[1].error, InputError)
    assert "not an image" in str(found[1])
    assert isinstance(found[3], Failure)
    assert found[3].name.endswith("missing.png")


def test_an_engines_failure_is_that_batchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(x: np.ndarray) -> list[np.ndarray]:
        if (x == 12).any():
            raise EngineError("no room for 12")
        return first_channel(x)

    install(monkeypatch, picky)
    with open_stub(tmp_path / "p", changes=free_size()) as model:
        found = list(model.stream(pictures(6), batch=2))
    assert [isinstance(item, Failure) for item in found] == [False, False, True, True, False, False]


def test_a_nan_from_the_network_is_that_pictures_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda x: [np.where(x[:, :1] == 11, np.nan, x[:, :1])])
    with open_stub(tmp_path / "p", changes=free_size()) as model:
        found = list(model.stream(pictures(3), batch=3))
        assert [isinstance(item, Failure) for item in found] == [False, True, False]
        with pytest.raises(EngineError, match="NaN"):
            model(pictures(2)[1])


def test_images_are_kept_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with open_stub(tmp_path / "p") as model:
        for keep in (False, True):
            found = next(iter(model.stream(pictures(1), keep_images=keep)))
            assert isinstance(found, Prediction)
            assert (found.image is not None) == keep


def test_a_stream_reads_no_further_than_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    taken = []

    def endless() -> Any:
        while True:
            taken.append(len(taken))
            yield pictures(1)[0]

    with open_stub(tmp_path / "p") as model:
        stream = model.stream(endless(), batch=4)
        for _ in range(50):
            next(stream)
        assert len(taken) <= 50 + 4 * 10 + 4 * helper_threads()
        stream.close()  # type: ignore[attr-defined]


def segship_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("segship")]


@pytest.mark.parametrize("where", ["consumer", "network", "source"])
def test_an_interruption_ends_all_threads(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def network(x: np.ndarray) -> list[np.ndarray]:
        if where == "network":
            raise KeyboardInterrupt
        return first_channel(x)

    def sources() -> Any:
        for number, picture in enumerate(pictures(200)):
            if where == "source" and number == 30:
                raise KeyboardInterrupt
            yield picture

    install(monkeypatch, network)
    with open_stub(tmp_path / "p", streams=2) as model:

        def consume() -> None:
            for number, _ in enumerate(model.stream(sources(), batch=2)):
                if where == "consumer" and number == 5:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            consume()
        deadline = time.monotonic() + 5
        while segship_threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not segship_threads()


def test_a_fault_of_ours_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)

    def finish(item: Item) -> None:
        raise ZeroDivisionError

    with open_stub(tmp_path / "p") as model, pytest.raises(ZeroDivisionError):
        list(model.run(pictures(3), finish))


def test_many_threads_may_call_one_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.005)
        return first_channel(x)

    opened = install(monkeypatch, slow)
    with open_stub(tmp_path / "p", changes=free_size(), streams=2) as model:
        answers = list(ordered_map(lambda p: float(model(p).logits[0, 0, 0]), pictures(20), workers=8, ahead=20))
    assert answers == [float(value) for value in range(10, 30)]
    assert opened[0].most_in_flight == 2


# ---------------------------------------------------------------------------------------- static batches


def static(*batch_sizes: int) -> dict[str, Any]:
    return {"variants": variants("fp32", shapes="static", batches=list(batch_sizes))}


def test_a_short_tail_is_filled_up_and_the_filling_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    picture = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with open_stub(tmp_path / "p", changes=static(4)) as model:
        found = list(model.stream([picture] * 7, batch=4))
        assert len(found) == 7
        assert model.network(np.zeros((9, 3, 32, 32), np.float32)).shape == (9, 1, 32, 32)
        assert model(picture).logits.shape == (1, 32, 32)
    assert len(opened) == 1
    assert {shape[0] for shape in opened[0].shapes} == {4}
    assert opened[0].options.static_shape == (4, 3, 32, 32)


def test_the_fitting_static_batch_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    with open_stub(tmp_path / "p", changes=static(1, 4, 8)) as model:
        model(pictures(1)[0])
        assert len(list(model.stream(pictures(11), batch=5))) == 11
        assert len(list(model.stream(pictures(20), batch=64))) == 20
    shapes = {
        session.options.static_shape[0]: len(session.shapes) for session in opened if session.options.static_shape
    }
    assert shapes == {1: 1, 8: 5}  # 11 and 20 pictures, eight at a time, their tails filled up


def test_a_shape_asked_for_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    with open_stub(tmp_path / "p", static_shape=(2, 3, 32, 32)) as model:
        assert len(list(model.stream(pictures(3)))) == 3
    assert {shape[0] for shape in opened[0].shapes} == {2}


def test_static_variants_need_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(PackageError, match="no fixed input size"):
        open_stub(tmp_path / "p", changes=static(4) | free_size())


def test_static_variants_of_any_size_open_at_the_size_of_their_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = install(monkeypatch)
    with open_stub(tmp_path / "p", changes=static(1) | free_size(check_size=[8, 16])) as model:
        assert opened[0].options.static_shape == (1, 3, 8, 16)
        model(pictures(1)[0])
    assert opened[-1].options.static_shape[2:] == pictures(1)[0].shape[:2]


def test_a_picture_that_shares_no_batch_has_a_graph_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PIXELS_AT_ONCE", 1000)  # 20 x 30 pixels are large, 10 x 30 are not
    opened = install(monkeypatch)
    heights = (20, 20, 10, 21, 20, 22, 21)
    with open_stub(tmp_path / "p", changes=free_size()) as model:
        found = [model(pictures(1, height=height)[0]).logits.shape[1] for height in heights]
        assert model.network(np.zeros((2, 3, 20, 30), np.float32)).shape == (2, 1, 20, 30)
    assert found == list(heights)
    # three are opened, of which the last stays; what comes after them, and every batch, runs on the graph of any size
    assert [session.options.static_shape for session in opened] == [
        None, (1, 3, 20, 30), (1, 3, 21, 30), (1, 3, 20, 30),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------- ensembles


def ensemble(average: str) -> dict[str, Any]:
    members = ["fold0", "fold1"]
    graphs = {"graphs": {name: f"graphs/{name}.onnx" for name in members}}
    network = manifest_data()["network"] | {"members": members, "member_average": average}
    return {"network": network, "variants": variants("fp32", **graphs)}


def test_members_are_averaged_as_the_manifest_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = np.float32(-1), np.float32(3)
    functions = {
        "graphs/fold0.onnx": lambda x: [np.full_like(x[:, :1], low)],
        "graphs/fold1.onnx": lambda x: [np.full_like(x[:, :1], high)],
    }
    install(monkeypatch, functions)
    with open_stub(tmp_path / "a", changes=ensemble("logits")) as model:
        found = model(pictures(1)[0])
        assert (found.logits == 1).all()
        assert len(model.sessions) == 2
    with open_stub(tmp_path / "b", changes=ensemble("probabilities")) as model:
        found = model(pictures(1)[0])
        expected = (1 / (1 + np.exp(1.0)) + 1 / (1 + np.exp(-3.0))) / 2
        assert np.allclose(found.probabilities, expected, atol=1e-6)
        streamed = next(iter(model.stream(pictures(1))))
        assert isinstance(streamed, Prediction)
        assert np.allclose(streamed.probabilities, expected, atol=1e-6)


# -------------------------------------------------------------------------------------------- precision


def test_precision_names() -> None:
    assert canonical_precision("INT8") == "int8"
    assert canonical_precision("qint8_mixed_float16") == "int8"
    assert canonical_precision("qint16_mixed_float32") == "int16"
    assert canonical_precision("force_float32") == "fp32"
    assert canonical_precision("force_float16") == "fp16"
    assert canonical_precision("auto") == "auto"
    assert set(PRECISION_ALIASES.values()) <= {"fp32", "fp16", "bf16", "int8", "int16"}
    with pytest.raises(UsageError, match=r"fp32, fp16.*force_float32"):
        canonical_precision("int4")


def test_the_precision_asked_for_runs_or_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, precisions=("fp32", "int8"))
    package = stub_package(tmp_path / "p", variants=variants("fp32", "int8", "bf16"))
    with Predictor.open(package, engine=NAME, precision="qint8_mixed_float16") as model:
        assert model.precision == "int8"
        assert model.variant.precision == "int8"
        assert model.sessions[0].options.precision == "int8"
    with pytest.raises(PrecisionMissing, match="segship compile --precision fp16"):
        Predictor.open(package, engine=NAME, precision="fp16")
    with pytest.raises(PrecisionMissing, match="does not run bf16"):
        Predictor.open(package, engine=NAME, precision="bf16")


def test_auto_takes_the_fastest_within_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(native: tuple[str, ...], **drops: float | None) -> tuple[str, str]:
        install(monkeypatch, native=native)
        entries = variants("fp32", *drops)
        for entry in entries[1:]:
            value = drops[entry["precision"]]
            entry["drop"] = None if value is None else drop(value)
        with Predictor.open(
            stub_package(tmp_path / f"{time.monotonic_ns()}", variants=entries), engine=NAME, precision="auto"
        ) as model:
            return model.precision, model.choice.reason

    everything = ("fp32", "fp16", "bf16", "int8")
    assert choose(everything, fp16=0.0, int8=0.001) == (
        "int8",
        "fastest within budget: loses 0.0010 iou on 10 cases, allowed 0.002",
    )
    assert choose(everything, bf16=0.0, int8=0.01)[0] == "bf16"
    assert choose(everything, fp16=0.0) == ("fp32", "fp16: no faster than fp32 on a cpu")
    precision, reason = choose(("fp32",), int8=0.0, bf16=0.0)
    assert precision == "fp32"
    assert "int8: this cpu does not compute in it" in reason
    assert "never measured" in choose(everything, int8=None)[1]
    assert choose(everything) == ("fp32", "the package has no faster variant")


def test_arguments_and_engines_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    package = stub_package(tmp_path / "p")
    for bad in ({"batch": 0}, {"streams": 0}, {"threads": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            Predictor.open(package, engine=NAME, **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no engine is called 'none'"):
        Predictor.open(package, engine="none")
    with Predictor.open(package, engine=NAME) as model, pytest.raises(UsageError, match="batch"):
        model.stream(pictures(1), batch=0)
    assert len(opened) == 1


def test_options_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    with open_stub(tmp_path / "p", threads=3, streams=2, profile=True):
        pass
    with open_stub(tmp_path / "q", cache_dir=tmp_path / "mine"):
        pass
    assert (opened[0].options.threads, opened[0].options.streams, opened[0].options.profile) == (3, 2, True)
    assert opened[0].options.cache_dir == tmp_path / "cache" / "compiled" / NAME
    assert opened[1].options.cache_dir == tmp_path / "mine"


# ---------------------------------------------------------------------------------------------- pipeline


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 5))
def test_batches_mix_and_come_back_in_order(shapes: list[int], size: int) -> None:
    """0 stands for an input that failed; the others for different sizes."""

    class One:
        def __init__(self, number: int, kind: int) -> None:
            self.number = number
            self.shape = (kind,) if kind else None

    items = [One(number, kind) for number, kind in enumerate(shapes)]
    groups = list(batches(items, size))
    for group in groups:
        assert len({item.shape for item in group}) == 1
        assert len(group) <= (size if group[0].shape else 1)
    newest = 0
    for group in groups:
        assert newest - min(item.number for item in group) <= 4 * size
        newest = max(newest, *(item.number for item in group))
    assert list(in_order(groups)) == items


def test_ordered_map_is_lazy_and_bounded() -> None:
    running: list[int] = []
    most = 0
    lock = threading.Lock()

    def work(value: int) -> int:
        nonlocal most
        with lock:
            running.append(value)
            most = max(most, len(running))
        time.sleep(0.002)
        with lock:
            running.remove(value)
        return value * 2

    assert list(ordered_map(work, range(20), workers=3, ahead=6)) == [2 * value for value in range(20)]
    assert 1 < most <= 3
    assert list(ordered_map(work, [], workers=3, ahead=6)) == []


# ---------------------------------------------------------------------------------------------- start-up


def test_prediction_imports_no_framework() -> None:
    code = (
        "import sys, segship, segship.inference.predictor, segship.inference.batch\n"
        "heavy = {'torch', 'onnx', 'openvino', 'onnxruntime', 'matplotlib', 'pandas', 'scipy', 'PIL', 'nibabel', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_stub_is_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)
    with open_stub(tmp_path / "p"):
        assert isinstance(opened[0], StubSession)
