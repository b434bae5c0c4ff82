# ruff: noqa: N802, N803, N806
"""The state-space models against complex arithmetic in NumPy, written out."""

import functools
import itertools

import chex
import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models import recurrence
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.recurrence import linear_recurrence, multiply
from icrl_jax.models.s5 import S5, DenseStateSpace, DiagonalStateSpace, S5Config, hippo_normal

T, B, P = 13, 5, 3


def as_pair(z):
    return jnp.asarray(np.concatenate([z.real, z.imag], axis=-1), jnp.float32)


def as_complex(x):
    real, imaginary = np.split(np.asarray(x, np.float64), 2, axis=-1)
    return real + 1j * imaginary


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape) + 1j * rng.normal(size=shape)
    a = 0.9 * np.exp(1j * rng.uniform(0, 2 * np.pi, P))
    return a, draw(T, B, P), draw(B, P), rng.uniform(size=(T, B)) < 0.2


def by_hand(a, b, x, reset):
    """The recurrence in complex128, one step at a time."""
    states = []
    for t in range(len(b)):
        x = np.where(reset[t][:, None], 0, a * x) + b[t]
        states.append(x)
    return np.stack(states)


@pytest.mark.parametrize("form", [recurrence._loop, recurrence._associative])
def test_both_forms_equal_the_recurrence_in_float64(form):
    a, b, x, reset = inputs()
    reset[0, 0] = True
    assert reset.any() and reset[0].any() and not reset[0].all()
    states = jax.jit(form)(as_pair(a), as_pair(b), as_pair(x), jnp.asarray(reset))
    np.testing.assert_allclose(as_complex(states), by_hand(a, b, x, reset), atol=1e-5)


@pytest.mark.parametrize("form", [recurrence._loop, recurrence._associative])
def test_rounding_does_not_add_up_over_thousands_of_steps(form):
    """Eigenvalues of HiPPO at the shortest and longest steps that are drawn, a reset on the way; 2,003 is prime."""
    rng, steps = np.random.default_rng(7), np.array([0.001, 0.01, 0.1])
    a = np.exp(hippo_normal(6)[0] * steps)
    b, x = (rng.normal(size=(*shape, P)) + 1j * rng.normal(size=(*shape, P)) for shape in ((2003, 2), (2,)))
    reset = np.zeros((2003, 2), bool)
    reset[701, 0] = True
    rounded = (as_complex(as_pair(z)) for z in (a, b, x))  # so that only what is computed differs
    expected = by_hand(*rounded, reset)
    states = as_complex(jax.jit(form)(as_pair(a), as_pair(b), as_pair(x), jnp.asarray(reset)))
    np.testing.assert_allclose(states, expected, atol=1e-4 * np.abs(expected).max())


def test_both_forms_have_one_gradient(monkeypatch):
    """Those written by hand run the recurrence backwards; here they meet that which JAX derives from the loop."""
    a, b, x, reset = inputs(1)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(T, B, 2 * P)), jnp.float32)
    args = as_pair(a), as_pair(b), as_pair(x)
    reset = jnp.asarray(reset)
    loss = lambda f: lambda args: (weight * jnp.sin(f(*args, reset))).sum()
    derived = jax.jit(jax.grad(loss(recurrence._loop)))(args)
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        written = jax.jit(jax.grad(loss(lambda *args: linear_recurrence(*args))))(args)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), written, derived)


def test_operator_is_associative():
    """Any bracketing of runs of inputs, whichever of them holds a reset, gives one state."""
    a, b, _, _ = inputs(3)
    runs = [(as_pair(a), as_pair(b[t, 0])) for t in range(3)]
    for flags in itertools.product([False, True], repeat=3):
        x, y, z = ((*run, jnp.array([flag])) for run, flag in zip(runs, flags, strict=True))
        left, right = recurrence._join(recurrence._join(x, y), z), recurrence._join(x, recurrence._join(y, z))
        np.testing.assert_allclose(left[1], right[1], atol=1e-5)
        assert left[2] == right[2] == any(flags)
        if not any(flags):
            np.testing.assert_allclose(left[0], right[0], atol=1e-5)


@pytest.mark.parametrize("N", [2, 6, 14])
def test_hippo_is_diagonalised(N):
    values, vectors = hippo_normal(N)
    values, vectors = np.concatenate([values, values.conj()]), np.concatenate([vectors, vectors.conj()], axis=1)
    S = (vectors * values) @ vectors.conj().T
    n = np.arange(N)
    P = np.sqrt(n + 0.5)
    A = S.real - np.outer(P, P)
    expected = -np.sqrt(np.outer(2 * n + 1, 2 * n + 1)) * (n[:, None] > n) - np.diag(n + 1.0)
    np.testing.assert_allclose(A, expected, atol=1e-9)
    np.testing.assert_allclose(S.imag, 0, atol=1e-9)
    np.testing.assert_allclose(values.real, -0.5)


def make(kind, **sizes):
    config = S5Config(**{"width": 7, "state_size": 6, "kind": kind, **sizes})
    layer = {"s5": DenseStateSpace, "s4d": DiagonalStateSpace}[kind](config, jax.random.key(0))
    return config, layer


def outputs(layer, u, reset):
    a, b = layer.transition()
    states = linear_recurrence(a, layer.drive(b, u), jnp.zeros((u.shape[1], a.shape[0])), reset)
    return layer.read(states, u)


def in_numpy(layer):
    """Eigenvalues, steps and the outputs' weights in float64."""
    get = lambda name: np.asarray(getattr(layer, name)[...], np.float64)
    return -np.exp(get("log_decay")) + 1j * get("frequency"), np.exp(get("log_dt")), get("skip")


@pytest.mark.parametrize(("kind", "state_size"), [("s5", 202), ("s4d", 6)])
def test_a_layer_starts_with_its_eigenvalues_and_with_steps_of_all_lengths(kind, state_size):
    """Those of HiPPO, or S4D-Lin's; and the steps spread log-uniformly over all of their range."""
    _, layer = make(kind, width=101, state_size=state_size, dt_min=0.003, dt_max=0.7)
    eigenvalues, dt, _ = in_numpy(layer)
    linear = np.tile(-0.5 + 1j * np.pi * np.arange(3), (101, 1))
    np.testing.assert_allclose(eigenvalues, hippo_normal(202)[0] if kind == "s5" else linear, rtol=1e-5)
    spread = np.sort(np.log(dt.ravel() / 0.003) / np.log(0.7 / 0.003))
    assert spread.shape == (101,)
    assert -1e-5 < spread[0] < 0.05 and 0.95 < spread[-1] < 1 + 1e-5
    np.testing.assert_allclose(spread, np.linspace(0, 1, 101), atol=0.2)


def test_a_layer_starts_as_a_system_in_the_coordinates_of_hippo():
    """V diag(lambda) V^H on N complex numbers, driven by a real B and read by a complex C, as the layer draws them."""
    _, layer = make("s5")
    _, key_b, key_c = jax.random.split(jax.random.key(0), 3)
    B_ND = np.asarray(jax.random.normal(key_b, (7, 6)), np.float64).T * 7**-0.5
    C_re, C_im = np.asarray(jax.random.normal(key_c, (2, 7, 6)), np.float64) * 6**-0.5
    u = np.random.default_rng(6).normal(size=(T, 7)).astype(np.float32)
    eigenvalues, V = hippo_normal(6)
    _, dt, skip = in_numpy(layer)
    on_all = lambda f: (V * f) @ V.conj().T  # [N, N], of a function of the eigenvalues
    a = np.exp(eigenvalues * dt)
    A, hold = on_all(a), on_all((a - 1) / eigenvalues)
    state, expected = np.zeros(6), []
    for t in range(T):
        state = A @ state + hold @ B_ND @ u[t]
        expected.append(2 * ((C_re + 1j * C_im) @ state).real + skip * u[t])
    found = outputs(layer, jnp.asarray(u[:, None]), jnp.zeros((T, 1), bool))
    np.testing.assert_allclose(found[:, 0], np.array(expected), atol=1e-4)


def test_a_full_state_equals_the_conjugate_half():
    """S5 in NumPy with all N states, each beside its conjugate, and the zero-order hold as it is defined."""
    _, layer = make("s5")
    u = np.random.default_rng(4).normal(size=(T, 1, 7)).astype(np.float32)
    reset = np.zeros((T, 1), bool)
    reset[5] = True
    eigenvalues, dt, skip = in_numpy(layer)
    b = as_complex(layer.b[...])  # [D, P]
    half = as_complex(np.asarray(layer.c[...]).T)  # [D, real | -imaginary], doubled
    c = half.conj() / 2
    eigenvalues, dt = np.concatenate([eigenvalues, eigenvalues.conj()]), np.concatenate([dt, dt])
    b, c = np.concatenate([b, b.conj()], axis=1), np.concatenate([c, c.conj()], axis=1)
    a = np.exp(eigenvalues * dt)
    states = by_hand(a, u @ (b * (a - 1) / eigenvalues), np.zeros((1, 6)), reset)
    expected = states @ c.T
    np.testing.assert_allclose(expected.imag, 0, atol=1e-9)
    found = outputs(layer, jnp.asarray(u), jnp.asarray(reset))
    np.testing.assert_allclose(found, expected.real + skip * u, atol=1e-4)


def test_s4d_is_one_recurrence_a_feature():
    _, layer = make("s4d", state_size=4)
    u = np.random.default_rng(5).normal(size=(T, 1, 7)).astype(np.float32)
    reset = np.zeros((T, 1), bool)
    reset[5] = True
    eigenvalues, dt, skip = in_numpy(layer)  # [D, M], [D, 1]
    a, c = np.exp(eigenvalues * dt), as_complex(layer.c[...])
    found = outputs(layer, jnp.asarray(u), jnp.asarray(reset))
    for d in range(7):
        scale = (a[d] - 1) / eigenvalues[d]
        states = by_hand(a[d], u[:, :, d, None] * scale, np.zeros((1, 2)), reset)
        np.testing.assert_allclose(found[..., d], (states @ c[d]).real + skip[d] * u[..., d], atol=1e-4)


@pytest.mark.parametrize("kind", ["s5", "s4d"])
def test_no_state_grows_whatever_the_weights(kind):
    _, layer = make(kind)
    wild = jax.tree.map(lambda p: 3 * jax.random.normal(jax.random.key(1), p.shape), layer)
    assert (np.abs(as_complex(wild.transition()[0])) <= 1).all()


def test_short_steps_lose_no_digits():
    _, layer = make("s5", dt_min=1e-6, dt_max=1e-6)
    _, scale = layer.discrete()
    np.testing.assert_allclose(as_complex(scale), 1e-6, rtol=1e-4)


def test_multiply_is_complex():
    rng = np.random.default_rng(6)
    x, y = (rng.normal(size=P) + 1j * rng.normal(size=P) for _ in "xy")
    np.testing.assert_allclose(as_complex(multiply(as_pair(x), as_pair(y))), x * y, rtol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(width=0), "width=0 must be a positive integer"),
        (dict(state_size=7), "state_size=7 must be even"),
        (dict(kind="s6"), "kind='s6' must be one of s5, s4d"),
        (dict(gate="glu"), "gate='glu' must be one of full_glu, half_glu1, half_glu2"),
        (dict(norm="layer"), "norm='layer' must be one of pre, post, none"),
        (dict(mlp_ratio=-1), "mlp_ratio=-1 must be 0 or a positive integer"),
        (dict(dt_min=0.0), "dt_min=0.0, dt_max=0.1 must be above 0"),
        (dict(dt_min=0.2), "dt_min=0.2, dt_max=0.1 must be above 0 and in this order"),
    ],
)
def test_config_refuses_what_cannot_work(options, words):
    with pytest.raises(ValueError, match=words):
        S5Config(**options)


@pytest.mark.parametrize("experts", [0, 3])
def test_blocks_are_lowered_once_for_all_layers(experts):
    """But for the last, where it alone has experts."""
    moe = MoEConfig(num_experts=experts, expert_layers="last")
    model = S5(S5Config(width=4, num_layers=4, state_size=6, mlp_ratio=2, moe=moe), jax.random.key(0))
    carry, x, reset = model.init_carry(B), jnp.zeros((B, T, 4)), jnp.zeros((B, T), bool)
    for run, inputs in (contract.call, (x, reset)), (jax.jit(S5.step), (x[:, 0], reset[:, 0])):
        program = run.lower(model, carry, *inputs).as_text()
        assert program.count("call @_run_block") == 4
        assert program.count("func.func private @_run_block") == (2 if experts else 1)


def test_remat_saves_memory_and_changes_no_gradient():
    """Of 5 layers, all but what enters each."""
    x, reset = jax.random.normal(jax.random.key(0), (1, 1031, 24)), jnp.zeros((1, 1031), bool).at[0, 503].set(True)

    def measured(remat):
        model = S5(S5Config(width=24, num_layers=5, state_size=24, remat=remat), jax.random.key(1))
        gradient = jax.jit(jax.grad(lambda model: jnp.square(model(None, x, reset)[1]).mean())).lower(model).compile()
        return gradient.memory_analysis().temp_size_in_bytes, jax.tree.leaves(gradient(model))

    (less, again), (most, at_once) = measured(remat=True), measured(remat=False)
    assert less < most / 2
    chex.assert_trees_all_close(again, at_once, rtol=1e-3, atol=1e-6)
