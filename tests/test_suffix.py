"""Meta-gradients through the last blocks: what is cut, what is not run again, and that the products are exact."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig

from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.method import Run
from molere.methods.erm import ERM
from molere.models import build
from molere.opening import Setup, open_run
from molere.recipe import Recipe
from molere.split import Split
from molere.suffix import Suffix


def _vit() -> nn.Module:
    model = zoo.VisionTransformer(
        image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3, dropout=0.1
    )
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


def _convnext() -> nn.Module:
    stages = [CNBlockConfig(4, 8, 2), CNBlockConfig(8, None, 2)]
    return zoo.ConvNeXt(stages, layer_scale=0.5, num_classes=3, stochastic_depth_prob=0.0)


class _Unet(nn.Module):
    """The stem's output enters the last block again, past the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.full((), 1.5))  # of no block, used after the cut

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        b = F.relu(self.middle(a))
        return self.head(self.scale * self.last(torch.cat([a, b], 1)).mean((2, 3)))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(192, 192), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.body(x.flatten(1)))))


MODELS: dict[str, tuple[Callable[[], nn.Module], float, str]] = {  # share, first parameter after the cut
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(),
                                  nn.Linear(6, 3)), 0.66, "3.weight"),
    "head": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 3)), 0.01, "3.weight"),
    "resnet20": (lambda: build("resnet20", num_classes=3, input_shape=(3, 8, 8)), 0.5, ""),
    "vit": (_vit, 0.6, "encoder.layers.encoder_layer_1.ln_1.weight"),
    "convnext": (_convnext, 0.5, ""),
    "unet": (_Unet, 0.5, "last.weight"),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def _model(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name][0]().to(dtype)


def _x(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_cut_lies_between_blocks_and_everything_after_it_is_named(name: str) -> None:
    model, (_, share, first) = _model(name), MODELS[name]
    suffix = Suffix(model, _x(2), share)
    names = [k for k, _ in model.named_parameters()]
    assert suffix.names
    assert not first or suffix.names[0] == first
    after = names[names.index(suffix.names[0]) :]
    assert suffix.names == after
    assert all(m.training for m in model.modules())


def test_a_replayed_pass_gives_the_same_logits_and_runs_nothing_before_the_cut(name: str) -> None:
    model = _model(name).eval()
    suffix, x = Suffix(model, _x(2), MODELS[name][1]), _x()
    with suffix.record() as recorded:
        logits = model(x)
    ran: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda m, *_, path=path: ran.append(path) if not list(m.children()) else None)
    with suffix.replay(recorded), torch.no_grad():
        torch.testing.assert_close(model(torch.zeros_like(x)), logits)  # attention has another kernel without gradients
    owners = {k.rpartition(".")[0] for k, _ in model.named_parameters() if k not in suffix.names} - {""}
    assert "forward" not in {k for m in model.modules() for k in vars(m)}
    with suffix.replay(recorded):
        for p in (p for k, p in model.named_parameters() if k not in suffix.names and "." in k):
            p.data.fill_(torch.nan)
        if owners:
            assert torch.equal(model(x), logits)


def test_a_whole_share_cuts_nothing_off() -> None:
    model = _model("mlp")
    assert Suffix(model, _x(2), 1.0).names == [k for k, _ in model.named_parameters()]


def test_a_block_that_runs_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="^body runs more than once in a pass, so there is no cut"):
        Suffix(_Twice(), _x(2).float(), 0.5)


def test_a_module_without_blocks_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(192, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    with pytest.raises(ConfigError, match="^Bare has no blocks to cut between"):
        Suffix(Bare(), _x(2).float(), 0.5)


# ---- through a run


def _run(name: str, **recipe: Any) -> Run:
    x, y = _x(24).float(), torch.arange(24) % 3
    data = Data("toy", TensorPool(x, y), None, {"test": TensorPool(x, y)})
    share = MODELS[name][1]
    given = {"epochs": 4, "batch_size": 6, "lr": 0.05, "precision": "float64", "meta_share": share, **recipe}
    setup = Setup(
        ERM(), data, lambda: _model(name, torch.float32), "own", Recipe(**given), 0, "toy", torch.device("cpu")
    )
    run = open_run(setup, lambda run, *, on, epochs, method: torch.empty(0, 0))
    run.use(Split(torch.arange(15), torch.arange(15, 24)), at=0)
    run.update(run.forward(run.train_batch()))
    run.updates += 1
    return run


def _truth(run: Run, model: nn.Module, seen: Any, look: Any, names: list[str]) -> Tensor:
    """- lr/n < grad L_val(theta'), grad l_i(theta) > over the named parameters, example by example."""
    ahead = run.classifier.model
    with run.classifier.at(None, stream=_stream(run)):
        loss = F.cross_entropy(ahead(look.batch.x.double()), look.batch.y)
    v = torch.autograd.grad(loss, [dict(ahead.named_parameters())[k] for k in names])
    torch.manual_seed(seen.stream)
    losses = F.cross_entropy(model(seen.batch.x.double()), seen.batch.y, reduction="none")
    leaves = [dict(model.named_parameters())[k] for k in names]
    each = [torch.autograd.grad(one, leaves, retain_graph=True) for one in losses]
    dots = [sum(float((a * b).sum()) for a, b in zip(v, g, strict=True)) for g in each]
    return -run.classifier.optimizer.param_groups[0]["lr"] * torch.tensor(dots, dtype=torch.float64) / len(losses)


def _stream(run: Run) -> int:
    from molere import rng

    return rng.key(run.seed, "dropout-validation", run.updates)


@pytest.mark.parametrize("estimator", ["exact", "central"])
def test_the_products_are_those_of_the_parameters_after_the_cut(name: str, estimator: str) -> None:
    run = _run(name, estimator=estimator, momentum=0.0, weight_decay=0.0)
    before = copy.deepcopy(run.classifier.model)
    for module in before.modules():
        module._forward_pre_hooks.clear()
    seen = run.forward(run.train_batch())
    taken = run.update(seen, torch.rand(6, dtype=torch.float64) + 0.5, remember=True)
    look = run.look_back(taken)
    names = Suffix(before, _x(2), MODELS[name][1]).names
    assert list(look.direction) == names
    truth = _truth(run, before, seen, look, names)
    found = run.weight_gradient(look)
    tolerance = 1e-9 if estimator == "exact" else 1e-3
    assert float((found - truth).norm() / truth.norm()) < tolerance
