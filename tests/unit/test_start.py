"""What a cold start does not do."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from segship import cli


def test_a_built_in_engine_is_found_without_asking_what_is_installed():
    code = (
        "import importlib.metadata as metadata\n"
        "from segship.engines import engine_names, get_engine\n"
        "asked = []\n"
        "everything = metadata.entry_points\n"
        "metadata.entry_points = lambda **which: asked.append(which) or everything(**which)\n"
        "get_engine('openvino'); print(asked)\n"
        "engine_names(); print(asked)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[{'group': 'segship.engines'}]"]


def test_only_the_command_line_s_own_process_collects_garbage_otherwise(monkeypatch: pytest.MonkeyPatch):
    before = gc.get_threshold()
    assert cli.run(["--version"]) == 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    seen = []
    monkeypatch.setattr(cli, "run", lambda arguments: seen.append(gc.get_threshold()) or 7)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(["anything"])
        frozen = gc.get_freeze_count()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
    assert ended.value.code == 7
    assert seen[0][0] > before[0]
    assert frozen > 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["predict"], 2), (["inspect", "/no/such"], 2), (["inspect", __file__], 1)],
)
def test_exit_codes_of_the_process(arguments: list[str], code: int):
    assert subprocess.run([sys.executable, "-m", "segship", *arguments], capture_output=True).returncode == code
