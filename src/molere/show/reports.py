"""`molere report FOLDER`: write report.html for what the folder holds, a run, a comparison or a reproduction."""

from pathlib import Path
from typing import TYPE_CHECKING, Any  # Any: settings, as `load` takes them

from molere.config import read_yaml
from molere.data import sources
from molere.errors import MolereError, StorageError
from molere.jobs import is_mapping
from molere.show.records import Record, of_folder, part
from molere.storage import files

if TYPE_CHECKING:
    from molere.show.compared import Compared
    from molere.show.page import Page

NAME = "report.html"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a folder, and its figures beside it; the path of the report.

    Args: folder: of a run, a comparison, a reproduction, or one that holds comparisons. out: another path than
    report.html in it. Raises StorageError where the folder holds none of these, or cannot be written to.
    """
    from molere.show import page  # here: every run imports this file, and pages take matplotlib, seconds of a start

    folder = Path(folder)
    try:
        return page.write(_page(folder), folder / NAME if out is None else Path(out))
    except OSError as error:
        raise StorageError(
            f"cannot write the report: {error.strerror or error}; choose another place with --out"
        ) from error


def _page(folder: Path) -> "Page":
    from molere.show import comparisonpage, reproductionpage, runpage
    from molere.show.compared import of_comparison

    if (folder / "runs").is_dir():
        compared = of_comparison(folder)
        _fetch(compared, _arguments(folder))
        return comparisonpage.page(compared)
    if (folder / "result.json").is_file():
        record = of_folder(folder)
        return runpage.page(_with_examples(record, _arguments(folder)))
    if rows := reproductionpage.rows_of(folder):
        for row in rows:
            if row.compared is not None and row.compared.folder is not None:
                _fetch(row.compared, _arguments(row.compared.folder))
        return reproductionpage.page(folder, rows)
    raise StorageError(f"{folder} holds no finished run and no comparison; give a folder that train or compare wrote")


def _arguments(folder: Path) -> dict[str, Any]:
    """What the settings file says about the data."""
    path = folder / "config.yaml"
    try:
        found = read_yaml(path) if path.is_file() else {}
    except MolereError:
        return {}
    data = found.get("data")
    return {k: v for k, v in data.items() if v is not None} if is_mapping(data) else {}


def _fetch(compared: "Compared", arguments: dict[str, Any]) -> None:
    """Images of the run whose examples will be shown, if they were not kept."""
    from molere.show import comparisonpage

    record = compared.record(comparisonpage.leading(compared.table), compared.table.seeds[0])
    if record is not None:
        _with_examples(record, arguments)


def _with_examples(record: Record, arguments: dict[str, Any]) -> Record:
    """The record with images of its examples: as kept, else from the data, if they are there and the same."""
    if record.shown or record.folder is None or "margin" not in record.samples:
        return record
    stated = part(part(record.result, "settings"), "data")
    given = {"name": record.result["data"], "scenario": record.result.get("scenario") or None, **arguments}
    try:
        data = sources.load(**{k: v for k, v in given.items() if v is not None}, seed=record.seed)
        if data.train.fingerprint() != stated.get("content"):
            return record
        keep(record.folder, record.samples, data)
    except (MolereError, TypeError):  # other data, or settings of another version: the report does without images
        return record
    return of_folder(record.folder)


def keep(folder: Path, samples: Any, data: Any) -> None:
    """Write shown.json: images and texts of the examples that a report shows, while the data are at hand."""
    from molere.show import things

    files.write_json(folder / "shown.json", things.kept(samples, data), fsync=False)
