"""The command line: molere demo | train | compare | resume | reproduce | methods | models | data | config | doctor."""

import gc
import os
import sys
import traceback
import warnings

from molere.cli import listings
from molere.errors import MolereError

VERSION: str = sys.modules["molere"].__version__  # always loaded before this file, and light

HELLO = f"""\
molere {VERSION}: training with learned example weights and a learned validation split, compared honestly.
  molere demo                              nine methods, five seeds, digits with a hidden group; nothing to download
  molere compare --methods erm,molere --data cifar10 --root PATH --seeds 5
  molere train --method lrwopt --data digits train.lr=0.05 method.delta=0.2
  molere resume FOLDER                     go on with a run that was interrupted
  molere methods | models | data list      what there is; molere methods NAME: its settings
  molere COMMAND --help                    all options; -c FILE reads settings from a file
Results go to ./molere-runs; the same command goes on where it stopped."""


def main() -> int:
    """The program `molere`: runs a command, and turns every error into one line and an exit code."""
    arguments = sys.argv[1:]
    if not arguments:
        print(HELLO)
        return 0
    if "--help" in arguments:
        gc.disable()  # imports free nothing; looking for garbage takes a tenth of the time
    verbose = bool({"-v", "--verbose"} & set(arguments))
    warnings.showwarning = _warned
    try:
        if listing := listings.quick(arguments):
            print(listing)
            return 0
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for some takes a tenth of a second
        from molere.cli.app import app  # here: listings answer before typer is imported

        code = app(arguments, "molere", standalone_mode=False)
    except MolereError as error:
        return _failed(str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        return _failed("interrupted", 130, verbose=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        return 1
    except Exception as error:
        kinds = {c.__name__ for c in type(error).__mro__}  # typer's classes, the same in every release
        if "Abort" in kinds:
            return _failed("interrupted", 130, verbose=False)
        if "ClickException" in kinds:
            return _failed(_usage(error), 2, verbose=False)
        return _failed(f"{type(error).__name__}: {error} (a fault of molere; -v shows where)", 1, verbose)
    finally:
        gc.enable()
    return code if isinstance(code, int) else 0


def _warned(message: Warning | str, *_: object, **__: object) -> None:
    """A warning of ours, or of anyone's, as one line without the place it was raised at."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _failed(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    for line in message.splitlines() or [""]:
        print(f"error: {line}", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    text = getattr(error, "format_message", lambda: str(error))()
    return " ".join(text.split())
