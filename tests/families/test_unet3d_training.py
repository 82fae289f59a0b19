"""Runs of the MLPerf 3D U-Net's training: what they leave, resuming, processes, scores, refusals."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlperf_cases import body, write_case, write_cases

from segship.errors import DatasetError, SegshipError, SourceError, UsageError
from segship.networks.unet3d_mlperf import Unet3D
from segship.networks.unet3d_mlperf_choices import FILTERS
from segship.networks.unetplusplus import UNet
from segship.training import distributed, mlperf_checkpoint, mlperf_loop, unet3d_mlperf
from segship.training.distributed import pick_device
from segship.training.mlperf_data import find_cases, split_cases
from segship.training.mlperf_evaluation import evaluate, sliding_window
from segship.training.mlperf_options import CHECKPOINT_VARIABLE, DATA_VARIABLE, Unet3dOptions
from segship.training.unet3d_mlperf import build_network, score_network, train_unet3d

SMALL = (4, 4, 4, 4, 4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DATA_VARIABLE, CHECKPOINT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training cases (1, 2, 4, 7) and three evaluation cases (0, 3, 5), 34×32×70 voxels."""
    return write_cases(tmp_path_factory.mktemp("cases"), (0, 1, 2, 3, 4, 5, 7), (34, 32, 70))


def make_options(cases: Path, output: Path, **changes: Any) -> Unet3dOptions:
    values: dict[str, Any] = {
        "data_dir": cases, "output": output, "epochs": 3, "filters": SMALL, "input_shape": (32, 32, 64),
        "val_input_shape": (32, 32, 64), "lr_warmup_epochs": 2, "learning_rate": 0.3, "start_eval_at": 1,
        "evaluate_every": 1, "num_workers": 1, "diverged_below": 0.0, "device": "cpu",
    }  # fmt: skip
    return Unet3dOptions(**values | changes)


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


# --- one process ------------------------------------------------------------------------------------------


def test_a_run_leaves_the_references_checkpoint_logs_and_a_result(cases: Path, tmp_path: Path) -> None:
    result = train_unet3d(make_options(cases, tmp_path / "run", start_eval_at=2, oversampling=1.0), progress=False)
    rows = read_log(result.folder)
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "L1 dice", "L2 dice", "mean_dice", "eval_loss"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["mean_dice"]) for row in rows] == [False, True, True]
    assert float(rows[0]["lr"]) == pytest.approx(1e-4 + (0.3 - 1e-4) / 2)
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    assert json.loads((result.folder / "result.json").read_text()) == result.as_dict()
    assert result.checkpoint == result.folder / "checkpoint.pth"

    stored = torch.load(result.checkpoint, weights_only=True)
    assert set(stored) == {
        "best_model_state_dict", "best_optimizer_state_dict", "last_model_state_dict", "last_optimizer_state_dict",
        "epoch", "L1 dice", "L2 dice", "mean_dice", "eval_loss", "train_loss", "seed",
    }  # fmt: skip
    assert isinstance(stored["epoch"], float)
    assert stored["mean_dice"] == result.value
    assert stored["seed"] == 3280387012
    network = Unet3D(filters=SMALL)
    network.load_state_dict(stored["best_model_state_dict"])
    again = score_network(make_options(cases, tmp_path), network, split_cases(find_cases(cases))[1], CPU)
    assert again.mean_dice == pytest.approx(result.value, abs=1e-7)

    lines = (result.folder / "log.json").read_text().splitlines()
    said = [json.loads(line.removeprefix("DLLL ")) for line in lines]
    assert [line["step"] for line in said] == [2.0, 3.0, []]
    assert {"L1 dice", "TOP_mean_dice", "train_loss"} <= set(said[0]["data"])
    assert said[-1]["data"]["last_epoch"] == 3
    assert all(isinstance(said[0][key], str) for key in ("timestamp", "datetime", "elapsedtime"))


class Killed(Exception):
    """Stands for the process's end."""


def kill(monkeypatch: pytest.MonkeyPatch, place: str, epoch: int) -> None:
    """End the run in ``epoch`` after its steps, or between its checkpoint and its state."""
    where, name = {"steps": (mlperf_loop, "_one_epoch"), "files": (mlperf_loop, "_note")}[place]
    inner = getattr(where, name)

    def ended(setting: Any, moving: Any, *rest: Any) -> Any:
        found = inner(setting, moving, *rest)
        if moving.state.epoch == (epoch - 1 if place == "steps" else epoch):
            raise Killed
        return found

    monkeypatch.setattr(where, name, ended)


@pytest.mark.parametrize(
    ("place", "recipe"),
    [
        ("steps", {}),
        (
            "files",
            {
                "optimizer": "adam",
                "learning_rate": 1e-2,
                "lr_warmup_epochs": 0,
                "lr_decay_epochs": (1, 2),
                "lr_decay_factor": 0.5,
            },
        ),
        ("steps", {"amp": True, "ga_steps": 2, "batch_size": 1, "seed": -1, "activation": "leaky_relu"}),
        ("files", {"normalization": "batchnorm", "include_background": True, "amp": True}),
    ],
    ids=["sgd", "adam-decay", "bf16-accumulated", "batchnorm"],
)
def test_a_killed_and_resumed_run_gives_the_same_numbers(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, recipe: dict[str, Any]
) -> None:
    with monkeypatch.context() as patch:
        kill(patch, place, 2)
        with pytest.raises(Killed):
            train_unet3d(make_options(cases, tmp_path / "cut", **recipe), progress=False)
    assert len(read_log(tmp_path / "cut")) == 1
    if recipe.get("seed") == -1:  # the same seed as was drawn
        state = torch.load(tmp_path / "cut/state.pt", weights_only=True)
        monkeypatch.setattr(unet3d_mlperf, "make_seeds", lambda *_: _seeds_of(state))
    (tmp_path / "cut/.state.pt.123.tmp").write_bytes(b"half a state")
    torch.manual_seed(999)  # whatever happened in between
    cut = train_unet3d(make_options(cases, tmp_path / "cut", resume=True, **recipe), progress=False)
    whole = train_unet3d(make_options(cases, tmp_path / "whole", **recipe), progress=False)
    assert (cut.value, cut.epoch, cut.seed) == (whole.value, whole.epoch, whole.seed)
    assert (whole.folder / "log.csv").read_text() == (cut.folder / "log.csv").read_text()
    assert (whole.folder / "cases.csv").read_text() == (cut.folder / "cases.csv").read_text()
    for name in ("checkpoint.pth", "state.pt"):
        files = [torch.load(folder / name, weights_only=True) for folder in (whole.folder, cut.folder)]
        assert_same(files[0], files[1], name)
    steps = [[json.loads(line[5:])["step"] for line in (r.folder / "log.json").open()] for r in (whole, cut)]
    assert steps[0] == steps[1]
    assert sorted(p.name for p in cut.folder.iterdir()) == sorted(p.name for p in whole.folder.iterdir())


def _seeds_of(state: dict[str, Any]) -> Any:
    from segship.training.mlperf_recipe import Seeds

    return Seeds(master=state["master_seed"], workers=(state["worker_seed"],), order=state["order_seed"])


def assert_same(one: Any, other: Any, name: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    elif isinstance(one, dict):
        assert set(one) == set(other), name
        for key in set(one) - {"seconds", "log_bytes", "random"}:
            assert_same(one[key], other[key], f"{name}/{key}")
    else:
        assert one == other, name


def test_a_run_stops_at_its_threshold_and_goes_on_when_that_is_raised(cases: Path, tmp_path: Path) -> None:
    first = train_unet3d(make_options(cases, tmp_path / "run", quality_threshold=1e-12, epochs=5), progress=False)
    assert first.success
    assert first.epochs == first.first_success < 5
    more = make_options(cases, tmp_path / "run", quality_threshold=0.999, epochs=first.epochs + 1, resume=True)
    second = train_unet3d(more, progress=False)
    assert not second.success
    assert second.epochs == first.epochs + 1


def test_a_diverged_run_says_so(cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = train_unet3d(make_options(cases, tmp_path / "run", diverged_below=0.999), progress=False)
    assert (result.diverged, result.epochs) == (True, 1)
    assert "stopped: the mean Dice is below" in caplog.text
    with pytest.raises(SegshipError, match=r"loss became .* lower --learning_rate"):
        train_unet3d(make_options(cases, tmp_path / "b", learning_rate=1e30, lr_warmup_epochs=0), progress=False)


def test_a_checkpoint_is_scored_and_nothing_is_trained(cases: Path, tmp_path: Path) -> None:
    run = train_unet3d(make_options(cases, tmp_path / "run", epochs=2), progress=False)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    options = make_options(cases, tmp_path / "no", load_ckpt_path=run.checkpoint, exec_mode="evaluate", filters=FILTERS)
    found = train_unet3d(options, progress=False)
    assert found.value == pytest.approx(run.value, abs=1e-7)
    assert (found.cases, found.epochs) == (3, 0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    # the output layer's first name, as a bare state dict of DataParallel
    stored = torch.load(str(run.checkpoint), weights_only=True)["best_model_state_dict"]
    renamed = {"module." + k.replace("output.conv.", "output.conv.0."): v for k, v in stored.items()}
    torch.save(renamed, tmp_path / "old.pth")
    old = train_unet3d(make_options(cases, tmp_path, load_ckpt_path=tmp_path / "old.pth"), progress=False)
    assert old.value == found.value
    # another world's network, and one with another number of classes
    torch.save(UNet(1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(SourceError, match="unetplusplus network, not the 3D U-Net"):
        train_unet3d(make_options(cases, tmp_path, load_ckpt_path=tmp_path / "other.pth"))
    torch.save(Unet3D(classes=5, filters=SMALL).state_dict(), tmp_path / "five.pth")
    with pytest.raises(SourceError, match="has 5 classes"):
        train_unet3d(make_options(cases, tmp_path, load_ckpt_path=tmp_path / "five.pth"))
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "nobody.pth")
    with pytest.raises(SourceError, match="nobody"):
        train_unet3d(make_options(cases, tmp_path, load_ckpt_path=tmp_path / "nobody.pth"))


def test_speed_is_measured_without_data_and_without_scores(tmp_path: Path) -> None:
    options = make_options(tmp_path, tmp_path / "run", loader="synthetic", benchmark=True, epochs=1, amp=True)
    result = train_unet3d(options, progress=False)
    assert set(result.speed) == {
        "throughput_train", "latency_train_mean", "latency_train_90", "latency_train_95", "latency_train_99",
    }  # fmt: skip
    assert result.speed["throughput_train"] == pytest.approx(2000 / result.speed["latency_train_mean"])
    assert result.value is None
    assert result.checkpoint is None


def test_an_overfitted_network_reaches_a_dice_of_095(tmp_path: Path) -> None:
    """Two cases, both trained on and scored: the loss, the steps and the score belong together."""
    data = tmp_path / "data"
    for number, seed in ((1, 1), (2, 2), (3, 1), (5, 2)):  # 3 and 5 are evaluation cases, equal to the trained ones
        write_case(data, number, *body((32, 32, 64), seed))
    options = make_options(
        data, tmp_path / "run", filters=(8, 8, 8, 8, 8), epochs=60, lr_warmup_epochs=5, start_eval_at=10,
        evaluate_every=5, quality_threshold=0.95, amp=True,
    )  # fmt: skip
    result = train_unet3d(options, progress=False)
    assert result.success
    assert result.value is not None
    assert result.value >= 0.95


# --- scores -----------------------------------------------------------------------------------------------


def naive_window(network: torch.nn.Module, image: np.ndarray, window: tuple[int, int, int]) -> np.ndarray:
    """The reference's sliding window as one would write it down: pad, every window in turn, weights, cut."""
    steps = [side // 2 for side in window]
    pads = [(s - n % s) % s for n, s in zip(image.shape, steps, strict=True)]
    pads = [p + (s if n + p < w else 0) for n, p, s, w in zip(image.shape, pads, steps, window, strict=True)]
    padded = np.pad(image, [(p // 2, p - p // 2) for p in pads], constant_values=-2.2)
    lines = [np.exp(-((np.arange(w) - (w - 1) / 2) ** 2) / (2 * (0.125 * w) ** 2)) for w in window]
    weight = np.cbrt(lines[0][:, None, None] * lines[1][:, None] * lines[2])
    weight = (weight / weight.max()).astype(np.float32)
    total, seen = np.zeros((3, *padded.shape), np.float32), np.zeros(padded.shape, np.float32)
    for z in range(0, padded.shape[0] - window[0] + 1, steps[0]):
        for y in range(0, padded.shape[1] - window[1] + 1, steps[1]):
            for x in range(0, padded.shape[2] - window[2] + 1, steps[2]):
                box = (slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
                with torch.no_grad():
                    logits = network(torch.from_numpy(padded[box])[None, None])[0].numpy()
                total[(slice(None), *box)] += logits * weight
                seen[box] += weight
    inner = tuple(slice(p // 2, p // 2 + n) for p, n in zip(pads, image.shape, strict=True))
    return (total / seen)[(slice(None), *inner)]


@pytest.mark.parametrize("shape", [(40, 33, 70), (32, 32, 64), (48, 57, 100), (20, 32, 64)])
def test_the_sliding_window_is_the_plain_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = Unet3D(filters=SMALL).eval()
    image = body(shape, 3)[0]
    tiling = make_options(Path(), Path()).tiling
    with torch.inference_mode():
        found = sliding_window(network, torch.from_numpy(image)[None], tiling).numpy()
    assert found.shape == (3, *shape)
    assert np.abs(found - naive_window(network, image, (32, 32, 64))).max() < 1e-5


@pytest.mark.slow
def test_the_evaluation_gives_the_references_scores(shared: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("seeded_weights", shared / "reference/seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    about = json.loads((shared / "reference/mlperf_unet3d_sliding.json").read_text())
    network = Unet3D().eval()
    network.load_state_dict(seeded.fill(network.state_dict(), about["gain"]))
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in about["volume"]["shape"]), indexing="ij")
    wave = 0.9 * np.sin(0.11 * z + 0.3) + 0.8 * np.sin(0.07 * y - 0.5) * np.cos(0.05 * x)
    image = np.clip(wave + 0.6 * np.sin(0.023 * (z + 2 * y + 3 * x)) - 0.4, -2.340702, 2.639792).astype(np.float32)
    c0, c1, c2 = (n // 2 for n in about["volume"]["shape"])
    label = (4 * (z - c0) ** 2 + 9 * (y - c1) ** 2 + 4 * (x - c2) ** 2 < 20000).astype(np.uint8)
    label[(z - c0 - 10) ** 2 + (y - c1 - 8) ** 2 + (x - c2 + 12) ** 2 < 500] = 2
    write_case(tmp_path, 0, image, label)
    found = evaluate(network, find_cases(tmp_path), Unet3dOptions().tiling, CPU).metrics()
    assert found == pytest.approx(about["scores"], abs=about["tolerance"]["scores"])


# --- several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does(cases: Path, tmp_path: Path) -> None:
    """The same global batch of 4 and of 2 + 2: rounding apart, the same losses, weights and scores. With batch norm, whose
    statistics both processes share (float64 in test_unetplusplus_training.py); instance norm has none to share."""
    shared_values: dict[str, Any] = {"learning_rate": 0.05, "normalization": "batchnorm", "seed": 5}
    one = train_unet3d(make_options(cases, tmp_path / "one", batch_size=4, **shared_values), progress=False)
    two = train_unet3d(make_options(cases, tmp_path / "two", batch_size=2, devices=2, **shared_values), progress=False)
    for a, b in zip(read_log(one.folder), read_log(two.folder), strict=True):
        assert float(a["lr"]) == float(b["lr"])
        for name in ("train_loss", "eval_loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-5)
    states = [torch.load(r.folder / "state.pt", weights_only=True)["network"] for r in (one, two)]
    start = build_network(make_options(cases, tmp_path, **shared_values), 0).state_dict()
    for name, tensor in states[0].items():
        assert torch.allclose(tensor.float(), states[1][name].float(), atol=2e-5), name
    moved = max(float((states[0][n] - start[n]).abs().max()) for n in start if start[n].is_floating_point())
    assert moved > 1e-2  # it is no test of standing still
    # a run of two goes on as one of the same global batch
    options = make_options(cases, two.folder, batch_size=4, epochs=4, resume=True, **shared_values)
    assert train_unet3d(options, progress=False).epochs == 4
    with pytest.raises(UsageError, match="keep the product"):
        train_unet3d(make_options(cases, two.folder, epochs=5, resume=True, **shared_values), progress=False)


def _score_worker(rank: int, folder: str) -> None:
    """First one of three processes, then, if its rank allows, one of two."""
    torch.set_num_threads(1)
    network = Unet3D(filters=SMALL)
    network.load_state_dict(torch.load(f"{folder}/w.pth", weights_only=True))
    held_out = split_cases(find_cases(Path(folder)))[1]
    tiling = make_options(Path(folder), Path(folder)).tiling
    for world in (3, 2):
        if rank >= world:
            return
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world
        )
        found = evaluate(network, held_out, tiling, CPU)
        shards = evaluate(network, held_out, tiling, CPU, reference_sharding=True)
        Path(f"{folder}/found-{world}-{rank}.json").write_text(json.dumps([found.metrics(), shards.metrics()]))
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_processes(cases: Path, tmp_path: Path) -> None:
    held_out = split_cases(find_cases(cases))[1]
    torch.manual_seed(3)
    network = Unet3D(filters=SMALL)
    for path in cases.glob("*.npy"):
        (tmp_path / path.name).symlink_to(path)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    alone = evaluate(network, held_out, make_options(cases, tmp_path).tiling, CPU)
    assert 0 < alone.l1 < 1
    torch.multiprocessing.spawn(_score_worker, (str(tmp_path),), 3)
    for world in (3, 2):
        for rank in range(world):
            plain, shards = json.loads((tmp_path / f"found-{world}-{rank}.json").read_text())
            assert plain == pytest.approx(alone.metrics(), abs=1e-6)
    # shards of 2 and 1 cases
    l1 = [row.l1 for row in alone.cases]
    assert shards["L1 dice"] == pytest.approx(((l1[0] + l1[1]) / 2 + l1[2]) / 2, abs=1e-6)


def _kill_one_worker(folder: Path, rows: int, killed: list[int]) -> None:
    """Wait for ``rows`` finished epochs, then kill one of the processes that torchrun started."""
    for _ in range(1200):
        time.sleep(0.05)
        if (folder / "state.pt").exists() and len(read_log(folder)) >= rows:
            workers = [
                p for p in psutil.Process().children(recursive=True)
                if "segship.training.worker" in p.cmdline() and "segship.training.launcher" not in p.cmdline()
            ]  # fmt: skip
            if workers:
                killed.append(workers[-1].pid)
                os.kill(workers[-1].pid, signal.SIGKILL)
                return


@pytest.mark.slow
def test_a_process_that_dies_stops_all_and_the_run_goes_on_afterwards(cases: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"devices": 2, "batch_size": 1, "learning_rate": 0.05}
    killed: list[int] = []
    watcher = threading.Thread(target=_kill_one_worker, args=(tmp_path / "cut", 2, killed))
    watcher.start()
    with pytest.raises(SegshipError, match=r"process \d .*signal SIGKILL; all processes were stopped.*--resume"):
        train_unet3d(make_options(cases, tmp_path / "cut", epochs=400, **recipe), progress=False)
    watcher.join()
    assert killed
    assert not [p for p in psutil.Process().children(recursive=True) if "segship.training" in " ".join(p.cmdline())]
    done = len(read_log(tmp_path / "cut"))
    assert done >= 2
    again = train_unet3d(make_options(cases, tmp_path / "cut", epochs=done + 2, resume=True, **recipe), progress=False)
    assert again.epochs == done + 2
    # one process with the same global batch, never interrupted, has had the same losses
    recipe |= {"devices": 1, "batch_size": 2}
    whole = train_unet3d(make_options(cases, tmp_path / "whole", epochs=done + 2, **recipe), progress=False)
    for a, b in zip(read_log(whole.folder), read_log(again.folder), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=1e-4)


def test_what_processes_said_becomes_a_result_an_error_or_one_sentence() -> None:
    assert distributed._result([{"result": {"value": 1}}], 0) == {"value": 1}
    user = {"error": "DatasetError", "message": "case_00001 has no segmentation"}
    with pytest.raises(DatasetError, match="case_00001 has no segmentation"):
        distributed._result([{"ended": "process 0 stopped: connection closed"}, user, {"ended": "process 1"}], 1)
    with pytest.raises(SegshipError, match=r"^process 1 was ended.*; all processes were stopped.*--resume goes on$"):
        distributed._result([{"ended": "process 0 stopped"}, {"ended": "process 1 was ended by signal SIGKILL"}], 1)
    with pytest.raises(SegshipError, match="exit code 137"):
        distributed._result([], 137)


# --- refusals ---------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(cases: Path, tmp_path: Path) -> None:
    options = make_options(cases, tmp_path / "run", epochs=1)
    train_unet3d(options, progress=False)
    with pytest.raises(UsageError, match=r"already holds a run.*--resume"):
        train_unet3d(options, progress=False)
    with pytest.raises(UsageError, match=r"learning_rate was 0.3, is 0.2"):
        train_unet3d(make_options(cases, tmp_path / "run", learning_rate=0.2, resume=True), progress=False)
    with pytest.raises(UsageError, match="nothing to resume"):
        train_unet3d(make_options(cases, tmp_path / "new", resume=True), progress=False)
    other = write_cases(tmp_path / "other", (0, 1, 2))
    with pytest.raises(UsageError, match="training cases are not those"):
        train_unet3d(make_options(other, tmp_path / "run", resume=True), progress=False)
    (tmp_path / "run/checkpoint.pth").write_bytes(b"no checkpoint")
    with pytest.raises(SourceError, match="no checkpoint of the run"):
        train_unet3d(make_options(cases, tmp_path / "run", resume=True), progress=False)
    (tmp_path / "run" / mlperf_checkpoint.STATE).write_bytes(b"no state")
    with pytest.raises(SourceError, match="no state of a run"):
        train_unet3d(make_options(cases, tmp_path / "run", resume=True), progress=False)


def test_unusable_data_is_said_case_by_case(tmp_path: Path) -> None:
    def fails(kind: type[SegshipError], message: str, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            train_unet3d(make_options(tmp_path / "data", tmp_path / "run", **changes), progress=False)

    fails(UsageError, "there is no folder .*data; .*segship prepare kits19")
    (tmp_path / "data").mkdir()
    fails(DatasetError, "no prepared cases.*segship prepare kits19")
    write_cases(tmp_path / "data", (1, 2))
    fails(UsageError, "none of MLPerf's 42 evaluation cases")
    write_cases(tmp_path / "data", (0,))
    fails(UsageError, "less than --input_shape 64 64 64", input_shape=(64, 64, 64))
    fails(UsageError, "do not fill one step of 3", batch_size=3)
    fails(UsageError, "--ga_steps 2, but an epoch has 1", ga_steps=2)
    image, label = body((32, 32, 64), 1)
    image[3, 4, 5] = np.nan
    write_case(tmp_path / "data", 1, image, label)
    fails(DatasetError, "case_00001_x.npy holds NaN")
    write_case(tmp_path / "data", 1, image, label[:-1])
    fails(DatasetError, r"case_00001: image .*segmentation .*same")
    (tmp_path / "data/case_00001_y.npy").unlink()
    fails(DatasetError, "case_00001 has no segmentation")
    (tmp_path / "data/case_00001_y.npy").write_bytes(b"x")
    fails(DatasetError, "case_00001_y.npy cannot be read")
    assert not (tmp_path / "run/state.pt").exists()


def test_too_little_memory_is_said(cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(mlperf_loop, "_one_step", full)
    with pytest.raises(SegshipError, match=r"lower --batch_size .*--amp"):
        train_unet3d(make_options(cases, tmp_path), progress=False)


def test_a_device_that_is_not_there_is_said(cases: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
        return
    with pytest.raises(SegshipError, match="--device cuda"):
        train_unet3d(make_options(cases, tmp_path, device="cuda"), progress=False)
