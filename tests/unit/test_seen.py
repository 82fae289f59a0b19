"""Pictures that the network was trained on are told, as far as its run folder says which they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_package import cell_folder, tiny_package

from segship.datasets import Case, Dataset
from segship.datasets.dsb2018_splits import facts, split
from segship.measure.evaluate import evaluate
from segship.measure.seen import DSB2018, picture_note
from segship.package import update_package

VALIDATION = facts()["ascend"]["validation"]
OTHERS = [f"{n:064x}" for n in range(20)]


def dataset(ids: list[str], *, layout: str = "prepared", name: str = "mine", taken: str | None = None) -> Dataset:
    def nothing(*_: Any) -> Any:
        raise AssertionError("no picture is read for this")

    cases = tuple(Case(id=i, source=nothing, full_target=nothing, network_target=nothing) for i in ids)
    return Dataset(name=name, layout=layout, cases=cases, split=taken)


def trained(split_name: str | None = "ascend", name: str = "dsb2018_96", **more: Any) -> dict[str, Any]:
    training = {} if split_name is None else {"split": split_name, "exclude": [], "own_list": False, **more}
    return {"source": {"config": {"dataset": name}, "training": training}}


def test_training_images_of_a_published_split() -> None:
    data = dataset([*VALIDATION[:5], *OTHERS])
    note = picture_note(trained(), data, None)
    assert note is not None
    assert note.startswith("warning: 20 of 25 images were trained on (split ascend")
    assert "--split ascend" in note
    assert picture_note(trained(), dataset(VALIDATION[:5], taken="ascend"), None) is None
    fewer = picture_note(trained(exclude=OTHERS[:3]), data, None)
    assert fewer is not None
    assert "17 of 25 images" in fewer


def test_the_default_split_is_drawn_again() -> None:
    ids = [*VALIDATION[:30], *OTHERS]
    unseen = split(ids, "default").validation
    note = picture_note(trained("default"), dataset(ids, name=DSB2018), None)
    assert note is not None
    assert f"warning: {len(ids) - len(unseen)} of {len(ids)} images" in note


def test_what_is_not_known_is_said_to_be_so() -> None:
    data = dataset([*VALIDATION[:5], *OTHERS])
    for provenance, why in (
        (trained(None), "its run folder names no split"),
        (trained("mine.txt"), "split mine.txt"),
        (trained("ascend", own_list=True), "split ascend"),
    ):
        note = picture_note(provenance, data, None)
        assert note is not None
        assert f"is not known ({why})" in note


def test_other_images_raise_no_doubt(tmp_path: Path) -> None:
    assert picture_note(trained(), dataset(OTHERS), None) is None
    assert picture_note({}, dataset(VALIDATION[:3]), None) is None
    assert picture_note(trained(name="cells_96"), dataset(VALIDATION[:3]), tmp_path) is None
    assert picture_note(trained("default", "cells_96"), dataset(OTHERS, layout="folders"), tmp_path / "other") is None


def test_a_few_images_of_a_data_set_are_judged_by_all_of_it(tmp_path: Path) -> None:
    """The default split of five images is not that of two."""
    root = cell_folder(tmp_path / "cells", 5)
    ids = [f"cell{n:02}" for n in range(1, 6)]
    (unseen,) = split(ids, "default").validation
    few = dataset([unseen, next(i for i in ids if i != unseen)], layout="folders")
    note = picture_note(trained("default", "cells"), few, root)
    assert note is not None
    assert "warning: 1 of 2 images" in note
    assert picture_note(trained(), dataset(OTHERS[:1], name=DSB2018), None) is None, "no validation image is there"


def test_evaluate_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    data = cell_folder(tmp_path / "cells", 5)
    package = tiny_package(tmp_path / "net.segship")
    assert not any("trained on" in note for note in evaluate(package, data, record=False).notes)
    changed = update_package(package, provenance={**package.provenance(), **trained("default", "cells")})
    found = evaluate(changed, data, record=False)
    assert found.notes[0].startswith("warning: 4 of 5 images were trained on (split default")
    assert np.isfinite(found.variants[0].evaluation.value)
