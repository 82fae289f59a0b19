"""What `--help` shows of the families' options."""

from __future__ import annotations

import pytest

from segship.cli import run


def test_a_family_s_options_stand_under_its_name(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch")
    assert run(["export", "--help"]) == 0
    sections: dict[str, str] = {}
    title = ""
    for line in capsys.readouterr().out.splitlines():
        if line and not line.startswith(" "):
            title = line
        sections[title] = sections.get(title, "") + line + "\n"
    assert "--output" in sections["Options:"]
    assert "--recipe" not in sections["Options:"]
    assert "--recipe" in sections["For u2net:"]
    assert "--folds" in sections["For nnunet:"]
    assert "--mean" in sections["For unetplusplus and u2net:"]
