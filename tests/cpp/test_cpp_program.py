"""The binary as a program: help, JSON, caches, threads, notes; and the example that the docs show."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpp_cases import picture_package, volume_package, write_pictures, write_volume
from cpp_compare import Runner, check_stages
from PIL import Image

from segship.inference.predictor import Predictor

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cpp.md"
EXAMPLE = ROOT / "cpp" / "examples" / "predict.cpp"


def test_help_and_version(run_cpp: Runner) -> None:
    from segship import __version__

    for flag in ("--help", "-h"):
        shown = run_cpp.words(flag)
        assert shown.code == 0
        assert not shown.err
        for name in ("-o", "--precision", "--threads", "--streams", "--save-probabilities", "--save-stages", "--json"):
            assert name in shown.out
    shown = run_cpp.words("--version")
    assert shown.code == 0
    assert __version__ in shown.out


def test_every_flag_of_the_page_is_the_programs(run_cpp: Runner) -> None:
    known = run_cpp.words("--help").out
    table = PAGE.read_text().partition("## Flags")[2].partition("\n## ")[0]
    flags = set(re.findall(r"`(--[a-z-]+)", table))
    assert len(flags) >= 10
    assert [flag for flag in flags if flag not in known] == []
    told = set(re.findall(r"--[a-z][a-z-]+", known)) - {"--help", "--version"}
    assert [flag for flag in told if flag not in table] == []


def test_the_pages_program_is_the_one_that_is_built() -> None:
    shown = PAGE.read_text().partition("```cpp\n")[2].partition("```")[0]
    assert shown == EXAMPLE.read_text()
    assert len(shown.splitlines()) <= 20


def test_the_example_runs(binary: Path, run_cpp: Runner, tmp_path: Path) -> None:
    program = binary.parent / "segship-example"
    if not program.is_file():
        pytest.skip(f"{program} is not built; `make cpp` builds it")
    package = picture_package(tmp_path / "net.segship").path
    path = write_pictures(tmp_path / "in", ((40, 50),))[0]
    done = subprocess.run([program, package, path, tmp_path / "mask.png"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = run_cpp(package, path).of(path.stem)["decoded"][0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")) > 0, wanted > 0)
    done = subprocess.run(
        [program, tmp_path / "none.segship", path, tmp_path / "x.png"], capture_output=True, check=False
    )
    assert done.returncode == 2


def test_json(run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship").path
    write_pictures(tmp_path / "in", ((40, 50), (20, 20)))
    (tmp_path / "in" / "bad.png").write_bytes(b"x")
    ran = run_cpp(package, tmp_path / "in", json=True)
    assert ran.code == 1
    told = json.loads(ran.out)
    assert told["done"] == 2
    assert len(told["failed"]) == 1
    assert "bad.png" in json.dumps(told["failed"][0])
    assert told["seconds"] > 0
    assert "failed:" in ran.err


def test_nothing_but_the_result_on_stdout(run_cpp: Runner, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship").path
    path = write_volume(tmp_path / "a_0000.nii.gz", (12, 14, 10))
    ran = run_cpp(package, path, json=True)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["done"] == 1


def test_a_cache_is_written_and_used_and_not_needed(run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship").path
    path = write_pictures(tmp_path / "in", ((40, 50),))[0]
    first = run_cpp(package, path, cache_dir=tmp_path / "cache").of(path.stem)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    second = run_cpp(package, path, cache_dir=tmp_path / "cache").of(path.stem)
    assert np.array_equal(first["network"], second["network"])
    (tmp_path / "blocked").write_text("a file where the cache folder should be")
    third = run_cpp(package, path, cache_dir=tmp_path / "blocked").of(path.stem)
    assert np.array_equal(first["network"], third["network"])


def test_a_damaged_cache_is_no_error(run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship").path
    path = write_pictures(tmp_path / "in", ((40, 50),))[0]
    first = run_cpp(package, path, cache_dir=tmp_path / "cache").of(path.stem)
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:50])
    again = run_cpp(package, path, cache_dir=tmp_path / "cache").of(path.stem)
    assert np.array_equal(first["network"], again["network"])


@pytest.mark.parametrize(("threads", "streams", "batch"), [(1, 1, 1), (2, 2, 4), (1, 3, 8)])
def test_threads_streams_and_batches_change_no_answer(
    threads: int, streams: int, batch: int, run_cpp: Runner, tmp_path: Path
) -> None:
    package = picture_package(tmp_path / "net.segship")
    sizes = ((40, 50), (33, 47), (40, 50), (64, 64), (21, 90), (40, 50), (33, 47), (64, 64), (12, 12))
    inputs = []
    for number, size in enumerate(sizes):
        made = write_pictures(tmp_path / f"{number}", (size,))[0]
        inputs.append(made.rename(made.with_name(f"p{number}.png")))
    found = run_cpp(package, *inputs, threads=threads, streams=streams, batch=batch)
    with Predictor.open(package) as predictor:
        for path in inputs:
            check_stages(found.of(path.stem), predictor.trace(path))


def test_what_a_user_should_know_is_said(run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", gain=0.0).path
    path = write_pictures(tmp_path / "in", ((40, 50),))[0]
    ran = run_cpp(package, path)
    assert ran.code == 0
    assert "note:" in ran.err
    assert "one constant" in ran.err


def test_precision_auto_says_what_it_took(run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship").path
    path = write_pictures(tmp_path / "in", ((40, 50),))[0]
    ran = run_cpp(package, path, precision="auto")
    assert ran.code == 0
    assert "fp32" in ran.err


def test_it_needs_no_environment(binary: Path, tmp_path: Path) -> None:
    """No LD_LIBRARY_PATH, no HOME: libraries are found where they were built, the cache elsewhere or not at all."""
    package = picture_package(tmp_path / "net.segship").path
    path = write_pictures(tmp_path / "in", ((40, 50),))[0]
    kept = {name: os.environ[name] for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS") if name in os.environ}
    done = subprocess.run(
        [binary, package, path, "-o", tmp_path / "out"], env=kept, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / path.name).is_file()
