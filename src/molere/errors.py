"""The errors a person can cause, each with the exit code of the command line."""

from typing import ClassVar


class MolereError(Exception):
    """Something the user can mend; its text is one line: what was given, what was expected, what to do."""

    exit_code: ClassVar[int] = 1


class ConfigError(MolereError):
    """Unknown names, keys or presets, and values outside their limits."""

    exit_code: ClassVar[int] = 2


class DataError(MolereError):
    """Labels, shapes or files that cannot be trained on."""

    exit_code: ClassVar[int] = 3


class StorageError(MolereError):
    """Folders that cannot be used, and files that are damaged."""

    exit_code: ClassVar[int] = 4


class NumericsError(MolereError):
    """Losses or parameters that are no longer finite."""

    exit_code: ClassVar[int] = 5


class ResourceError(MolereError):
    """A device or an amount of memory that is not there."""

    exit_code: ClassVar[int] = 6
