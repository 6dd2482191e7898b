"""`molere config show | check | diff`, as typer reads them."""

from typing import Annotated

import typer

from molere.cli import options

app = typer.Typer(rich_markup_mode=None, help="Settings files.")


@app.callback()
def commands() -> None:
    """Settings files."""


@app.command("show")
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


@app.command("check")
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


@app.command("diff")
def diff_config(
    a: Annotated[str, typer.Argument(metavar="A", help="Settings file, or the folder of a run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    json: options.Json = False,
) -> None:
    """Print the settings that differ, folder, number of jobs and resuming left aside."""
    from molere.cli import configure

    print(configure.differences(a, b, json))
