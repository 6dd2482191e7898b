"""A loop of one's own with a Reweighter trains as `fit` does, and is disturbed by it in nothing else."""

import copy
import gc
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from molere import Recipe, Reweighter, registry
from molere.data.pool import TensorPool
from molere.errors import ConfigError, DataError, MolereError, NumericsError
from molere.run import fit
from molere.testing import rare_region

EPOCHS, BATCH = 3, 16
DATA = rare_region()
POOL = DATA.train
BY_WEIGHTS = ["erm", "mwn[q=3]", "lrw-random", "lrw-hard@paper", "bilaw", "l2r", "lrwopt", "molere", "maple", "cvar",
              "mbr[margins=present]", "stablenet", "jtt", "fsr"]  # fmt: skip
SPECIAL = [
    "lrwopt@paper", "lrwopt[resplit_every=4]", "molere[mode=learned]", "jtt[mode=weight]", "l2r[last_layer_only=true]",
    "fsr[mixup=true,pseudo=2.0]", "maple[form=full,iterations=2,steps=4]",
]  # fmt: skip
QUICK = {"gdw", "mwn", "lrw-hard", "lrwopt", "fsr[mixup=true,pseudo=2.0]", "upweight"}
BY_LOSS = [
    pytest.param(m, marks=() if m in QUICK else pytest.mark.slow)
    for m in (*registry.METHODS, *SPECIAL)
    if m != "rho-loss"
]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 2)).double()


def fitted(method: str, model: nn.Module, **settings: Any) -> Any:
    given = {"epochs": EPOCHS, "batch_size": BATCH, "scheduler": "constant", "precision": "float64", "device": "cpu"}
    return fit(method, data=DATA, model=model, recipe=Recipe(**{**given, **settings}))


def weigher(method: str, model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> Reweighter:
    given = {"data": POOL, "epochs": EPOCHS, "batch_size": BATCH, "recipe": {"scheduler": "constant"}}
    return Reweighter(method, model, optimizer, **{**given, **settings})


Loss = Callable[[Reweighter, nn.Module, Tensor, Tensor, Tensor], Tensor]


def by_weights(weigh: Reweighter, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    return (weigh(x, y, index=index) * F.cross_entropy(model(x), y, reduction="none")).mean()


def by_selection(weigh: Reweighter, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    places, w = weigh.select(x, y, index=index)
    return (w * F.cross_entropy(model(x[places]), y[places], reduction="none")).mean()


def by_loss(weigh: Reweighter, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    return weigh.loss(x, y, index=index)


def turns(
    weigh: Reweighter, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, clip: Any = None
) -> Iterator[int]:
    """The loop of a stranger, update by update."""
    model.train()
    for _ in range(EPOCHS):
        for index in map(torch.tensor, weigh.batches):
            batch = POOL.batch(index)
            optimizer.zero_grad()
            loss(weigh, model, batch.x.double(), batch.y, index).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            yield 1


def assert_same(model: nn.Module, result: Any, tolerance: float = 1e-7) -> None:
    for name, value in result.classifier.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=tolerance)


# ---- the same as fit


@pytest.mark.parametrize("method", BY_WEIGHTS)
def test_a_loop_with_weights_ends_where_fit_ends(method: str) -> None:
    model = plain()
    expected = fitted(method, model)
    optimizer = sgd(model)
    weigh = weigher(method, model, optimizer)
    assert sum(turns(weigh, model, optimizer, by_weights)) == EPOCHS * (len(POOL) // BATCH)
    assert_same(model, expected)
    torch.testing.assert_close(weigh.weights, expected.weights, atol=1e-6, rtol=0, equal_nan=True)
    assert [row["train_loss"] for row in weigh.history] == pytest.approx([r["train_loss"] for r in expected.history])


@pytest.mark.parametrize("method", BY_LOSS)
def test_a_loop_with_its_loss_ends_where_fit_ends_masks_and_running_statistics_included(method: str) -> None:
    model = noisy()
    expected = fitted(method, model)
    optimizer = sgd(model)
    sum(turns(weigher(method, model, optimizer), model, optimizer, by_loss))
    assert_same(model, expected)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimiser_looks_ahead_by_its_own_step(kind: type[torch.optim.Optimizer]) -> None:
    model = plain()
    expected = fitted("lrw-random[q=1]", model, optimizer=lambda p, lr: kind(p, lr=lr), lr=0.01)
    optimizer = kind(model.parameters(), lr=0.01)
    sum(turns(weigher("lrw-random[q=1]", model, optimizer), model, optimizer, by_weights))
    assert_same(model, expected)


@pytest.mark.parametrize("method", ["lrw-random[q=1]", "lrw-random[q=1,order=strict]"])
def test_clipping_of_the_loop_is_part_of_the_look_ahead(method: str) -> None:
    model = plain()
    expected = fitted(method, model, grad_clip=0.1)
    optimizer = sgd(model)
    sum(turns(weigher(method, model, optimizer, grad_clip=0.1), model, optimizer, by_weights, clip=0.1))
    assert_same(model, expected)


# ---- choosing batches


def test_candidates_are_chosen_as_the_method_chooses_them() -> None:
    model = plain()
    optimizer = sgd(model)
    weigh = weigher("rho-loss[share=0.5]", model, optimizer)
    many = torch.arange(96)[~torch.isin(torch.arange(96), weigh.split.val)][:40]
    batch = POOL.batch(many)
    places, w = weigh.select(batch.x.double(), batch.y, index=many)
    assert len(places) == len(w) == BATCH
    assert (w == 1).all()
    losses = F.cross_entropy(model(batch.x.double()), batch.y, reduction="none").detach()
    rho = losses - weigh.state.irreducible[many]
    assert set(places.tolist()) == set(rho.argsort(descending=True)[:BATCH].tolist())
    by_selection(weigh, model, batch.x.double(), batch.y, many).backward()


def test_of_methods_that_weigh_selection_takes_everyone() -> None:
    model = plain()
    weigh = weigher("cvar[alpha=0.25]", model, sgd(model))
    batch = POOL.batch(torch.arange(BATCH))
    places, w = weigh.select(batch.x.double(), batch.y, index=torch.arange(BATCH))
    assert places.tolist() == list(range(BATCH))
    assert sorted(w.tolist()) == [0.0] * 12 + [4.0] * 4


def test_batches_serve_a_data_loader() -> None:
    model = plain()
    weigh = weigher("lrw-random", model, sgd(model))
    dataset = TensorDataset(POOL.x, POOL.y, torch.arange(len(POOL)))
    loader = DataLoader(dataset, batch_sampler=weigh.batches)
    seen = torch.cat([weigh(x.double(), y, index=i) * 0 + i for x, y, i in loader]).long()
    assert len(loader) == 6
    assert not torch.isin(seen, weigh.split.val).any()


# ---- a stream, without positions


@pytest.fixture
def val(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4, generator=generator), torch.arange(12) % 3


def test_l2r_weights_are_the_positive_agreements_of_gradients(
    small_mlp: nn.Module, points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    weigh = Reweighter("l2r", small_mlp, sgd(small_mlp), recipe={"estimator": "exact"})
    w = weigh(x[:8], y[:8], val=val)

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(small_mlp.parameters()))])

    target = gradient(F.cross_entropy(small_mlp(val[0]), val[1]))
    agreement = torch.stack(
        [gradient(F.cross_entropy(small_mlp(x[i : i + 1]), y[i : i + 1])) @ target for i in range(8)]
    )
    positive = agreement.clamp_min(0)
    torch.testing.assert_close(w, 8 * positive / positive.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "call"])
def test_validation_data_may_be_of_any_kind(
    kind: str, small_mlp: nn.Module, points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    given = {
        "tensors": val,
        "dataset": TensorDataset(*val),
        "loader": DataLoader(TensorDataset(*val), batch_size=5),
        "call": None,
    }
    weigh = Reweighter("mwn", small_mlp, sgd(small_mlp), val=given[kind], recipe={"val_batch_size": 5})
    for _ in range(4):
        w = weigh(*points, val=val if kind == "call" else None)
        assert w.shape == (60,)
        assert not w.requires_grad


def test_weights_learn_from_the_stream_to_distrust_wrong_labels(
    small_mlp: nn.Module, generator: torch.Generator
) -> None:
    centres = 3 * torch.randn(3, 4, generator=generator)
    right = torch.arange(120) % 3
    x = centres[right] + torch.randn(120, 4, generator=generator)
    y = torch.where(torch.arange(120) % 4 == 0, (right + 1) % 3, right)
    optimizer = torch.optim.SGD(small_mlp.parameters(), lr=0.1)
    weigh = Reweighter("l2r", small_mlp, optimizer, val=(x[100:], right[100:]))
    for _ in range(40):
        w = weigh(x[:100], y[:100])
        optimizer.zero_grad()
        (w * F.cross_entropy(small_mlp(x[:100]), y[:100], reduction="none")).mean().backward()
        optimizer.step()
    wrong = y[:100] != right[:100]
    assert w[wrong].mean() < 0.2 * w[~wrong].mean()


# ---- nothing else is disturbed


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "model": {k: v.clone() for k, v in model.state_dict().items()},
            "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "modes": [m.training for m in model.modules()],
            "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
            "random": torch.random.get_rng_state(),
        }
    )


def assert_equal(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", ["l2r", "lrw-random", "stablenet", "bilaw"])
def test_a_call_leaves_everything_as_it_was(
    method: str, val: tuple[Tensor, Tensor], points: tuple[Tensor, Tensor]
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps: list[int] = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    weigh = Reweighter(method, model, optimizer, val=val, epochs=3, per_epoch=2)
    for update in range(4):
        F.cross_entropy(model(points[0]), points[1]).backward()
        before = everything(model, optimizer)
        weigh(*points)
        assert_equal(everything(model, optimizer), before)
        assert len(steps) == update
        optimizer.step()


@pytest.mark.parametrize("low", [None, torch.bfloat16])
def test_accumulation_clipping_averaging_and_autocast_go_on_as_without(
    low: torch.dtype | None, points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    """Equal weights: the loop with a Reweighter gives the bits of the loop without one."""

    def trained(method: str | None) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        weigh = method and Reweighter(method, model, optimizer, val=val, accumulate=2, grad_clip=0.5)
        for step in range(8):
            x, y = (t[step % 3 :: 3] for t in points)
            with torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
                if weigh:
                    w = weigh(x, y)
                    assert w.dtype == torch.float32
                losses = F.cross_entropy(model(x).float(), y, reduction="none")
            loss = ((torch.ones_like(w) if method == "mwn" else w) * losses).mean() if weigh else losses.mean()
            (loss / 2).backward()
            if step % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
                ema.update_parameters(model)
        return model, ema

    alone = [m.state_dict() for m in trained(None)]
    for method in ("erm", "mwn"):
        assert_equal([m.state_dict() for m in trained(method)], alone)


def test_the_look_ahead_of_an_accumulated_update_knows_what_was_accumulated(
    points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    """d L_val(theta - lr (g_1 + grad mean(w l) / 2)) / d w of the second half, by double backward."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = points[0].double(), points[1]
    xv, yv = val[0].double(), val[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found: list[Tensor] = []
    weigh = Reweighter(
        "lrw-random[q=1,order=strict]", model, optimizer, val=(xv, yv), accumulate=2, recipe={"val_batch_size": 12}
    )
    first, second = slice(0, 10), slice(10, 20)
    (weigh(x[first], y[first]) * F.cross_entropy(model(x[first]), y[first], reduction="none")).mean().div(2).backward()
    held = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    run = weigh._run
    assert run is not None
    asked = run.weight_gradient
    run.weight_gradient = lambda look: found.append(asked(look)) or found[-1]  # type: ignore[method-assign]
    before = copy.deepcopy(weigh.state.weigher.model)
    weigh(x[second], y[second])
    params = dict(model.named_parameters())
    seen = []
    hook = model[2].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    losses = F.cross_entropy(model(x[second]), y[second], reduction="none")
    hook.remove()
    scores = before(seen[0], y[second])
    w = torch.exp(0.5 * torch.tanh(scores - scores.mean()))
    w = (w / w.mean()).detach().requires_grad_()
    grads = torch.autograd.grad((w * losses).mean() / 2, list(params.values()), create_graph=True)
    ahead = {k: p - 0.5 * (held[k] + g) for (k, p), g in zip(params.items(), grads, strict=True)}
    loss = F.cross_entropy(torch.func.functional_call(model, ahead, (xv,)), yv)
    (expected,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(found[0], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("per_epoch", [None, 3])
def test_a_step_on_the_incomplete_last_batches_of_an_epoch_begins_an_update_anew(
    points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], per_epoch: int | None
) -> None:
    """As Lightning does it: the call within a closure, old gradients cleared after it, five batches by two."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = sgd(model)
    epochs = 3 if per_epoch else None
    weigh = Reweighter(
        "lrw-random[q=1,order=strict]", model, optimizer, val=val, accumulate=2, epochs=epochs, per_epoch=per_epoch
    )
    parts, held, fresh = [(points[0][i::5].double(), points[1][i::5]) for i in range(5)], list[bool](), True
    asked: list[Tensor] = []
    for _ in range(3):
        for place, (x, y) in enumerate(parts):

            def closure(x: Tensor = x, y: Tensor = y, new: bool = fresh) -> Tensor:
                w = weigh(x, y)
                if new:
                    optimizer.zero_grad()
                loss = (w * F.cross_entropy(model(x), y, reduction="none")).mean() / 2
                loss.backward()
                return loss

            assert fresh == (place % 2 == 0)
            run = weigh._run
            if run is not None:
                assert run.micro == place % 2
                held.append(run.micro == 1)
                before, ask = {k: p.grad for k, p in model.named_parameters()}, run._virtual_gradient

                def looked(seen: Any, loss: Tensor, ask: Any = ask, second: int = place % 2, old: Any = before) -> Any:
                    found = ask(seen, loss)
                    own = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
                    for (k, g), mine in zip(found.items(), own, strict=True):
                        torch.testing.assert_close(g, mine / 2 + (old[k] if second else 0))
                    asked.append(loss)
                    return found

                run._virtual_gradient = looked  # type: ignore[method-assign]
            if place % 2 or place == 4:
                optimizer.step(closure)
                fresh = True
            else:
                closure()
                fresh = False
            if run is not None:
                del run._virtual_gradient
    run = weigh._run
    assert run is not None
    assert (run.micro, run.updates, run.epoch) == (0, 9, 3 if per_epoch else 0)
    assert len(asked) == 14
    assert sum(held) == 6


def test_a_reweighter_that_is_gone_leaves_no_hook(points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = sgd(model)
    weigh = Reweighter("mwn", model, optimizer, val=val, accumulate=2)
    weigh(*points)
    hooks = optimizer._optimizer_step_post_hooks
    assert len(hooks) == 1
    del weigh
    gc.collect()
    assert not hooks


class Wrapping(torch.optim.Optimizer):
    """An optimiser around another, as Accelerate has it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)


def test_steps_of_a_wrapped_optimiser_are_noticed_and_those_of_look_aheads_are_not(
    points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = Wrapping(sgd(model))
    weigh = Reweighter("lrw-random[q=1,order=strict]", model, optimizer, val=val, accumulate=3)
    counts = list[tuple[int, int]]()
    for steps in (False, True, False, False, True):
        (weigh(*points) * F.cross_entropy(model(points[0]), points[1], reduction="none")).mean().backward()
        if steps:
            optimizer.step()
        run = weigh._run
        assert run is not None
        counts.append((run.updates, run.micro))
    assert counts == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize("method", ["l2r", "mwn[q=1]", "lrw-random[q=1]"])
def test_layers_unfrozen_or_replaced_on_the_way_are_weighed_as_by_a_new_reweighter(
    method: str, points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(False)
    x, y = points[0].double(), points[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    settings: dict[str, Any] = {
        "val": (val[0].double(), val[1]),
        "recipe": {"estimator": "exact", "val_batch_size": 12},
    }
    weigh = Reweighter(method, model, optimizer, **settings)
    stale = weigh(x, y)
    for change in ("unfrozen", "replaced", "frozen"):
        model[0].requires_grad_(change != "frozen")
        if change == "replaced":
            model[2] = nn.Linear(5, 3).double()
            optimizer.add_param_group({"params": model[2].parameters()})
        state = weigh.state_dict()
        found = weigh(x, y)
        new = Reweighter(method, model, optimizer, **settings)
        new.load_state_dict(state)
        assert_equal(found, new(x, y))
        assert_equal(weigh.state_dict()["run"]["learners"], new.state_dict()["run"]["learners"])
    assert not torch.equal(found, stale)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="has no parameter that is trained; unfreeze"):
        weigh(x, y)


def test_scaled_losses_of_half_precision_are_told_by_the_scaler(
    points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    """A scaler's factor goes out of every gradient again."""
    weights = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        weigh = Reweighter("mwn", model, sgd(model), val=val, scaler=scaler)
        weights.append(torch.stack([weigh(*points) for _ in range(3)]))
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


# ---- state


@pytest.mark.parametrize("method", ["lrw-random", "lrwopt", "molere", "maple", "stablenet"])
def test_a_loop_that_is_interrupted_goes_on_with_the_same_bits(method: str) -> None:
    model = plain()
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    sum(turns(weigher(method, model, optimizer), model, optimizer, by_loss))

    optimizer = sgd(twin)
    weigh = weigher(method, twin, optimizer)
    loop = turns(weigh, twin, optimizer, by_loss)
    for _ in range(9):
        next(loop)
    file = io.BytesIO()
    torch.save({"model": twin.state_dict(), "optimizer": optimizer.state_dict(), "weigh": weigh.state_dict()}, file)
    again = plain()
    optimizer = sgd(again)
    weigh = weigher(method, again, optimizer)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    weigh.load_state_dict(saved["weigh"])
    rest = turns(weigh, again, optimizer, by_loss)
    for _ in range(6 * EPOCHS - 9):
        next(rest)
    assert_equal(again.state_dict(), model.state_dict())


def test_the_state_of_a_stream_is_loaded_before_the_first_call(
    small_mlp: nn.Module, points: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> None:
    weigh = Reweighter("mwn", small_mlp, sgd(small_mlp), val=val, recipe={"val_batch_size": 5})
    assert weigh.state_dict() == {}
    for _ in range(3):
        weigh(*points)
    other = Reweighter("mwn", small_mlp, sgd(small_mlp), val=val, recipe={"val_batch_size": 5})
    other.load_state_dict(weigh.state_dict())
    assert_equal(other(*points), weigh(*points))
    assert "classifier" not in weigh.state_dict()["run"]["learners"]


# ---- inputs of several tensors


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.rest = nn.Embedding(9, 4), nn.Linear(3, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, words: Tensor, rest: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(self.words(words).mean(1) + self.rest(rest))}


@pytest.mark.parametrize("form", ["mapping", "tuple"])
@pytest.mark.parametrize("method", ["l2r", "lrw-random", "lrw-random[weights.network=full]"])
def test_a_module_may_take_several_tensors_and_give_a_dict(form: str, method: str, generator: torch.Generator) -> None:
    words, rest = torch.randint(0, 9, (24, 5), generator=generator), torch.randn(24, 3, generator=generator)
    y = torch.arange(24) % 2
    model = Sum()
    x: Any = {"words": words, "rest": rest} if form == "mapping" else (words, rest)
    weigh = Reweighter(
        method, model, torch.optim.Adam(model.parameters()), logits=lambda out: out["logits"], val=(x, y)
    )
    w = weigh(x, y)
    assert w.shape == (24,)
    weigh.loss(x, y).backward()
    assert model.words.weight.grad is not None


# ---- mistakes


X, Y = torch.zeros(8, 4), torch.arange(8) % 2


@pytest.mark.parametrize(
    ("method", "settings", "call", "sentence"),
    [
        ("mwn", {}, {}, r"pass val=\(x, y\) at the call"),
        ("gdw", {"val": (X, Y)}, {}, "gdw weighs logits, not whole examples: use loss = weigh.loss"),
        ("molere", {}, {}, "epochs= and per_epoch="),
        ("jtt", {}, {}, r"needs the training data \(it trains models on them first\): pass data"),
        ("rho-loss", {}, {}, "needs the training data"),
        ("maple", {"val": (X, Y)}, {}, "keeps something for each training example"),
        ("erm", {"data": POOL}, {}, "needs epochs="),
        ("erm", {"data": POOL, "epochs": 2}, {}, "index= is missing"),
        ("erm", {"data": POOL, "val": (X, Y)}, {}, "pass data or val, not both"),
        (
            "jtt",
            {"data": POOL, "epochs": 2},
            {"index": torch.arange(8)},
            "draw batches from weigh.batches, or use a mode",
        ),
        ("erm", {"recipe": {"lr": 0.1}}, {}, "recipe states lr, which is your loop's"),
        ("erm", {"recipe": {"estimater": "exact"}}, {}, "did you mean recipe.estimator"),
        ("mwnn", {}, {}, "did you mean"),
        (
            "drop-hard",
            {"val": (X, Y)},
            {},
            r"needs the training data \(all that it does is to leave a part of them out",
        ),
        ("mwn", {"val": (X[:5], Y)}, {}, "x has 5 examples and y has 8 labels"),
        ("mwn", {"val": (X, Y.float())}, {}, "y is torch.float32"),
        ("mwn", {"val": (X, Y + 1)}, {}, "has label 2, and the module has outputs 0 to 1; mend the label, or leave"),
        ("mwn", {}, {"val": (X[:5], Y)}, "x has 5 examples and y has 8 labels"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(method: str, settings: Any, call: Any, sentence: str) -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(MolereError, match=sentence) as caught:
        Reweighter(method, model, sgd(model), **settings)(X, Y, **call)
    assert "\n" not in str(caught.value)


def test_a_foreign_optimiser_model_or_label_is_refused_at_once() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match=r"^the optimizer updates no parameter of Linear; make it of model.param"):
        Reweighter("erm", model, sgd(nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match="^LBFGS steps by a closure and cannot look ahead"):
        Reweighter("erm", model, torch.optim.LBFGS(model.parameters()))
    weigh = Reweighter("cvar", model, sgd(model))
    with pytest.raises(DataError, match="^example 1 of the batch has label -100, and the module has outputs 0 to 1"):
        weigh(X[:2], torch.tensor([0, -100]))
    assert repr(weigh) == "Reweighter('cvar', Linear, SGD)"


def test_a_compiled_module_is_weighed_like_the_module_in_it(val: tuple[Tensor, Tensor]) -> None:
    made: list[Tensor] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        given = torch.compile(model, backend="eager") if compiled else model
        weigh = Reweighter("lrw-random[q=1]", given, sgd(given), val=val)
        made.append(torch.stack([weigh(X, Y) for _ in range(3)]))
    assert_equal(*made)


def test_the_state_of_something_else_is_not_loaded(small_mlp: nn.Module, val: tuple[Tensor, Tensor]) -> None:
    weigh = Reweighter("mwn", small_mlp, sgd(small_mlp), val=val)
    weigh(X, Y)
    other = Reweighter("l2r", small_mlp, sgd(small_mlp), val=val)
    with pytest.raises(ConfigError, match="^the state is of 'mwn', this Reweighter is of 'l2r'; make it as"):
        other.load_state_dict(weigh.state_dict())
    with pytest.raises(ConfigError, match="^this is no state of a Reweighter"):
        other.load_state_dict(small_mlp.state_dict())


@pytest.mark.parametrize("shuffle", [False, True])
def test_validation_batches_of_a_loader_go_on_where_they_were(
    shuffle: bool, small_mlp: nn.Module, val: tuple[Tensor, Tensor]
) -> None:
    def weigher_() -> Reweighter:
        loader = DataLoader(TensorDataset(*val), batch_size=5, shuffle=shuffle)
        return Reweighter("mwn[q=1]", small_mlp, sgd(small_mlp), val=loader)

    one, two = weigher_(), weigher_()
    for _ in range(4):  # one into the second pass
        one(X, Y)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    before = torch.get_rng_state()
    two.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(torch.get_rng_state(), before)
    for _ in range(4):
        assert_equal(two(X, Y), one(X, Y))
    assert_equal(two.state.weigher.model.state_dict(), one.state.weigher.model.state_dict())


def test_what_validates_must_not_train_unless_it_is_kept() -> None:
    model = plain()
    weigh = weigher("lrw-random", model, sgd(model))
    batch = POOL.batch(weigh.split.val[:8])
    with pytest.raises(
        ConfigError, match="validates in this epoch and must not train: draw batches from weigh.batches"
    ):
        weigh(batch.x.double(), batch.y, index=batch.index)
    weigh = weigher("lrw-random[keep=true]", model, sgd(model))
    batch = POOL.batch(weigh.split.val[:8])
    assert weigh(batch.x.double(), batch.y, index=batch.index).shape == (8,)


def test_mixed_labels_and_odd_outputs_are_refused() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(DataError, match="weigh before labels are mixed"):
        Reweighter("erm", model, sgd(model))(X, torch.ones(8, 2))
    deep = nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (1, 2)))
    with pytest.raises(ConfigError, match=r"gives \[8, 1, 2\] for 8 examples"):
        Reweighter("erm", deep, sgd(deep))(X, Y)
    with pytest.raises(ConfigError, match=r'Sum returns a dict.*logits=lambda out: out\["logits"\]'):
        Reweighter("erm", model := Sum(), sgd(model))({"words": X.long(), "rest": X[:, :3]}, Y)


def test_a_smaller_last_batch_is_named_where_a_method_cannot_take_it() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    weigh = Reweighter("stablenet", model, sgd(model))
    weigh(X, Y)
    with pytest.raises(
        ConfigError, match=r"stablenet: a batch of 5 after batches of 8 cannot be weighed; give batches of one size"
    ):
        weigh(X[:5], Y[:5])


def test_a_pool_of_arrays_and_a_dataset_are_data_too() -> None:
    x, y = POOL.x.numpy(), POOL.y.numpy()
    for data in ((x, y), TensorDataset(POOL.x, POOL.y), TensorPool(x, y)):
        model = nn.Linear(4, 2)
        weigh = Reweighter("lrw-random", model, sgd(model), data=data, epochs=1, batch_size=16)
        assert len(weigh.split.val) == 9


# ---- numbers that are not finite


def spoilt(count: int, at: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).double()
    x[at, 1] = torch.nan
    return x, torch.arange(count) % 2


@pytest.mark.parametrize("method", ["mwn", "gdw", "l2r", "lrw-random", "erm"])
def test_a_batch_that_is_not_finite_is_blamed_on_its_examples_and_nothing_is_learned(method: str) -> None:
    model = plain()
    weigh = Reweighter(
        method, model, sgd(model), val=None if method == "erm" else (POOL.batch(torch.arange(16)).x, POOL.y[:16])
    )
    weigh.loss(*((b := POOL.batch(torch.arange(16))).x.double(), b.y))
    before = copy.deepcopy(weigh.state_dict())
    with pytest.raises(NumericsError, match=r"^the data of example 3 of the batch are not finite \(update 1\); mend"):
        weigh.loss(*spoilt(16, 3))
    torch.testing.assert_close(weigh.state_dict()["run"]["learners"], before["run"]["learners"])


@pytest.mark.parametrize("method", ["mwn", "gdw", "l2r"])
def test_validation_data_that_are_not_finite_are_named(method: str) -> None:
    b = POOL.batch(torch.arange(16))
    for given, whose in (("call", "example 5 of the validation batch"), ("start", "example 5 of the validation data")):
        model = plain()
        weigh = Reweighter(method, model, sgd(model), val=spoilt(12, 5) if given == "start" else None)
        at_call = {} if given == "start" else {"val": spoilt(12, 5)}
        with pytest.raises(NumericsError) as caught:
            weigh.loss(b.x.double(), b.y, **at_call)
        said = f"the data of {whose} are not finite (validation at update 0); mend or remove them"
        assert str(caught.value) == said


def test_losses_that_grew_too_large_are_not_answered_with_settings_of_fit() -> None:
    model = plain()
    weigh = Reweighter("mwn", model, sgd(model), val=(POOL.batch(torch.arange(16)).x, POOL.y[:16]))
    b = POOL.batch(torch.arange(16))
    with torch.no_grad():
        model[2].bias[0] = torch.inf
    with pytest.raises(
        NumericsError, match=r"^parameter 2\.bias of the classifier is not finite .* of your loop"
    ) as caught:
        weigh(b.x.double(), b.y)
    assert "train." not in str(caught.value)


def test_a_loop_that_nothing_can_learn_in_is_refused() -> None:
    x, y = POOL.batch(torch.arange(BATCH)).x.double(), POOL.y[:BATCH]
    model = plain()
    weigh = Reweighter("erm", model, sgd(model), logits=lambda out: out.detach())
    with pytest.raises(ConfigError, match="^what logits= picks of Sequential has no gradient"):
        weigh(x, y)
    weigh = Reweighter("erm", model, sgd(model))
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"^torch.inference_mode is on"):
        weigh(x, y)
    with torch.no_grad():
        assert torch.equal(weigh(x, y), torch.ones(BATCH, dtype=torch.float64))
