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
config_app = typer.Typer(rich_markup_mode=None, help="Settings files.")
app.add_typer(config_app, name="config")


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
        str | None, typer.Option("--model", metavar="NAME", help="Examine a named classifier, or your FILE:CLASS.")
    ] = None,
    shape: Annotated[str | None, typer.Option("--shape", metavar="CxHxW", help="Size of one example; 3x32x32.")] = None,
    classes: Annotated[int | None, typer.Option("--classes", metavar="N", help="Number of classes; 10.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Examples in a batch; 64.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: options.Root = None,
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Say what is here: libraries, devices, disk, data, back-ends. With --model: how meta-gradients go through it."""
    if model is None and not (shape or classes or batch_size or overrides):
        from molere.cli import health

        found = health.examine(root, out or "molere-runs", device)
        print(found.to_json() if json else found)
        raise typer.Exit(found.exit_code)
    from molere.cli import checkup

    of = model or "resnet20", shape or "3x32x32", classes or 10, batch_size or 64
    print(checkup.report(*of, device, overrides or [], json))


@config_app.callback()
def config_group() -> None:
    """Settings files."""


@config_app.command("show")
def show_config(
    overrides: options.Overrides = None,
    command: Annotated[str, typer.Option("--for", metavar="COMMAND", help="demo, train or compare.")] = "compare",
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="FILE", help="Settings file, or the folder of a run.")
    ] = None,
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
    json: options.Json = False,
) -> None:
    """Print every setting that flags, file and overrides come to, with its help, as a settings file."""
    flags = locals()
    from molere.cli import configure

    print(configure.show(command, flags, json))


@config_app.command("check")
def check_config(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Settings files, or folders of runs.")],
    json: options.Json = False,
) -> None:
    """Read settings files and say every mistake in them; nothing is run."""
    from molere.cli import configure

    try:
        print(configure.check(files, json))
    except configure.Refused as refused:
        if not json:
            raise
        print(refused.answer)
        raise typer.Exit(refused.exit_code) from None


@config_app.command("diff")
def diff_config(
    a: Annotated[str, typer.Argument(metavar="A", help="Settings file, or the folder of a run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    json: options.Json = False,
) -> None:
    """Print the settings that differ, folder, number of jobs and resuming left aside."""
    from molere.cli import configure

    print(configure.differences(a, b, json))


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
