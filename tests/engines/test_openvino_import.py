"""What importing and opening leaves out, and that nobody else in the process misses it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from engine_graphs import Graphs

from segship.engines import SessionOptions
from segship.engines import openvino as engine

pytest.importorskip("openvino")


def _run(code: str, **options: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_model_converter_is_left_out_and_still_there_for_others():
    lines = _run(
        "import sys; from segship.engines import openvino as engine\n"
        "ours = engine._import()\n"
        "print([name for name in sys.modules if 'ovc' in name or 'telemetry' in name])\n"
        "import openvino\n"
        "print(openvino is ours, hasattr(openvino, 'no_such_name'))\n"
        "from openvino import convert_model\n"
        "from openvino.tools.ovc import convert_model as same\n"
        "print(convert_model is same is openvino.convert_model is openvino.tools.ovc.convert_model)\n"
    )
    assert lines == ["[]", "True False", "True"]


def test_the_converter_is_found_without_importing_it_by_name():
    line = "from segship.engines import openvino as engine; print(callable(engine._import().tools.ovc.convert_model))"
    assert _run(line) == ["True"]


def test_an_openvino_that_the_host_imported_is_taken_as_it_is():
    lines = _run(
        "import sys, openvino\n"
        "before = set(vars(openvino)); modules = set(sys.modules)\n"
        "from segship.engines import openvino as engine\n"
        "print(engine._import() is openvino, set(vars(openvino)) - before, 'openvino.tools.ovc' in modules)\n"
    )
    assert lines == ["True set() True"]


def test_an_openvino_that_cannot_do_without_its_converter_gets_it(tmp_path: Path):
    package = tmp_path / "openvino"
    (package / "tools" / "ovc").mkdir(parents=True)
    (package / "__init__.py").write_text("from openvino.tools.ovc import convert_model\n")
    (package / "tools" / "__init__.py").write_text("")
    (package / "tools" / "ovc" / "__init__.py").write_text("convert_model = 'found'\n")
    lines = _run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from segship.engines import openvino as engine\n"
        "print(engine._import().convert_model, engine._import().__file__.startswith(sys.path[0]))\n"
    )
    assert lines == ["found True"]


def test_a_graph_whose_hash_is_known_is_not_read_for_its_place_in_the_cache(bilinear: Graphs, tmp_path: Path):
    graph = bilinear.files["fp32"]
    known = hashlib.sha256(graph.read_bytes()).hexdigest()
    options = SessionOptions(cache_dir=tmp_path)
    folder = engine._cache_folder(graph, options, "1")
    assert folder is not None
    given = SessionOptions(cache_dir=tmp_path, graph_sha256=known)
    assert engine._cache_folder(tmp_path / "not there", given, "1") == folder
    other = SessionOptions(cache_dir=tmp_path, graph_sha256="0" * 64)
    assert engine._cache_folder(graph, other, "1") != folder


TWO_AT_ONCE = """
import os, sys, threading
from segship.engines import openvino as engine
engine._core()
import openvino
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)
def ask():
    together.wait()
    openvino.Type.f32.to_dtype()
threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join(10)
os._exit(int(any(thread.is_alive() for thread in threads)))
"""


def test_two_threads_that_ask_first_do_not_wait_for_each_other_for_ever():
    """Half of such processes hung where no thread had asked the binding for a dtype before."""
    for _ in range(5):
        assert subprocess.run([sys.executable, "-c", TWO_AT_ONCE], timeout=60).returncode == 0
