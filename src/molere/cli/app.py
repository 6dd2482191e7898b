"""The commands, as typer reads them."""

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from molere import signals
from molere.cli import listings, options
from molere.cli.console import Console

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(rich_markup_mode=None, help="Data sets.")
app.add_typer(data_app, name="data")


def _version(asked: bool) -> bool:
    if asked:
        print(sys.modules["molere"].__version__)
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
        split: options.Split = None,
        seeds: options.Seeds = None,
        seed: options.Seed = None,
        epochs: options.Epochs = None,
        preset: options.Preset = None,
        device: options.Device = None,
        out: options.Out = None,
        name: options.Name = None,
        jobs: options.Jobs = None,
        tune: options.Tune = None,
        resume: options.Resume = None,
        force: options.Force = None,
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
    print("\n\n".join(listings.method(name, json) for name in names) if names else listings.methods(json))


@app.command()
def doctor(
    overrides: options.Overrides = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="A named classifier, torchvision:NAME, or your FILE:CLASS.")
    ] = "resnet20",
    shape: Annotated[str, typer.Option("--shape", metavar="CxHxW", help="Size of one example.")] = "3x32x32",
    classes: Annotated[int, typer.Option("--classes", metavar="N", help="Number of classes.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Examples in the batch.")] = 64,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: options.Json = False,
) -> None:
    """Show how meta-gradients can be taken through a classifier: what is chosen, each way's error and cost here."""
    from molere.cli import checkup

    print(checkup.report(model, shape, classes, batch_size, device, overrides or [], json))


@app.command("models")
def list_models(json: options.Json = False) -> None:
    """List the named classifiers."""
    print(listings.models(json))


@data_app.callback()
def data_group() -> None:
    """Data sets."""


@data_app.command("list")
def list_data(root: options.Root = None, json: options.Json = False) -> None:
    """List the data sets, their scenarios, and whether they are there."""
    print(listings.data(root, json))


@contextmanager
def _resumable(folder: Path) -> Generator[None]:
    """A signal asks for the end: all is saved, a line says how to go on, and the exit code is 130, 143 or 138."""
    try:
        with signals.heeded():
            yield
    except KeyboardInterrupt as interruption:
        how = f"; go on with: molere resume {shlex.quote(str(folder))}" if folder.exists() else ""
        print(f"interrupted{how}", file=sys.stderr)
        raise typer.Exit(getattr(interruption, "exit_code", 130)) from None
