"""What checkpoints do not say: the options that the command line shows are those that the families read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segship import families
from segship.training import losses
from segship.training import options as training_options


@pytest.mark.parametrize("name", families.BUILT_IN)
def test_what_is_shown_is_what_the_family_reads(name: str) -> None:
    assert families.family_options()[name] == families.get_family(name).OPTIONS
    assert len({option.name for option in families.get_family(name).OPTIONS}) == len(families.family_options()[name])


def test_every_loss_that_is_shown_is_there() -> None:
    assert tuple(losses.LOSSES) == training_options.LOSSES


def test_help_and_unusable_arguments_need_no_torch() -> None:
    """A core install can show what export would take, and says what to install where it is really asked to convert."""
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # as where it is not installed
        "from segship.cli import run\n"
        "assert run(['export', '--help']) == 0\n"
        "assert run(['export', 'net.pth']) == 2\n"
        "sys.exit(run(['export', 'net.pth', '-o', 'net.segship']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "--upsample" in done.stdout
    assert "converting needs torch; type: pip install 'segship[convert]'" in done.stderr.splitlines()[-1]
