"""`segship run` from an nnU-Net folder and labelled cases to a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segship.workflow import RunOptions, run


@pytest.mark.slow
def test_a_trained_folder_and_cases_become_a_report(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    trained = shared / "reference" / "nnunet_v2_trained"
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for case in ("nuc_0bf4b144", "nuc_35ca5f14", "nuc_e5f8ad0f"):
            for path in (trained / folder).glob(f"{case}*"):
                shutil.copyfile(path, tmp_path / "data" / folder / path.name)
    options = RunOptions(
        data=tmp_path / "data", output=tmp_path / "run", precisions=("fp32", "fp16"), batches=(1, 4), repeat=1
    )
    said: list[str] = []
    result = run(next(trained.glob("nnUNet*")), options, say=said.append)
    assert {row["precision"] for row in result.summary["variants"]} == {"fp32", "fp16"}
    scored = result.summary["dataset"]["cases"]
    assert 0 < scored < 3, "some cases are kept for calibration"
    summary = json.loads((tmp_path / "run" / "predictions" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == scored
    assert len(list((tmp_path / "run" / "predictions").glob("*.png"))) == scored
    assert len(list((tmp_path / "run" / "calibration" / "labelsTr").iterdir())) == 3 - scored
    assert result.summary["unit"] == "window"
    for row in result.summary["variants"]:
        assert set(row["windows_per_second"]) == set(row["case_seconds"]) == {"1", "4"}
        assert set(row["metrics_by_batch"]) == {"1", "4"}
    assert "s for the package's golden sample, 3 x 96 x 112 voxels at batch 1" in result.lines()[0]
    page = result.report.read_text()
    start = page.index("Precision and batch")
    table = page[start : page.index("</section>", start)]
    assert table.count('<th scope="row">fp16</th>') == 2
    assert all(f">{name}<" in table for name in ("Accuracy", "Dice", "Precision", "Recall"))
    assert "Published for Task02_Heart" in table
    assert "windows/s" in page
    run(next(trained.glob("nnUNet*")), options, say=said.append)
    assert "evaluate: already there" in said
