"""MLPerf's log: its keys and their order, and what MLPerf's own compliance checker says of real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlperf_cases import write_cases

from segship.datasets.kits19 import facts
from segship.training.mlperf_log import MlperfLog, drawn_layers, drop_cached, speed
from segship.training.mlperf_options import Unet3dOptions
from segship.training.unet3d_mlperf import train_unet3d

RULESETS = ("2.0.0", "2.1.0", "3.0.0", "3.1.0", "4.0.0")
BEFORE_THE_RUN = [
    "cache_clear", "init_start", "seed", "submission_benchmark", "submission_org", "submission_division",
    "submission_status", "submission_platform", "opt_name", "opt_base_learning_rate",
    "opt_learning_rate_warmup_epochs", "opt_learning_rate_decay_boundary_epochs", "opt_learning_rate_decay_factor",
    "opt_weight_decay", "opt_momentum", "oversampling", "training_input_shape", "validation_input_shape",
    "validation_overlap", *["weights_initialization"] * 50, "init_stop", "run_start", "train_samples", "eval_samples",
    "samples_per_epoch", "global_batch_size", "gradient_accumulation_steps",
]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in path.read_text().splitlines()]


def checked(path: Path, ruleset: str) -> subprocess.CompletedProcess[str]:
    """MLPerf's own verdict on a log."""
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", ruleset]
    log = path.parent / "checker.log"
    return subprocess.run(
        [*command, "--log_output", str(log), str(path)], capture_output=True, text=True, check=False, cwd=path.parent
    )


def make_options(data: Path, output: Path, **changes: Any) -> Unet3dOptions:
    values: dict[str, Any] = {
        "data_dir": data, "output": output, "epochs": 2, "filters": (4, 4, 4, 4, 4), "input_shape": (32, 32, 64),
        "val_input_shape": (32, 32, 64), "lr_warmup_epochs": 1, "learning_rate": 0.3, "start_eval_at": 1,
        "evaluate_every": 1, "num_workers": 1, "diverged_below": 0.0, "device": "cpu", "mllog": output / "mllog.txt",
    }  # fmt: skip
    return Unet3dOptions(**values | changes)


def test_an_unfinished_run_says_aborted_and_is_refused_by_the_checker(tmp_path: Path) -> None:
    data = write_cases(tmp_path / "data", (0, 1, 2))
    options = make_options(data, tmp_path / "run", seed=7, submission_org="a hospital")
    result = train_unet3d(options, progress=False)
    assert options.mllog is not None
    said = lines(options.mllog)
    assert list(said[0]) == ["namespace", "time_ms", "event_type", "key", "value", "metadata"]
    keys = [line["key"] for line in said]
    epoch = ["block_start", "epoch_start", "epoch_stop", "eval_start", "eval_accuracy", "eval_stop", "block_stop"]
    assert keys == [*BEFORE_THE_RUN, *epoch, *epoch, "run_stop"]
    value = {line["key"]: line["value"] for line in said}
    assert (value["seed"], value["submission_org"], value["submission_benchmark"]) == (7, "a hospital", "unet3d")
    assert (value["train_samples"], value["eval_samples"], value["samples_per_epoch"]) == (2, 1, 2)
    assert (value["global_batch_size"], value["gradient_accumulation_steps"]) == (2, 1)
    assert value["eval_start"] == 2
    assert value["opt_learning_rate_decay_boundary_epochs"] == []
    assert value["eval_accuracy"] == pytest.approx(
        float((tmp_path / "run/log.csv").read_text().splitlines()[-1].split(",")[5])
    )
    assert said[-1]["metadata"]["status"] == "aborted"
    assert not result.success
    stop = next(line for line in said if line["key"] == "epoch_stop")
    assert (stop["event_type"], stop["metadata"]["epoch_num"]) == ("INTERVAL_END", 1)
    assert stop["metadata"]["current_lr"] == pytest.approx(0.3)
    assert all(line["metadata"]["file"] == "segship/training/" + Path(line["metadata"]["file"]).name for line in said)
    assert checked(options.mllog, "4.0.0").returncode != 0
    # a longer run goes on where the last finished epoch's lines end
    train_unet3d(make_options(data, tmp_path / "run", seed=7, epochs=3, resume=True), progress=False)
    assert [line["key"] for line in lines(options.mllog)] == [*BEFORE_THE_RUN, *epoch * 3, "run_stop"]


def test_the_fifty_layers() -> None:
    names = drawn_layers()
    assert len(names) == len(set(names)) == 50
    assert names[:4] == [
        "input_block_0_conv", "input_block_0_instancenorm", "input_block_1_conv", "input_block_1_instancenorm",
    ]  # fmt: skip
    assert {"down4_block_1_instancenorm", "up0_deconv", "up4_block_1_conv", "output_conv"} <= set(names)


def test_without_a_file_nothing_is_written_and_stdout_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MlperfLog(None).event("seed", 1)
    assert capsys.readouterr().out == ""
    both = MlperfLog(tmp_path / "a" / "m.log", stdout=True)
    both.event("seed", 1)
    both.close()
    assert capsys.readouterr().out == (tmp_path / "a/m.log").read_text()
    assert '"key": "seed"' in (tmp_path / "a/m.log").read_text()


def test_figures_of_speed_and_forgetting_cached_pages(tmp_path: Path) -> None:
    found = speed([0.1 * k for k in range(1, 101)], 4)
    assert found["latency_train_mean"] == pytest.approx(5050)
    assert found["throughput_train"] == pytest.approx(4 / 5.05)
    assert (found["latency_train_90"], found["latency_train_99"]) == pytest.approx((9100, 10000))
    assert speed([], 4) == {}
    (tmp_path / "x").write_bytes(b"x" * 5000)
    assert drop_cached([tmp_path / "x", tmp_path / "absent"]) == (sys.platform == "linux")


@pytest.mark.slow
def test_a_run_that_reached_the_target_passes_mlperfs_checker(tmp_path: Path) -> None:
    """All 168 + 42 case ids with small, easy bodies, and a run that truly gets to a mean Dice of 0.908."""
    data = write_cases(tmp_path / "data", range(int(facts()["cases"])), (32, 32, 64), noise=0.05)
    options = make_options(
        data,
        tmp_path / "run",
        epochs=6,
        filters=(8, 8, 8, 8, 8),
        learning_rate=0.3,
        batch_size=4,
        num_workers=2,
        amp=True,
    )
    result = train_unet3d(options, progress=False)
    assert result.success
    assert result.value is not None
    assert result.value >= 0.908
    assert options.mllog is not None
    said = lines(options.mllog)
    assert [line["value"] for line in said if line["key"] in ("train_samples", "eval_samples")] == [168, 42]
    assert said[-1]["metadata"]["status"] == "success"
    for ruleset in RULESETS:
        verdict = checked(options.mllog, ruleset)
        assert verdict.returncode == 0, (ruleset, verdict.stdout, verdict.stderr)
        assert "SUCCESS" in verdict.stdout + verdict.stderr
