# ruff: noqa: N802, N803, N806
"""Mixtures of experts are feed-forward layers whose weights depend on the token, whichever way they are run."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.kinds import make_model
from icrl_jax.models.layers import Mlp
from icrl_jax.models.moe import MoE, MoEConfig, feed_forward
from icrl_jax.models.routing import Gate, balance_loss
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig

B, T, D, X = 7, 11, 13, 5
MIXTURES = {
    "token": MoEConfig(num_experts=X),
    "both": MoEConfig(num_experts=X, num_task_experts=3, router="tanh"),
    "top-1": MoEConfig(num_experts=X, top_k=1),
}
every_mixture = pytest.mark.parametrize("name", MIXTURES)
every_dispatch = pytest.mark.parametrize("dispatch", ["dense", "sorted"])


def config(options, width=D):
    return SimpleNamespace(width=width, num_layers=2, mlp_ratio=3, moe=options)


@functools.cache
def initial(options):
    return jax.jit(lambda: MoE(config(options), jax.random.key(0)))()


def make_layer(options, dispatch="auto"):
    """With weights of its own, which a test may change."""
    layer = jax.tree.map(lambda p: p, initial(MIXTURES.get(options, options)))
    layer.moe = dataclasses.replace(layer.moe, dispatch=dispatch)
    return layer


def make_inputs(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), (*(shape or (B, T)), D))


call = jax.jit(lambda layer, x: layer(x))


@jax.jit
def one_expert(mixture, expert, x):
    """The dense layer that has an expert's weights."""
    return Mlp.__call__(SimpleNamespace(up=mixture.up[...][expert], down=mixture.down[...][expert]), x)[0]


def mixtures(layer):
    return [mixture for mixture in (layer.token, layer.task) if mixture is not None]


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


# What a mixture computes.


@every_dispatch
@every_mixture
def test_equal_experts_reduce_to_one_feed_forward(name, dispatch):
    layer, x = make_layer(name, dispatch), make_inputs()
    for mixture in mixtures(layer):
        for weights in mixture.up, mixture.down:
            weights[...] = jnp.broadcast_to(weights[...][:1], weights.shape)
    expected = [one_expert(mixture, 0, x) for mixture in mixtures(layer)]
    assert_close(call(layer, x)[0], jnp.concatenate(expected, axis=-1))


@every_dispatch
@every_mixture
def test_permuting_experts_with_their_router_rows_changes_nothing(name, dispatch):
    layer, permuted, x = make_layer(name, dispatch), make_layer(name, dispatch), make_inputs()
    for mixture in mixtures(permuted):
        order = np.roll(np.arange(mixture.up.shape[0]), 2)
        last = mixture.gate.first if mixture.gate.second is None else mixture.gate.second
        last[...] = last[...][:, order]
        for weights in mixture.up, mixture.down:
            weights[...] = weights[...][order]
    assert_close(call(permuted, x), call(layer, x))


@every_dispatch
def test_no_token_is_dropped_when_all_go_to_one_expert(dispatch):
    layer, x = make_layer("top-1", dispatch), make_inputs()
    x = x.at[..., 0].set(1.0)
    layer.token.gate.first[...] = jnp.zeros((D, X)).at[0, 3].set(9.0)
    assert_close(call(layer, x)[0], one_expert(layer.token, 3, x))
    assert_close(layer.route(x.reshape(-1, D))["token"].load, B * T * jnp.eye(X)[3])


@every_mixture
def test_without_noise_the_load_counts_the_tokens_of_each_expert(name):
    layer = make_layer(name)
    for mixture, routing in zip(mixtures(layer), layer.route(make_inputs(B)).values(), strict=True):
        expected = np.bincount(np.asarray(routing.expert).reshape(-1), minlength=mixture.up.shape[0])
        assert_close(routing.load, expected.astype(np.float32))


@every_dispatch
@every_mixture
def test_a_token_gets_the_weighted_sum_of_its_experts(name, dispatch):
    """Against a plain loop."""
    layer, x = make_layer(name, dispatch), make_inputs(B)
    expected = []
    for mixture in mixtures(layer):
        logits_BX, y_BE = np.asarray(mixture.gate(x)), []
        outputs_XBE = [np.asarray(one_expert(mixture, e, x)) for e in range(logits_BX.shape[1])]
        for b, logits in enumerate(logits_BX):
            chosen = np.argsort(-logits)[: layer.moe.top_k]
            weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
            y_BE.append(sum(weight * outputs_XBE[e][b] for weight, e in zip(weights, chosen, strict=True)))
        expected.append(np.stack(y_BE))
    assert_close(call(layer, x)[0], np.concatenate(expected, axis=-1))


@every_dispatch
@every_mixture
def test_each_output_depends_on_its_token_only(name, dispatch):
    layer, x = make_layer(name, dispatch), make_inputs(T)
    reach = jax.jit(jax.jacobian(lambda x: layer(x)[0].sum(axis=-1)))(x)
    np.testing.assert_array_equal(np.abs(reach).max(axis=-1) > 0, np.eye(T, dtype=bool))


@every_dispatch
@every_mixture
def test_single_tokens_equal_sequences(name, dispatch):
    layer, x = make_layer(name, dispatch), make_inputs()
    together = call(layer, x)[0]
    for t in (0, T - 1):
        assert_close(call(layer, x[:, t])[0], together[:, t])
    assert_close(jax.jit(jax.vmap(lambda x: layer(x)[0]))(x), together)


@every_dispatch
def test_a_nan_stays_with_its_token(dispatch):
    layer, x = make_layer("both", dispatch), make_inputs(B)
    spoiled = x.at[4].set(jnp.nan)
    others = np.arange(B) != 4
    assert_close(call(layer, spoiled)[0][others], call(layer, x)[0][others])
    assert jnp.isnan(call(layer, spoiled)[0][4]).all()
    slope = jax.jit(jax.grad(lambda x: jnp.sin(layer(x)[0][others]).sum()))
    assert_close(slope(spoiled)[others], slope(x)[others])


@every_mixture
def test_widths_give_a_token_the_active_parameters_of_the_dense_layer(name):
    layer, dense = make_layer(name), Mlp(config(MoEConfig()), jax.random.key(0))
    active = sum(layer.moe.top_k * (m.up[...][0].size + m.down[...][0].size) for m in mixtures(layer))
    assert abs(active / (dense.up[...].size + dense.down[...].size) - 1) < 0.05


def test_token_and_task_experts_share_the_features():
    options = MoEConfig(num_experts=X, num_task_experts=3, expert_width=17)
    layer = make_layer(options)
    assert layer.token.up.shape == (X, D, 17) and layer.token.down.shape == (X, 17, 6)
    assert layer.task.up.shape == (3, D, 17) and layer.task.down.shape == (3, 17, 7)


@every_dispatch
def test_the_router_is_float32_and_the_output_has_the_dtype_of_the_input(dispatch):
    layer, x = make_layer("both", dispatch), make_inputs().astype(jnp.bfloat16)
    y, aux = call(layer, x)
    assert y.dtype == jnp.bfloat16 and {value.dtype for value in aux.losses.values()} == {jnp.dtype("float32")}
    routing, exact = (layer.route(z.reshape(-1, D))["token"] for z in (x, x.astype(jnp.float32)))
    assert_close(routing, exact, atol=0, rtol=0)
    gradient = jax.jit(jax.grad(lambda layer: layer(x)[0].astype(jnp.float32).sum()))(layer)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))


@every_dispatch
@pytest.mark.parametrize("noise", [False, True])
def test_gradients_match_finite_differences_in_float64(dispatch, noise):
    """Of the weights and the inputs along one direction, the losses of the gates included."""
    options = MoEConfig(num_experts=X, num_task_experts=3, router="tanh", noise=noise, balance_weight=0.3, z_weight=0.2)

    def f(args):
        y, aux = args[0](args[1], jax.random.key(4) if noise else None)
        return jnp.sin(y).sum() + sum(aux.losses.values())

    contract.assert_gradient_is_slope(f, (make_layer(options, dispatch), make_inputs(T)))


CONFIGS = {
    "transformer": lambda moe: TransformerConfig(width=12, num_layers=2, num_heads=3, context_len=7, moe=moe),
    "s5": lambda moe: S5Config(width=12, num_layers=2, state_size=6, mlp_ratio=3, moe=moe),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_of_one_block_is_all_of_them(name):
    """No array is empty: checkpoints would refuse it."""
    config = dataclasses.replace(
        CONFIGS[name](dataclasses.replace(MIXTURES["token"], expert_layers="last")), num_layers=1
    )
    model = make_model(config, jax.random.key(0))
    assert model.last is None and all(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize(("name", "layers"), [("transformer", "all"), ("s5", "last")])
def test_step_matches_call_with_experts_in_the_blocks(name, layers):
    """A call has enough tokens to sort, a step has not."""
    experts = dataclasses.replace(MIXTURES["both"], expert_layers=layers, noise=True)
    model = make_model(CONFIGS[name](experts), jax.random.key(0))
    assert type(model.blocks.ffn) is (MoE if layers == "all" else Mlp)
    assert model.last is None if layers == "all" else type(model.last.ffn) is MoE
    x = jax.random.normal(jax.random.key(1), (B, 7, 12))
    reset = jnp.zeros((B, 7), bool).at[:, 3].set(True)
    assert_close(contract.scan_step(model, model.init_carry(B), x, reset)[1], contract.call(model, None, x, reset)[1])
    noisy = jax.jit(lambda key: model(None, x, reset, key=key)[1:])
    (y, aux), (other, _) = noisy(jax.random.key(2)), noisy(jax.random.key(3))
    assert set(aux.losses) == {"moe_z", "moe_balance"} and all(value.shape == () for value in aux.losses.values())
    assert jnp.abs(y - other).max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_each_layer_draws_noise_of_its_own(name):
    """Of blocks that read the same and add nothing, the second reports another load than the first would again."""
    options = dataclasses.replace(CONFIGS[name](MoEConfig(num_experts=X, noise=True, z_weight=0)), num_layers=1)
    x, reset = jax.random.normal(jax.random.key(1), (B, 7, 12)), jnp.zeros((B, 7), bool)

    @functools.partial(jax.jit, static_argnums=0)
    def balance(num_layers):
        block = make_model(options, jax.random.key(0)).blocks
        silent = (block.out, block.ffn.token.down) if name == "transformer" else (block.value, block.ffn.token.down)
        for weights in silent:
            weights[...] = jnp.zeros(weights.shape)
        model = make_model(dataclasses.replace(options, num_layers=num_layers), jax.random.key(0))
        model.blocks = jax.tree.map(lambda p: jnp.repeat(p, num_layers, axis=0), block)
        noisy, plain = (model(None, x, reset, key=key)[2].losses["moe_balance"] for key in (jax.random.key(2), None))
        return noisy, plain

    (one, one_plain), (two, two_plain) = balance(1), balance(2)
    np.testing.assert_allclose(two_plain, one_plain, rtol=1e-4)
    assert abs(two - one) > 0.02 * one


@pytest.mark.parametrize("name", CONFIGS)
def test_step_and_call_choose_the_same_experts_in_half_precision(name, monkeypatch):
    """Logits are float32 whatever computes what they are made of, so a choice may differ only where two of them are as
    near as the rounding of those inputs: for one token in a hundred at most."""
    seen, route = [], Gate.route

    def spied(self, x_ND, *args):
        routing = route(self, x_ND, *args)
        jax.debug.callback(lambda *found: seen.append(found), x_ND, routing.expert, routing.logits, ordered=True)
        return routing

    monkeypatch.setattr(Gate, "route", spied)
    config = dataclasses.replace(CONFIGS[name](MoEConfig(num_experts=X)), num_layers=1, dtype="bfloat16")
    model, rows, steps = make_model(config, jax.random.key(0)), 211, 7
    x, reset = jax.random.normal(jax.random.key(1), (rows, steps, 12)), jnp.zeros((rows, steps), bool)

    def found(run, by_row):
        seen.clear()
        jax.block_until_ready(jax.jit(run)())
        jax.effects_barrier()
        first = rows if by_row else steps
        parts = (jnp.concatenate(part).reshape(first, -1, part[0].shape[-1]) for part in zip(*seen, strict=True))
        return [np.asarray(part if by_row else jnp.swapaxes(part, 0, 1)) for part in parts]

    call_x, called, called_logits = found(lambda: model(None, x, reset)[1], by_row=name == "transformer")
    step_x, stepped, stepped_logits = found(lambda: contract.scan_step(model, model.init_carry(rows), x, reset), False)
    w = np.asarray(model.blocks.ffn.token.gate.first[...][0], np.float64)
    for inputs, logits in ((call_x, called_logits), (step_x, stepped_logits)):
        assert inputs.dtype == jnp.bfloat16
        np.testing.assert_allclose(logits, inputs.astype(np.float64) @ w, atol=1e-5)
    differ = (np.sort(called) != np.sort(stepped)).any(axis=-1)
    largest = -np.sort(-called_logits)
    rounding = 2 * np.abs(called_logits - stepped_logits).max()
    assert rounding < 0.05 and differ.mean() < 0.01
    assert (largest[..., 1] - largest[..., 2])[differ].max(initial=0) <= rounding


# The losses of the gates.


def test_equal_logits_are_not_balanced():
    """Ties go to the first experts, which is why gates start at random."""
    layer = make_layer(MoEConfig(num_experts=6, balance_weight=0.5))
    assert layer(make_inputs())[1].losses["moe_balance"] < 0.5 * 4.8 / 2
    layer.token.gate.first[...] = jnp.zeros((D, 6))
    np.testing.assert_allclose(layer(make_inputs())[1].losses["moe_balance"], 0.5 * 4.8, rtol=1e-5)


def test_the_gradient_of_the_balance_loss_spreads_the_tokens():
    """With noise also the load's."""
    layer = make_layer(MoEConfig(num_experts=X, noise=True))
    layer.token.gate.first[...] = layer.token.gate.first[...].at[0].add(jnp.arange(X, dtype=jnp.float32))
    x = make_inputs().at[..., 0].set(1.0)
    loss = lambda layer, key: balance_loss(layer.route(x.reshape(-1, D), key)["token"])

    def learn(layer, key):
        return jax.tree.map(lambda p, g: p - 0.05 * g, layer, jax.grad(loss)(layer, key)), loss(layer, None)

    _, losses = jax.jit(lambda: jax.lax.scan(learn, layer, jax.random.split(jax.random.key(1), 100)))()
    assert losses[-1] < losses[0] / 2


def test_noise_starts_at_its_known_size_and_needs_a_key():
    layer = make_layer(MoEConfig(num_experts=X, noise=True))
    plain = make_layer("token")
    x, key = make_inputs(B), jax.random.key(6)
    assert_close(layer(x), plain(x))
    noisy = plain.token.gate(x) + (math.log(2) + 0.01) * jax.random.normal(key, (B, X))
    value, expert = jax.lax.top_k(noisy, 2)
    assert_close(layer.route(x, key)["token"][:2], (expert, jax.nn.softmax(value)))
    assert jnp.abs(layer(x, key)[0] - layer(x)[0]).max() > 1e-3


def test_the_load_test_changes_the_balance_loss_and_nothing_else():
    x, key = make_inputs(), jax.random.key(6)
    options = MoEConfig(num_experts=X, noise=True, balance_weight=1.0)
    ours, theirs = (make_layer(dataclasses.replace(options, load_test=test)) for test in ("logit", "noise"))
    (y, aux), (y_theirs, aux_theirs) = ours(x, key), theirs(x, key)
    assert_close(y, y_theirs)
    assert abs(aux.losses["moe_balance"] - aux_theirs.losses["moe_balance"]) > 1e-3
    assert_close(ours(x), theirs(x))


def test_losses_of_weight_zero_are_left_out():
    layer = make_layer(MoEConfig(num_experts=X, num_task_experts=3, balance_weight=0, z_weight=0))
    assert layer(make_inputs())[1].losses == {}


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": -1}, "num_experts=-1 must be 0 or a positive integer"),
        ({"num_task_experts": 2.0}, "num_task_experts=2.0 must be 0 or a positive integer"),
        ({"num_experts": 3, "top_k": 4}, "top_k=4 must be at most num_experts=3"),
        ({"num_task_experts": 1}, "top_k=2 must be at most num_task_experts=1"),
        ({"top_k": 0}, "top_k=0 must be a positive integer"),
        ({"expert_width": 0}, "expert_width=0 must be a positive integer"),
        ({"expert_layers": "first"}, "expert_layers='first' must be one of all, last"),
        ({"router": "mlp"}, "router='mlp' must be one of linear, tanh"),
        ({"num_task_experts": 3, "noise": True}, "noise=True must be False with num_experts=0"),
        ({"num_experts": 3, "load_test": "noise"}, "load_test='noise' must be 'logit' with noise=False"),
        ({"task_hard_router": True}, "task_hard_router=True must be False with num_task_experts=0"),
        ({"load_test": "both"}, "load_test='both' must be one of logit, noise"),
        ({"dispatch": "fast"}, "dispatch='fast' must be one of auto, dense, sorted"),
        ({"balance_weight": -1.0}, "balance_weight=-1.0 must be at least 0"),
        ({"z_weight": float("nan")}, "z_weight=nan must be at least 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(**options)


def test_a_mixture_of_nothing_is_refused_and_a_config_without_experts_means_the_dense_layer():
    with pytest.raises(ValueError, match="num_experts=0 and num_task_experts=0"):
        MoE(config(MoEConfig()), jax.random.key(0))
    assert type(feed_forward(config(MoEConfig()), jax.random.key(0))) is Mlp
    assert type(feed_forward(config(MIXTURES["both"]), jax.random.key(0))) is MoE


def test_hard_routing_without_a_mean_is_refused():
    hard = MoEConfig(num_task_experts=3, task_hard_router=True)
    with pytest.raises(ValueError, match="mean=None must be the running mean"):
        make_layer(hard)(make_inputs())


def test_hard_routing_reads_the_mean_and_soft_routing_does_not():
    """Experts still work on the tokens, and those of tokens choose by them."""
    options = MoEConfig(num_experts=X, num_task_experts=3, task_hard_router=True)
    hard, soft = make_layer(options), make_layer(dataclasses.replace(options, task_hard_router=False))
    x, mean = make_inputs(), make_inputs(seed=2)
    routings = [layer.route(x.reshape(-1, D), None, mean.reshape(-1, D)) for layer in (hard, soft)]
    assert_close(routings[0]["token"], routings[1]["token"])
    assert_close(routings[0]["task"].logits.reshape(B, T, 3), hard.task.gate(mean))
    assert_close(routings[1]["task"].logits.reshape(B, T, 3), soft.task.gate(x))
    assert_close(hard(x, None, x), soft(x))
