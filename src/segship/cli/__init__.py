"""The command line: one command a verb, which parses, calls one function of the library and prints what it gives.

`VERBS` says in which module each stands; it is imported only when the verb is called, so `segship --help` is quick.
"""

from __future__ import annotations

import gc
import importlib
import io
import logging
import sys
from typing import Any

import click

from segship.errors import SegshipError

VERBS: dict[str, tuple[str, str]] = {
    "run": ("segship.cli.everything", "Everything in one go: export, precisions, scores, speed, report"),
    "export": ("segship.cli.convert", "Checkpoint or model folder -> verified package"),
    "compile": ("segship.cli.convert", "Add a precision (fp16, bf16, int8, int16) to a package"),
    "predict": ("segship.cli.predict", "Images or volumes -> masks; folders, resume, progress"),
    "serve": ("segship.cli.serve", "Answer over HTTP, with a page to try it"),
    "evaluate": ("segship.cli.measure", "Score a package on a data set, in its world's own metrics"),
    "score": ("segship.cli.measure", "Metrics from two folders of files, no package needed"),
    "ensemble": ("segship.cli.ensemble", "Average nnU-Net's probability files, then labels"),
    "benchmark": ("segship.cli.measure", "Latency and throughput, side by side"),
    "report": ("segship.cli.measure", "One self-contained HTML page of a run"),
    "inspect": ("segship.cli.inspect", "What is inside a package (no engine needed)"),
    "verify": ("segship.cli.inspect", "Check hashes and the package's golden sample on this machine"),
    "doctor": ("segship.cli.inspect", "Engines, devices and precisions of this machine"),
    "prepare": ("segship.cli.data", "Prepare a public data set"),
    "train": ("segship.cli.data", "Train one of the worlds that train here"),
    "mmseg-eval-config": ("segship.cli.integrations", "Have mmseg's own tools/test.py score a package"),
}
INTERRUPTED = 130
_SAME = "the same command goes on"
GOES_ON = {"predict": f"{_SAME} (--resume)", "run": _SAME, "prepare": _SAME, "train": "--resume goes on"}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, about) for name, (_, about) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"verbs: {', '.join(VERBS)}"
            raise click.UsageError(f"there is no verb '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="segship", message="%(prog)s %(version)s")
def cli() -> None:
    """Ship a trained segmentation network as one verified package: same answers, faster, no training framework.

    \b
    segship run net.pth --data images/ -o out      everything, ending in out/report.html
    segship export net.pth -o net.segship          a package, parity-checked
    segship predict net.segship photos/ -o masks   masks on each image's own grid
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one line on stderr and the exit code that `run` names."""
    # Imports make many objects and no garbage: looking for garbage less often, and not once more when the process
    # ends, is a sixth of a cold start.
    gc.set_threshold(50_000, 20, 20)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8: shown as in JSON, \udcXX
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run(arguments)
    gc.freeze()
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 unusable arguments, 3 a bar was missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = any(a in ("-v", "--verbose") for a in arguments)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        result = cli.main(args=arguments, prog_name="segship", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"interrupted; {_what_is_left(arguments)}", err=True)
        return INTERRUPTED
    except SegshipError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}; check the path, permissions and free room", 1)
    except MemoryError:
        return _fail("out of memory; use smaller batches (--batch) or fewer --streams", 1)
    except Exception as error:  # a fault of ours: still no traceback unless asked for
        if verbose:
            raise
        return _fail(
            f"internal error ({type(error).__name__}: {_one_line(error)}); please report it with -v's output", 1
        )


def _what_is_left(arguments: list[str]) -> str:
    """After Ctrl-C: what there is and how to go on; nothing is ever half-written."""
    verb = next((argument for argument in arguments if argument in VERBS), "")
    if verb in GOES_ON:
        return f"what was finished is kept, {GOES_ON[verb]} where it stopped"
    return "nothing was written half; the same command starts over"


def _fail(message: str, code: int) -> int:
    click.secho(f"error: {_one_line(message)}", err=True, fg="red" if sys.stderr.isatty() else None)
    return code


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())
