"""The append-only files of a run: `metrics.csv`, part of its result, and `log.jsonl`, its story."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from molere.errors import StorageError
from molere.storage import files

Cell = float | int | str | bool | None


class MetricsFile:
    """A CSV file, a row per evaluation; it depends on the rows alone, so a resumed run writes the same bytes.

    Columns stand in the order in which rows first name them; a new one is added at the right, empty in the
    rows above. Numbers are written with all their digits (`repr`), None as nothing, text on one line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None

    def append(self, row: Mapping[str, Cell]) -> None:
        """Add one row; the data is with the operating system when this returns."""
        columns = self._header()
        new = [name for name in row if name not in columns]
        if new:
            self._rewrite([*columns, *new], self._lines()[1:])
        _append(self.path, _line([_text(row.get(name)) for name in self._header()]))

    def truncate_to(self, n_rows: int) -> None:
        """Cut the file back to its first rows, to resume from a checkpoint; StorageError if it has fewer."""
        lines = self._lines()
        if len(lines) - 1 < n_rows and n_rows > 0:
            raise StorageError(
                f"{self.path} has {max(0, len(lines) - 1)} rows, the checkpoint needs {n_rows}; "
                "start anew with --resume never"
            )
        self._columns = None
        if n_rows == 0:
            self.path.unlink(missing_ok=True)
        else:
            os.truncate(self.path, sum(map(len, lines[: n_rows + 1])))

    def read(self) -> list[dict[str, Cell]]:
        """All rows, numbers as numbers, empty cells as None."""
        columns = self._header()
        return [dict(zip(columns, map(_value, _cells(line)), strict=False)) for line in self._lines()[1:]]

    def sync(self) -> None:
        """Make all rows durable; to be called before a checkpoint that counts them."""
        if self.path.exists():
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def _header(self) -> list[str]:
        if self._columns is None:
            lines = self._lines()
            self._columns = _cells(lines[0]) if lines else []
        return self._columns

    def _lines(self) -> list[bytes]:
        """Complete lines, header first; a last line without its end was cut by a crash and does not count."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def _rewrite(self, columns: Sequence[str], rows: Sequence[bytes]) -> None:
        padded = [_cells(row) for row in rows]
        body = [_line([*cells, *[""] * (len(columns) - len(cells))]) for cells in padded]
        files.write_bytes(self.path, b"".join([_line(columns), *body]), fsync=False)
        self._columns = list(columns)


def append_event(path: Path, event: str, **fields: object) -> None:
    """Append one event with the time (UTC) to a JSONL file; a last line cut by a crash is closed first."""
    record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | fields
    line = json.dumps(files.strict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    _append(path, line, closing=True)


def _append(path: Path, line: bytes, *, closing: bool = False) -> None:
    """Add a line; StorageError when the disk is full or the file cannot be written."""
    try:
        with path.open("a+b") as file:
            if closing and file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
    except OSError as error:
        raise files.storage_error(error, path, len(line)) from error


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]))


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return repr(float(cell))
    return str(cell) if isinstance(cell, int) else " ".join(cell.splitlines())


def _value(text: str) -> Cell:
    if text in {"", "true", "false"}:
        return None if text == "" else text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
