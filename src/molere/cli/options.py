"""The options of the commands that train, as typer reads them."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as in train.lr=0.05 method.delta=0.2.")
]
Config = Annotated[str | None, typer.Option("--config", "-c", metavar="FILE", help="Settings file (YAML).")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME|PATH", help="Data set (see `molere data list`), or your file or folder."),
]
Root = Annotated[str | None, typer.Option("--root", metavar="PATH", help="Folder that holds the data set.")]
Test = Annotated[
    list[str] | None,
    typer.Option("--test", metavar="[NAME=]PATH", help="Test set of your own data; several are allowed."),
]
ValRoot = Annotated[
    str | None, typer.Option("--val-root", metavar="PATH", help="Hard or shifted examples to validate on.")
]
Label = Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="Column of the label.")]
Group = Annotated[str | None, typer.Option("--group", metavar="COLUMN", help="Column of the group.")]
Image = Annotated[str | None, typer.Option("--image", metavar="COLUMN", help="Column of image files.")]
Text = Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="Column of texts.")]
Id = Annotated[str | None, typer.Option("--id", metavar="COLUMN", help="Column of the examples' ids.")]
SplitColumn = Annotated[
    str | None,
    typer.Option("--split-column", metavar="COLUMN", help="Column of train, select, holdout or a test's name."),
]
Features = Annotated[str | None, typer.Option("--features", metavar="A,B,...", help="Feature columns; default: all.")]
DropColumns = Annotated[str | None, typer.Option("--drop-columns", metavar="A,B,...", help="Columns to leave out.")]
Header = Annotated[
    bool | None, typer.Option("--header/--no-header", help="Whether the first line of a CSV file names the columns.")
]
Scale = Annotated[bool | None, typer.Option("--scale/--no-scale", help="Whether numbers are standardised.")]
TextAs = Annotated[str | None, typer.Option("--text-as", metavar="tfidf|hashed", help="How texts become numbers.")]
Dimensions = Annotated[int | None, typer.Option("--dimensions", metavar="N", help="Numbers that a text becomes.")]
Augment = Annotated[
    str | None, typer.Option("--augment", metavar="NAME", help="none, flip, crop, crop-flip or imagenet.")
]
TestShare = Annotated[float | None, typer.Option("--test-share", metavar="F", help="Share kept for the test.")]
OnBad = Annotated[str | None, typer.Option("--on-bad", metavar="error|skip", help="What to do with bad rows.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", metavar="N", help="Side of images read from files.")]
Scenario = Annotated[
    str | None, typer.Option("--scenario", metavar="NAME", help="What is done to it: NAME or NAME[key=value,...].")
]
NoiseSeed = Annotated[
    int | None, typer.Option("--noise-seed", metavar="K", help="Seed of label noise, the same for all seeds.")
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Train on N examples only.")]
Labels = Annotated[
    str | None, typer.Option("--labels", metavar="CSV", help="Labels to train with instead: columns id, label.")
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="FILE", help="What examples count: Parquet or CSV of id, weight.")
]
Drop = Annotated[str | None, typer.Option("--drop", metavar="FILE", help="Examples to leave out: an id in each line.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Classifier: see `molere models`.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", "--method", metavar="NAME,...", help="Methods: see `molere methods`; NAME[key=value]; or all."
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="How methods choose their validation part; method.holdout.kind."),
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="N", help="How many seeds, or which: 5, or 3,5,7.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="K", help="One seed.")]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", help="Passes over the data; train.epochs.")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help="default, or paper (as published).")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH", help="Folder for the results.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Folder's name below --out or ./molere-runs.")]
Jobs = Annotated[str | None, typer.Option("--jobs", metavar="N", help="Runs side by side, or auto.")]
Tune = Annotated[
    int | None, typer.Option("--tune", metavar="N", help="First tune each method on validation data, by N trials.")
]
Track = Annotated[
    str | None, typer.Option("--track", metavar="NAME,...", help="Tell each epoch to tensorboard, wandb or mlflow too.")
]
Resume = Annotated[
    str | None, typer.Option("--resume", metavar="auto|PATH|never", help="Go on in the folder, in PATH, or start anew.")
]
Force = Annotated[
    bool | None, typer.Option("--force", help="Go on in a folder although settings or data differ; the log names them.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all settings as a settings file, and stop.")]
Where = Annotated[
    list[str] | None, typer.Option("--where", metavar="CONDITION", help="Only examples such as label=3; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a traceback with an error.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars or lines.")]
