"""Named classifiers, the head rule and the shallow rule of molere.models."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, get_model

from molere.errors import ConfigError
from molere.models import build, feature_width, head_of, is_shallow, replace_head

IMAGE_MODELS = ("mlp", "linear", "cnn", "resnet20", "resnet32", "wrn-16-2", "wrn-10-1")


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def head_input(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = head_of(model)[1].register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    model(x)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def tiny_vit() -> VisionTransformer:
    return VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5)


# ---- building


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (4, 13, 10)])
def test_every_small_model_takes_any_image_and_ends_in_its_head(name: str, shape: tuple[int, ...]):
    model = build(name, num_classes=7, input_shape=shape, dropout=0.5).eval()
    x = torch.randn(2, *shape)
    features = model.features(x)
    assert features.shape == (2, feature_width(model))
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), model.head(features))
    torch.testing.assert_close(head_input(model, x), features)


@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_tables_are_taken_by_mlp_and_linear(name: str):
    assert build(name, num_classes=2, input_shape=(5,))(torch.randn(3, 5)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    # He et al. 2016, table 6: 0.27M, 0.46M. Zagoruyko and Komodakis 2016: 36.5M for WRN-28-10.
    [
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("wrn-16-2", 10, 691_674),
        ("wrn-16-4", 10, 2_748_890),
        ("wrn-28-2", 10, 1_467_610),
        ("wrn-28-10", 10, 36_479_194),
        ("wrn-28-10", 100, 36_536_884),
    ],
)
def test_published_networks_have_their_published_number_of_parameters(name: str, classes: int, parameters: int):
    with torch.device("meta"):
        model = build(name, num_classes=classes, input_shape=(3, 32, 32))
    assert count(model) == parameters


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "wrn-10-1", "mobilenet_v3_small"])
def test_the_seed_alone_decides_the_initial_parameters(name: str):
    def state(seed: int) -> torch.Tensor:
        model = build(name, num_classes=3, input_shape=(3, 16, 16), seed=seed)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = state(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, state(0))
    assert not torch.equal(first, state(1))


def test_training_reaches_every_parameter():
    for name in IMAGE_MODELS:
        model = build(name, num_classes=3, input_shape=(1, 8, 8))
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), name


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # from torch itself, at the first use
def test_small_models_support_forward_mode():
    for name in IMAGE_MODELS:
        model = build(name, num_classes=3, input_shape=(1, 8, 8)).double().eval()
        x, tangent = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64).unbind()
        _, slope = torch.func.jvp(model, (x,), (tangent,))
        step = 1e-7  # small, so that hardly any ReLU has its kink within it
        expected = (model(x + step * tangent) - model(x - step * tangent)) / (2 * step)
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_option_a_shortcut_keeps_every_second_pixel_and_pads_channels_with_zeros():
    model = build("resnet20", num_classes=3, input_shape=(3, 8, 8)).eval()
    block = model.features[4]  # the first of the second stage: 16 to 32 channels, stride 2
    for p in block.parameters():
        nn.init.zeros_(p)
    x = torch.rand(1, 16, 8, 8)
    expected = torch.zeros(1, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_dropout_acts_on_the_features_only_while_training():
    model = build("mlp", num_classes=3, input_shape=(6,), dropout=0.5)
    x = torch.randn(50, 6)
    assert (head_input(model, x) == 0).sum() > (model.features(x) == 0).sum()
    assert torch.equal(head_input(model.eval(), x), model.features(x))


# ---- torchvision


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_classifiers_are_built_by_their_name(name: str):
    model = build(name, num_classes=4, input_shape=(3, 32, 32)).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    assert head_input(model, torch.randn(2, 3, 32, 32)).shape == (2, feature_width(model))


def test_dropout_goes_right_before_the_head_of_a_torchvision_model():
    plain = build("shufflenet_v2_x0_5", num_classes=4, input_shape=(3, 32, 32))
    model = build("shufflenet_v2_x0_5", num_classes=4, input_shape=(3, 32, 32), dropout=0.9)
    assert head_of(plain)[0] == "fc"
    assert head_of(model)[0] == "fc.1"
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert (head_input(model, torch.randn(4, 3, 32, 32)) == 0).float().mean() > 0.8


def test_a_vision_transformer_takes_the_size_of_the_images():
    with torch.device("meta"):
        model = build("vit_b_16", num_classes=4, input_shape=(3, 32, 32))
    assert model.encoder.pos_embedding.shape[1] == 1 + 4


# ---- refusals


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "resnet18",
            (1, 28, 28),
            "resnet18 takes 3 channels, not 1: use cnn, resnet20 or wrn-16-2, which take any",
        ),
        ("cnn", (64,), "cnn takes images (channels, height, width), not shape (64,): use mlp or linear"),
        ("resnt20", (3, 32, 32), "unknown model 'resnt20': did you mean 'resnet20'?"),
        ("mobilenet_v3", (3, 32, 32), "unknown model 'mobilenet_v3': did you mean 'mobilenet_v2'?"),
        ("wrn-17-2", (3, 32, 32), "wrn-17-2: the depth must be 6n+4 (10, 16, 22, 28, 40)"),
        ("wrn-4-2", (3, 32, 32), "wrn-4-2: the depth must be 6n+4"),
        ("zzzz", (3, 32, 32), "unknown model 'zzzz': use mlp, linear, cnn, resnet20"),
        ("vit_b_16", (3, 30, 30), "vit_b_16 cannot be built for images of shape (3, 30, 30)"),
        (
            "vit_b_16",
            (3, 32, 16),
            "vit_b_16 cannot be built for images of shape (3, 32, 16): they must be square",
        ),
        ("squeezenet1_0", (3, 32, 32), "SqueezeNet has no nn.Linear layer to take as its head"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name: str, shape: tuple[int, ...], message: str):
    with pytest.raises(ConfigError) as caught:
        build(name, num_classes=3, input_shape=shape, dropout=0.1)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_outside_its_range_is_refused(dropout: float):
    with pytest.raises(ConfigError, match=r"outside \[0, 1\)"):
        build("mlp", num_classes=3, input_shape=(4,), dropout=dropout)


# ---- the head rule


class WithHead(nn.Module):
    """`head` is registered first, and another Linear layer after it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
        self.features = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight


class EndsInAttention(nn.Module):
    """The output projection of the attention is registered last but never called as a layer."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("model", "name", "width"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.LogSoftmax(1)), "2", 5),
        (nn.Linear(6, 3), "", 6),
        (WithHead(), "head", 4),
        (EndsInAttention(), "classify", 4),
        (tiny_vit(), "heads.head", 8),
        (get_model("resnet18", weights=None), "fc", 512),
        (get_model("mobilenet_v3_small", weights=None), "classifier.3", 1024),
        (get_model("swin_t", weights=None), "head", 768),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_head_is_found_by_the_rule(model: nn.Module, name: str, width: int):
    assert head_of(model) == (name, model.get_submodule(name))
    assert feature_width(model) == width


def test_the_penultimate_feature_of_a_transformer_is_the_class_token():
    assert head_input(tiny_vit(), torch.randn(2, 3, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 1), nn.ReLU(), Tied()], ids=["conv", "none", "tied"])
def test_a_model_without_a_plain_head_is_told_what_to_add(model: nn.Module):
    with pytest.raises(ConfigError, match=r"^\w+ .*: give it `features` \(x to \[n, d\]\) and `head` \(nn.Linear\)$"):
        head_of(model)


def test_a_linear_layer_used_twice_is_no_head():
    layer = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="shares the weight"):
        head_of(nn.Sequential(layer, nn.ReLU(), layer))


def test_a_head_without_a_linear_layer_has_no_known_width():
    model = nn.Module()
    model.features, model.head = nn.Identity(), nn.LazyBatchNorm1d()
    with pytest.raises(ConfigError, match="feature width is unknown"):
        feature_width(model)


def test_replacing_the_head_changes_nothing_else():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(2, 6)
    features = head_input(model, x)
    assert torch.equal(replace_head(model, nn.Identity())(x), features)
    head = nn.Identity()
    assert replace_head(nn.Linear(6, 3), head) is head


# ---- shallow or deep


def frozen_backbone() -> nn.Module:
    model = build("cnn", num_classes=3, input_shape=(1, 8, 8))
    model.features.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "shallow"),
    [
        (build("linear", num_classes=3, input_shape=(4,)), True),
        (build("mlp", num_classes=3, input_shape=(4,)), True),
        (nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), False),
        (build("cnn", num_classes=3, input_shape=(1, 8, 8)), False),
        (frozen_backbone(), True),
        (nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 2)), False),
        (nn.Sequential(nn.GRUCell(4, 4), nn.Linear(4, 2)), False),
        (nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 2)), False),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.Linear(4, 2)), False),
        (tiny_vit(), False),
    ],
)
def test_shallow_means_few_trained_linear_layers_and_no_deep_ones(model: nn.Module, shallow: bool):
    assert is_shallow(model) is shallow
