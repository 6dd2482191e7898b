"""ImageNet, its parts and its second tests: classes by WordNet id, and answers among 200 of 1,000."""

from pathlib import Path

import pytest
import torch
from torch import nn

import named_folders as folders
from molere.data.joined import JoinedPool
from molere.data.named.catalog import parts_of
from molere.data.named.imagenets import wnids
from molere.data.pool import Data, TensorPool
from molere.data.sources import load
from molere.errors import DataError
from molere.evaluate import among, metrics
from molere.run import fit

ONE_K = sorted(folders.wnids("imagenet1k"))
LACKS = "lacks .* of .* class folders"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet with one image a class, and ImageNet-R and -A with two."""
    root = tmp_path_factory.mktemp("root")
    folders.imagenet(root, folders.wnids("imagenet1k"), each=1)
    folders.renditions(root / "imagenet-r", folders.wnids("imagenet_r"))
    folders.renditions(root / "imagenet-a", folders.wnids("imagenet_a"))
    return root


def test_the_lists_of_classes_are_parts_of_the_thousand() -> None:
    assert wnids("imagenet1k") == tuple(ONE_K)
    assert [len(wnids(name)) for name in ("imagenet1k", "imagenet100", "imagenet_a", "imagenet_r")] == [
        1000,
        100,
        200,
        200,
    ]
    for name in ("imagenet100", "imagenet_a", "imagenet_r"):
        assert set(wnids(name)) < set(ONE_K)
    shared = {
        (a, b): len(set(wnids(a)) & set(wnids(b)))
        for a, b in [("imagenet100", "imagenet_a"), ("imagenet100", "imagenet_r"), ("imagenet_a", "imagenet_r")]
    }
    assert list(shared.values()) == [15, 19, 86]


def test_imagenet_has_a_class_for_each_wordnet_id_in_sorted_order(whole: Path) -> None:
    parts = parts_of("imagenet", whole, "clean")
    assert parts.train.classes == tuple(ONE_K)
    for index, inner in ((parts.train, 0), (parts.tests["test"], 0)):
        assert len(index) == 1000
        for path, y in zip(index.paths.tolist(), index.y.tolist(), strict=True):
            assert ONE_K[y] == path.split("/")[inner]


def test_missing_class_folders_are_counted_and_named(tmp_path: Path) -> None:
    some = ["n01440764", "n01443537", "n01484850"]
    folders.imagenet(tmp_path, some)
    with (
        pytest.warns(UserWarning, match=r"train lacks 997 of 1000 class folders: n01491361, .* \.\.\."),
        pytest.warns(UserWarning, match=r"val lacks 997 of 1000 class folders"),
    ):
        parts = parts_of("imagenet", tmp_path, "clean")
    assert sorted(set(parts.train.y.tolist())) == [0, 1, 2]


def test_validation_images_in_one_folder_are_sorted_by_kaggles_table(tmp_path: Path) -> None:
    some = ["n01443537", "n01440764"]
    folder = folders.imagenet(tmp_path, some, each=1, kaggle=True)
    with pytest.warns(UserWarning, match=LACKS):
        test = parts_of("imagenet", tmp_path, "clean").tests["test"]
    names = [f"val/ILSVRC2012_val_{k:08d}.JPEG" for k in (1, 2)]
    assert dict(zip(test.paths.tolist(), test.y.tolist(), strict=True)) == dict(zip(names, [1, 0], strict=True))
    assert all((folder / path).is_file() for path in test.paths)
    (tmp_path / "ILSVRC" / "LOC_val_solution.csv").unlink()
    with (
        pytest.warns(UserWarning, match=LACKS),
        pytest.raises(DataError, match="holds 2 images and no class folders; put LOC"),
    ):
        parts_of("imagenet", tmp_path, "clean")


def test_imagenet_100_takes_its_classes_from_the_folder_of_imagenet(whole: Path, tmp_path: Path) -> None:
    parts = parts_of("imagenet-100", whole, "clean")
    hundred = sorted(folders.wnids("imagenet100"))
    assert parts.train.classes == tuple(hundred)
    assert (len(parts.train), len(parts.tests["test"])) == (100, 100)
    assert [path.split("/")[0] for path in parts.train.paths.tolist()] == [hundred[y] for y in parts.train.y.tolist()]
    folders.imagenet(tmp_path, hundred, each=1)
    (tmp_path / "imagenet").rename(tmp_path / "imagenet-100")
    assert len(parts_of("imagenet-100", tmp_path, "clean").train) == 100


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_second_tests_have_labels_among_the_thousand_and_answers_among_two_hundred(whole: Path, name: str) -> None:
    parts = parts_of(name, whole, "clean")
    own = sorted(folders.wnids(name.replace("-", "_")))
    other = parts.tests[name]
    assert len(other) == 400
    assert other.classes == tuple(ONE_K)
    assert [ONE_K[y] for y in other.y.tolist()] == [path.split("/")[0] for path in other.paths.tolist()]
    assert [ONE_K[y] for y in parts.answers[name]] == own
    assert list(parts.tests) == ["test", name]


def test_half_of_the_renditions_can_be_validated_on_and_the_other_half_is_the_test(whole: Path) -> None:
    told = parts_of("imagenet-r", whole, "validation")
    assert told.validation is not None
    halves = set(told.validation.paths.tolist()), set(told.tests["imagenet-r"].paths.tolist())
    assert (len(halves[0]), len(halves[1]), len(halves[0] & halves[1])) == (200, 200, 0)
    alone = parts_of("imagenet-r", whole, "half")
    assert alone.validation is None
    assert set(alone.tests["imagenet-r"].paths.tolist()) == halves[1]
    data = load("imagenet-r", root=whole, scenario="validation", image_size=8, select=0.0)
    assert isinstance(data.train, JoinedPool)
    assert len(data.train) == 1200
    assert len(data.train.validation) == 200
    assert list(data.tests) == ["test", "imagenet-r"]
    assert data.train.num_classes == 1000


def test_an_answer_outside_the_given_classes_does_not_count() -> None:
    logits = torch.tensor([[0.0, 1.0, 5.0, 2.0], [3.0, 0.0, 5.0, 2.0], [0.0, 4.0, 1.0, 9.0]])
    y = torch.tensor([1, 0, 3])
    assert metrics(logits, y)["accuracy"] == pytest.approx(1 / 3)
    found = metrics(among(logits, (0, 1, 3)), y)
    assert found["accuracy"] == pytest.approx(2 / 3)
    kept = logits[:, [0, 1, 3]]
    assert found["nll"] == pytest.approx(nn.functional.cross_entropy(kept, torch.tensor([1, 0, 2])).item())


def test_a_run_measures_a_test_among_its_classes_only(points: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = points
    far = TensorPool(x, y % 2, num_classes=3)
    pool = TensorPool(x, y, num_classes=3)
    data = Data("points", pool, None, {"test": pool, "far": far}, answers={"far": (0, 1)})
    recipe = {"epochs": 1, "batch_size": 20, "device": "cpu"}
    result = fit("erm", data=data, model=nn.Linear(4, 3), recipe=recipe, seed=0)
    with torch.no_grad():
        logits = result.classifier(x)
    expected = (logits[:, :2].argmax(1) == y % 2).float().mean().item()
    assert result.last["far/accuracy"] == pytest.approx(expected)
    assert result.last["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
