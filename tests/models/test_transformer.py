# ruff: noqa: N802, N803, N806
"""The transformer keeps the contract of a sequence model, whatever the carry, the resets and the lengths."""

import dataclasses
import functools
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import assert_gradient_is_slope, filled, running_means
from flax import nnx

from icrl_jax.models.layers import layer_norm, linear
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.transformer import Transformer, TransformerConfig

B, D, C, T = 7, 12, 5, 13
EXPERTS = MoEConfig(num_experts=5, num_task_experts=3, noise=True)
HARD = MoEConfig(num_task_experts=5, task_hard_router=True)
BASE = TransformerConfig(width=D, num_layers=2, num_heads=2, context_len=C, positions="none")
CONFIGS = {
    "none": BASE,
    "learned": dataclasses.replace(BASE, positions="learned", num_heads=3),
    "rotary": dataclasses.replace(BASE, positions="rotary", num_kv_heads=1, sink="k0v"),
    "relative": dataclasses.replace(BASE, positions="relative", num_heads=4, num_kv_heads=2, sink="kv0"),
    "episodes": dataclasses.replace(BASE, positions="episodes", max_episode_len=7, sink="kv"),
    "apart": dataclasses.replace(BASE, positions="learned", attend="episode", sink="token", remat=True),
    "k0v0": dataclasses.replace(BASE, positions="rotary", sink="k0v0"),
    "experts": dataclasses.replace(BASE, positions="rotary", moe=EXPERTS),
    "hard": dataclasses.replace(BASE, positions="rotary", attend="episode", sink="token", moe=HARD),
    "hard-last": dataclasses.replace(
        BASE, remat=True, moe=dataclasses.replace(HARD, expert_layers="last", num_experts=5)
    ),
    "last": dataclasses.replace(
        BASE,
        positions="relative",
        attend="episode",
        sink="token",
        moe=dataclasses.replace(EXPERTS, expert_layers="last"),
    ),
}
every_model = pytest.mark.parametrize("name", CONFIGS)
assert_close = partial(jax.tree.map, partial(np.testing.assert_allclose, atol=1e-5))


@functools.cache
def make_model(name, **options):
    return filled(lambda: Transformer(dataclasses.replace(CONFIGS[name], **options), jax.random.key(0)))


def make_inputs(T=T, seed=1, batch=B):
    """Inputs, where sequences begin, and where episodes do."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, T, D)).astype(np.float32),
        rng.uniform(size=(batch, T)) < 0.15,
        rng.uniform(size=(batch, T)) < 0.2,
    )


new_model = jax.jit(Transformer, static_argnums=0)
peek = jax.jit(Transformer.peek)
call = jax.jit(lambda model, carry, x, reset, episode: model(carry, x, reset, episode)[:2])
branch = jax.jit(Transformer.branch, static_argnums=(2, 3))


@jax.jit
def scan_step(model, carry, x, reset, episode):
    inputs = (jnp.swapaxes(xs, 0, 1) for xs in (x, reset, episode))
    carry, y = jax.lax.scan(lambda carry, xs: model.step(carry, *xs), carry, tuple(inputs))
    return carry, jnp.swapaxes(y, 0, 1)


@functools.cache
def used_carry(model):
    return scan_step(model, model.init_carry(B), *make_inputs(seed=2))[0]


def beginnings(*at):
    return np.isin(np.arange(T), at)[None].repeat(B, axis=0)


@pytest.mark.parametrize(
    ("name", "T"), [*((name, T) for name in CONFIGS), ("rotary", 3), ("learned", 1), ("learned", C)]
)
def test_step_matches_call(name, T):
    """From a used carry and from nothing, for T below, at and above C; and the carries agree."""
    model, inputs = make_model(name), make_inputs(T)
    assert_close(scan_step(model, used_carry(model), *inputs), call(model, used_carry(model), *inputs))
    assert_close(scan_step(model, model.init_carry(B), *inputs), call(model, None, *inputs))


def test_step_matches_call_in_half_precision():
    model, inputs = make_model("relative", dtype="bfloat16"), make_inputs()
    stepped, called = scan_step(model, used_carry(model), *inputs)[1], call(model, used_carry(model), *inputs)[1]
    assert used_carry(model).k[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(stepped, called, atol=0.1)
    np.testing.assert_allclose(jnp.abs(stepped - called).mean(), 0, atol=0.01)


def test_init_carry_equals_no_carry():
    model, inputs = make_model("learned"), make_inputs()
    assert_close(call(model, model.init_carry(B), *inputs), call(model, None, *inputs))


@every_model
def test_resets_equal_separate_sequences(name):
    """And so do episodes that do not attend to one another. Outputs are causal, so what follows a sequence is left."""
    model = make_model(name)
    x, none, cuts = make_inputs()[0], beginnings(), [0, 3, 4, 11, T]
    marks = beginnings(*cuts[:-1])
    together = [call(model, used_carry(model), x, marks, none)[1]]
    if model.config.attend == "episode":
        together.append(call(model, used_carry(model), x, none, marks)[1])
    for first, end in itertools.pairwise(cuts):
        apart = call(model, None, np.roll(x, -first, axis=1), none, none)[1]
        for y in together:
            np.testing.assert_allclose(y[:, first:end], apart[:, : end - first], atol=1e-5)


@every_model
def test_future_has_zero_gradient(name):
    """Nothing later, nothing before a reset, nothing older than the context of one layer times the layers, if no
    experts go by the mean of all."""
    model, reset_at = make_model(name), 6
    x, begins, none = make_inputs(batch=1)[0], beginnings(reset_at)[:1], beginnings()[:1]
    begin = (none, begins) if model.config.attend == "episode" else (begins, none)
    reach = jax.jit(jax.jacobian(lambda x: jnp.square(model(None, x, *begin)[1]).sum(axis=(0, 2))))(x)
    reach = np.abs(reach).sum(axis=(1, 3)) > 1e-6
    query, key = np.indices((T, T))
    expected = (key <= query) & ((key >= reset_at) == (query >= reset_at))
    if not model.config.moe.task_hard_router:
        expected &= query - key <= 2 * (C - 1)
    np.testing.assert_array_equal(reach, expected)


def test_a_sequence_is_routed_by_the_mean_of_what_its_gate_has_read():
    """Since the last reset, or episode where those are apart, and in calls before. Where attention finds nothing, all
    else in a block is known."""
    model = jax.tree.map(lambda p: p, make_model("hard", num_layers=1, sink="none"))
    model.blocks.out[...] = jnp.zeros((1, D, D))
    x, reset, episode = make_inputs()
    carry, first = call(model, None, x[:, :6], reset[:, :6], episode[:, :6])
    _, second = call(model, carry, x[:, 6:], reset[:, 6:], episode[:, 6:])

    block = model._block(0)
    h = block.ffn_norm(jnp.asarray(x))
    means, means_of_all = running_means(h, reset | episode), running_means(h, np.zeros_like(reset))
    y, other = (model.norm(x + block.ffn(h, None, seen)[0]) for seen in (means, means_of_all))
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), y, atol=1e-5)
    assert np.abs(y - other).max() > 1e-2


@every_model
def test_peek_matches_discarded_step(name):
    model = make_model(name)
    carry, none = used_carry(model), beginnings()
    candidates = make_inputs(3, seed=3)[0]
    stepped = [scan_step(model, carry, candidates[:, [i] * T], none, none)[1][:, 0] for i in range(3)]
    np.testing.assert_allclose(peek(model, carry, candidates), np.stack(stepped, axis=1), atol=1e-5)


@every_model
def test_branch_matches_separate_steps(name):
    """More steps on the branches than the cache is long, with resets; then a peek from there."""
    model, n = make_model(name), 2
    carry, inputs = used_carry(model), make_inputs(seed=4, batch=B * n)
    candidates = make_inputs(3, seed=3, batch=B * n)[0]
    branches, y = call(model, branch(model, carry, n, T), *inputs)
    peeked = peek(model, branches, candidates)
    for i in range(n):
        alone, expected = scan_step(model, carry, *(xs[i::n] for xs in inputs))
        np.testing.assert_allclose(y[i::n], expected, atol=1e-5)
        np.testing.assert_allclose(peeked[i::n], peek(model, alone, candidates[i::n]), atol=1e-5)
    with pytest.raises(ValueError, match="depth=2"):
        model(model.branch(carry, n, 2), *inputs)
    with pytest.raises(ValueError, match="carry is of branches already"):
        model.branch(branches, n, 2)


def test_a_full_branch_answers_nan_and_no_wrong_number():
    model, inputs = make_model("rotary"), make_inputs(4, seed=4)
    branches = branch(model, used_carry(model), 1, 3)
    branches, y = call(model, branches, *(x[:, :2] for x in inputs))
    _, more = call(model, branches, *(x[:, 2:] for x in inputs))
    assert np.isfinite(y).all() and np.isfinite(more[:, 0]).all() and np.isnan(more[:, 1]).all()


@every_model
def test_nan_before_a_reset_never_leaks_past_it(name):
    model, none = make_model(name), beginnings()
    x, reset = make_inputs()[0], beginnings(4)
    spoiled = x.copy()
    spoiled[:, 2] = np.nan
    clean = call(model, None, x, reset, none)[1]
    called, stepped = (
        call(model, None, spoiled, reset, none)[1],
        scan_step(model, model.init_carry(B), spoiled, reset, none)[1],
    )
    for y in called, stepped:
        np.testing.assert_allclose(y[:, 4:], clean[:, 4:], atol=1e-5)
        assert np.isnan(y[:, 2:4]).all()
    spoiled_carry = call(model, None, np.full_like(x, np.nan), none, none)[0]
    after = call(model, spoiled_carry, np.roll(x, -4, axis=1), beginnings(0), none)[1]
    np.testing.assert_allclose(after[:, : T - 4], clean[:, 4:], atol=1e-5)


@pytest.mark.parametrize("name", ["rotary", "relative", "apart", "hard"])
def test_nan_before_a_reset_reaches_no_gradient_past_it(name):
    """Of steps, branches and candidates that follow a reset in a memory full of NaN; that of what was is zero."""
    model, none = make_model(name), beginnings()
    x, now = make_inputs()[0], beginnings(0)[:, :3]
    empty = model.init_carry(B)
    index = jnp.int32(T)
    spoiled = call(model, empty, np.full_like(x, np.nan), none, none)[0]
    assert np.isnan(spoiled.k[0]).all()

    @jax.jit
    @jax.grad
    def gradient(args, carry):
        model, x, k = args
        carry, stepped = scan_step(model, carry._replace(k=k), x[:, :3], now, none[:, :3])
        twice = lambda rows: jnp.repeat(rows, 2, axis=0)
        branches, branched = scan_step(
            model, model.branch(carry, 2, 4), twice(x[:, 3:7]), *(twice(beginnings(2)[:, :4]),) * 2
        )
        peeked = model.peek(carry, x[:, 7:9]), model.peek(branches, twice(x[:, 9:11]))
        return sum(jnp.sin(y).sum() for y in (stepped, branched, *peeked))

    clean = gradient((model, x, empty.k), empty._replace(index=index))
    found = gradient((model, x, spoiled.k), spoiled._replace(place=empty.place))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), jax.tree.leaves(found), jax.tree.leaves(clean))
    assert not any(np.any(k) for k in found[2])


@pytest.mark.parametrize("name", ["rotary", "relative"])
def test_index_far_along_is_exact(name):
    """Angles depend on differences of indices only, even where float32 cannot count and turns have wrapped."""
    model, inputs = make_model(name), make_inputs()
    far_start = model.init_carry(B)._replace(index=jnp.int32(2_000_000_003))
    for run in scan_step, call:
        near = run(model, model.init_carry(B), *inputs)[1]
        np.testing.assert_allclose(run(model, far_start, *inputs)[1], near, atol=1e-5)


def test_relative_scores_are_those_of_transformer_xl():
    """(q + u) . k + (q + v) . W waves(distance), in so many words, Dai et al. 2019, section 3.3."""
    model = make_model("relative", sink="none", num_kv_heads=None)
    x, none = make_inputs()[0], beginnings()
    query, key = np.indices((T, T))
    half = np.arange(16)
    angle = (query - key)[..., None] * 10_000.0 ** (-half / 16)
    waves = jnp.asarray(np.concatenate([np.cos(angle), -np.sin(angle)], axis=-1), jnp.float32)

    @jax.jit
    def in_so_many_words(model, x):
        for layer in range(2):
            block = model._block(layer)
            q, k, v = block.heads(x)
            u_q, v_q = (q + bias[...][None, None] for bias in (block.content_bias, block.distance_bias))
            far = jnp.einsum("bthk,hkr,tsr->bhts", v_q, block.waves[...], waves)
            s = (jnp.einsum("bthk,bshk->bhts", u_q, k) + far) * model.config.head_width**-0.5
            p = jax.nn.softmax(jnp.where(((key <= query) & (query - key < C))[None, None], s, -jnp.inf))
            x = block.merge(x, jnp.einsum("bhts,bshk->bthk", p, v))[0]
        return model.norm(x)

    np.testing.assert_allclose(call(model, None, x, none, none)[1], in_so_many_words(model, x), atol=1e-5)


def test_episodes_count_by_their_difference_and_order_counts_within():
    model, none = make_model("episodes", context_len=T), beginnings()
    x, _, episode = make_inputs()
    empty, now = model.init_carry(B), beginnings(0)
    shifted = empty._replace(place=empty.place._replace(episode=empty.place.episode + 5))
    y = call(model, empty, x, none, episode)[1]
    np.testing.assert_allclose(call(model, shifted, x, none, episode)[1], y, atol=1e-5)
    assert np.abs(call(model, empty, x, none, episode ^ beginnings(6))[1] - y).max(axis=(1, 2)).min() > 1e-3
    swapped = x[:, [1, 0, *range(2, T)]]
    y, y_swapped = (call(model, empty, xs, now, none)[1] for xs in (x, swapped))
    assert (np.abs(y - y_swapped)[:, 2:] > 1e-5).any(axis=-1).all()


def test_sink_token_is_an_input_before_all_others():
    """Which only the causal mask keeps from seeing anything, where the context is long enough."""
    model = make_model("none", sink="token", context_len=T + 1)
    plain = make_model("none", context_len=T + 1)  # of the same weights
    x, none = make_inputs()[0], beginnings()
    before = jnp.broadcast_to(model.sink_token[...][None, None], (B, 1, D))
    expected = jax.jit(lambda x: plain(None, x, jnp.zeros(x.shape[:2], bool))[1])(jnp.concatenate([before, x], axis=1))
    np.testing.assert_allclose(call(model, None, x, none, none)[1], expected[:, 1:], atol=1e-5)


def test_sinks_are_softmax_off_by_one_at_first():
    models = [new_model(dataclasses.replace(BASE, sink=sink), jax.random.key(0)) for sink in ("kv", "k0v0", "none")]
    kv, k0v0, none = (call(model, None, *make_inputs())[1] for model in models)
    np.testing.assert_allclose(kv, k0v0, atol=1e-6)
    assert np.abs(kv - none).mean() > 1e-2


def test_grouped_heads_equal_full_ones_of_repeated_weights():
    grouped = make_model("none", num_heads=4, num_kv_heads=2)
    q, k, v = jnp.split(grouped.blocks.qkv[...].reshape(2, D, 8, 3), (4, 6), axis=2)
    qkv = jnp.concatenate([q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)], axis=2)
    full = jax.tree.map(lambda p: p, make_model("none", num_heads=4))  # all other weights are the same
    full.blocks.qkv = nnx.Param(qkv.reshape(2, D, 36))
    (carry, y), (_, expected) = (call(model, None, *make_inputs()) for model in (grouped, full))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert carry.k[0].shape == (B, 2, C, 3)


@pytest.mark.parametrize("experts", [0, 3])
def test_blocks_are_lowered_once_for_all_layers(experts):
    """But for the last, where it alone has experts."""
    moe = MoEConfig(num_experts=experts, expert_layers="last")
    model = Transformer(dataclasses.replace(BASE, num_layers=4, moe=moe), jax.random.key(0))
    carry, (x, *begins) = model.init_carry(B), make_inputs()
    acting = jax.jit(Transformer.step).lower(model, carry, x[:, 0], begins[0][:, 0]).as_text()
    for program, name in (call.lower(model, carry, x, *begins).as_text(), "_run_block"), (acting, "_next_block"):
        assert program.count(f"call @{name}") == 4
        assert program.count(f"func.func private @{name}") == (2 if experts else 1)


@pytest.mark.parametrize("expert_layers", ["all", "last"])
def test_remat_changes_neither_values_nor_gradients(expert_layers):
    """Nor the memory, the losses of experts and what their routers draw."""
    inputs, options = make_inputs(), dict(num_layers=3, moe=MoEConfig(3, expert_layers=expert_layers, noise=True))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(model, carry):
        carry, y, aux = model(carry, *inputs, jax.random.key(5))
        return jnp.sin(y).sum() + sum(aux.losses.values()), (carry, aux)

    models = [make_model("relative", remat=remat, **options) for remat in (False, True)]
    (found, dy), (found_again, dy_again) = (loss(model, used_carry(models[0])) for model in models)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found_again, found)  # the sum of a thousand
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), jax.tree.leaves(dy_again), jax.tree.leaves(dy))


def test_remat_saves_memory():
    """Of 5 layers, all but what enters each."""
    inputs = jnp.zeros((1, 331, 24)), jnp.zeros((1, 331), bool)

    def memory(remat):
        config = TransformerConfig(24, 5, 2, context_len=331, positions="none", remat=remat)
        gradient = jax.jit(jax.grad(lambda model: model(None, *inputs)[1].sum()))
        return gradient.lower(new_model(config, jax.random.key(0))).compile().memory_analysis().temp_size_in_bytes

    assert memory(True) < memory(False) / 2


def test_residual_variance_does_not_grow_with_depth():
    """Outputs are normalised, so look at the weights: fan-in, and smaller by sqrt(2 L) where the stream is written."""
    cfg = TransformerConfig(width=64, num_layers=2, num_heads=2)
    block = Transformer(cfg, jax.random.key(0)).blocks
    for weight, fan_in, scale in (
        (block.qkv, 64, 1),
        (block.out, 64, 4),
        (block.ffn.up, 64, 1),
        (block.ffn.down, 256, 4),
    ):
        np.testing.assert_allclose(weight[...].std() * (fan_in * scale) ** 0.5, 1, atol=0.03)
    model = Transformer(cfg, jax.random.key(1))
    _, y, _ = jax.jit(model)(None, jax.random.normal(jax.random.key(2), (5, 11, 64)), jnp.zeros((5, 11), bool))
    np.testing.assert_allclose(y.std(), 1, atol=0.05)
    assert y.dtype == jnp.float32


@every_model
def test_gradients_match_finite_differences_in_float64(name):
    """Of the weights, the inputs and the memory, along one direction."""
    carry = used_carry(make_model(name))
    x, *begins = make_inputs()

    def f(args):
        model, (k, v, total), x = args
        return jnp.sin(model(carry._replace(k=k, v=v, total=total), x, *begins)[1]).sum()

    assert_gradient_is_slope(f, (make_model(name, dtype="float64"), (carry.k, carry.v, carry.total), x))


def test_gradients_of_the_layers_match_finite_differences_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        args = tuple(rng.normal(size=shape) for shape in ((2, 3, 7), (7, 5), (5,), (5,)))
        direction = tuple(rng.normal(size=x.shape) for x in args)

        def f(x, w, scale, bias):
            return jnp.sin(layer_norm(linear(x, w), scale, bias)).sum()

        gradients = jax.jit(jax.grad(f, argnums=(0, 1, 2, 3)))(*args)
        slope = sum((np.asarray(g) * d).sum() for g, d in zip(gradients, direction, strict=True))
        ahead, behind = (
            jax.jit(f)(*(x + step * d for x, d in zip(args, direction, strict=True))) for step in (1e-6, -1e-6)
        )
        np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-6)


@pytest.mark.parametrize("name", ["none", "relative", "episodes", "hard"])
def test_step_is_differentiable(name):
    """Backpropagation through acting equals that through a whole sequence, to the inputs and to the weights."""
    model, (x, *begins) = make_model(name), make_inputs(3)
    stepped, called = (
        jax.jit(jax.grad(lambda args, run=run: jnp.sin(run(args[0], args[1])).sum()))((model, x))
        for run in (
            lambda model, x: scan_step(model, model.init_carry(B), x, *begins)[1],
            lambda model, x: call(model, None, x, *begins)[1],
        )
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), jax.tree.leaves(stepped), jax.tree.leaves(called))


def test_vmapped_tasks_share_the_index_and_write_one_slot():
    """A batched index would turn the write into one scatter per task; a copy would read the whole cache."""
    model = make_model("none")
    x = jnp.zeros((11, 1, D))

    def rollout(carry):
        def step(carry, _):
            axes = carry._replace(index=None, length=0, k=(0, 0), v=(0, 0))
            return jax.vmap(lambda c, x: model.step(c, x, jnp.zeros(1, bool)), in_axes=(axes, 0), out_axes=(axes, 0))(
                carry, x
            )

        return jax.lax.scan(step, carry, length=3)

    empty = model.init_carry(1)
    carry = jax.tree.map(lambda leaf: jnp.zeros((11, *leaf.shape), leaf.dtype), empty)._replace(index=empty.index)
    jaxpr = str(jax.make_jaxpr(rollout)(carry))
    assert "dynamic_update_slice" in jaxpr
    assert "scatter" not in jaxpr


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(width=0), ["width=0", "positive"]),
        (dict(num_layers=-1), ["num_layers=-1", "positive"]),
        (dict(context_len=2.5), ["context_len=2.5", "positive integer"]),
        (dict(width=12, num_heads=5), ["num_heads=5", "width=12", "[1, 2, 3, 4, 6, 12]"]),
        (dict(width=12, num_heads=4, positions="rotary"), ["num_heads=4", "rotary", "even"]),
        (dict(width=12, num_heads=4, positions="episodes"), ["num_heads=4", "episodes", "even"]),
        (dict(num_heads=4, num_kv_heads=3), ["num_kv_heads=3", "num_heads=4", "[1, 2, 4]"]),
        (dict(num_kv_heads=0), ["num_kv_heads=0", "positive"]),
        (dict(max_episode_len=7), ["max_episode_len=7", "episodes", "learned"]),
        (dict(sink="k"), ["sink='k'", "none, kv, kv0, k0v, k0v0, token"]),
        (dict(attend="trial"), ["attend='trial'", "all, episode"]),
        (dict(positions="sinus"), ["positions='sinus'", "none, learned, rotary, relative, episodes"]),
        (dict(dtype="int8"), ["dtype='int8'", "bfloat16"]),
    ],
)
def test_config_refuses_what_cannot_work(options, words):
    with pytest.raises(ValueError) as error:
        TransformerConfig(**options)
    assert all(word in str(error.value) for word in words)


def test_check_horizon_refuses_longer_than_the_table():
    config = TransformerConfig(context_len=10)
    config.check_horizon(10, "num_steps")
    with pytest.raises(ValueError, match=re.escape("num_steps=11") + ".*context_len=10"):
        config.check_horizon(11, "num_steps")
    TransformerConfig(context_len=10, positions="rotary").check_horizon(11)
    with pytest.raises(ValueError, match="num_steps=8 .*max_episode_len=7.*episodes"):
        TransformerConfig(positions="episodes", max_episode_len=7).check_horizon(8, "num_steps")
    counts = lambda **options: TransformerConfig(**options).counts_episodes
    assert counts(positions="episodes") and counts(attend="episode") and not counts()
