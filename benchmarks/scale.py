"""What large data cost: starting, splitting, remembering, and serving batches; one Markdown table.

    python benchmarks/scale.py [--part start|pool|loader|photos|all] [--root PATH] [--out docs/results/scale.md]

start    an ImageFolder of 200,000 tiny files in 1,000 classes: seconds from the start of Python to the first batch, for
         the first time and the second; the same for a remembered index of 1,281,167 rows (ImageNet's training part)
pool     a simulated pool of 1,281,167 rows, 1,000 classes and 2,048 features, those of a ResNet-50: a bank of all rows,
         the split pass of LRWOpt over it, what is known of each example at the end, and the peak memory of the process
loader   samples per second of CIFAR-100 (--root: the folder that holds cifar-100-python) with random crops and flips:
         from molere's pool, and from torchvision's data set and transforms through a DataLoader, by turns
photos   the same of JPEG files of 500 x 375 pixels with random resized crops to 224, decoded one by one by either

Every number of `start` and `pool` is measured in a fresh process. What is on disk has just been written, so it comes
from the system's cache of files. Linux only.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from timing import Row, load_average, table

IMAGENET, CLASSES, FEATURES = 1_281_167, 1000, 2048
GIB = 2**30


# ---------------------------------------------------------------------------------------------- start


def start(arguments: argparse.Namespace) -> list[Row]:
    """First and second start on many files, and on a remembered index of as many rows as ImageNet has."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        files = 2000 if arguments.quick else 200_000
        make_folder(root, files)
        environment = {**os.environ, "MOLERE_CACHE": str(Path(folder) / "cache")}
        first = [in_process("start", environment, root, arguments)]
        second = [in_process("start", environment, root, arguments) for _ in range(arguments.repeat)]
        theirs = [in_process("torchvision", environment, root, arguments) for _ in range(arguments.repeat)]
        whole = Path(folder) / "imagenet"
        in_process("remember", environment, whole, arguments)
        large = [in_process("start", environment, whole, arguments) for _ in range(arguments.repeat)]
    several, many = f"{files:,} files", f"{IMAGENET if not arguments.quick else 10_000:,} rows"
    return [
        *clocks(f"{several}: first start, seconds", first),
        Row(f"{several}: of which listing, wall time", [m["index"] for m in first]),
        *clocks(f"{several}: second start, seconds", second, most=10),
        Row(f"{several}: of which reading the index, wall time", [m["index"] for m in second]),
        Row(f"{several}: torchvision's ImageFolder, each time, seconds, wall time", [m["index"] for m in theirs]),
        *clocks(f"{many}: start, seconds", large, most=10),
        Row(f"{many}: of which reading the index, wall time", [m["index"] for m in large]),
        Row(f"{many}: peak memory, GiB", [m["gib"] for m in large], most=4),
    ]


def clocks(what: str, found: list[dict[str, float]], most: float | None = None) -> list[Row]:
    """CPU time of the whole process, its start included, and the wall time that passed."""
    names = {"CPU time": "cpu", "wall time": "seconds"}
    return [Row(f"{what}, {clock}", [m[key] for m in found], "{:.1f}", most) for clock, key in names.items()]


def make_folder(root: Path, files: int) -> None:
    """Tiny PNG images, the same number in each of 1,000 class folders, last changed a minute ago."""
    import io

    import numpy as np
    from PIL import Image

    buffers = [io.BytesIO() for _ in range(16)]
    for seed, buffer in enumerate(buffers):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "png")
    for c in range(CLASSES):
        folder = root / f"n{c:08d}"
        folder.mkdir(parents=True)
        for i in range(files // CLASSES):
            (folder / f"{folder.name}_{i}.png").write_bytes(buffers[i % 16].getvalue())
    age(root)


def age(root: Path) -> None:
    """As if the folders had been written a minute ago."""
    then = time.time() - 60
    for folder in (*root.iterdir(), root):
        os.utime(folder, (then, then))


def measure_start(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """From the start of the process to a first batch of a lazy pool."""
    import torch

    from molere.data.build import data_of
    from molere.data.index import scan_folder

    begun = time.perf_counter()
    index = scan_folder(root)
    listed = time.perf_counter() - begun
    some = index.take(torch.arange(0, len(index), max(1, len(index) // 100)))
    data = data_of("x", index, {"test": some}, size=32, memory=False)
    data.train.fingerprint()
    at = [int(i) for i in torch.linspace(0, len(data.train) - 1, 64)]
    data.train.batch(torch.tensor(at[:4]))
    return {"index": listed}


def measure_torchvision(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """torchvision's listing of the same files."""
    from torchvision.datasets import ImageFolder

    begun = time.perf_counter()
    ImageFolder(root)
    return {"index": time.perf_counter() - begun}


def measure_remember(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Class folders with the few files that a start reads, and an index that lists as many as ImageNet has."""
    import numpy as np
    import torch

    from molere.data import folders
    from molere.data.corrupt import stratified_split
    from molere.rng import key

    rows = 10_000 if arguments.quick else IMAGENET
    make_folder(root, CLASSES)
    y = np.sort(np.arange(rows) % CLASSES)
    names = [f"n{c:08d}" for c in range(CLASSES)]
    paths = np.asarray([f"{names[c]}/{names[c]}_{i}.png" for i, c in enumerate(y)])
    rest, _ = stratified_split(torch.from_numpy(y), round(0.1 * rows), key(0, "select"))
    picture = next((root / names[0]).iterdir()).read_bytes()
    read = np.linspace(0, len(rest) - 1, 64).astype(np.int64)
    for row in {*rest.numpy()[read].tolist(), *rest.numpy()[:4].tolist()}:
        (root / paths[row]).write_bytes(picture)
    age(root)
    found = folders._listed_now(root)
    place = folders.place_of(root)
    folders._remember(place, folders.Listing(paths, y, found.classes, found.folders))
    return {}


# ---------------------------------------------------------------------------------------------- pool


def pool(arguments: argparse.Namespace) -> list[Row]:
    """A bank of all rows of a simulated pool, and the split pass over it."""
    found = [in_process("pool", dict(os.environ), Path(), arguments) for _ in range(1)]
    what = f"{10_000 if arguments.quick else IMAGENET:,} rows, {CLASSES:,} classes, {FEATURES:,} features"
    return [
        Row(f"{what}: a forward pass that fills the bank, seconds", [m["fill"] for m in found], "{:.1f}"),
        Row(f"{what}: split pass over the bank, seconds", [m["split"] for m in found], "{:.1f}"),
        Row(
            f"{what}: outcome of each example at the end (a forward pass), seconds", [m["end"] for m in found], "{:.1f}"
        ),
        Row(f"{what}: the bank, GiB", [m["bank"] for m in found]),
        Row(f"{what}: peak memory of the process, GiB", [m["gib"] for m in found], most=4),
        Row(f"{what}: of which before the pool was made, GiB", [m["before"] for m in found]),
    ]


def measure_pool(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """LRWOpt on a pool whose inputs are made from their positions."""
    import torch
    from torch import nn

    from molere.data.pool import Data
    from molere.evaluate import logits_of
    from molere.examples import Outcome, of_each
    from molere.methods.lrwopt import LRWOpt
    from molere.opening import Setup
    from molere.recipe import Recipe
    from molere.scouts import ScoutTrainer
    from molere.storage import ContentCache
    from molere.training import Training

    torch.set_num_threads(arguments.threads)
    before = peak()
    rows = 10_000 if arguments.quick else IMAGENET
    simulated = Simulated(rows)
    data = Data("simulated", simulated, None, {"test": Simulated(2000)})

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, FEATURES), nn.ReLU(), nn.Linear(FEATURES, CLASSES))

    recipe = Recipe(epochs=1, batch_size=256, lr=0.01)
    setup = Setup(LRWOpt(warmup=0.0), data, build, "simulated", recipe, 0, "lrwopt", torch.device("cpu"))
    training = Training(setup, ScoutTrainer(setup, ContentCache()), None, ())
    run, method = training.run, setup.method
    seconds = {}

    def timed(name: str, do: Callable[[], object]) -> None:
        begun = time.perf_counter()
        do()
        seconds[name] = time.perf_counter() - begun

    timed("fill", lambda: run.refresh_bank(0))
    timed("split", lambda: run.use(method.generate_split(run, training.state), at=0))
    parts = logits_of(run.classifier, simulated)
    timed("end", lambda: of_each(run, Outcome.joined(Outcome.of(z, simulated.y[at]) for at, z in parts)))
    tables = [t for t in run.bank.state_dict().values() if t is not None]
    return {**seconds, "bank": sum(t.nbytes for t in tables) / GIB, "before": before}


class Simulated:
    """A pool of rows whose 16 inputs are waves of the position: nothing is stored but the labels."""

    def __init__(self, rows: int) -> None:
        import torch

        self.y = torch.arange(rows) % CLASSES
        self.num_classes, self.augments = CLASSES, False
        self.group = self.clean_y = self.ids = None

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index, *, augment=None):  # noqa: ANN001, ANN201
        import torch

        from molere.data.pool import Batch

        x = torch.sin(index[:, None] * torch.linspace(0.1, 3, 16))
        return Batch(x, self.y[index], index)

    def fingerprint(self) -> str:
        return f"simulated {len(self)}"

    def to(self, device):  # noqa: ANN001, ANN201
        return self


# ---------------------------------------------------------------------------------------------- loader


def loader(arguments: argparse.Namespace) -> list[Row]:
    """Batches of 128 of CIFAR-100's training part, augmented and normalised, by turns."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR100

    class Unchecked(CIFAR100):
        """torchvision's data set, of files whose checksums may differ from the official ones."""

        def _check_integrity(self) -> bool:
            return True

        def _load_meta(self) -> None:
            self.classes = [str(c) for c in range(100)]

    from molere.data.sources import load

    if arguments.root is None:
        sys.exit("part loader: pass --root PATH, the folder that holds cifar-100-python")
    torch.set_num_threads(arguments.threads)
    count, size = (512 if arguments.quick else 12_800), 128
    ours = load("cifar100", root=arguments.root, scenario="clean", select=0.0).train
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    theirs = Unchecked(arguments.root, transform=transforms.Compose([*steps, transforms.Normalize(mean, std)]))

    def by_us() -> None:
        order = torch.randperm(len(ours))[:count]
        for step, at in enumerate(order.split(size)):
            ours.batch(at, augment=torch.Generator().manual_seed(step))

    def by_them(workers: int) -> Callable[[], None]:
        def run() -> None:
            sampler = torch.randperm(len(theirs))[:count].tolist()
            for _ in DataLoader(theirs, size, sampler=sampler, num_workers=workers):
                pass

        return run

    ways = {"molere": by_us, "DataLoader": by_them(0), "DataLoader, 2 workers": by_them(2)}
    return by_turns("CIFAR-100", ways, count, arguments.repeat, least=3)


def photos(arguments: argparse.Namespace) -> list[Row]:
    """Batches of 32 photographs from files, with random resized crops to 224, by turns; each way decodes one by one."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from molere.data.build import IMAGENET_MEAN, IMAGENET_STD
    from molere.data.folders import listed
    from molere.data.imagefiles import ImageFiles
    from molere.data.imagepool import ImagePool

    torch.set_num_threads(1)
    count, size = (16 if arguments.quick else 128), 32
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            small = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            place = Path(folder) / "photos" / str(i % 2) / f"{i}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=90)
        root = Path(folder) / "photos"
        found = listed(root)
        settings = {"augment": "imagenet", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        ours = ImagePool(ImageFiles(root, found.paths), found.y, size=224, **settings)
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
        theirs = ImageFolder(root, transforms.Compose([*steps, normalise]))

        def by_us() -> None:
            for step, at in enumerate(torch.randperm(count).split(size)):
                ours.batch(at, augment=torch.Generator().manual_seed(step))

        def by_them() -> None:
            for _ in DataLoader(theirs, size, shuffle=True):
                pass

        return by_turns("photographs", {"molere": by_us, "DataLoader": by_them}, count, arguments.repeat)


def by_turns(
    what: str, ways: Mapping[str, Callable[[], None]], count: int, repeat: int, least: float | None = None
) -> list[Row]:
    """Samples per second of each way, and those of the first over the others', within turns; one turn warms up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:
                rates[name].append(count / (time.perf_counter() - begun))
    rows = [Row(f"{what}, {name}, samples per second", found, "{:,.0f}") for name, found in rates.items()]
    first, *others = ways
    for name in others:
        over = [a / b for a, b in zip(rates[first], rates[name], strict=True)]
        rows.append(Row(f"{what}, {first} over {name}", over, "{:.2f}", least=least))
    return rows


# ---------------------------------------------------------------------------------------------- all


PARTS: Mapping[str, Callable[[argparse.Namespace], list[Row]]] = {
    "start": start,
    "pool": pool,
    "loader": loader,
    "photos": photos,
}
MEASURES: Mapping[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "start": measure_start,
    "torchvision": measure_torchvision,
    "remember": measure_remember,
    "pool": measure_pool,
}


def in_process(
    what: str, environment: Mapping[str, str], root: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    """What one measurement in a fresh process says, and the seconds that the whole of it took."""
    print(f"{what} ...", file=sys.stderr)
    command = [sys.executable, __file__, "--measure", what, "--root", str(root), "--threads", str(arguments.threads)]
    begun = time.perf_counter()
    done = subprocess.run(
        command + ["--quick"] * arguments.quick, env=dict(environment), stdout=subprocess.PIPE, check=True, text=True
    )
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure what was asked for; print it, and write it down."""
    parser = argparse.ArgumentParser(description="What large data cost.")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all", help="what to measure (default: all)")
    parser.add_argument("--root", type=Path, metavar="PATH", help="folder that holds cifar-100-python")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file that the table is written to")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measure N times (default: 5)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch (default: 1)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = MEASURES[arguments.measure](arguments.root, arguments)
        print(json.dumps({**found, "gib": peak(), "cpu": time.process_time()}))
        return
    load, parts = load_average(), PARTS if arguments.part == "all" else [arguments.part]
    text = table("Cost of large data", [row for part in parts for row in PARTS[part](arguments)], load)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
