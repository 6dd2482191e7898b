"""Corruption by name: the grammar of scenarios, noise that belongs to ids, superclasses, groups, what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from molere import fit, registry
from molere.cli import plan
from molere.corruption import COMMON, NOISE, Scenario, canonical, scenario_of, scenarios
from molere.data.imagefiles import ImageFiles
from molere.data.noise import flip_probabilities, instance_noise, transition_noise, uniform_transition
from molere.data.pool import TensorPool
from molere.data.scenarios import Part, corrupted, in_both_groups, shifted
from molere.data.sources import load
from molere.errors import ConfigError, DataError
from molere.experiment import experiment
from molere.request import request
from molere.storage.samples import read_samples
from molere.superclasses import CIFAR100, SUPERCLASSES


def of(pool: object) -> TensorPool:
    assert isinstance(pool, TensorPool)
    return pool


def known(pool: object) -> Tensor:
    clean = of(pool).clean_y
    assert clean is not None
    return clean


def labels_by_id(pool: object) -> dict[int, int]:
    ids = of(pool).ids
    assert ids is not None
    return dict(zip(ids.tolist(), of(pool).y.tolist(), strict=True))


# ------------------------------------------------------------------------------------------ the grammar


def test_a_name_stands_for_its_settings_and_brackets_change_them() -> None:
    assert scenario_of("cifar10", "noise") == Scenario(instance=0.3)
    assert scenario_of("cifar10", " noise[ instance=0.4, tail=10 ] ") == Scenario(instance=0.4, tail=10.0)
    assert scenario_of("cifar10", "clean[hierarchical=0.2,superclasses=[0,0,1,1]]").superclasses == (0, 0, 1, 1)
    assert scenario_of("cifar10", "hidden-group").rotated == 0.03
    assert scenario_of("digits", "hidden-group").rotated == 0.04


def test_every_common_name_is_known_of_every_data_set_the_default_first() -> None:
    for name, entry in registry.DATASETS.items():
        assert next(iter(scenarios(name))) == entry.scenarios[0]
        assert set(COMMON) <= set(scenarios(name))
    assert set(scenarios("./photos")) == set(COMMON)


settings = st.fixed_dictionaries(
    {},
    optional={
        "instance": st.floats(0, 0.9),
        "tail": st.floats(1, 200),
        "angle": st.integers(1, 359),
        "clean_select": st.booleans(),
        "largest": st.integers(1, 999),
    },
)


@given(settings, st.booleans())
def test_the_canonical_text_is_read_as_the_same_scenario(stated: dict[str, object], backwards: bool) -> None:
    items = [f"{k}={str(v).lower()}" for k, v in stated.items()]
    text = f"clean[{' , '.join(items[::-1] if backwards else items)}]"
    once = canonical(text)
    assert canonical(once) == once
    assert scenario_of("digits", once) == scenario_of("digits", text) == Scenario(**stated)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nois", "unknown scenario of digits 'nois'; did you mean 'noise'? Known: hidden-group, "),
        ("noise[insance=0.1]", "scenario noise.insance: unknown key; did you mean scenario noise.instance?"),
        ("noise[instance=30]", "scenario noise.instance must be a float in [0, 1); got 30. It is a fraction, not"),
        ("noise[flip=0.1]", "instance and flip are given together; labels take one kind of noise, keep one"),
        ("hidden-group[conflicting=0.1]", "rotated and conflicting are given together; a scenario makes one hidden"),
        ("clean[angle=360]", "scenario clean.angle must be an int in [1, 359]; got 360."),
        ("noise[instance]", "'instance' is not an option nor an override; write key=value"),
        ("[flip=0.1]", "scenario '[flip=0.1]': write NAME or NAME[key=value,...], as in noise[instance=0.4]"),
        ("noise]", "scenario 'noise]': write NAME or NAME[key=value,...], as in noise[instance=0.4]"),
    ],
)
def test_a_scenario_that_is_none_is_refused_in_one_line_before_anything_runs(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as one:
        experiment({"data": {"scenario": text}})
    with pytest.raises(ConfigError) as two:
        request(["erm"], {"name": "digits", "scenario": text}, None, None, 1)
    with pytest.raises(ConfigError) as three:
        load("digits", scenario=text)
    for error in (one, two, three):
        assert str(error.value).startswith(said) or said in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_scenario_and_noise_seed_are_options_and_count_in_the_hash_and_the_folder() -> None:
    flags = {"data": "digits", "scenario": "noise[instance=0.4]", "noise_seed": 7}
    planned = plan.plan("compare", flags)
    assert planned.experiment.data.noise_seed == 7
    assert planned.experiment.scenario == "noise[instance=0.4]"
    assert planned.folder.name.startswith("compare-digits-noise-instance-0.4-")
    other = plan.plan("compare", {**flags, "noise_seed": 8})
    spelt = plan.plan("compare", {**flags, "scenario": "noise[ instance = 0.4 ]"})
    assert len({p.experiment.hash for p in (planned, other)}) == 2
    assert spelt.experiment.hash == planned.experiment.hash
    assert spelt.folder == planned.folder


# ------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("noise", 0.3004),
        ("uniform", 0.4),
        ("clean[redrawn=0.4]", 0.36),
        ("flip", 0.4),
        ("flip2", 0.4),
        ("clean[hierarchical=0.4,superclasses=[0,0,0,0,0,1,1,1,1,1]]", 0.4),
    ],
)
def test_each_kind_of_noise_flips_its_share_and_says_with_which_probability(text: str, rate: float) -> None:
    data = load("digits", scenario=text)
    train, clean = of(data.train), known(data.train)
    flips = train.flip_probability
    assert flips is not None
    assert float((train.y != clean).float().mean()) == pytest.approx(rate, abs=0.05)
    assert float(flips.mean()) == pytest.approx(rate, abs=0.01)
    assert data.select is not None
    assert float((of(data.select).y != known(data.select)).float().mean()) == pytest.approx(rate, abs=0.12)
    assert of(data.tests["test"]).clean_y is None


@pytest.mark.parametrize(("text", "targets"), [("flip", 1), ("flip2", 2), ("uniform", 9)])
def test_labels_flip_to_so_many_other_classes(text: str, targets: int) -> None:
    train = of(load("digits", scenario=f"{text}[{text}=0.6]").train)
    clean = known(train)
    for c in range(10):
        assert len(set(train.y[(clean == c) & (train.y != c)].tolist())) == targets


def test_hierarchical_noise_stays_within_the_superclass_and_needs_to_know_them() -> None:
    above = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    train = of(load("digits", scenario=f"hierarchical[superclasses={above.tolist()}]").train)
    assert torch.equal(above[train.y], above[known(train)])
    with pytest.raises(DataError, match="needs the superclass of each of 10 classes; none are known of these data"):
        load("digits", scenario="hierarchical")
    with pytest.raises(DataError, match="needs the superclass of each of 10 classes; 3 are given"):
        load("digits", scenario="hierarchical[superclasses=[0,0,1]]")


def test_cifar100_has_twenty_superclasses_of_five_that_belong_together() -> None:
    assert np.bincount(CIFAR100).tolist() == [5] * 20
    # apple, mushroom, orange, pear, sweet pepper; beaver, dolphin, otter, seal, whale (fine labels are alphabetical)
    assert len({CIFAR100[k] for k in (0, 51, 53, 57, 83)}) == 1
    assert len({CIFAR100[k] for k in (4, 30, 55, 72, 95)}) == 1
    assert CIFAR100[0] != CIFAR100[4]
    assert {len(above) for above in SUPERCLASSES.values()} == {10, 100}


def test_selection_labels_can_be_left_right() -> None:
    data = load("digits", scenario="flip[clean_select=true]")
    assert data.select is not None
    assert of(data.select).clean_y is None
    clean = load("digits", scenario="clean").select
    assert of(data.select).y.tolist() == of(clean).y.tolist()
    assert not torch.equal(of(data.train).y, known(data.train))


@pytest.mark.parametrize("text", ["noise", "uniform", "flip2"])
def test_with_a_noise_seed_an_example_has_one_label_whatever_the_seed_and_the_split(text: str) -> None:
    one, two = (load("digits", scenario=text, seed=seed, noise_seed=5) for seed in (0, 1))
    first, second = ({**labels_by_id(d.train), **labels_by_id(d.select)} for d in (one, two))
    common = first.keys() & second.keys()
    assert len(common) > 900
    assert [first[k] for k in common] == [second[k] for k in common]
    other = labels_by_id(load("digits", scenario=text, noise_seed=6).train)
    assert other != labels_by_id(one.train)
    without = [labels_by_id(load("digits", scenario=text, seed=seed).train) for seed in (0, 1)]
    shared = without[0].keys() & without[1].keys()
    assert [without[0][k] for k in shared] != [without[1][k] for k in shared]


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=50, unique=True), st.integers(0, 9))
def test_draws_by_id_are_uniform_numbers_that_no_other_id_changes(ids: list[int], seed: int) -> None:
    at = torch.tensor(ids)
    together = flip_probabilities(len(ids), 0.4, seed, ids=at)
    alone = torch.cat([flip_probabilities(1, 0.4, seed, ids=at[k : k + 1]) for k in range(len(ids))])
    assert torch.equal(together, alone)


def test_noise_by_id_has_the_law_of_noise_by_position() -> None:
    y = torch.arange(30_000) % 3
    matrix = uniform_transition(0.3, 3)
    noisy = transition_noise(y, matrix, 0, ids=torch.arange(30_000) + 77)
    for c in range(3):
        shares = torch.bincount(noisy[y == c], minlength=3) / 10_000
        torch.testing.assert_close(shares.double(), matrix[c], atol=0.015, rtol=0)


def test_a_tail_over_groups_thins_the_rare_group() -> None:
    data = load("digits", scenario="hidden-group[rotated=0.5,group_tail=10]")
    group = of(data.train).group
    assert group is not None
    assert torch.bincount(group).tolist() == [600, 60]
    with pytest.raises(DataError, match="group_tail thins groups, but these data have none"):
        load("digits", scenario="group-imbalance")


def test_a_tail_can_say_how_large_its_largest_class_is() -> None:
    data = load("digits", scenario="longtail[tail=10,largest=50]")
    sizes = torch.bincount(of(data.train).y).tolist()
    assert (sizes[0], sizes[-1]) == (50, 5)


def test_a_rotation_shift_is_a_second_test_set_and_leaves_training_alone() -> None:
    data, clean = (load("digits", scenario=text) for text in ("rotation-shift[shift=180]", "clean"))
    assert list(data.tests) == ["test", "shifted"]
    assert data.train.fingerprint() == clean.train.fingerprint()
    upright, turned = (of(data.tests[name]) for name in ("test", "shifted"))
    assert torch.equal(turned.x, torch.rot90(upright.x, 2, (2, 3)))
    assert torch.equal(turned.y, upright.y)


def test_the_hidden_group_is_turned_by_any_angle_in_training_and_test() -> None:
    half, quarter = (of(load("digits", scenario=f"hidden-group[angle={a}]").train) for a in (180, 90))
    assert half.group is not None
    marked = half.group == 1
    assert torch.equal(torch.rot90(quarter.x[marked], 1, (2, 3)), half.x[marked])
    assert torch.equal(quarter.x[~marked], half.x[~marked])
    odd = of(load("digits", scenario="hidden-group[angle=37]").train)
    assert not torch.equal(odd.x[marked], half.x[marked])
    assert torch.equal(odd.x[~marked], half.x[~marked])


def test_tables_cannot_be_turned_nor_patched() -> None:
    part = Part(torch.rand(20, 5), torch.arange(20) % 2, torch.arange(20))
    for scenario in (Scenario(rotated=0.5), Scenario(conflicting=0.5)):
        with pytest.raises(DataError, match="only images"):
            corrupted([part], scenario, 2, 0)
    noisy = corrupted([part], Scenario(instance=0.4), 2, 0)[0]
    assert noisy.clean_y is not None
    assert torch.equal(noisy.clean_y, part.y)


# ---------------------------------------------------------------------------------------- images in files


@pytest.fixture
def files(tmp_path: Path) -> Part:
    from PIL import Image

    random = np.random.default_rng(0)
    for k in range(40):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{k}.png")
    paths = np.array([f"{k}.png" for k in range(40)])
    return Part(ImageFiles(tmp_path, paths), torch.arange(40) % 4, torch.arange(40))


def test_images_in_files_are_corrupted_as_those_in_memory(files: Part) -> None:
    assert isinstance(files.x, ImageFiles)
    everything = torch.arange(40)
    memory = Part(files.x.read(everything, 32), files.y, files.ids)
    for scenario in (Scenario(rotated=0.4), Scenario(conflicting=0.4), Scenario(tail=2.0), Scenario(flip=0.5)):
        lazy, loaded = (corrupted([part], scenario, 4, 0)[0] for part in (files, memory))
        assert isinstance(lazy.x, ImageFiles)
        assert lazy.y.tolist() == loaded.y.tolist()
        assert (lazy.group is None) == (loaded.group is None)
        read = lazy.x.read(torch.arange(len(lazy.y)), 32)
        assert torch.equal(read, loaded.x)  # type: ignore[arg-type]
    for side in (32, 40, 80):
        noisy = corrupted([files], Scenario(instance=0.5), 4, 0, side=side)[0]
        expected, q = instance_noise(files.x.read(everything, side), files.y, 0.5, 4, 0)
        assert noisy.y.tolist() == expected.tolist()
        assert noisy.flip_probability is not None
        assert torch.equal(noisy.flip_probability, q)
    assert len(in_both_groups(files, Scenario(rotated=0.4)).y) == 80
    turned = shifted(files, Scenario(shift=90))
    assert turned is not None
    assert isinstance(turned.x, ImageFiles)
    assert torch.equal(turned.x.read(everything, 32), torch.rot90(memory.x, 1, (2, 3)))  # type: ignore[arg-type]


def test_large_images_in_memory_are_seen_small() -> None:
    x = torch.randint(0, 256, (30, 3, 96, 96), dtype=torch.uint8)
    y = torch.arange(30) % 3
    small = torch.nn.functional.adaptive_avg_pool2d(x.float(), 32).round().to(torch.uint8)
    assert torch.equal(instance_noise(x, y, 0.5, 3, 0)[0], instance_noise(small, y, 0.5, 3, 0)[0])


# ------------------------------------------------------------------------------------------- what is kept


def test_samples_keep_the_right_labels_and_the_flip_probabilities(tmp_path: Path) -> None:
    data = {"name": "digits", "scenario": "noise", "limit": 100}
    fit("erm", data=data, recipe={"epochs": 1}, out=tmp_path / "run")
    rows = read_samples(tmp_path / "run" / "samples.parquet")
    train = of(load(**data).train)
    assert rows["clean_label"].tolist() == known(train).tolist()
    assert train.flip_probability is not None
    assert rows["flip_probability"].tolist() == train.flip_probability.tolist()
    assert 0.2 < rows["flip_probability"].mean() < 0.4


def test_flip_probabilities_follow_their_examples() -> None:
    flips = torch.tensor([0.1, 0.2, 0.3])
    pool = TensorPool(torch.rand(3, 2), torch.tensor([0, 1, 0]), flip_probability=flips, num_classes=2)
    kept = pool.subset(torch.tensor([2, 0])).flip_probability
    assert kept is not None
    assert kept.tolist() == flips[[2, 0]].tolist()
    with pytest.raises(DataError, match="x has 3 examples but there are 2 flip probabilities"):
        TensorPool(torch.rand(3, 2), torch.tensor([0, 1, 0]), flip_probability=flips[:2])


def test_there_is_a_setting_for_every_kind_of_noise() -> None:
    for kind in NOISE:
        assert Scenario(**{kind: 0.2}).noise == kind  # type: ignore[arg-type]
