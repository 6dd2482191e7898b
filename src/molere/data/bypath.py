"""Data given by a path: what lies there decides how it is read."""

import importlib
import logging
from typing import Any  # Any: settings of the data

from molere.data.arrays import reader_of
from molere.data.own import Asked, asked
from molere.data.ownimages import load_images
from molere.data.ownrows import load_rows
from molere.data.pool import Data
from molere.data.readers import is_hf
from molere.data.repeats import repeated, told
from molere.fields import refuse
from molere.paths import suffix

logger = logging.getLogger(__name__)


def load_path(name: str, **given: Any) -> Data:
    """The user's own data: class folders, or a table, arrays, sparse rows, saved Hugging Face data.

    Settings as `molere train` takes them (`test`, `val_root`, `label`, ...); None stands for the default. Classes and
    groups are the sorted names of the training part. Raises ConfigError for settings that are none, DataError for
    files that cannot be used, rows named and counted. Test examples that train as well are counted in the log.
    """
    a = asked(name, **given)
    _check_columns(a)
    data = load_images(a) if _holds_files(a) else load_rows(a)
    for test, count in repeated(data).items():
        logger.warning("%s: %s", a.name, told(test, count, len(data.tests[test])))
    return data


COLUMNS = ("label", "group", "image", "text", "id", "split_column", "features", "drop_columns")


def _check_columns(a: Asked) -> None:
    """ConfigError for columns named where there are none, as in folders of images and in arrays."""
    if is_hf(a.path) or reader_of(a.path) is None and not a.path.is_dir():
        return
    stray = [key for key in (*COLUMNS, "root") if getattr(a, key) is not None]
    refuse([f"data.{key} is for tables; {a.name} has no columns: leave it out" for key in stray])


def _holds_files(a: Asked) -> bool:
    """Whether the data are image files: class folders, or paths in a table; not images stored in the table."""
    if a.path.is_dir():
        return not is_hf(a.path)
    if a.image is None or suffix(a.path) != ".parquet":
        return a.image is not None
    schema = importlib.import_module("pyarrow.parquet").read_schema(a.path)
    return a.image not in schema.names or "binary" not in str(schema.field(a.image).type)
