"""Where molere keeps what it can compute again: indexes of folders, decoded images."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$MOLERE_CACHE where set, else $XDG_CACHE_HOME/molere, else ~/.cache/molere; not created here."""
    own = os.environ.get("MOLERE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "molere"
