"""Presets: every row holds what the publication prints and can be resolved; what is asked for is said in its title."""

import pytest

from molere import registry
from molere.errors import ConfigError
from molere.reproduce.presets import ORDERED, STUDIES, pick_preset, preset
from molere.reproduce.resolve import Asked, Seen, present, resolve, rows_of, with_data
from molere.settings import MethodSpec
from molere.split import part_size

ROWS = [(name, key) for name in ORDERED for key in preset(name).rows]


def printed(name: str, key: str) -> dict[str, float]:
    return preset(name).row(key).numbers


def test_there_is_a_preset_for_each_table_and_figure() -> None:
    assert list(ORDERED) == [f"table{k}" for k in range(1, 8)] + [f"figure{k}" for k in range(1, 5)]
    assert set(STUDIES) == {"theorem1", "cost"}


@pytest.mark.parametrize(("name", "key"), ROWS)
def test_a_row_resolves_to_an_experiment_that_is_checked(name: str, key: str) -> None:
    plan = resolve(preset(name), key, Asked(scale=0.1))
    row, e = plan.row, plan.experiment
    assert (e.data.name, e.model, len(e.seeds)) == (row.data["name"], row.model, row.seeds)
    assert e.data.limit == round(0.1 * row.examples)
    assert (e.train["epochs"], row.train["epochs"]) == (10, 100)
    assert len(set(plan.columns.values())) == len(row.methods)
    assert "at scale 0.1" in plan.title
    assert "10 of 100 epochs" in plan.title


@pytest.mark.parametrize(("name", "key"), ROWS)
def test_claims_and_printed_numbers_are_of_columns_that_there_are(name: str, key: str) -> None:
    row = preset(name).row(key)
    columns = set(row.methods)
    judged = columns | {f"{c}{part}" for c in columns for part in (" where ERM errs", " where ERM is right")}
    assert row.claimed
    assert {c for claim in row.claimed for c in claim.columns} <= (
        judged if preset(name).kind == "margins" else columns
    )
    assert all(set(numbers) <= columns for numbers in row.metrics.values())
    assert set(row.spread) <= set(row.paper)
    assert row.reference in columns
    assert row.printed or not row.paper


@pytest.mark.parametrize(("name", "key"), ROWS)
def test_the_recipe_is_that_of_the_appendix_where_nothing_else_is_said(name: str, key: str) -> None:
    row = preset(name).row(key)
    stated = {"batch_size": 64, "momentum": 0.9, "dropout": 0.25, "q": 5, "scheduler": "step", "epochs": 100}
    assert {k: row.train[k] for k in stated} == stated
    assert row.train["lr"] == 0.1 or any("0.01" in d or "small" in d.lower() for d in row.deviations)


def test_the_printed_numbers_have_the_differences_that_the_text_states() -> None:
    t1, t2 = printed("table1", "imagenet"), printed("table2", "skew-200")
    assert (t1["Hard"] - t1["Easy"], t1["Hard"] - t1["ERM"]) == pytest.approx((1.92, 0.98))
    assert (t2["OPT"] - t2["MWN"], t2["OPT"] - t2["GDW"]) == pytest.approx((2.22, 1.97))
    assert printed("table3", "inst-cifar10")["OPT"] - printed("table3", "inst-cifar10")["MAPLE"] == pytest.approx(1.53)
    assert printed("table3", "clothing1m")["OPT"] - printed("table3", "clothing1m")["GDW"] == pytest.approx(0.85)
    for key, gain, inside in (("imagenet-r", 3.0, 0.49), ("imagenet-a", 1.7, 0.81)):
        far, near = preset("table4").row(key).metrics.values()
        assert (far["OPT"] - far["ERM"], near["OPT"] - near["ERM"]) == pytest.approx((gain, inside))
    c100, i1k = printed("table5", "cifar100"), printed("table5", "imagenet")
    assert [100 * (r["Hard"] / r["ERM"] - 1) for r in (c100, i1k)] == pytest.approx([2.16, 0.81], abs=0.01)
    iwild = printed("table6", "iwildcam")
    assert iwild["OPT"] - iwild["ERM"] == pytest.approx(1.36)


def test_doubtful_numbers_are_marked_where_they_contradict_the_text() -> None:
    assert any("Easy is printed above Random" in d for d in preset("table5").row("aircraft").doubts)
    assert any("absolute or relative" in d for d in preset("table7").row("dr").doubts)
    assert not preset("table5").row("cifar100").doubts


def test_each_of_our_data_sets_of_the_publication_has_a_row() -> None:
    named = {str(preset(n).row(k).data["name"]) for n, k in ROWS}
    missing = {"digits", "cifar10n", "cifar100n", "cifar10.1", "pacs"}  # not in its tables
    assert named == set(registry.DATASETS) - missing


def test_rows_of_our_own_are_run_only_when_asked_for() -> None:
    table3 = preset("table3")
    assert rows_of(table3, []) == ["inst-cifar10", "clothing1m"]
    assert rows_of(table3, ["all"])[-1] == "inst-fashion-mnist"
    with pytest.raises(ConfigError, match="did you mean 'clothing1m'"):
        rows_of(table3, ["clothing-1m"])


@pytest.mark.parametrize("name", ["Table 5", "table-5", "TABLE5"])
def test_names_are_read_as_people_write_them(name: str) -> None:
    assert pick_preset(name).name == "table5"


def test_an_unknown_name_is_met_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'figure3'.*theorem1, cost"):
        pick_preset("figur3")


def test_methods_can_be_chosen_by_column_by_method_and_by_spec_and_the_reference_stays() -> None:
    plan = resolve(preset("table5"), "cifar100", Asked(methods="Hard,molere,lrw-hard[keep=true]"))
    assert list(plan.columns) == ["ERM", "Hard", "molere", "lrw-hard[keep=true]"]
    assert any("Not run: Easy, Random" in d for d in plan.deviations)
    with pytest.raises(ConfigError, match=r"lrw-hrd.*Columns: Easy, Hard"):
        resolve(preset("table5"), "cifar100", Asked(methods="lrw-hrd"))


def test_what_is_changed_stands_in_title_deviations_and_folder() -> None:
    whole = resolve(preset("table5"), "cifar100", Asked())
    plan = resolve(preset("table5"), "cifar100", Asked(seeds=2, settings={"model": "cnn", "train": {"lr": 0.05}}))
    assert whole.title == "Table 5, accuracy in distribution: CIFAR-100, 3 seeds"
    assert plan.title.endswith("CIFAR-100, cnn for wrn-28-10, 2 seeds")
    assert {"model is cnn, in the preset wrn-28-10.", "train.lr is 0.05, in the preset 0.1."} <= set(plan.deviations)
    assert (whole.folder, plan.folder[:9]) == ("cifar100", "cifar100-")


def test_the_folder_of_a_row_does_not_change_with_the_place_of_the_data() -> None:
    here, there = (resolve(preset("table2"), "skew-10", Asked(root=r, settings={"model": "cnn"})) for r in ("a", "b"))
    assert here.folder == there.folder


@pytest.mark.parametrize("scale", [0.0, -0.1, 1.5])
def test_a_scale_is_a_share(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale must be a float in"):
        Asked(scale=scale)


def test_data_that_are_not_there_are_named_with_the_way_to_get_them(tmp_path) -> None:
    plan = resolve(preset("table6"), "dr", Asked(root=str(tmp_path)))
    assert "retinopathy" in plan.lacking
    assert "retinopathy-aptos" in plan.lacking
    assert plan.steps
    assert not present(plan.row, str(tmp_path))
    assert not present(plan.row, None)


def test_methods_of_presets_are_spelt_as_their_specs_are() -> None:
    specs = {spec for n, k in ROWS for spec in preset(n).row(k).methods.values()}
    assert all(MethodSpec.parse(spec).name in registry.METHODS for spec in specs)


@pytest.mark.parametrize(("row", "validate"), [("aircraft", 3333), ("cars", 1000), ("oxford-iiit", 600), ("dr", 3512)])
def test_as_many_examples_validate_as_in_the_publication(row: str, validate: int) -> None:
    plan = resolve(preset("table5"), row, Asked())
    delta = plan.experiment.method.get("delta", 0.1)
    assert isinstance(delta, float)
    assert part_size(plan.row.examples, delta) == validate
    assert plan.columns["Hard"] == ("lrw-hard@paper" if row == "dr" else f"lrw-hard@paper[delta={delta}]")
    assert not plan.changed


def test_the_page_says_how_many_examples_there_were_and_not_how_many_there_should_have_been() -> None:
    plan = resolve(preset("table3"), "inst-cifar10", Asked(settings={"data": {"limit": 20_000}}))
    assert "20,000 of 50,000 training examples" in plan.title
    seen = with_data(plan, Seen(10_000, 1_005, 990, ("a.bin is not the official file",)))
    assert "(10,000 of 50,000 training examples, 100 of 100 epochs)" in seen.title
    assert "10,000 of 50,000 training examples; the test sets are whole." in seen.deviations
    assert "Said of the data: a.bin is not the official file" in seen.deviations
    whole = resolve(preset("table3"), "inst-cifar10", Asked())
    assert with_data(whole, Seen(50_000, 5_000, 5_000)).title == whole.title
    assert "(35,000 of 50,000 training" in with_data(whole, Seen(35_000, 3_500, 3_500)).title


def test_a_long_tail_says_what_is_left_of_it_and_its_true_factor() -> None:
    plan = resolve(preset("table2"), "skew-200", Asked(scale=0.1))
    seen = with_data(plan, Seen(936, 50, 1))
    assert "5,000 of 50,000 training examples, 936 of them in the long tail" in seen.title
    assert "The largest class has 50 examples, the smallest 1: 50 to 1 is the imbalance here." in seen.deviations


def test_other_settings_of_the_data_are_deviations() -> None:
    plan = resolve(preset("table5"), "cifar100", Asked(settings={"data": {"image_size": 16}}))
    assert "data.image_size is 16, in the preset the default." in plan.deviations
    assert not any(d.startswith("data.root") for d in resolve(preset("table5"), "cars", Asked(root="x")).deviations)
