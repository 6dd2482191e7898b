"""The command line: molere demo | train | compare | resume | methods | models | data list."""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

import molere
from molere.cli import options
from molere.cli.console import Console
from molere.errors import MolereError

HELLO = f"""\
molere {molere.__version__}: training with learned example weights and a learned validation split, compared honestly.
  molere demo                              nine methods, five seeds, digits with a hidden group; nothing to download
  molere compare --methods erm,molere --data cifar10 --root PATH --seeds 5
  molere train --method lrwopt --data digits train.lr=0.05 method.delta=0.2
  molere resume FOLDER                     go on with a run that was interrupted
  molere methods | models | data list      what there is; molere methods NAME: its settings
  molere COMMAND --help                    all options; -c FILE reads settings from a file
Results go to ./molere-runs; the same command goes on where it stopped."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(rich_markup_mode=None, help="Data sets.")
app.add_typer(data_app, name="data")


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def _version(asked: bool) -> bool:
    if asked:
        print(molere.__version__)
        raise typer.Exit
    return asked


@app.callback()
def group(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version, and stop.")
    ] = False,
) -> None:
    """Train classifiers with learned example weights and a learned validation split, and compare them honestly."""


def _training(command: str, text: str) -> None:
    """Add a command that trains: all take the same options and differ in what those leave open."""

    @app.command(command, help=text)
    def run(  # pyright: ignore[reportUnusedFunction]
        overrides: options.Overrides = None,
        config: options.Config = None,
        data: options.Data = None,
        root: options.Root = None,
        scenario: options.Scenario = None,
        limit: options.Limit = None,
        model: options.Model = None,
        methods: options.Methods = None,
        seeds: options.Seeds = None,
        seed: options.Seed = None,
        epochs: options.Epochs = None,
        preset: options.Preset = None,
        device: options.Device = None,
        out: options.Out = None,
        name: options.Name = None,
        jobs: options.Jobs = None,
        resume: options.Resume = None,
        dry_run: options.DryRun = False,
        print_config: options.PrintConfig = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
        no_progress: options.NoProgress = False,
    ) -> None:
        """Plan what the options ask for, and run it."""
        flags = locals()
        from molere.cli import plan, work

        planned = plan.plan(command, flags)
        console = Console(quiet=quiet or json, progress=not no_progress)
        if print_config:
            console.result(work.settings_file(planned))
            return
        with _resumable(planned.folder):
            typed = shlex.join(["molere", *sys.argv[1:]])
            code = work.start(planned, console, dry_run=dry_run, as_json=json, command=typed)
        raise typer.Exit(code)


_training("demo", "Compare nine methods on digits with a hidden group; nothing to download.")
_training("train", "Train one classifier by one method.")
_training("compare", "Train methods x seeds and show, with intervals and cost, which one is better.")


@app.command("resume")
def go_on(
    folder: Annotated[str, typer.Argument(help="Folder of a run or a comparison.")],
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Go on with a run or a comparison that was interrupted, as it was started."""
    from molere.cli import work

    console = Console(quiet=quiet or json, progress=not no_progress)
    with _resumable(Path(folder)):
        code = work.resume(Path(folder), console, as_json=json, jobs=jobs)
    raise typer.Exit(code)


@app.command("methods")
def list_methods(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="List the settings of these.")] = None,
    json: options.Json = False,
) -> None:
    """List the methods, or the settings of those named."""
    from molere.cli import listings

    print("\n\n".join(listings.method(name, json) for name in names) if names else listings.methods(json))


@app.command("models")
def list_models(json: options.Json = False) -> None:
    """List the named classifiers."""
    from molere.cli import listings

    print(listings.models(json))


@data_app.callback()
def data_group() -> None:
    """Data sets."""


@data_app.command("list")
def list_data(root: options.Root = None, json: options.Json = False) -> None:
    """List the data sets, their scenarios, and whether they are there."""
    from molere.cli import listings

    print(listings.data(root, json))


@contextmanager
def _resumable(folder: Path) -> Generator[None]:
    """An interruption ends with a line that says how to go on: exit code 130, or 143 for SIGTERM."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as interruption:
        how = f"; go on with: molere resume {shlex.quote(str(folder))}" if folder.exists() else ""
        print(f"interrupted{how}", file=sys.stderr)
        raise typer.Exit(143 if isinstance(interruption, Terminated) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    """The program `molere`: runs a command, and turns every error into one line and an exit code."""
    arguments = sys.argv[1:]
    if not arguments:
        print(HELLO)
        return 0
    verbose = bool({"-v", "--verbose"} & set(arguments))
    try:
        code = app([*arguments, "list"] if arguments == ["data"] else arguments, "molere", standalone_mode=False)
    except MolereError as error:
        return _failed(str(error), error.exit_code, verbose)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", 130, verbose=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        return 1
    except Exception as error:
        if _is_usage(error):
            return _failed(_usage(error), 2, verbose=False)
        return _failed(f"{type(error).__name__}: {error} (a fault of molere; -v shows where)", 1, verbose)
    return code if isinstance(code, int) else 0


def _failed(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    for line in message.splitlines() or [""]:
        print(f"error: {line}", file=sys.stderr)
    return code


def _is_usage(error: Exception) -> bool:
    """Whether typer found the fault in what was typed; its class has the same name in every release."""
    return any(c.__name__ == "ClickException" for c in type(error).__mro__)


def _usage(error: Exception) -> str:
    text = getattr(error, "format_message", lambda: str(error))()
    return " ".join(text.split())
