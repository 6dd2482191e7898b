"""Ghost products against one autograd.grad per example, over architectures, shapes and ways to use a parameter."""

# pyright: basic

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from molere.errors import ConfigError
from molere.ghost import GhostRefusal, GhostTape

N = 3
Forward = Callable[[], Tensor]


# ---- the slow truth


def losses_of(out: Tensor) -> Tensor:
    """Per-example losses with a gradient that differs from output to output."""
    flat = out.flatten(1)
    return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).sin().square().sum(1)


def params_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def one_by_one(losses: Tensor, params: dict[str, Tensor], v: dict[str, Tensor]) -> Tensor:
    products: list[Tensor] = []
    for loss in losses:
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
        pairs = zip(params, grads, strict=True)
        products.append(sum(((v[k] * g).sum() for k, g in pairs if g is not None), torch.zeros((), dtype=loss.dtype)))
    return torch.stack(products)


def direction_for(params: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {k: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for k, p in params.items()}


def scattered(module: nn.Module, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """No parameter at 0 or 1, where mistakes hide; no running statistics of a fresh layer either."""
    module.to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
        for name, b in module.named_buffers():
            if b.is_floating_point():
                b.add_(torch.rand_like(b) if "var" in name else torch.randn_like(b))
    return module


def both(forward: Forward, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Ghost products and true ones, of two passes with the same random numbers."""
    v = direction_for(params)
    torch.manual_seed(1)
    with GhostTape(params) as tape:
        losses = forward()
    tape.verify(losses)
    products = tape.products(losses, v)
    torch.manual_seed(1)
    return products, one_by_one(forward(), params, v)


def assert_agree(module: nn.Module, *inputs: Tensor, read: Callable[[Any], Tensor] = lambda out: out) -> None:
    params = params_of(module)
    products, truth = both(lambda: losses_of(read(module(*inputs))), params)
    assert truth.norm() > 1e-6
    assert (products - truth).norm() <= 1e-10 * truth.norm()


def real(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


class Of(nn.Module):
    """A module made of a function, with the parameters and modules that it uses."""

    def __init__(self, function: Callable[..., Tensor], **members: Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, nn.Module):
                self.add_module(name, member)
            else:
                self.register_parameter(name, nn.Parameter(member))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


# ---- architectures


def residual(norm: Callable[[int], nn.Module]) -> nn.Module:
    def block(m: Any, x: Tensor) -> Tensor:
        return m.last(F.relu(x + m.norm2(m.conv2(F.relu_(m.norm1(m.conv1(x)))))))

    conv1, conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        Of(block, conv1=conv1, conv2=conv2, norm1=norm(4), norm2=norm(4), last=last),
    )


def vit() -> nn.Module:
    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), lambda: real(N, 4)),
    "linear": (lambda: nn.Linear(4, 3), lambda: real(N, 4)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="circular"),
            nn.Tanh(),
            nn.Conv2d(4, 3, 2, dilation=2, padding=1, bias=False),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
        lambda: real(N, 2, 7, 7),
    ),
    "series": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3),
            nn.InstanceNorm1d(4, affine=True),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Conv1d(4, 3, 1),
        ),
        lambda: real(N, 2, 8),
    ),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Conv3d(2, 1, 2)), lambda: real(N, 1, 4, 3, 3)),
    "residual": (lambda: residual(lambda c: nn.GroupNorm(2, c)), lambda: real(N, 2, 4, 4)),
    "batch norm": (lambda: residual(nn.BatchNorm2d).eval(), lambda: real(N, 2, 4, 4)),
    "vision transformer": (vit, lambda: real(N, 3, 8, 8)),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)], stochastic_depth_prob=0.5, num_classes=3),
        lambda: real(N, 3, 16, 16),
    ),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True),
        lambda: real(N, 5, 8),
    ),
    "decoder layer": (
        lambda: Of(
            lambda m, x: m.layer(x, x[:, :2].exp()), layer=nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        ),
        lambda: real(N, 5, 8),
    ),
    "rms norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), lambda: real(N, 2, 4)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_equal_a_gradient_per_example(name: str) -> None:
    build, inputs = ARCHITECTURES[name]
    module, x = build().double(), inputs()
    module(x)  # lazy layers take their shapes
    assert_agree(scattered(module), x)


def test_a_text_classifier_with_padding_agrees() -> None:
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 1, 0], [6, 6, 6, 6]])
    mean = Of(
        lambda m, ids: m.head(m.words(ids).mean(1)), words=nn.Embedding(7, 4, padding_idx=0), head=nn.Linear(4, 3)
    )
    assert_agree(scattered(mean), ids)
    last = nn.Sequential(nn.Embedding(7, 4, padding_idx=-1), nn.Tanh())
    assert_agree(scattered(last), ids)
    for mode in ("mean", "sum"):
        bag = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=0)
        assert_agree(scattered(nn.Sequential(bag, nn.ReLU(), nn.Linear(4, 2))), ids)


def test_a_language_model_with_positions_and_tied_weights_agrees() -> None:
    def forward(m: Any, ids: Tensor) -> Tensor:
        x = m.norm(m.words(ids) + m.places(torch.arange(ids.shape[1])))
        return F.linear(x, m.words.weight)

    model = Of(forward, words=nn.Embedding(7, 4), places=nn.Embedding(N, 4), norm=nn.LayerNorm(4))
    assert_agree(scattered(model), torch.randint(7, (N, N)))  # as many places as examples


def test_tied_layers_agree() -> None:
    inner = nn.Linear(4, 4)
    assert_agree(scattered(nn.Sequential(inner, nn.Tanh(), inner, nn.Tanh(), inner)), real(N, 4))


def test_attention_agrees_in_all_its_forms() -> None:
    x, other = real(N, 4, 8), real(N, 5, 6)
    forms: list[dict[str, Any]] = [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"dropout": 0.3},
    ]
    for options in forms:
        for need_weights in (False, True):
            layer = nn.MultiheadAttention(8, 2, batch_first=True, **options)

            def attend(m: Any, x: Tensor, need_weights: bool = need_weights) -> Tensor:
                return m.layer(x, x, x, need_weights=need_weights)[0]

            assert_agree(scattered(Of(attend, layer=layer)), x)
            assert_agree(scattered(nn.Sequential(nn.Linear(8, 8), Of(attend, layer=layer))), x)
    for options in forms[:3]:
        layer = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6, **options)
        cross = Of(lambda m, x, other: m.layer(x, other, other, need_weights=False)[0], layer=layer)
        assert_agree(scattered(cross), x, other)
    three = Of(lambda m, q, k, v: m.layer(q, k, v)[0], layer=nn.MultiheadAttention(8, 2, batch_first=True))
    assert_agree(scattered(three), x, real(N, 5, 8), real(N, 5, 8))
    weights = Of(lambda m, x: m.layer(x, x, x)[1], layer=nn.MultiheadAttention(8, 2, batch_first=True))
    assert_agree(scattered(weights), x)


@pytest.mark.parametrize("length", [N, 5])
def test_attention_along_sequences_agrees(length: int) -> None:
    layer = nn.MultiheadAttention(8, 2)
    model = Of(
        lambda m, x: m.layer(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1), layer=layer
    )
    assert_agree(scattered(model), real(N, length, 8))


def test_attention_with_a_learned_mask_is_refused() -> None:
    places = (torch.arange(2 * N)[:, None] - torch.arange(2 * N)).abs()  # twice as many as examples

    def attend(m: Any, x: Tensor) -> Tensor:
        return m.layer(x, x, x, attn_mask=m.table[places], need_weights=False)[0]

    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    module = Of(attend, layer=layer, table=torch.zeros(2 * N))
    assert "of getitem of table' is [1, " in refusal(module.double(), real(N, 2 * N, 8))


def test_attention_from_learned_queries_agrees() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    pool = Of(lambda m, x: m.layer(m.query.expand(len(x), -1, -1), x, x)[0], layer=layer, query=real(1, 2, 8))
    assert_agree(scattered(pool), real(N, 4, 8))


WAYS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "own linear": (lambda m, x: F.linear(x, weight=m.w, bias=m.b), (4, 4)),
    "matrix product": (lambda m, x: (x @ m.w + m.b).relu(), (4, 4)),
    "transposed": (lambda m, x: torch.matmul(x, m.w.T).mul(m.b).tanh(), (4, 4)),
    "mT": (lambda m, x: (x.sin() @ m.w.mT) * (1 + m.b), (4, 4)),
    "einsum": (lambda m, x: torch.einsum("nd,dc->nc", x, m.w).sin() / 2 - m.b, (4, 4)),
    "keywords": (lambda m, x: torch.add(x.sin(), other=m.w, alpha=2).tanh() * torch.add(m.b, other=3.0), (4,)),
    "sliced": (lambda m, x: F.linear(x[:, :2], m.w[:3, 1:3], m.b[1:]).sin(), (4, 4)),
    "split": (lambda m, x: F.linear(F.linear(x, m.w.chunk(2)[0]).tanh(), m.w.split(2, dim=1)[1]), (4, 4)),
    "masked": (lambda m, x: F.linear(x, m.w * torch.ones(4, 4, dtype=m.w.dtype).tril() / 3, m.b), (4, 4)),
    "scaled input": (lambda m, x: torch.cos(m.b * x + m.w), (4,)),
    "positions": (lambda m, x: F.gelu(x.view(-1, 2, 2) + m.w + m.b[:2]), (2, 2)),
    "in place": (lambda m, x: x.exp().add_(m.w).add_(m.b, alpha=-2).sin_(), (4,)),
    "augmented": (lambda m, x: _augmented(m, x), (4,)),
    "class token": (lambda m, x: torch.cat([m.w.expand(len(x), -1, -1), x[:, None].sin()], 1).tanh() + m.b, (1, 1, 4)),
    "repeated token": (lambda m, x: torch.cat([m.w.repeat(len(x), 1), x], 1).tanh(), (1, 4)),
    "from the left": (lambda m, x: 3.0 - m.w - x.cos() * (2 - m.b), (4,)),
    "gathered": (lambda m, x: x.sin() + m.w[torch.tensor([0, 2, 2, 1])], (3,)),
    "stacked": (lambda m, x: F.linear(x, torch.stack([m.w, m.b, m.w - m.b])).sin(), (4,)),
    "used by two": (lambda m, x: (h := F.linear(x, m.w)) + h.relu() * h.view(-1, 4) + h.detach(), (4, 4)),
    "gated": (lambda m, x: F.linear(x, m.w) * F.linear(x, m.w.t(), m.b), (4, 4)),
    "centred": (lambda m, x: (h := F.linear(x, m.w, m.b)) - h.mean(1, keepdim=True) + m.b, (4, 4)),
    "norm without weight": (lambda m, x: F.layer_norm(F.linear(x, m.w), (4,), None, m.b), (4, 4)),
    "without gradients": (lambda m, x: F.linear(x, m.w) * _unseen(m.b), (4, 4)),
    "detached": (lambda m, x: F.linear(x, m.w) * F.softplus(m.b.detach()), (4, 4)),
    "one number": (lambda m, x: (x.sum(1) * m.w[0, 0] + m.b[0]).sin()[:, None], (4, 4)),
}


@torch.no_grad()
def _unseen(b: Tensor) -> Tensor:
    return b.view(2, 2).flatten() + b.exp()


def _augmented(m: Any, x: Tensor) -> Tensor:
    x = x.sin()
    x += m.w
    return x * m.b


@pytest.mark.parametrize("way", WAYS)
def test_a_module_with_calls_of_its_own_agrees(way: str) -> None:
    function, shape = WAYS[way]
    assert_agree(Of(function, w=real(*shape), b=real(4)), real(N, 4))


def test_parts_changed_in_place_later_do_not_disturb() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        first = m.first(x)
        flat = first.view(N, -1)
        flat.relu_()
        second = m.second(first)
        return second.mul_(2).tanh_()

    assert_agree(scattered(Of(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4))), real(N, 4))


def test_checkpoints_that_keep_their_graph_agree() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert_agree(scattered(Of(lambda m, x: checkpoint(m.block, x, use_reentrant=False), block=block)), real(N, 4))


def test_frozen_parameters_and_inputs_with_gradients_agree() -> None:
    model = scattered(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(16)))
    for name in ("0.weight", "1.bias", "3.weight"):
        model.get_parameter(name).requires_grad_(False)
    x = real(N, 2, 4, 4).requires_grad_()
    params = {k: p for k, p in params_of(model).items() if p.requires_grad}
    products, truth = both(lambda: losses_of(model(x)), params)
    assert torch.allclose(products, truth, rtol=1e-10, atol=0)
    everything = params_of(model)  # the frozen ones may be given, too
    with GhostTape(everything) as tape:
        losses = losses_of(model(x))
    assert torch.equal(tape.products(losses, everything | direction_for(params)), products)


def test_parameters_given_from_outside_agree() -> None:
    model = scattered(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    theta = {k: torch.randn_like(p).requires_grad_() for k, p in params_of(model).items()}
    x = real(N, 4)
    products, truth = both(lambda: losses_of(functional_call(model, theta, (x,))), theta)
    assert torch.allclose(products, truth, rtol=1e-10, atol=0)


# ---- drawn shapes

few = settings(max_examples=25)
sizes = st.integers(1, 4)


@few
@given(inner=st.lists(sizes, max_size=2), fan_in=sizes, fan_out=sizes, n=sizes, bias=st.booleans())
def test_linear_layers_of_any_shape_agree(inner: list[int], fan_in: int, fan_out: int, n: int, bias: bool) -> None:
    model = nn.Sequential(nn.Linear(fan_in, fan_out, bias=bias), nn.Sigmoid(), nn.Linear(fan_out, 2))
    assert_agree(scattered(model), real(n, *inner, fan_in))


@few
@given(data=st.data(), n=sizes, groups=st.integers(1, 2), dims=st.integers(1, 3), bias=st.booleans())
def test_convolutions_of_any_shape_agree(data: st.DataObject, n: int, groups: int, dims: int, bias: bool) -> None:
    kernel, stride, padding, dilation = (data.draw(st.tuples(*[st.integers(low, 2)] * dims)) for low in (1, 1, 0, 1))
    widths = data.draw(st.tuples(sizes, sizes))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    mode: Any = data.draw(st.sampled_from(["zeros", "replicate"]))
    first = conv(
        groups * widths[0], groups * widths[1], kernel, stride, padding, dilation, groups, bias, padding_mode=mode
    )
    model = nn.Sequential(first, nn.Tanh(), conv(groups * widths[1], 2, 1))
    assert_agree(scattered(model), real(n, groups * widths[0], *[4] * dims))


@few
@given(rows=st.integers(2, 5), width=sizes, n=sizes, length=sizes, padding=st.booleans())
def test_embeddings_of_any_shape_agree(rows: int, width: int, n: int, length: int, padding: bool) -> None:
    model = nn.Sequential(nn.Embedding(rows, width, padding_idx=rows - 1 if padding else None), nn.Linear(width, 2))
    ids = torch.randint(rows, (n, length))
    ids[:, 0] = 0  # something that is not padding
    assert_agree(scattered(model), ids)


@few
@given(data=st.data(), n=sizes, groups=st.integers(1, 2), width=st.integers(1, 2), side=st.integers(2, 3))
def test_norms_of_any_shape_agree(data: st.DataObject, n: int, groups: int, width: int, side: int) -> None:
    c = groups * width
    norm = data.draw(
        st.sampled_from(
            [
                nn.GroupNorm(groups, c),
                nn.LayerNorm([side, side]),
                nn.LayerNorm([c, side, side], bias=False),
                nn.RMSNorm(side),
                nn.InstanceNorm2d(c, affine=True),
                nn.BatchNorm2d(c).eval(),
            ]
        )
    )
    assert_agree(scattered(nn.Sequential(nn.Conv2d(1, c, 1), norm, nn.Conv2d(c, 1, 1))), real(n, 1, side, side))


# ---- precision


def test_float32_is_accurate_and_channels_last_agrees() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        model = scattered(residual(lambda c: nn.GroupNorm(2, c)), dtype=torch.float32).to(memory_format=layout)
        x = real(N, 2, 4, 4, dtype=torch.float32).to(memory_format=layout)
        products, truth = both(lambda m=model, x=x: losses_of(m(x)), params_of(model))
        assert products.dtype == torch.float32
        assert (products - truth).norm() <= 1e-5 * truth.norm()


def test_mixed_precision_products_have_its_rounding_only() -> None:
    torch.manual_seed(2)
    model = scattered(vit(), dtype=torch.float32)
    x = real(N, 3, 8, 8, dtype=torch.float32)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        return losses_of(out.float())

    params = params_of(model)
    products, truth = both(forward, params)
    assert products.dtype == torch.float32
    assert (products - truth).norm() <= 0.02 * truth.norm()


# ---- refusals


def refusal(module: nn.Module, *inputs: Tensor, read: Callable[[Any], Tensor] = lambda out: out) -> str:
    params = params_of(module)
    with GhostTape(params) as tape:
        losses = losses_of(read(module(*inputs)))
    with pytest.raises(GhostRefusal) as caught:
        tape.products(losses, direction_for(params))
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_batch_norm_in_train_mode_is_refused() -> None:
    assert "BatchNorm in train mode mixes" in refusal(residual(nn.BatchNorm2d).double(), real(N, 2, 4, 4))
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)).double()
    assert "BatchNorm in train mode mixes" in refusal(plain, real(N, 4))
    stateless = nn.BatchNorm1d(4, track_running_stats=False).double().eval()
    assert "'1.weight' enters batch_norm" in refusal(nn.Sequential(nn.Linear(4, 4).double(), stateless), real(N, 4))


def test_unsupported_modules_are_refused_by_parameter_and_function() -> None:
    weight_norm = parametrizations.weight_norm(nn.Linear(4, 4)).double()
    assert "'parametrizations.weight.original1' enters weight_norm" in refusal(weight_norm, real(N, 4))
    spectral = parametrizations.spectral_norm(nn.Linear(4, N)).double()  # as many outputs as examples
    assert "'mv of parametrizations.weight.original' enters vdot" in refusal(spectral, real(N, 4))
    lstm = nn.LSTM(4, 4, batch_first=True).double()
    assert "'weight_ih_l0' enters lstm" in refusal(lstm, real(N, 2, 4), read=lambda out: out[0])
    bilinear = nn.Bilinear(4, 4, 2).double()
    assert "'weight' enters bilinear" in refusal(bilinear, real(N, 4), real(N, 4))
    transposed = nn.ConvTranspose1d(2, 2, 1).double()
    assert "'weight' enters conv_transpose1d" in refusal(transposed, real(N, 2, 4))
    bag = nn.Sequential(nn.EmbeddingBag(5, 4, mode="max")).double()
    assert "mode 'max'" in refusal(bag, torch.randint(5, (N, 2)))
    scaled = nn.Embedding(5, 4, scale_grad_by_freq=True).double()
    assert "scale_grad_by_freq" in refusal(scaled, torch.randint(5, (N, 2)))
    tracking = nn.Sequential(nn.Conv1d(2, 2, 1), nn.InstanceNorm1d(2, affine=True, track_running_stats=True)).double()
    assert "'1.weight' enters instance_norm" in refusal(tracking, real(N, 2, 4))
    alone = Of(lambda m, x: m.layer(x, x, x)[0], layer=nn.MultiheadAttention(4, 2)).double()
    assert "enters multi_head_attention_forward" in refusal(alone, real(N, 4))


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] * w, (grads[0] * x).sum(0)


def _written_into(m: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = m.w
    return x


def _zeroed_part(m: Any, x: Tensor) -> Tensor:
    w = m.w.clone()
    w[1].zero_()
    return F.linear(x, w)


REFUSED: dict[str, tuple[Callable[..., Tensor], Tensor, str]] = {
    "function of a parameter": (lambda m, x: x * F.softplus(m.w), torch.ones(4), "'w' enters softplus"),
    "square": (lambda m, x: x + m.w * m.w, torch.ones(4), "'w' enters mul: it is not linear"),
    "divisor": (lambda m, x: x / m.w, torch.ones(4), "'w' enters div"),
    "product of a part": (lambda m, x: x * m.w[0] * (m.w[1] * m.w[0]), torch.ones(4), "'getitem of w' enters mul"),
    "penalty": (lambda m, x: F.linear(x, m.w) + m.w.square().sum(), torch.ones(4, 4), "'w' enters square"),
    "parameter as input": (lambda m, x: x + F.linear(m.w, m.w).sum(0), torch.ones(4, 4), "'w' enters linear"),
    "hidden call": (lambda m, x: _Hidden.apply(x, m.w), torch.ones(4), "'w' is used where no function of torch shows"),
    "written into": (_written_into, torch.ones(()), "'w' is used where no function"),
    "part changed": (_zeroed_part, torch.ones(4, 4), "'clone of w' is used where no function"),
    "reentrant checkpoint": (
        lambda m, x: checkpoint(lambda x: F.linear(x, m.w), x.requires_grad_(), use_reentrant=True),
        torch.ones(4, 4),
        "reentrant checkpoint",
    ),
    "sequence first": (
        lambda m, x: F.linear(x.t(), m.w).sin().t(),
        torch.ones(N, N),
        "'linear of w' is [4, 3], expected one row for each of the 3 losses",
    ),
    "scaled by activations": (
        lambda m, x: F.linear(x, m.w / F.linear(x, m.w).exp().norm()),
        torch.ones(N, 4),
        "'div of w' is [3, 4]",
    ),
    "folded": (lambda m, x: F.linear(x.view(-1, 2), m.w).sin().view(N, 4), torch.ones(2, 2), "'linear of w' is [6, 2]"),
    "parameter as long as a batch": (lambda m, x: x * m.w.exp(), torch.ones(N, 1), "'w' enters exp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_linear_or_not_seen_is_refused(case: str) -> None:
    function, w, reason = REFUSED[case]
    assert reason in refusal(Of(function, w=w.double()), real(N, 4))


def test_a_refusal_waits_until_the_losses_depend_on_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.penalty = m.w.square().sum()
        return F.linear(x, m.w)

    assert_agree(Of(forward, w=real(4, 4)), real(N, 4))


def test_an_input_changed_after_the_pass_is_refused() -> None:
    model, x = nn.Linear(4, 3).double(), real(N, 4)
    with GhostTape(params_of(model)) as tape:
        losses = losses_of(model(x))
    x.zero_()
    with pytest.raises(GhostRefusal, match="'linear of weight' was changed in place"):
        tape.products(losses, direction_for(params_of(model)))


def test_verifying_finds_mixed_examples_and_sequences_as_long_as_the_batch() -> None:
    centred = Of(lambda m, x: (h := m.layer(x).sin()) - h.mean(0), layer=nn.Linear(4, 3))
    sequence = Of(lambda m, x: m.layer(x.transpose(0, 1)).sin().transpose(0, 1), layer=nn.Linear(4, 3))
    attending = Of(lambda m, x: m.layer(x)[:, 0], layer=nn.TransformerEncoderLayer(4, 2, 8))
    for model, x in ((centred, real(N, 4)), (sequence, real(N, N, 4)), (attending, real(N, N, 4))):
        with GhostTape(params_of(scattered(model))) as tape:
            losses = losses_of(model(x))
        with pytest.raises(GhostRefusal, match="examples are mixed, or not along dimension 0"):
            tape.verify(losses)


# ---- conduct


def test_nothing_is_changed_but_the_tape() -> None:
    model = scattered(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
    )
    params, x = params_of(model), real(N, 4)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    params["0.weight"].grad = torch.ones(4, 4, dtype=torch.float64)
    v = direction_for(params)
    with GhostTape(params) as tape:
        losses = losses_of(model(x))
    state = torch.get_rng_state()
    tape.products(losses, v)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert params["0.weight"].grad.eq(1).all()
    assert all(p.grad is None for k, p in params.items() if k != "0.weight")


def test_recording_changes_no_loss() -> None:
    model, x = scattered(vit()), real(N, 3, 8, 8)
    with GhostTape(params_of(model)):
        recorded = model(x)
    assert torch.equal(recorded, model(x))


def test_a_pullback_outlives_a_step_of_the_optimiser() -> None:
    model, x = scattered(residual(lambda c: nn.GroupNorm(2, c))), real(N, 2, 4, 4)
    params = params_of(model)
    v, optimizer = direction_for(params), torch.optim.SGD(model.parameters(), 0.1)
    truth = one_by_one(losses_of(model(x)), params, v)
    with GhostTape(params) as tape:
        losses = losses_of(model(x))
    pullback = tape.pullback(losses, retain_graph=True)
    losses.mean().backward()
    optimizer.step()
    assert torch.allclose(pullback(v), truth, rtol=1e-10, atol=0)
    assert torch.allclose(pullback({k: 2 * t for k, t in v.items()}), 2 * truth, rtol=1e-10, atol=0)


def test_products_may_follow_the_callers_own_backward_pass() -> None:
    model, x = scattered(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), real(N, 4)
    params = params_of(model)
    v = direction_for(params)
    with GhostTape(params) as tape:
        losses = losses_of(model(x))
    losses.mean().backward(retain_graph=True)
    assert torch.allclose(tape.products(losses, v), one_by_one(losses_of(model(x)), params, v), rtol=1e-10, atol=0)


def test_losses_without_a_path_to_a_parameter_give_zeros() -> None:
    model, x = nn.Linear(4, 3), real(N, 4)
    params = params_of(model)
    with GhostTape(params) as tape:
        losses = x.sum(1)
    assert torch.equal(tape.products(losses, direction_for(params)), torch.zeros(N))
    with GhostTape({}) as tape:
        losses = losses_of(model.double()(x))
    assert torch.equal(tape.products(losses, {}), torch.zeros(N))
