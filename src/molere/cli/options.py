"""The options of the commands that train, as typer reads them."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as in train.lr=0.05 method.delta=0.2.")
]
Config = Annotated[str | None, typer.Option("--config", "-c", metavar="FILE", help="Settings file (YAML).")]
Data = Annotated[str | None, typer.Option("--data", metavar="NAME", help="Data set: see `molere data list`.")]
Root = Annotated[str | None, typer.Option("--root", metavar="PATH", help="Folder that holds the data set.")]
Scenario = Annotated[str | None, typer.Option("--scenario", metavar="NAME", help="Scenario of the data set.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Train on N examples only.")]
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
Resume = Annotated[
    str | None, typer.Option("--resume", metavar="auto|PATH|never", help="Go on in the folder, in PATH, or start anew.")
]
Force = Annotated[
    bool | None, typer.Option("--force", help="Go on in a folder although settings or data differ; the log names them.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all settings as a settings file, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a traceback with an error.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars or lines.")]
