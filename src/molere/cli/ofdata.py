"""`molere data list | check | get | embed`, as typer reads them."""

from typing import Annotated

import typer

from molere.cli import listings, options
from molere.cli.console import Console

app = typer.Typer(rich_markup_mode=None, help="Data sets.")


@app.callback()
def commands() -> None:
    """Data sets."""


@app.command("embed")
def embed_data(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the data, as in data.limit=100.")
    ] = None,
    data: Annotated[str, typer.Option("--data", metavar="NAME|PATH", help="Data set, or your files.")] = "digits",
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="timm:NAME, torchvision:NAME or a named classifier.")
    ] = "torchvision:resnet50",
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="An .npz or .parquet file.")] = "features.npz",
    weights: Annotated[
        str, typer.Option("--weights", metavar="NAME|FILE", help="Published weights, a file, or none.")
    ] = "DEFAULT",
    root: options.Root = None,
    test: options.Test = None,
    val_root: options.ValRoot = None,
    label: options.Label = None,
    group: options.Group = None,
    image: options.Image = None,
    id: options.Id = None,
    split_column: options.SplitColumn = None,
    limit: options.Limit = None,
    on_bad: options.OnBad = None,
    image_size: options.ImageSize = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")] = 64,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the features of a frozen classifier for every example to one file, on which heads train in seconds."""
    flags = locals()
    from molere.cli import embed

    print(embed.embed(flags, Console(quiet=quiet or json)))


@app.command("list")
def list_data(root: options.Root = None, json: options.Json = False) -> None:
    """List the data sets, their scenarios, and whether they are there."""
    print(listings.data(root, json))


@app.command("check")
def check_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set: see `molere data list`.")],
    root: options.Root = None,
    images: Annotated[bool, typer.Option("--images", help="Open every image, too.")] = False,
    json: options.Json = False,
) -> None:
    """Look at a data set on disk: checksums, examples, missing and broken images; and how to get it."""
    from molere.cli import datasets

    text, code = datasets.check(name, root, images, json)
    print(text)
    raise typer.Exit(code)


@app.command("get")
def get_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set: see `molere data list`.")],
    root: options.Root = None,
) -> None:
    """Fetch a data set where that may be done; else say, step by step, how a person gets it."""
    from molere.cli import datasets

    text, code = datasets.get(name, root)
    print(text)
    raise typer.Exit(code)
