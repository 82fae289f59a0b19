"""From drawn KiTS-like files through the command line: prepare, train, export, evaluate; and that it learns them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from segship.cli import run
from segship.training.mlperf_options import CHECKPOINT_VARIABLE, DATA_VARIABLE

ROOT = Path(__file__).parents[2]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of one command."""
    capsys.readouterr()
    code = run([*words, "--json", "-q"])
    out = capsys.readouterr()
    assert code == 0, out.err
    found: dict[str, Any] = json.loads(out.out)
    return found


@pytest.mark.slow
def test_a_package_of_a_run_scores_what_the_run_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data" / "kits19"
    said(capsys, *f"prepare kits19 {raw} {data} --synthetic 5 --size 64 --pad-to 64 --workers 1".split())
    monkeypatch.setenv(DATA_VARIABLE, str(data.parent))
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "ckpt"))
    train = [
        "train",
        "unet3d_mlperf",
        "--epochs",
        "2",
        "--filters",
        "8",
        "8",
        "8",
        "8",
        "8",
        "--input_shape",
        "64",
        "64",
        "64",
        "--val-input-shape",
        "64",
        "64",
        "64",
        "--seed",
        "3",
        "--lr_warmup_epochs",
        "0",
        "--learning_rate",
        "0.1",
        "--activation",
        "leaky_relu",
        "--diverged_below",
        "0",
        "--num_workers",
        "0",
        "--device",
        "cpu",
    ]
    result = said(capsys, *train)
    assert result["checkpoint"] == str(tmp_path / "ckpt/unet3d_2.pth")
    assert result["folder"] == str(tmp_path / "ckpt/unet3d_2")
    assert result["cases"] == 2  # 0 and 3 are evaluation cases; 1, 2 and 4 were trained on
    again = said(capsys, *train[:2], *train[4:], "--load_ckpt_path", result["checkpoint"])
    assert again["value"] == pytest.approx(result["value"], abs=1e-7)

    package = str(tmp_path / "net.segship")
    said(
        capsys,
        "export",
        result["checkpoint"],
        "-o",
        package,
        *["--activation", "leaky_relu", "--window", "64", "--pad-to", "64"],
    )
    scored = said(capsys, "evaluate", package, str(raw), "--score", "mlperf")
    metrics = scored["metrics"]
    assert metrics["mean Dice"] == pytest.approx(result["value"], abs=2e-3)
    assert metrics["L1 Dice"] == pytest.approx(result["l1"], abs=2e-3)


def test_a_users_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "unet3d_mlperf", "--data_dir", str(tmp_path), "--optimizer", "lamb"]) == 2
    error = capsys.readouterr().err
    assert "apex" in error
    assert "Traceback" not in error
    assert run(["train", "unet3d_mlperf", "--data_dir", str(tmp_path)]) == 1
    assert "segship prepare kits19" in capsys.readouterr().err
    assert run(["train", "unet3d_mlperf", "--help"]) == 0
    assert "--lr_warmup_epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_it_learns_abdomens_that_it_never_sees(tmp_path: Path) -> None:
    """benchmarks/train_unet3d.py, its two-minute form: drawn cases, five levels, kidneys and tumours from scratch."""
    spec = importlib.util.spec_from_file_location("train_unet3d", ROOT / "benchmarks/train_unet3d.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    words = ["-o", str(tmp_path / "out"), "--quick"]
    assert benchmark.main(words) == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["before"] < 0.1
    assert result["best"] > 0.8
    assert min(result["kidney"], result["tumour"]) > 0.6  # neither carries the mean alone
    assert len(result["filters"]) == 5
    assert (result["training_cases"], result["held_out_cases"]) == (11, 5)
    assert (tmp_path / "out/curve.svg").read_text().startswith("<svg")
    assert benchmark.main(words) == 0  # the same command goes on where it stopped: at its end
