"""What a classifier starts from: weights by name and from files, and everything else refused in one line."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer, mobilenet_v3_small
from torchvision.models.vision_transformer import interpolate_embeddings

from molere import fit, registry
from molere.errors import ConfigError, DataError, ResourceError
from molere.models import build, feature_width, head_of
from molere.models.weights import content, fitted, is_file, read_weights
from molere.settings import check_model

SHAPE = (3, 16, 16)


def made(name: str = "cnn", *, classes: int = 5, dropout: float = 0.0, seed: int = 0, **more: Any) -> nn.Module:
    return build(name, num_classes=classes, input_shape=SHAPE, dropout=dropout, seed=seed, **more)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def written(state: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def agree(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_a_file_holds_what_a_classifier_starts_from(tmp_path: Path, ending: str) -> None:
    source = made(seed=1)
    loaded = made(weights=written(state_of(source), tmp_path / f"a b.{ending}"))
    assert agree(state_of(loaded), state_of(source))
    assert not agree(state_of(made()), state_of(source))


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module.", "_orig_mod.", "model."])
def test_checkpoints_and_wrapped_models_are_read(tmp_path: Path, wrap: str) -> None:
    state = state_of(made(seed=1))
    packed = {f"{wrap}{k}": v for k, v in state.items()} if wrap.endswith(".") else {"epoch": 3, wrap: state}
    assert agree(state_of(made(weights=written(packed, tmp_path / "w.pt"))), state)


@pytest.mark.parametrize("name", ["cnn", "mobilenet_v3_small", "timm:test_resnet", "timm:test_vit"])
@pytest.mark.parametrize(("saved", "here"), [(0.0, 0.3), (0.3, 0.0), (0.3, 0.3)])
def test_dropout_before_the_head_makes_no_difference_to_a_file(
    tmp_path: Path, name: str, saved: float, here: float
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    shape = (3, 32, 32)
    source = build(name, num_classes=5, input_shape=shape, dropout=saved, seed=1)
    file = written(state_of(source), tmp_path / "w.safetensors")
    loaded = build(name, num_classes=5, input_shape=shape, dropout=here, weights=file)
    x = torch.randn(2, *shape)
    assert torch.equal(loaded.eval()(x), source.eval()(x))


def test_a_head_for_another_number_of_classes_starts_new_which_is_said(tmp_path: Path) -> None:
    file = written(state_of(made(classes=9, seed=1)), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=r"head.weight is \[9, 64\], here \[5, 64\]; the head of cnn starts new"):
        loaded = made(weights=file)
    fresh, source = made(), made(classes=9, seed=1)
    assert agree(state_of(loaded.head), state_of(fresh.head))  # type: ignore[arg-type]
    assert agree(state_of(loaded.features), state_of(source.features))  # type: ignore[arg-type]


def test_a_file_without_a_head_is_a_backbone(tmp_path: Path) -> None:
    state = {k: v for k, v in state_of(made(seed=1)).items() if not k.startswith("head.")}
    with pytest.warns(UserWarning, match="there is no head.bias; the head of cnn starts new"):
        loaded = made(weights=written(state, tmp_path / "w.safetensors"))
    assert agree(state_of(loaded.features), state_of(made(seed=1).features))  # type: ignore[arg-type]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("content_", "said"),
    [
        (b"", "cannot be read: it is damaged, or asks to run code"),
        (b"nonsense", "cannot be read: it is damaged, or asks to run code"),
        (pickle.dumps(Evil()), "cannot be read: it is damaged, or asks to run code"),
    ],
)
def test_a_file_that_is_damaged_or_asks_to_run_code_is_refused(tmp_path: Path, content_: bytes, said: str) -> None:
    for ending in ("pt", "pth", "safetensors"):
        file = tmp_path / f"w.{ending}"
        file.write_bytes(content_)
        with pytest.raises(DataError) as error:
            made(weights=str(file))
        assert said in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (Evil(), "asks to run code"),
        (nn.Linear(2, 2), "asks to run code"),
        ([torch.zeros(2)], "hold a list, expected tensors by name"),
        ({"a": torch.zeros(2), "b": 3}, "expected tensors by name, but 'b' is a int"),
        ({}, "expected tensors by name, but there is none"),
    ],
)
def test_a_file_of_anything_but_tensors_is_refused(tmp_path: Path, held: object, said: str) -> None:
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(DataError) as error:
        read_weights(tmp_path / "w.pt")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    for ending in ("pt", "safetensors"):
        file = tmp_path / f"w.{ending}"
        written(state_of(made()), file)
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DataError, match="it is damaged"):
            made(weights=str(file))


def test_weights_of_another_classifier_are_refused_with_what_differs(tmp_path: Path) -> None:
    file = written(state_of(made("mlp")), tmp_path / "w.pt")
    with pytest.raises(ConfigError) as error:
        made(weights=file)
    assert f"weights {file} do not fit cnn: " in str(error.value)
    assert "missing (features.0.0.weight, features.0.1.weight" in str(error.value)
    assert "4 left over (features.1.weight, features.1.bias)" in str(error.value)
    wide = written(state_of(build("cnn", num_classes=5, input_shape=(1, 16, 16))), tmp_path / "wide.pt")
    with pytest.raises(
        ConfigError, match=r"1 of another shape \(features.0.0.weight\); choose the classifier they are"
    ):
        made(weights=wide)


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        ("gone.pt", DataError, "weights gone.pt: there is no such file; correct train.weights"),
        ("./w.ckpt", ConfigError, "expected a file that ends in .safetensors, .pt, .pth"),
        ("IMAGENET1K_V1", ConfigError, "weights 'IMAGENET1K_V1' of cnn: no published weights are known of it"),
    ],
)
def test_weights_that_are_not_there_are_refused(weights: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        made(weights=weights)
    assert said in str(raised.value)


def test_a_name_is_no_file_unless_it_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_file("IMAGENET1K_V2")
    assert not is_file("ResNet50_Weights.IMAGENET1K_V2")
    assert not is_file("augreg_in21k_ft_in1k")
    assert is_file("w.pth")
    assert is_file("~/weights/best")
    monkeypatch.chdir(tmp_path)
    Path("plain").write_bytes(b"")
    assert is_file("plain")
    assert content("IMAGENET1K_V2") is content(None) is content("gone.pt") is None
    assert content("plain") is not None


# ---------------------------------------------------------------------------------------------- torchvision


def test_published_weights_of_torchvision_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    published = mobilenet_v3_small()
    torch.save(published.state_dict(), place / "mobilenet_v3_small-047dcff4.pth")
    for weights in ("DEFAULT", "IMAGENET1K_V1", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"):
        same = made("mobilenet_v3_small", classes=1000, weights=weights)
        assert agree(state_of(same), state_of(published))
    other = made("torchvision:mobilenet_v3_small", dropout=0.2, weights="DEFAULT")
    assert agree(state_of(other.features), state_of(published.features))  # type: ignore[arg-type]
    assert other(torch.randn(2, *SHAPE)).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"unknown weights of mobilenet_v3_small 'V3'. Known: DEFAULT, IMAGENET1K_V1"):
        made("mobilenet_v3_small", weights="V3")


def test_without_a_network_the_way_round_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import MobileNet_V3_Small_Weights

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("<urlopen error\nName or service not known>")

    monkeypatch.setattr(MobileNet_V3_Small_Weights, "get_state_dict", unreachable)
    with pytest.raises(ResourceError) as error:
        made("mobilenet_v3_small", weights="DEFAULT")
    assert str(error.value) == (
        "weights mobilenet_v3_small: DEFAULT cannot be fetched (<urlopen error Name or service not known>); "
        "fetch them by hand and set train.weights=FILE"
    )


def test_a_position_embedding_is_resized_as_torchvision_does() -> None:
    def vit(side: int) -> VisionTransformer:
        return VisionTransformer(side, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)

    old, new = vit(32), vit(16)
    nn.init.normal_(old.encoder.pos_embedding)
    state, _ = fitted(new, state_of(old), "weights", "vit")
    expected = interpolate_embeddings(16, 8, state_of(old))["encoder.pos_embedding"]  # type: ignore[arg-type]
    torch.testing.assert_close(state["encoder.pos_embedding"], expected)


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet152", "vit_b_16"])
def test_the_papers_classifiers_have_dropout_before_the_head_and_one_output_for_each_class(name: str) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=7, input_shape=(3, 224, 224), dropout=0.25)
    place, head = head_of(model)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 7
    before = model.get_submodule(place.rpartition(".")[0])[0]  # type: ignore[index]
    assert isinstance(before, nn.Dropout)
    assert before.p == 0.25
    assert name in registry.MODELS
    assert feature_width(model) == {"vgg16": 4096, "vit_b_16": 768}.get(name, 2048)


# ----------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(("name", "shape"), [("test_resnet", (3, 32, 32)), ("test_vit", (1, 48, 48))])
def test_any_classifier_of_timm_can_be_named(name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("timm")
    model = build(f"timm:{name}", num_classes=4, input_shape=shape, dropout=0.25).eval()
    assert model(torch.randn(2, *shape)).shape == (2, 4)
    place, _ = head_of(model)
    assert isinstance(model.get_submodule(place.rpartition(".")[0])[0], nn.Dropout)  # type: ignore[index]
    again = build(f"timm:{name}", num_classes=4, input_shape=shape, dropout=0.25)
    assert agree(state_of(model), state_of(again))


def test_what_timm_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="unknown model 'timm:test_resnett': did you mean timm:test_resnet"):
        made("timm:test_resnett")
    with pytest.raises(ConfigError, match="unknown weights 'v9' of timm:test_resnet. Known: r160_in1k"):
        made("timm:test_resnet", weights="v9")
    with pytest.raises(ConfigError, match="takes images"):
        build("timm:test_resnet", num_classes=2, input_shape=(5,))

    def unreachable(name: str, *, pretrained: bool, **_: object) -> None:
        assert pretrained
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ResourceError, match=r"cannot be fetched \(no network for test_resnet.r160_in1k\); fetch them"):
        made("timm:test_resnet", weights="r160_in1k")
    with pytest.raises(ResourceError, match=r"\(no network for test_resnet\)"):
        made("timm:test_resnet", weights="default")


def test_without_timm_its_installation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match="timm: models need timm, which is not installed; type: pip install timm"):
        made("timm:test_resnet")


# ------------------------------------------------------------------------------------------------- in a run


def test_a_run_starts_from_the_weights_of_another_and_says_which(tmp_path: Path) -> None:
    data = {"name": "digits", "scenario": "clean", "limit": 100}
    first = fit("erm", data=data, recipe={"epochs": 2}, out=tmp_path / "first")
    file = tmp_path / "first" / "model.safetensors"
    still = {"epochs": 1, "lr": 1e-12, "weights": str(file)}
    second = fit("erm", data=data, recipe=still, seed=0, out=tmp_path / "second")
    assert second.last["accuracy"] == first.last["accuracy"]
    said = second.settings
    assert said["weights"] == content(str(file))
    assert "weights" not in first.settings
    module = fit("erm", data=data, model=lambda: build("mlp", num_classes=10, input_shape=(1, 8, 8)), recipe=still)
    assert module.last["accuracy"] == first.last["accuracy"]


def test_the_papers_classifier_follows_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.paper_model("cifar100") == "wrn-28-10"
    assert registry.paper_model("imagenet-100") == "vgg16"
    assert registry.paper_model("pet") == "resnet152"
    assert registry.paper_model("camelyon") == "resnet50"
    assert set(registry.PAPER_MODELS) <= set(registry.DATASETS)
    assert set(registry.PAPER_MODELS.values()) <= set(registry.MODELS)
    monkeypatch.setitem(registry.PAPER_MODELS, "digits", "linear")  # type: ignore[arg-type]
    data = {"name": "digits", "scenario": "clean", "limit": 100}
    result = fit("erm", data=data, model="paper", recipe={"epochs": 1})
    assert result.settings["model"] == "linear"


@pytest.mark.parametrize("name", ["paper", "timm:anything", "torchvision:anything", "vgg16", "vit_b_16", "wrn-28-10"])
def test_names_of_classifiers_are_known_without_torch(name: str) -> None:
    check_model(name)


def test_nothing_is_warned_of_where_the_file_fits(tmp_path: Path) -> None:
    file = written(state_of(made()), tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(weights=file)
