"""What mkdocs does besides: folders in `nav`, files outside docs/ that pages link to, and nothing from elsewhere.

mkdocs reads one folder, and the pages are written to be read in the repository, too. So a link from docs/ to a file
outside of it (`../CHANGELOG.md`) takes that file into the site, under its path in the repository.
"""

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any  # Any: mkdocs' configuration and files, so that tests need no mkdocs

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_config(config: Any) -> Any:
    """Replace folders in `nav` by their pages."""
    config["nav"] = unfolded(config["nav"], Path(config["docs_dir"]))
    return config


def unfolded(nav: list[Any], docs: Path) -> list[Any]:
    """`nav` with the pages of a folder for each entry that ends in a slash: README.md first, the rest by name."""
    pages: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            pages.append({k: unfolded(v, docs) if isinstance(v, list) else v for k, v in entry.items()})
        elif entry.endswith("/"):
            found = [f"{entry}{page.name}" for page in sorted((docs / entry).glob("*.md"))]
            pages += sorted(found, key=lambda page: not page.endswith("/README.md"))
        else:
            pages.append(entry)
    return pages


def on_files(files: Any, config: Any) -> Any:
    """Take in what pages link to outside of docs/, and what those link to in turn."""
    from mkdocs.structure.files import File

    todo = [(page.src_uri, Path(page.abs_src_path)) for page in files if page.src_uri.endswith(".md")]
    while todo:
        uri, path = todo.pop()
        for target in outside(uri, path.read_text("utf-8")):
            if files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
                if target.endswith(".md"):
                    todo.append((target, ROOT / target))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Point links at where files stand in the site."""
    return relinked(page.file.src_uri, markdown)


def in_repository(uri: str) -> str:
    """Where a page of the site stands in the repository: in docs/, unless it was taken in."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).exists() else uri


def in_site(path: str) -> str:
    """The reverse: a path of the repository as one of the site."""
    return path.removeprefix("docs/")


def target_of(uri: str, link: str) -> str | None:
    """The path in the repository that a page's link leads to; none for addresses of the web."""
    if re.match(r"[a-z]+:|/|$", link):
        return None
    return posixpath.normpath(str(PurePosixPath(in_repository(uri)).parent / link))


def outside(uri: str, markdown: str) -> list[str]:
    """Files outside docs/ that a page links to."""
    found = [target_of(uri, match[1]) for match in LINK.finditer(CODE.sub("", markdown))]
    return [t for t in found if t is not None and not t.startswith("docs/") and (ROOT / t).is_file()]


def relinked(uri: str, markdown: str) -> str:
    """The page with its links as the site has them; code is left as it is."""

    def moved(match: re.Match[str]) -> str:
        target = target_of(uri, match[1])
        if target is None:
            return match[0]
        return posixpath.relpath(in_site(target), posixpath.dirname(uri) or ".") + (match[2] or "")

    parts, at = list[str](), 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(moved, markdown[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, LINK.sub(moved, markdown[at:])])


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Refuse a page that would load anything from elsewhere."""
    if found := ELSEWHERE.search(output):
        from mkdocs.exceptions import PluginError

        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output
