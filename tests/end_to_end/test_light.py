"""What a prediction needs: no torch, no matplotlib, no pandas. Read off fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

from made_pictures import write_pictures

HEAVY = ("torch", "matplotlib", "pandas", "onnx", "nncf", "jinja2", "sklearn", "scipy")


def _run(code: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_prediction_imports_nothing_heavy(package, tmp_path):
    picture = write_pictures(tmp_path / "in", 1)[0]
    code = f"""
import sys, segship
with segship.load({str(package)!r}) as model:
    result = model({str(picture)!r})
    assert result.labels.shape == (70, 90) and result.labels.max() == 1
    result.save({str(tmp_path / "mask.png")!r})
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert _run(code, SEGSHIP_CACHE_DIR=str(tmp_path / "cache")).strip() == "[]"


def test_the_command_line_s_prediction_imports_nothing_heavy(package, tmp_path):
    picture = write_pictures(tmp_path / "in", 1)[0]
    code = f"""
import sys
from segship.cli import run
assert run(["predict", {str(package)!r}, {str(picture)!r}, "-o", {str(tmp_path / "out")!r}]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert _run(code, SEGSHIP_CACHE_DIR=str(tmp_path / "cache")).strip().endswith("[]")


def test_inspect_and_help_need_no_engine(package):
    code = f"""
import sys
from segship.cli import run
assert run(["inspect", {str(package)!r}]) == 0
assert run(["--help"]) == 0
assert run(["predict", "--help"]) == 0
print([name for name in ("openvino", "onnxruntime", "torch", "cv2") if name in sys.modules])
"""
    assert _run(code).strip().endswith("[]")
