"""Row D7: downloads that break off, come altered, or never come. A server of our own on this machine, no network."""

import hashlib
import json
import re
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import named_folders as folders
from molere.cli import datasets
from molere.data.named import getting
from molere.data.named.checking import checksum_states
from molere.data.named.facts import FACTS
from molere.errors import DataError

pytestmark = pytest.mark.faults
Wrong = list[tuple[object, object]]
SETS = ("cifar10", "fashion-mnist", "cifar100", "cifar10n", "cifar10.1", "imagenet-r")
"""By classes of torchvision, by published addresses of files, and by an archive."""
GOOD = bytes(range(256)) * 20


def head(length: int, status: str = "200 OK", kind: str = "application/octet-stream") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


ANSWERS: dict[str, Callable[[socket.socket], object]] = {
    "cut in its middle": lambda to: to.sendall(head(len(GOOD)) + GOOD[: len(GOOD) // 2]),
    "cut after its head": lambda to: to.sendall(head(len(GOOD))),
    "other bytes": lambda to: to.sendall(head(len(GOOD)) + GOOD[:-1] + b"?"),
    "empty": lambda to: to.sendall(head(0)),
    "a page instead": lambda to: to.sendall(head(20, kind="text/html") + b"<html>log in</html>\n"),
    "not found": lambda to: to.sendall(head(0, "404 Not Found")),
    "no answer in the protocol": lambda to: to.sendall(b"220 mail.example.org ESMTP\r\n"),
    "closed at once": lambda to: to.close(),
    "silent": lambda to: to.recv(1) and threading.Event().wait(1.5),
    "cut in pieces": lambda to: to.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + GOOD[:512]
    ),
}


@contextmanager
def server(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A host that gives everyone the same answer; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                to, _ = listening.accept()
            except OSError:
                return
            with to:
                try:
                    to.settimeout(5)
                    to.recv(65536)
                    answer(to)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@contextmanager
def at(port: int) -> Iterator[None]:
    """Whatever is asked for is asked of this port here."""
    original = urllib.request.urlopen
    patch = pytest.MonkeyPatch()

    def urlopen(request: Any, *arguments: Any, **more: Any) -> Any:
        there = urllib.request.Request(f"http://127.0.0.1:{port}/file", headers=dict(request.headers))
        return original(there, *arguments, **more)

    patch.setattr(urllib.request, "urlopen", urlopen)
    try:
        yield
    finally:
        patch.undo()


def nobody() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return cast(int, taken.getsockname()[1])


def refusal(name: str, root: Path) -> str:
    """What is wrong about how a download that fails is treated; empty if nothing is."""
    before = sorted(str(p.relative_to(root)) for p in root.rglob("*")) if root.exists() else []
    try:
        getting.fetch(name, root)
        return "taken"
    except DataError as error:
        said = str(error)
    except BaseException as error:
        return repr(error)
    by_hand = re.search(r"try again, or (save http\S+ as \S+|get it from http\S+, put it into \S+, and type: )", said)
    after = sorted(str(p.relative_to(root)) for p in root.rglob("*"))
    whole = getting.there(name, root)
    return "" if by_hand and "\n" not in said and after == before and not whole else f"{said} {after} {whole}"


def test_downloads_that_fail_leave_nothing_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Any
) -> None:
    monkeypatch.setattr(getting, "PATIENCE", 0.4)
    wrong, tried = Wrong(), 0
    for kind, answer in ANSWERS.items():
        names = SETS if kind not in ("silent", "not found") else SETS[2:5]
        with server(answer) as port, at(port):
            for name in names[tried % 2 :: 2]:
                tried += 1
                if found := refusal(name, tmp_path / str(tried)):
                    wrong.append(((kind, name), found))
    with at(nobody()):
        for name in SETS:
            tried += 1
            if found := refusal(name, tmp_path / str(tried)):
                wrong.append((("nobody there", name), found))
    assert socket.getdefaulttimeout() is None
    row.judge("D7", wrong, tried)


def test_half_files_that_lie_there_are_not_taken_for_the_data_set(tmp_path: Path, row: Any) -> None:
    wrong = Wrong()
    for name, file in {"cifar100": "train", "cifar10": "data_batch_3", "cifar10n": "CIFAR-10_human.pt"}.items():
        root = tmp_path / name
        folders.cifar10(root)
        folders.cifar100(root)
        folders.human_file(root / "cifar-n" / "CIFAR-10_human.pt", {"clean_label": np.zeros(5, np.int64)})
        (path,) = root.rglob(file)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with at(nobody()), suppress(DataError):
            wrong.append((name, datasets.get(name, str(root))))
        if checksum_states(name, root)[file] != "differs" or getting.there(name, root):
            wrong.append((name, "taken"))
        text, code = datasets.check(name, str(root), images=False, as_json=True)
        if json.loads(text)["checksums"][file] != "differs":
            wrong.append((name, (text, code)))
    row.judge("D7", wrong, 3)


def test_a_download_that_failed_is_fetched_when_the_host_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Any
) -> None:
    md5, facts = hashlib.md5(GOOD).hexdigest(), FACTS["cifar10n"]
    urls = {target: (url, md5) for target, (url, _) in facts.urls.items()}
    monkeypatch.setitem(FACTS, "cifar10n", replace(facts, md5=dict.fromkeys(facts.md5, md5), urls=urls))  # type: ignore[arg-type]
    wrong = Wrong()
    for case, kind in enumerate(("cut in its middle", "other bytes", "closed at once")):
        root = tmp_path / str(case)
        with server(ANSWERS[kind]) as port, at(port):
            if found := refusal("cifar10n", root):
                wrong.append((kind, found))
        with server(lambda to: to.sendall(head(len(GOOD)) + GOOD)) as port, at(port):
            getting.fetch("cifar10n", root)
        if not getting.there("cifar10n", root) or (root / "cifar-n" / "CIFAR-10_human.pt").read_bytes() != GOOD:
            wrong.append((kind, "not there"))
    row.judge("D7", wrong, 3)
