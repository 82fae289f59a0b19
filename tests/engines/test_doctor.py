from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest

from segship import engines
from segship.engines import Availability, Device, doctor, processor
from segship.errors import EngineError, UsageError

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz
flags\t\t: fpu avx2 avx512f avx512_vnni
model name\t: second
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
"""


def test_processor_of_cpuinfo():
    assert processor.parse_cpuinfo(INTEL) == (
        "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz",
        ("AVX2", "AVX512F", "AVX512-VNNI"),
    )
    assert processor.parse_cpuinfo(ARM) == ("", ("NEON-DOTPROD", "NEON-FP16", "NEON-I8MM", "NEON-BF16"))
    assert processor.parse_cpuinfo("") == ("", ())


def test_what_a_processor_computes():
    old = processor.Processor(name="old", instruction_sets=("AVX2",), cores=2)
    assert [old.computes(p) for p in ("fp32", "bf16", "fp16", "int8", "int16")] == [True, False, False, False, False]
    silent = processor.Processor(name="silent", instruction_sets=(), cores=2)
    assert [silent.computes(p) for p in ("fp32", "bf16")] == [True, None]
    assert silent.label == "silent"
    assert old.label == "old (AVX2)"


def test_processor_without_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    processor.processor.cache_clear()
    try:
        assert processor.processor().name
        assert processor.processor().cores >= 1
    finally:
        processor.processor.cache_clear()


def test_diagnosis_of_this_machine():
    found = doctor.diagnose()
    assert [engine.engine for engine in found[:4]] == list(engines.BUILT_IN)
    data = json.loads(json.dumps(doctor.as_dict(found)))
    assert data["engines"][0]["devices"][0]["name"] == "cpu"
    text = doctor.as_text(found)
    for engine in found:
        assert engine.engine in text
    assert processor.processor().name in text


def test_what_is_missing_says_what_to_type():
    device = Device(name="cpu", description="a processor", precisions=("fp32",))
    found = [
        Availability(engine="openvino", version=None, install="pip install openvino"),
        Availability(
            engine="onnxruntime", version="1.0", devices=(device,), note="two wheels", missing={"cuda": "a wheel"}
        ),
        Availability(engine="vendor", version="2", note=""),
    ]
    text = doctor.as_text(found)
    assert "type: pip install openvino" in text
    assert "for onnxruntime on cuda: a wheel" in text
    assert "problem: onnxruntime: two wheels" in text
    assert doctor.problems([Availability(engine="openvino", version=None)]) == [
        "no engine is installed; type: pip install openvino"
    ]


class Entry:
    value = "vendor.module"

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.loaded = name, loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def vendor(availability: Any) -> ModuleType:
    module = ModuleType("vendor")
    module.__dict__.update(
        NAME="vendor",
        INSTALL="",
        PRECISIONS=("fp32",),
        TOLERANCE={"fp32": 0.0},
        availability=availability,
        open_session=lambda graph, options: None,
    )
    return module


def install(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: list(entries))


def test_an_engine_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch):
    known = Availability(engine="vendor", version="7")
    install(monkeypatch, Entry("vendor", vendor(lambda: known)))
    assert engines.engine_names() == (*engines.BUILT_IN, "vendor")
    assert engines.availabilities(["vendor"]) == [replace(known, origin="vendor.module")]


def test_a_broken_engine_of_another_package_does_not_hurt_the_rest(monkeypatch: pytest.MonkeyPatch):
    def fails() -> Availability:
        raise RuntimeError("driver on fire")

    install(
        monkeypatch,
        Entry("broken", ImportError("no such library")),
        Entry("vendor", vendor(fails)),
        Entry("half", ModuleType("half")),
    )
    notes = {a.engine: a.note for a in doctor.diagnose()}
    assert "no such library" in notes["broken"]
    assert "driver on fire" in notes["vendor"]
    assert "lacks NAME" in notes["half"]
    with pytest.raises(EngineError, match="reinstall or remove"):
        engines.get_engine("broken")


def test_unknown_engine_lists_those_that_exist():
    with pytest.raises(UsageError, match="openvino, onnxruntime, pytorch, fake"):
        engines.get_engine("tensorflow")
