# ruff: noqa: N802, N803, N806
"""Heads of actions map like their features, and what they predict are actions of the space."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

import icrl_envs
from icrl_jax.models.heads import ActionHeadConfig, make_action_head

B, T, D, A, K = 5, 7, 13, 3, 11
LOW, HIGH = (-1.0, -2.0, 0.5), (1.0, 3.0, 0.75)
BOX = spaces.Box(np.array(LOW), np.array(HIGH), (A,))
HEADS = {
    "categorical": (spaces.Discrete(A), {}),
    "tanh_gaussian": (BOX, {"continuous": "tanh_gaussian"}),
    "tanh_gaussian-state": (BOX, {"continuous": "tanh_gaussian", "sd": "state", "hidden": (7, 5)}),
    "bins": (BOX, {"continuous": "bins", "num_bins": K}),
}
every_head = pytest.mark.parametrize("name", HEADS)
SAMPLES = 20_011


@functools.cache
def head_and_features(name):
    space, options = HEADS[name]
    head = jax.jit(lambda key: make_action_head(space, D, ActionHeadConfig(**options), key))(jax.random.key(0))
    return head, jax.random.normal(jax.random.key(1), (B, T, D))


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


@every_head
def test_a_head_maps_like_its_features(name):
    """Whatever the leading axes, under vmap and in a scan; all in float32, also from bfloat16."""
    head, y = head_and_features(name)

    @jax.jit
    def all_ways(y):
        together = head(y)
        choices = together.sample(jax.random.key(2))
        log_probs = together.log_prob(choices)
        rows = jax.lax.scan(lambda carry, y: (carry, head(y)), 0, y)[1]
        mapped = jax.vmap(jax.vmap(head))(y)
        mapped_log_probs = jax.vmap(jax.vmap(lambda dist, choice: dist.log_prob(choice)))(together, choices)
        entropy = together.entropy(jax.random.key(3))
        return together, rows, mapped, (log_probs, mapped_log_probs, entropy), choices, together.mode()

    together, rows, mapped, (log_probs, mapped_log_probs, entropy), choices, mode = all_ways(y)
    assert all(x.shape[:2] == (B, T) and x.dtype == jnp.float32 for x in jax.tree.leaves(together))
    narrow = jax.eval_shape(head, y.astype(jnp.bfloat16))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(narrow))
    assert_close(rows, together)
    assert_close(mapped, together)
    assert log_probs.shape == entropy.shape == (B, T)
    assert_close(mapped_log_probs, log_probs)
    assert mode.shape == choices.shape and mode.dtype == choices.dtype


@every_head
def test_actions_obey_the_space_and_come_back(name):
    """Also far outside of what training would ever reach."""
    space, _ = HEADS[name]
    head, y = head_and_features(name)

    @jax.jit
    def act(y):
        dist = head(y)
        choice = dist.sample(jax.random.key(2))
        action = dist.decode(choice)
        return choice, action, dist.encode(action), jax.vmap(jax.vmap(space.contains))(action)

    for scale in (1.0, 1e4):
        _, action, _, inside = act(scale * y)
        assert action.shape[2:] == space.shape and inside.all()
    choice, _, back, _ = act(0.1 * y)
    assert_close(back, choice, atol=1e-3)


@every_head
def test_entropy_is_the_mean_of_minus_log_prob(name):
    head, y = head_and_features(name)

    @jax.jit
    def both(key_surprise, key_entropy):
        dist = head(y[0, 0])
        surprise = lambda key: -dist.log_prob(dist.sample(key))
        keys = jax.random.split(key_surprise, SAMPLES), jax.random.split(key_entropy, SAMPLES)
        return jax.vmap(surprise)(keys[0]), jax.vmap(dist.entropy)(keys[1])

    surprise, entropy = (np.asarray(x, float) for x in both(jax.random.key(2), jax.random.key(5)))
    error = 4 * math.hypot(surprise.std(), entropy.std()) / math.sqrt(SAMPLES) + 1e-4
    assert abs(surprise.mean() - entropy.mean()) < error


def test_a_scale_of_zero_acts_at_random():
    for name, uniform in (("categorical", -math.log(A)), ("bins", -A * math.log(K))):
        space, options = HEADS[name]
        head = make_action_head(space, D, ActionHeadConfig(**{**options, "scale": 0.0}), jax.random.key(0))
        dist = head(jax.random.normal(jax.random.key(1), (B, D)))
        assert_close(dist.log_prob(dist.mode()), np.full(B, uniform))


def test_standard_deviations_stay_within_limits():
    """Of the free ones, that each is the same everywhere; of the others, that they depend on the features."""
    for name, varies in (("tanh_gaussian", False), ("tanh_gaussian-state", True)):
        head, y = head_and_features(name)
        log_sd = head(1e6 * y).log_sd
        assert (np.abs(log_sd) <= 5).all()
        assert (np.ptp(log_sd, axis=(0, 1)) > 0).all() == varies
    assert_close(head_and_features("tanh_gaussian")[0](y).log_sd, np.zeros((B, T, A)))  # 1 at the start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continuous": "beta"}, "continuous='beta' must be one of tanh_gaussian, bins"),
        ({"sd": "fixed"}, "sd='fixed' must be one of free, state"),
        ({"num_bins": 0}, "num_bins=0 must be a positive integer"),
        ({"hidden": (3, 0)}, r"hidden=\(3, 0\) must be positive integers"),
        ({"scale": -1.0}, "scale=-1.0 must be finite and at least 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ActionHeadConfig(**options)


def test_wrong_spaces_are_refused():
    pairs = icrl_envs.preferences(icrl_envs.make("gaussian_bandit", num_arms=A)).action_space()
    for space, message in (
        (spaces.Box(-1.0, 1.0, (2, 2)), "action_space=.* must be a Discrete or a Box of one axis"),
        (pairs, "action_space=2 x Discrete.* must be a Discrete or a Box of one axis"),
        (spaces.Box(-np.inf, np.inf, (2,)), "action_space=.* must have finite bounds"),
        (spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]), (2,)), "action_space=.* below the upper"),
    ):
        with pytest.raises(ValueError, match=message):
            make_action_head(space, D, ActionHeadConfig(), jax.random.key(0))
