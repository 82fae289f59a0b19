"""Options of the MLPerf 3D U-Net's training: the reference script's values, its flags, what is refused, the environment."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from segship.cli.training_options import TrainingCommand, options_from
from segship.errors import UsageError
from segship.training.mlperf_options import CHECKPOINT_VARIABLE, DATA_VARIABLE, Unet3dOptions

REFERENCE_FLAGS = [
    "data_dir",
    "log_dir",
    "save_ckpt_path",
    "load_ckpt_path",
    "loader",
    "local_rank",
    "epochs",
    "quality_threshold",
    "ga_steps",
    "warmup_steps",
    "batch_size",
    "layout",
    "input_shape",
    "val_input_shape",
    "seed",
    "num_workers",
    "exec_mode",
    "benchmark",
    "amp",
    "optimizer",
    "learning_rate",
    "init_learning_rate",
    "lr_warmup_epochs",
    "lr_decay_epochs",
    "lr_decay_factor",
    "lamb_betas",
    "momentum",
    "weight_decay",
    "evaluate_every",
    "eval_every",
    "start_eval_at",
    "verbose",
    "normalization",
    "activation",
    "oversampling",
    "overlap",
    "include_background",
    "cudnn_benchmark",
    "cudnn_deterministic",
]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DATA_VARIABLE, CHECKPOINT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def parsed(*words: str) -> Unet3dOptions:
    """The options that a command line gives."""
    found: list[Unet3dOptions] = []
    command = TrainingCommand(
        "unet3d_mlperf",
        params=list(options_from(Unet3dOptions)),
        callback=lambda **values: found.append(Unet3dOptions(**values)),
    )
    command.main(list(words), standalone_mode=False)
    return found[0]


def test_defaults_are_those_of_the_references_script() -> None:
    options = parsed()
    assert options == Unet3dOptions()
    expected = {
        "epochs": 4000, "batch_size": 2, "learning_rate": 0.8, "lr_warmup_epochs": 200, "init_learning_rate": 1e-4,
        "start_eval_at": 1000, "evaluate_every": 20, "quality_threshold": 0.908, "seed": 1, "ga_steps": 1,
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "oversampling": 0.4, "overlap": 0.5,
        "input_shape": (128, 128, 128), "val_input_shape": (128, 128, 128), "filters": (32, 64, 128, 256, 320),
        "normalization": "instancenorm", "activation": "relu", "amp": False, "num_workers": 8,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in expected} == expected


def test_every_flag_of_the_reference_is_known() -> None:
    from segship.cli.data import train

    command = train.get_command(click.Context(train), "unet3d_mlperf")
    assert command is not None
    known = {flag for p in command.params for flag in p.opts}
    assert [name for name in REFERENCE_FLAGS if f"--{name}" not in known] == []
    assert all(f"--{name.replace('_', '-')}" in known for name in REFERENCE_FLAGS)


def test_the_vendors_four_card_script_is_understood() -> None:
    options = parsed(
        *[
            "--data_dir",
            "d",
            "--epochs",
            "4000",
            "--evaluate_every",
            "20",
            "--start_eval_at",
            "1000",
            "--quality_threshold",
            "0.908",
            "--batch_size",
            "2",
            "--optimizer",
            "sgd",
            "--ga_steps",
            "1",
            "--learning_rate",
            "3.2",
            "--seed",
            "0",
            "--lr_warmup_epochs",
            "200",
            "--save_ckpt_path",
            "c/u.pth",
        ]
    )
    assert (options.learning_rate, options.seed, options.checkpoint) == (3.2, 0, Path("c/u.pth"))


def test_several_numbers_follow_as_words_or_with_commas() -> None:
    options = parsed(
        *[
            "--input_shape",
            "64",
            "64",
            "96",
            "--val-input-shape",
            "64,64,64",
            "--lr_decay_epochs",
            "100",
            "200",
            "--amp",
            "--filters",
            "8",
            "16",
            "32",
            "64",
            "80",
            "--lr_decay_factor",
            "0.5",
            "--lamb_betas",
            "0.9",
            "0.99",
            "--cudnn_benchmark",
        ]
    )
    assert options.input_shape == (64, 64, 96)
    assert options.val_input_shape == (64, 64, 64)
    assert options.lr_decay_epochs == (100, 200)
    assert options.filters == (8, 16, 32, 64, 80)
    assert options.lamb_betas == (0.9, 0.99)
    assert options.amp
    assert options.cudnn_benchmark
    assert parsed("--lr_decay_epochs", "--amp").lr_decay_epochs == ()
    with pytest.raises(click.BadParameter, match="not numbers"):
        parsed("--filters", "8,x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lamb"}, "apex"),
        ({"momentum": 0.0}, "Nesterov"),
        ({"input_shape": (100, 128, 128)}, "multiples of 32"),
        ({"input_shape": (32, 32, 32)}, "one voxel"),
        ({"val_input_shape": (64, 64)}, "three multiples"),
        ({"filters": (8, 16, 32)}, "5 widths"),
        ({"overlap": 1.0}, "below 1"),
        ({"oversampling": 1.5}, "chance"),
        ({"epochs": 0}, "at least 1"),
        ({"seed": -2}, "at least -1"),
        ({"learning_rate": 0.0}, "positive"),
        ({"lr_decay_epochs": (0,)}, "from 1"),
        ({"exec_mode": "evaluate"}, "--load_ckpt_path"),
        ({"resume": True, "load_ckpt_path": Path("x")}, "give one"),
        ({"layout": "NDHWC"}, "NCDHW"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
    ],
)
def test_unusable_options_name_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Unet3dOptions(**changes)


def test_every_option_has_help() -> None:
    assert all(entry.metadata["help"] for entry in fields(Unet3dOptions))


def test_the_environment_gives_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=f"--data_dir.*{DATA_VARIABLE}"):
        _ = Unet3dOptions().data_path
    (tmp_path / "kits19").mkdir()
    (tmp_path / "kits19" / "case_00000_x.npy").touch()
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert Unet3dOptions().data_path == tmp_path / "kits19"
    assert Unet3dOptions(data_dir=Path("d")).data_path == Path("d")
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "c"))
    assert Unet3dOptions().checkpoint == tmp_path / "c/unet3d_4000.pth"
    assert Unet3dOptions().run_folder == tmp_path / "c/unet3d_4000"
    assert Unet3dOptions(output=Path("o")).checkpoint == Path("o/checkpoint.pth")
    assert Unet3dOptions(save_ckpt_path=Path("s.pth")).checkpoint == Path("s.pth")


def test_options_survive_json() -> None:
    import json

    from segship.training.distributed import _plain

    options = parsed(
        *["--data_dir", "d", "-o", "o", "--filters", "1", "2", "3", "4", "5", "--mllog", "m.log", "--devices", "2"]
    )
    values = {entry.name: _plain(getattr(options, entry.name)) for entry in fields(options)}
    assert Unet3dOptions.from_plain(json.loads(json.dumps(values))) == options
