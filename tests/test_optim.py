"""Optimisers and schedules by name, and the derivative of a step, against numerical differentiation of the real one."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import oracles
from molere.errors import ConfigError
from molere.learner import Learner
from molere.optim import Params, Schedule, Sensitivity, make_optimizer, optimizer_class

# ---- the derivative of a step

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.3, "maximize": True, "betas": (0.5, 0.7), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.3), "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.5, "amsgrad": True, "betas": (0.8, 0.3), "maximize": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.8, "centered": True, "weight_decay": 0.1, "alpha": 0.7}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    ("Adadelta", {"lr": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.3}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.3}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True, "betas": (0.9, 0.6)}),
    ("ASGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("Rprop", {"lr": 0.01}),
]


def _named(value: object) -> str:
    return value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in dict(value).items())


def _parameters(generator: torch.Generator) -> dict[str, nn.Parameter]:
    shapes = {"a": (2, 3), "b": (4,)}
    return {k: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for k, s in shapes.items()}


def _like(params: Params, generator: torch.Generator) -> Params:
    return {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}


def _stepped(optimizer: torch.optim.Optimizer, params: Params, grads: Params) -> Params:
    """What the real optimiser makes of these gradients; it and its parameters stay as they are."""
    twin, twins = copy.deepcopy((optimizer, params))
    for k, p in twins.items():
        p.grad = grads[k].clone()
    twin.step()
    return {k: p.detach() for k, p in twins.items()}


@pytest.mark.parametrize("warm", [0, 1, 7])
@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS, ids=_named)
def test_the_derivative_of_a_step_is_that_of_the_real_optimiser(
    name: str, settings: dict[str, Any], warm: int, generator: torch.Generator
) -> None:
    params = _parameters(generator)
    optimizer = getattr(torch.optim, name)(params.values(), **settings)
    if warm == 0 and "eps" in optimizer.param_groups[0]:
        optimizer.param_groups[0]["eps"] = 0.3  # without which most first steps are the sign of the gradient
    for _ in range(warm):
        for k, g in _like(params, generator).items():
            params[k].grad = g
        optimizer.step()
    grads, v = _like(params, generator), _like(params, generator)
    truth = oracles.derivative_of_step(lambda g: _stepped(optimizer, params, g), grads, v, width=1e-5)

    before, sensitivity = {k: p.detach().clone() for k, p in params.items()}, Sensitivity(optimizer, dict(params))
    for k, p in params.items():
        p.grad = grads[k].clone()
    optimizer.step()
    found = sensitivity(v, grads=grads, before=before)
    for k in params:
        torch.testing.assert_close(found[k], truth[k], rtol=1e-6, atol=3e-10)
        assert found[k].abs().max() > 1e-5 or name == "Rprop"


@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS, ids=_named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_exactly_zero_have_a_finite_derivative(
    name: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    p = nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizer = getattr(torch.optim, name)([p], **settings)
    for g in ([0.0, 1.0, 0.0], [0.0, 0.0, 1e-30]):
        sensitivity, before = Sensitivity(optimizer, {"p": p}), {"p": p.detach().clone()}
        p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
        found = sensitivity({"p": torch.ones(3, dtype=dtype)}, grads={"p": p.grad}, before=before)["p"]
        assert torch.isfinite(found).all()
        assert (found[0] != 0) == (name != "Rprop")


def test_the_limit_of_a_first_step_of_adam_and_rmsprop_at_zero_is_the_rate_over_epsilon() -> None:
    for optimizer_name, expected in (("Adam", -1e-2 / 1e-3), ("RMSprop", -1e-2 / 1e-3)):
        p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = getattr(torch.optim, optimizer_name)([p], lr=1e-2, eps=1e-3)
        sensitivity = Sensitivity(optimizer, {"p": p})
        p.grad = torch.zeros_like(p)
        optimizer.step()
        one = {"p": torch.ones(1, dtype=torch.float64)}
        found = sensitivity(one, grads={"p": p.grad}, before={"p": torch.zeros_like(p)})
        assert float(found["p"]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_every_group_has_its_own_settings_and_those_of_now(name: str, generator: torch.Generator) -> None:
    params = _parameters(generator)
    optimizer = getattr(torch.optim, name)([{"params": [params["a"]]}, {"params": [params["b"]], "lr": 0.3}], lr=0.1)
    grads, v = _like(params, generator), _like(params, generator)
    truth = oracles.derivative_of_step(lambda g: _stepped(optimizer, params, g), grads, v, width=1e-5)
    before, sensitivity = {k: p.detach().clone() for k, p in params.items()}, Sensitivity(optimizer, dict(params))
    for k, p in params.items():
        p.grad = grads[k].clone()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 100.0  # the learning rate of a later step
    found = sensitivity(v, grads=grads, before=before)
    for k in params:
        torch.testing.assert_close(found[k], truth[k], rtol=1e-6, atol=1e-9)


def test_notes_that_schedulers_leave_in_a_group_do_no_harm(generator: torch.Generator) -> None:
    params = _parameters(generator)
    optimizer = torch.optim.RMSprop(params.values(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=10)
    sensitivity, grads = Sensitivity(optimizer, dict(params)), _like(params, generator)
    for k, p in params.items():
        p.grad = grads[k]
    optimizer.step()
    assert torch.isfinite(sensitivity(grads, grads=grads, before=params)["a"]).all()


def test_a_parameter_that_the_optimiser_does_not_hold_or_move_has_no_part() -> None:
    for optimizer_name in ("SGD", "Adam"):
        held, idle, foreign = (nn.Parameter(torch.ones(2)) for _ in range(3))
        optimizer = getattr(torch.optim, optimizer_name)([held, idle], lr=0.1)
        params = {"held": held, "idle": idle, "foreign": foreign}
        sensitivity = Sensitivity(optimizer, params)
        held.grad = torch.ones(2)
        optimizer.step()
        ones = {k: torch.ones(2) for k in params}
        found = sensitivity(ones, grads=ones, before=ones)
        assert torch.equal(found["foreign"], torch.zeros(2))
        assert found["held"].abs().min() > 0
        assert idle not in optimizer.state


def test_a_subclass_that_steps_otherwise_is_not_taken_for_its_parent() -> None:
    class Doubled(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            super().step()
            super().step()

    p = nn.Parameter(torch.ones(2))
    optimizer = Doubled([p], lr=0.1)
    sensitivity = Sensitivity(optimizer, {"p": p})
    p.grad = torch.ones(2)
    optimizer.step()
    found = sensitivity({"p": torch.ones(2)}, grads={"p": torch.ones(2)}, before={"p": torch.ones(2)})
    torch.testing.assert_close(found["p"], torch.full((2,), -0.2))


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor", "Muon", "SparseAdam"])
def test_an_optimiser_without_a_derivative_is_refused_in_one_line(name: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError) as caught:
        Sensitivity(getattr(torch.optim, name)([p]), {"p": p})
    sentence = f"no look-ahead through {name}, which torch cannot differentiate; use sgd, adam, adamw"
    assert str(caught.value) == sentence


# ---- optimisers by name


@pytest.mark.parametrize("name", ["sgd", "SGD", "AdamW", "adamw", "rmsprop", "NAdam"])
def test_an_optimiser_is_found_by_name_in_any_case(name: str) -> None:
    assert optimizer_class(name).__name__.lower() == name.lower()


@pytest.mark.parametrize("name", ["lbfgs", "optimizer", "lr_scheduler"])
def test_what_cannot_train_here_is_not_offered(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown optimizer '{name}'"):
        optimizer_class(name)


def test_an_unknown_optimiser_is_answered_with_the_nearest_and_all_others() -> None:
    with pytest.raises(ConfigError) as caught:
        make_optimizer("adamm", [nn.Parameter(torch.ones(1))], lr=0.1)
    assert str(caught.value).startswith("unknown optimizer 'adamm'; did you mean 'adam'? Known: adadelta, ")
    assert "\n" not in str(caught.value)


def test_settings_reach_the_optimiser_and_momentum_is_left_out_where_there_is_none() -> None:
    recipe = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    sgd = make_optimizer("sgd", [nn.Parameter(torch.ones(1))], lr=0.3, **recipe)
    assert {k: sgd.param_groups[0][k] for k in ("lr", *recipe)} == {"lr": 0.3, **recipe}
    adam = make_optimizer(
        "adam", [nn.Parameter(torch.ones(1))], lr=0.3, **{**recipe, "nesterov": False}, betas=[0.5, 0.6], amsgrad=True
    )
    assert adam.param_groups[0]["amsgrad"]
    assert list(adam.param_groups[0]["betas"]) == [0.5, 0.6]


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("adam", {"nesterov": True}, "optimizer 'adam' has no 'nesterov'; leave it out or set it to 0"),
        ("rprop", {"weight_decay": 0.1}, "optimizer 'rprop' has no 'weight_decay'; leave it out or set it to 0"),
        ("sgd", {"defaults": 1}, "optimizer 'sgd' has no 'defaults'; leave it out or set it to 0"),
        ("sgd", {"nesterov": True, "momentum": 0.0}, "optimizer 'sgd': Nesterov momentum requires a momentum"),
        ("adam", {"betas": (2.0, 0.9)}, "optimizer 'adam': Invalid beta parameter"),
        ("adam", {"betas": 3}, "optimizer 'adam': "),
    ],
)
def test_settings_that_an_optimiser_refuses_are_one_line(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_optimizer(name, [nn.Parameter(torch.ones(1))], lr=0.1, **settings)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to train: no parameter of the module has requires_grad=True"):
        make_optimizer("sgd", [], lr=0.1)


def test_a_factory_is_given_parameters_and_rate() -> None:
    leaf = nn.Parameter(torch.ones(1))
    make = lambda leaves, lr, eps=1e-10: torch.optim.Adagrad(leaves, lr=lr, eps=eps)  # noqa: E731
    made = make_optimizer(make, [leaf], lr=0.2, momentum=0.9, arguments={"eps": 0.5})
    assert made.defaults["eps"] == 0.5
    made = make_optimizer(make, [leaf], lr=0.2, momentum=0.9)
    assert isinstance(made, torch.optim.Adagrad)
    assert made.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("sgd", {"momentum": 0.9, "dampening": 0.5}),
        ("sgd", {}),
        ("adam", {"amsgrad": True}),
        ("adamw", {"weight_decay": 0.1}),
        ("sgd", {"foreach": True}),
        ("sgd", {"fused": False, "momentum": 0.9}),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_made_optimiser_steps_like_a_plain_one(name: str, settings: dict[str, Any], late: bool) -> None:
    """`late`: one parameter has no gradient before the third step."""
    first = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    second = [nn.Parameter(p.detach().clone()) for p in first]
    made = make_optimizer(name, first, lr=0.1, **settings)
    plain = getattr(torch.optim, {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[name])(
        second, lr=0.1, **{**settings, "fused": False, "foreach": False}
    )
    for step in range(5):
        for i, (p, q) in enumerate(zip(first, second, strict=True)):
            g = None if late and i == 1 and step < 2 else torch.randn(p.shape)
            p.grad, q.grad = g, None if g is None else g.clone()
        made.step()
        plain.step()
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# ---- schedules


def _sgd(lr: float = 0.4) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=lr)


def _rates(schedule: Schedule, updates: int) -> list[float]:
    out = []
    for u in range(updates):
        schedule.at(u)
        out.append(schedule.lr)
    return out


def test_cosine_goes_from_the_rate_to_its_floor() -> None:
    rates = _rates(Schedule("cosine", _sgd(), updates=10, per_epoch=5), 12)
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * min(u, 10) / 10)) for u in range(12)])
    assert rates[0] == 0.4
    floor = Schedule("cosine", _sgd(), updates=10, per_epoch=5, settings={"floor": 0.25})
    assert _rates(floor, 11)[10] == pytest.approx(0.1)


def test_cosine_is_the_one_of_torch() -> None:
    optimizer, theirs = _sgd(), _sgd()
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=8)
    schedule = Schedule("cosine", optimizer, updates=8, per_epoch=2)
    for u in range(8):
        schedule.at(u)
        assert schedule.lr == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        reference.step()


def test_step_falls_at_shares_of_the_run() -> None:
    assert _rates(Schedule("step", _sgd(), updates=6, per_epoch=2), 6) == pytest.approx([0.4] * 3 + [0.04] * 3)
    settings = {"milestones": [0.07, 0.57], "gamma": 0.5}
    rates = _rates(Schedule("step", _sgd(), updates=100, per_epoch=2, settings=settings), 100)
    assert [u for u in range(1, 100) if rates[u] != rates[u - 1]] == [7, 57]
    assert rates[99] == pytest.approx(0.1)


@pytest.mark.parametrize("choice", ["constant", None])
def test_constant_stays(choice: str | None) -> None:
    assert _rates(Schedule(choice, _sgd(), updates=5, per_epoch=2), 9) == [0.4] * 9


def test_every_group_keeps_its_own_rate() -> None:
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [p]}, {"params": [q], "lr": 1.0}], lr=0.1)
    Schedule("step", optimizer, updates=4, per_epoch=2).at(3)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.1])


@pytest.mark.parametrize(
    ("choice", "settings"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5}),
        ("exponentiallr", {"gamma": 0.9}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3}),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 10}),
        (torch.optim.lr_scheduler.MultiStepLR, {"milestones": [1, 3]}),
        (torch.optim.lr_scheduler.LambdaLR, {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ],
)
def test_a_class_of_torch_is_stepped_once_an_epoch(choice: Any, settings: dict[str, Any]) -> None:
    optimizer, theirs = _sgd(), _sgd()
    schedule = Schedule(choice, optimizer, updates=21, per_epoch=3, settings=settings)
    by_lower = {k.lower(): v for k, v in vars(torch.optim.lr_scheduler).items()}
    reference = (by_lower[choice.lower()] if isinstance(choice, str) else choice)(theirs, **settings)
    for u in range(21):
        schedule.at(u)
        assert schedule.lr == theirs.param_groups[0]["lr"]
        optimizer.step()
        theirs.step()
        if u % 3 == 2:
            reference.step()


@pytest.mark.parametrize("at", [0, 1, 3, 4, 9])
@pytest.mark.parametrize(
    ("choice", "settings"),
    [("cosine", {}), ("step", {}), ("constant", {}), ("StepLR", {"step_size": 1}), ("ExponentialLR", {"gamma": 0.5})],
)
def test_a_resumed_schedule_goes_on_as_if_nothing_had_happened(choice: str, settings: dict[str, Any], at: int) -> None:
    def fresh() -> Learner:
        module = nn.Linear(2, 2)
        optimizer = make_optimizer("sgd", module.parameters(), lr=0.4, momentum=0.9)
        return Learner("c", module, optimizer, Schedule(choice, optimizer, updates=12, per_epoch=3, settings=settings))

    def run(learner: Learner, updates: range) -> list[float]:
        rates = []
        for u in updates:
            learner.schedule.at(u)
            learner.step(learner(torch.ones(1, 2)).sum())
            rates.append(learner.optimizer.param_groups[0]["lr"])
        return rates

    whole, broken = fresh(), fresh()
    expected = run(whole, range(12))
    started = run(broken, range(at))
    resumed = fresh()
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    assert started + run(resumed, range(at, 12)) == expected


@pytest.mark.parametrize(
    ("choice", "settings", "sentence"),
    [
        ("cosin", {}, "unknown scheduler 'cosin'; did you mean 'cosine'? Known: cosine, step, constant, "),
        ("tensor", {}, "unknown scheduler 'tensor'"),
        ("ReduceLROnPlateau", {}, "unknown scheduler 'ReduceLROnPlateau'"),
        ("lrscheduler", {}, "unknown scheduler 'lrscheduler'"),
        ("cosine", {"milestones": [0.5]}, "scheduler 'cosine' with {'milestones': [0.5]}: "),
        ("constant", {"gamma": 0.5}, "scheduler 'constant' with {'gamma': 0.5}: "),
        ("step", {"milestones": 0.5}, "scheduler 'step' with {'milestones': 0.5}: "),
        ("StepLR", {}, "scheduler 'StepLR' with {}: "),
    ],
)
def test_schedules_that_cannot_be_are_refused_in_one_line(choice: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(choice, _sgd(), updates=10, per_epoch=5, settings=settings)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
