"""Products < v, grad l_i(theta) > for all examples i, layer by layer, without the gradient of any single example.

A call that is linear in its parameters given its input, z = f(a; W), adds sum_positions g_i * f(a_i; v_W) to product i,
with g = d(sum_j l_j) / dz. So one backward pass to the recorded outputs and one replay of each recorded call with v in
place of the parameters give all n products, to rounding (after the ghost norms of Li et al. 2022, arXiv 2110.05679).

Calls are watched, not modules: whatever receives a parameter, or what was made of one linearly (a slice, a token).
In the graph of the losses each path to a parameter must then lead through a recorded call: what was not seen or not
understood is refused, never left out.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from molere.errors import ConfigError
from molere.optim import Params

Tree = Any  # Any: torch's functions, and what they take and give, tensors nested in lists, tuples and dicts
Key = tuple[Node, int]
PerExample = Float[Tensor, " n"]


class GhostRefusal(ConfigError):
    """The losses depend on a parameter in a way that has no per-layer products."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no ghost products: {reason}; use the estimator 'exact' or 'central'")


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, **options: Tree) -> Tensor:
    """Without the row of the padding index, which has no gradient."""
    rows = F.embedding(input, weight, **options)
    return rows if padding_idx is None else rows * (input != padding_idx % len(weight)).unsqueeze(-1)


def _named(names: str) -> set[Tree]:
    return {getattr(owner, name) for owner in (torch, Tensor, F) for name in names.split() if hasattr(owner, name)}


_CONV = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
_PYTHON = (F.embedding, F.embedding_bag, F.layer_norm, F.rms_norm, F.group_norm, F.instance_norm, F.batch_norm)
_LAYERS = {function: list(inspect.signature(function).parameters) for function in cast(Tree, _PYTHON)}
_LAYERS.update(dict.fromkeys(_named("linear conv1d conv2d conv3d"), _CONV))  # linear in weight and bias, given the rest
_SUMS = _named("add subtract sub __add__ __radd__ __sub__ __rsub__ add_ __iadd__")
_VIEWS = _named(
    "reshape reshape_as view view_as flatten unflatten ravel permute transpose swapaxes swapdims t movedim moveaxis "
    "unsqueeze squeeze expand expand_as broadcast_to repeat repeat_interleave tile __getitem__ select narrow "
    "index_select gather take_along_dim split split_with_sizes chunk tensor_split unbind contiguous clone to type_as "
    "float double half bfloat16 cpu cuda roll flip tril triu neg __neg__ negative sum mean cat concat concatenate stack"
) | {getattr(Tensor, name).__get__ for name in ("T", "mT")}
_CONTRACTIONS = _named("matmul __matmul__ __rmatmul__ mm bmm mv einsum")
_QUOTIENTS = _named("div divide true_divide __div__ __truediv__")
_PRODUCTS = _named("mul multiply __mul__ __rmul__") | _CONTRACTIONS | _QUOTIENTS
_REPLAYS = cast(dict[Tree, Tree], {F.embedding: _embedding, Tensor.add_: torch.add, Tensor.__iadd__: torch.add})
_MIXES = "BatchNorm in train mode mixes the examples of a batch"
_HIDING = {"CheckpointFunctionBackward": "a reentrant checkpoint hides its calls", "SyncBatchNormBackward": _MIXES}


@dataclass(eq=False)
class _Term:
    """A tensor that is linear in the parameters (a parameter, or a call's output); `replay` puts v in their place."""

    name: str = ""
    func: Tree = None  # in the call's arguments, terms stand for what is linear, zeros for what is added to it
    args: Tree = ()
    kwargs: Tree = None
    above: list[Key] = field(default_factory=lambda: [])  # the other inputs that carry a gradient
    kept: list[tuple[Tensor, int]] = field(default_factory=lambda: [])  # inputs whose values count, and their versions
    objection: str = ""
    zeros: Tensor = field(default_factory=lambda: torch.zeros(()))  # of its shape
    part: int | None = None  # of several outputs
    rows: int | None = None  # the number of examples, where they lie along the second dimension
    examples: bool = False  # it holds more than parameters, and may become active
    precision: tuple[str, torch.dtype, bool] = ("cpu", torch.bfloat16, False)  # the autocast around the call
    active: bool = False  # its own gradient is multiplied with its replay, which no other call contains

    def replay(self, v: Params) -> Tensor:
        if self.func is None:
            return v[self.name].detach()
        if any(t._version != version for t, version in self.kept):
            raise GhostRefusal(f"an input of {self.name!r} was changed in place")

        def filled(leaf: Tree) -> Tree:
            replayed = isinstance(leaf, _Term) and not leaf.active
            return leaf.replay(v) if replayed else leaf.zeros if isinstance(leaf, _Term) else leaf

        with torch.autocast(*self.precision):
            out = self.func(*_mapped(self.args, filled), **_mapped(self.kwargs, filled))
        return out if self.part is None else out[self.part]

    def by_example(self, z: Tensor, n: int) -> Tensor:
        """A tensor of this shape, with its n examples along the first dimension."""
        if n == 1:
            return z[None]
        if not self.examples or n != (self.rows or (*z.shape, 0)[0]):
            raise GhostRefusal(f"{self.name!r} is {list(z.shape)}, expected one row for each of the {n} losses")
        return z.reshape(-1, n, z.shape[-1]).movedim(1, 0) if self.rows else z


def _mapped(tree: Tree, change: Callable[[Tree], Tree]) -> Tree:
    if isinstance(tree, dict):
        return {k: _mapped(leaf, change) for k, leaf in cast(dict[str, Tree], tree).items()}
    if isinstance(tree, (list, tuple)):
        return (list if isinstance(tree, list) else tuple)(_mapped(leaf, change) for leaf in cast(list[Tree], tree))
    return change(tree)


def _leaves(tree: Tree, kind: type) -> list[Tree]:
    leaves: list[Tree] = []
    _mapped(tree, leaves.append)
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _key(t: Tensor) -> Key | None:
    try:
        return get_gradient_edge(t)[:2]
    except (AssertionError, RuntimeError):
        return None  # no gradient reaches it, even if it requires one, as a view made under `no_grad` does


def _zeros(t: Tensor) -> Tensor:
    return t.new_zeros(()).expand(t.shape)


class GhostTape(TorchFunctionMode):
    """Records one forward pass, for the products of its losses with any direction.

        with GhostTape(params) as tape:
            losses = cross_entropy(model(x), y)  # [n]
        products = tape.products(losses, v)      # [n]

    Examples must lie along the first dimension of all outputs that a parameter enters (inside torch's attention, the
    second). What has no products is refused once the losses are known. Updating buffers is left to the caller.
    """

    def __init__(self, params: Params) -> None:
        super().__init__()
        self._terms: dict[Key, _Term] = {}
        self._known: dict[int, tuple[Tensor, int | None, _Term]] = {}  # by id, which the tensor here keeps its own
        self._rows: int | None = None
        for name, p in params.items():
            if key := _key(p):
                self._terms[key] = term = _Term(name, zeros=_zeros(p))
                self._known[id(p)] = p, None, term

    def __torch_function__(self, func: Tree, types: Tree, args: Tree = (), kwargs: Tree = None) -> Tree:
        """Calls the function, and records the call if a parameter enters it."""
        kwargs = kwargs or {}
        terms = [term for t in _leaves((args, kwargs), Tensor) if (term := self._term(t))]
        mixes = func in (F.batch_norm, torch.batch_norm) and kwargs.get("training", args[5] if args[5:] else False)
        if not terms and not mixes:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward and args and args[0].dim() == 3:
            return self._attention(args, kwargs)
        call = _Term(func=func, objection=_MIXES) if mixes else self._linearised(func, args, kwargs)
        if call.objection and terms:
            entering = min(terms, key=lambda term: term.examples)
            call.objection = f"parameter {entering.name!r} enters {func.__name__.strip('_')}: {call.objection}"
        return self._recorded(call, func(*args, **kwargs))

    def _recorded(self, call: _Term, out: Tree) -> Tree:
        sources = _leaves((call.args, call.kwargs), _Term)
        for part, t in enumerate(_leaves(out, Tensor)):
            if (sources or call.objection) and (key := _key(t)) and key not in self._terms:
                self._terms[key] = term = replace(call, zeros=_zeros(t), part=None if out is t else part)
                term.name = " of ".join([call.func.__name__.strip("_"), *[one.name for one in sources[:1]]])
                term.active |= bool(call.above)
                term.rows, kind = self._rows if term.active else None, t.device.type
                term.precision = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
                term.examples |= any(s.examples for s in sources) or t.numel() > sum(s.zeros.numel() for s in sources)
                if not (term.active or term.objection):
                    self._known[id(t)] = t, t._version, term
        return out

    def _term(self, t: Tensor) -> _Term | None:
        """None for a tensor that does not come from parameters, or was changed in place since."""
        _, version, term = self._known.get(id(t), (t, None, None))
        return term if version is None or version == t._version else None

    def _linearised(self, func: Tree, args: Tree, kwargs: dict[str, Tree]) -> _Term:
        call = _Term(func=_REPLAYS.get(func, func))
        linear, data = partial(self._read, call, True), partial(self._read, call, False)
        if func in _LAYERS:
            call.active = self._rows is not None
            named = dict(zip(_LAYERS[func], args, strict=False)) | kwargs
            call.examples = _LAYERS[func] is not _CONV or named["input"].dim() >= named["weight"].dim()
            odd = named.get("mode") == "max" or named.get("max_norm") or named.get("scale_grad_by_freq")
            if odd or (func is F.instance_norm and named.get("running_mean") is not None):
                call.objection = "mode 'max', max_norm, scale_grad_by_freq and running statistics leave no products"
            call.kwargs = {k: _mapped(v, linear if k in ("weight", "bias") else data) for k, v in named.items()}
            if isinstance(bias := call.kwargs.get("bias"), _Term) and named.get("weight") is None:
                call.kwargs["weight"] = bias.zeros  # a norm without weights: its input does not move with the bias
        elif func in _SUMS:  # numbers go: 1 + W moves as W does
            call.args = [0 if isinstance(leaf, (int, float)) else linear(leaf) for leaf in args]
            rest = {"other": 0} if isinstance(kwargs.get("other"), (int, float)) else {}
            call.kwargs = _mapped(kwargs | rest, linear)
        elif func in _VIEWS:
            call.args, call.kwargs = _mapped((args, kwargs), linear)
        else:  # a product is linear in its one factor of parameters, if the others are data or hold examples
            tensors = _leaves(args[:1] if func in _QUOTIENTS else (args, kwargs), Tensor)
            known = [(t, term) for t in tensors if (term := self._term(t))]
            factors = [t for t, term in known if not term.examples] or [t for t, _ in known]
            factor = factors[0] if len(factors) == 1 and func in _PRODUCTS else None
            call.examples = func in _CONTRACTIONS and tensors[0] is not factor and tensors[0].dim() > 1
            call.args, call.kwargs = _mapped((args, kwargs), lambda leaf: (linear if leaf is factor else data)(leaf))
        return call

    def _read(self, call: _Term, linear: bool, leaf: Tree) -> Tree:
        term = self._term(leaf) if isinstance(leaf, Tensor) else leaf
        if not isinstance(leaf, Tensor) or (linear and term is not None):
            return term
        if term is not None and not term.examples:
            call.objection = call.objection or "it is not linear in its parameters there"
        if key := _key(leaf):
            call.above.append(key)
        if linear and leaf.is_floating_point():
            return _zeros(leaf)
        call.kept.append((leaf.detach(), leaf._version))
        return leaf.detach()

    def _attention(self, args: Tree, kwargs: dict[str, Tree]) -> Tree:
        """Runs the body of torch's attention under the tape; tensors there are [length, n, d] or [length * n, d]."""
        given: Tree = F.multi_head_attention_forward
        scope = given.__globals__ | {"has_torch_function": [].__contains__}  # or it hands itself to the tape again
        body = FunctionType(given.__code__, scope, None, given.__defaults__, given.__closure__)
        self._rows = args[0].shape[1]
        for term in filter(None, map(self._term, args[:3])):
            term.rows = self._rows
        try:
            with self:
                return body(*args, **kwargs)
        finally:
            self._rows = None

    def products(self, losses: PerExample, v: Params, *, retain_graph: bool = False) -> PerExample:
        """< v, grad losses[i] > for all i, in float32 at least; raises `GhostRefusal`, with the reason."""
        return self.pullback(losses, retain_graph=retain_graph)(v)

    def pullback(self, losses: PerExample, *, retain_graph: bool = False) -> Callable[[Params], PerExample]:
        """The products as a function of v, which may be found later: the parameters may change meanwhile."""
        found, _ = self._cotangents(losses, torch.ones_like(losses), retain_graph)
        return self._products(found, losses, torch.ones_like(losses))

    def pullback_and_gradient(
        self, losses: PerExample, s: PerExample, leaves: Params
    ) -> tuple[Callable[[Params], PerExample], Params]:
        """`pullback`, and the gradient of sum(s * losses) by name (where there is one), in one backward; no s is 0."""
        found, grads = self._cotangents(losses, s, False, list(leaves.values()))
        known = {k: g for k, g in zip(leaves, grads, strict=True) if g is not None}
        return self._products(found, losses, s), known

    def _products(
        self, found: list[tuple[_Term, Tensor]], losses: PerExample, s: PerExample
    ) -> Callable[[Params], PerExample]:
        n, dtype = len(losses), torch.promote_types(losses.dtype, torch.float32)
        pairs = [(term, term.by_example(g, n)) for term, g in found]

        def products(v: Params) -> PerExample:
            total = torch.zeros(n, dtype=dtype, device=losses.device)
            with torch.no_grad():
                for term, g in pairs:
                    total += (g.to(dtype) * term.by_example(term.replay(v), n)).reshape(n, -1).sum(1)
            return total / s.to(dtype)

        return products

    def verify(self, losses: PerExample) -> None:
        """Raises `GhostRefusal` if s_i l_i does not give s_i g_i: examples may be mixed where shapes do not show it."""
        n, s = len(losses), 1 + torch.arange(len(losses)).mul(0.618034).frac().to(losses)
        plain, scaled = (self._cotangents(losses, weights, True)[0] for weights in (torch.ones_like(s), s))
        eps = max([torch.finfo(g.dtype).eps for _, g in plain], default=0.0)
        for (term, g), (_, h) in zip(plain, scaled, strict=True):
            expected = term.by_example(g, n).movedim(0, -1) * s.to(g.dtype)
            if torch.dist(term.by_example(h, n).movedim(0, -1), expected) > eps**0.5 * expected.norm():
                raise GhostRefusal(f"examples are mixed, or not along dimension 0, in {term.name!r}")

    def _cotangents(
        self, losses: PerExample, s: PerExample, retain: bool, leaves: list[Tensor] | None = None
    ) -> tuple[list[tuple[_Term, Tensor]], list[Tensor | None]]:
        """The gradients of sum(s * losses): of the active terms on which the losses depend, and of some leaves."""
        leaves = leaves or []
        if not (key := _key(losses)):
            return [], [None for _ in leaves]
        self._activate([key])
        terms = {GradientEdge(*key): term for key, term in self._terms.items() if term.active}
        wanted: Tree = [*terms, *leaves]
        differentiate = cast(Callable[..., Sequence[Tensor | None]], torch.autograd.grad)
        grads = differentiate(losses, wanted, s, retain, allow_unused=True) if wanted else ()
        found = [(term, g) for term, g in zip(terms.values(), grads[: len(terms)], strict=True) if g is not None]
        return found, [*grads[len(terms) :]]

    def _activate(self, left: list[Key]) -> None:
        """Walks the graph back. Terms it meets were used in calls that are not linear; they need their own gradient."""
        seen: set[Key] = set()
        while left:
            if (key := left.pop()) in seen:
                continue
            seen.add(key)
            term = self._terms.get(key)
            if reason := term.objection if term else _HIDING.get(key[0].name()):
                raise GhostRefusal(reason)
            if term and not (term.active or term.examples):
                raise GhostRefusal(f"{term.name!r} is used where no function of torch shows")
            if term:
                term.active = True
            left += term.above if term else [(node, nr) for node, nr in key[0].next_functions if node is not None]
