"""The commands, as typer reads them; those of `data` and `config` have files of their own."""

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from molere import signals
from molere.cli import listings, ofconfig, ofdata, options
from molere.cli.console import Console

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(ofdata.app, name="data")
app.add_typer(ofconfig.app, name="config")


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
        noise_seed: options.NoiseSeed = None,
        limit: options.Limit = None,
        test: options.Test = None,
        val_root: options.ValRoot = None,
        label: options.Label = None,
        group: options.Group = None,
        image: options.Image = None,
        text: options.Text = None,
        id: options.Id = None,
        split_column: options.SplitColumn = None,
        features: options.Features = None,
        drop_columns: options.DropColumns = None,
        header: options.Header = None,
        scale: options.Scale = None,
        text_as: options.TextAs = None,
        dimensions: options.Dimensions = None,
        augment: options.Augment = None,
        test_share: options.TestShare = None,
        on_bad: options.OnBad = None,
        image_size: options.ImageSize = None,
        labels: options.Labels = None,
        weights: options.Weights = None,
        drop: options.Drop = None,
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
        track: options.Track = None,
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


@app.command("reproduce")
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="table1 to table7, figure1 to figure4, theorem1 or cost.")
    ] = None,
    overrides: options.Overrides = None,
    row: Annotated[
        list[str] | None, typer.Option("--row", metavar="ROW", help="One row, several, or all; default: the published.")
    ] = None,
    data_root: Annotated[
        str | None, typer.Option("--data-root", metavar="PATH", help="Folder that holds the data sets.")
    ] = None,
    reduced: Annotated[
        float | None, typer.Option("--scale", metavar="F", help="Share of the training examples and of the epochs.")
    ] = None,
    seeds: options.Seeds = None,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="NAME,...", help="Columns or methods to run; default: all.")
    ] = None,
    model: options.Model = None,
    limit: options.Limit = None,
    epochs: options.Epochs = None,
    device: options.Device = None,
    out: options.Out = None,
    jobs: options.Jobs = None,
    tune: options.Tune = None,
    resume: options.Resume = None,
    list_all: Annotated[bool, typer.Option("--list", help="List all, and which data are there.")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Run a table or a figure of the publication again, and hold its claims against what comes out."""
    flags = {**locals(), "rows": row, "scale": reduced}
    from molere.cli import reproduce as work

    console = Console(quiet=quiet or json, progress=not no_progress)
    if list_all or name is None:
        print(work.listing(data_root, json))
        return
    with _resumable(None):
        code = work.begin(name, flags, console)
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


@app.command("models")
def list_models(json: options.Json = False) -> None:
    """List the named classifiers."""
    print(listings.models(json))


@app.command()
def samples(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run.")],
    which: Annotated[
        str | None, typer.Option("--list", metavar="NAME", help="hardest, downweighted, suspects or forgotten.")
    ] = None,
    where: options.Where = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN: the largest first.")
    ] = None,
    columns: Annotated[str | None, typer.Option("--columns", metavar="A,B,...", help="Columns to show.")] = None,
    top: Annotated[int | None, typer.Option("--top", metavar="N", min=0, help="How many; 0: all.")] = None,
    out: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write a table to relabel by.")] = None,
    json: options.Json = False,
) -> None:
    """Show the examples of a run to look at: hardest, down-weighted, likely mislabelled, forgotten."""
    from molere.cli import look

    print(look.samples(run, which, where or [], sort, columns, top, out, json))


@app.command()
def margins(
    baseline: Annotated[str, typer.Argument(metavar="RUN_A", help="The baseline: a run, or its folder of seeds.")],
    other: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to be compared with it.")],
    test: Annotated[str | None, typer.Option("--test", metavar="NAME", help="Test set; none: the first.")] = None,
    where: options.Where = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Write the numbers as CSV and the figures there.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what RUN_B changes in the margins of test examples, compared with RUN_A."""
    from molere.cli import look

    print(look.margins(baseline, other, test, where or [], out, json))


@app.command()
def report(
    folder: Annotated[str, typer.Argument(help="Folder of a run, a comparison or a reproduction.")],
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write it here, not into FOLDER.")] = None,
) -> None:
    """Write report.html: verdict, tables, figures and examples in one file that needs no network."""
    from molere.show.reports import write_report

    print(write_report(folder, out))


@contextmanager
def _resumable(folder: Path | None) -> Generator[None]:
    """A signal asks for the end: all is saved, a line says how to go on, and the exit code is 130, 143 or 138.

    folder: what `molere resume` goes on with; none: the same command does.
    """
    try:
        with signals.heeded():
            yield
    except KeyboardInterrupt as interruption:
        how = "; go on with the same command"
        if folder is not None:
            how = f"; go on with: molere resume {shlex.quote(str(folder))}" if folder.exists() else ""
        print(f"interrupted{how}", file=sys.stderr)
        raise typer.Exit(getattr(interruption, "exit_code", 130)) from None
