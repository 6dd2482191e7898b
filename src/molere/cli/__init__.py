"""The command line: molere demo | train | compare | resume | methods | models | data list."""

import shlex
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

import molere
from molere.cli import listings, options
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

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True
)
data_app = typer.Typer(rich_markup_mode=None, help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


@app.callback()
def hello(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version, and stop.")] = False,
) -> None:
    """Train classifiers with learned example weights and a learned validation split, and compare them honestly."""
    if version:
        print(molere.__version__)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(HELLO)


@app.command("demo", help="Compare nine methods on digits with a hidden group; nothing to download.")
@app.command("train", help="Train one classifier by one method.")
@app.command("compare", help="Train methods x seeds and show, with intervals and cost, which one is better.")
def run(
    ctx: typer.Context,
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
    plan = options.plan(str(ctx.info_name), ctx.params)
    if print_config:
        from molere.experiment import resolved_yaml

        print(resolved_yaml(plan.experiment), end="")
        return
    from molere.cli import work

    console = Console(quiet=quiet or json, progress=not no_progress)
    command = shlex.join(["molere", *sys.argv[1:]])
    with _resumable(plan.folder):
        code = work.start(plan, console, dry_run=dry_run, as_json=json, command=command)
    raise typer.Exit(code)


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
    name: Annotated[str | None, typer.Argument(help="A method: list its settings.")] = None,
    json: options.Json = False,
) -> None:
    """List the methods, or the settings of one."""
    print(listings.methods(json) if name is None else listings.method(name, json))


@app.command("models")
def list_models(json: options.Json = False) -> None:
    """List the named classifiers."""
    print(listings.models(json))


@data_app.command("list")
def list_data(root: options.Root = None, json: options.Json = False) -> None:
    """List the data sets, their scenarios, and whether they are there."""
    print(listings.data(root, json))
