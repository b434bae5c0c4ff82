# ruff: noqa: N802, N803, N806
"""Predictions are distributions: they sum to one, samples follow them, and no number breaks at the bounds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnax.environments import spaces

import icrl_envs
from icrl_jax.models.heads import (
    ActionHeadConfig,
    Bins,
    Categorical,
    Dynamics,
    DynamicsHeadConfig,
    Scalar,
    TanhGaussian,
    TwoHot,
    ValueHeadConfig,
    make_action_head,
    make_dynamics_head,
    make_value_head,
    symlog_bins,
    two_hot,
)

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


def gaussian(mean, sd, low=-2.0, high=3.0):
    one = lambda x: jnp.atleast_1d(jnp.asarray(x, jnp.float32))
    return TanhGaussian(one(mean), jnp.log(one(sd)), (low,), (high,))


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


# All actions


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


# Categorical


def test_categorical_is_a_softmax():
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])) + 5.0
    dist = Categorical(logits)
    assert_close(jnp.exp(dist.log_prob(jnp.array([1, 0]))), np.array([0.5, 0.1]))
    assert_close(dist.entropy(), scipy.stats.entropy(np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]), axis=1))
    np.testing.assert_array_equal(dist.mode(), [1, 2])
    samples = jax.vmap(dist.sample)(jax.random.split(jax.random.key(0), SAMPLES))
    for row in range(2):
        counts = np.bincount(samples[:, row], minlength=3)
        assert scipy.stats.chisquare(counts, SAMPLES * np.asarray(dist.probs[row], float)).pvalue > 1e-3


def test_an_action_ruled_out_breaks_nothing():
    logits = jnp.array([0.0, 0.0, -jnp.inf])
    value, gradient = jax.value_and_grad(lambda logits: Categorical(logits).entropy())(logits)
    assert_close(value, math.log(2))
    assert np.isfinite(gradient).all()


# Squashed Gaussians


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 2.0), (2.0, 0.05)])
def test_a_squashed_gaussian_integrates_to_one(mean, sd):
    """Over actions, in their own units: the density is that of the action, not of u."""
    dist = gaussian(mean, sd)
    u = jnp.linspace(-20, 20, 400_001)[:, None]
    actions = -2 + 2.5 * (1 + np.tanh(np.asarray(u[:, 0], np.float64)))
    density = np.exp(np.asarray(jax.jit(jax.vmap(dist.log_prob))(u), np.float64))
    assert abs(np.trapezoid(density, actions) - 1) < 1e-3


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 2.0)])
def test_squashed_samples_follow_the_density(mean, sd):
    dist = gaussian(mean, sd)
    samples = jax.jit(jax.vmap(lambda key: dist.decode(dist.sample(key))))(
        jax.random.split(jax.random.key(3), SAMPLES)
    )[:, 0]
    u = jnp.linspace(-16, 16, 100_001)[:, None]
    actions = -2 + 2.5 * (1 + np.tanh(np.asarray(u[:, 0], np.float64)))
    density = np.exp(np.asarray(jax.jit(jax.vmap(dist.log_prob))(u), np.float64))
    cdf = np.concatenate([[0], np.cumsum(np.diff(actions) * (density[1:] + density[:-1]) / 2)])
    assert scipy.stats.kstest(np.asarray(samples), lambda x: np.interp(x, actions, cdf)).pvalue > 1e-3


@pytest.mark.parametrize("u", [0.0, 1e-4, -0.3, 2.0, -9.5, 30.0, -300.0, 1e4])
def test_log_prob_and_its_gradients_are_exact_at_the_bounds(u):
    """Against float64: log p = log N(u; m, s) - log(half range) - log(1 - tanh(u)^2), d/du = -z / s + 2 tanh(u)."""
    mean, sd, half = 0.25, 0.5, 2.5

    def log_prob(u, mean, log_sd):
        one = lambda x: x[None]
        return TanhGaussian(one(mean), one(log_sd), (-2.0,), (3.0,)).log_prob(one(u))

    arguments = jnp.float32(u), jnp.float32(mean), jnp.log(jnp.float32(sd))
    value, gradient = jax.jit(jax.value_and_grad(log_prob, argnums=(0, 1, 2)))(*arguments)
    z = (np.float64(np.float32(u)) - mean) / sd
    log_slope = -2 * (np.logaddexp(u, -u) - math.log(2))
    expected = -0.5 * z**2 - math.log(sd) - 0.5 * math.log(2 * math.pi) - math.log(half) - log_slope
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, (-z / sd + 2 * math.tanh(u), z / sd, z**2 - 1), rtol=1e-5, atol=1e-5)


def test_the_greedy_action_of_a_squashed_gaussian_is_its_median():
    dist = gaussian(0.4, 0.7)
    samples = jax.vmap(lambda key: dist.decode(dist.sample(key)))(jax.random.split(jax.random.key(3), SAMPLES))
    share = (samples < dist.decode(dist.mode())[None]).mean()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(SAMPLES)


def test_actions_at_the_bounds_are_read_as_finite():
    dist = TanhGaussian(jnp.zeros(A), jnp.zeros(A), LOW, HIGH)
    for bound in (LOW, HIGH):
        choice = dist.encode(jnp.array(bound))
        assert np.isfinite(choice).all() and np.isfinite(dist.log_prob(choice))
        assert_close(dist.decode(choice), np.array(bound), atol=5e-6)
    np.testing.assert_array_equal(dist.decode(jnp.full(A, 1e6)), np.float32(HIGH))
    np.testing.assert_array_equal(dist.decode(jnp.full(A, -1e6)), np.float32(LOW))


def test_standard_deviations_stay_within_limits():
    """Of the free ones, that each is the same everywhere; of the others, that they depend on the features."""
    for name, varies in (("tanh_gaussian", False), ("tanh_gaussian-state", True)):
        head, y = head_and_features(name)
        log_sd = head(1e6 * y).log_sd
        assert (np.abs(log_sd) <= 5).all()
        assert (np.ptp(log_sd, axis=(0, 1)) > 0).all() == varies
    assert_close(head_and_features("tanh_gaussian")[0](y).log_sd, np.zeros((B, T, A)))  # 1 at the start


# Bins


def test_bins_sum_to_one_and_samples_follow_them():
    logits = jax.random.normal(jax.random.key(0), (2, 3))
    dist = Bins(logits, (-1.0, 0.0), (1.0, 5.0))
    pairs = jnp.array([[i, j] for i in range(3) for j in range(3)], jnp.int32)
    joint = jnp.exp(jax.vmap(dist.log_prob)(pairs))
    assert_close(joint.sum(), 1.0)
    probs = np.asarray(logits, float)
    probs = np.exp(probs) / np.exp(probs).sum(axis=1, keepdims=True)
    assert_close(joint, np.outer(*probs).ravel())
    assert_close(dist.entropy(), scipy.stats.entropy(probs, axis=1).sum())
    samples = jax.vmap(dist.sample)(jax.random.split(jax.random.key(3), SAMPLES))
    counts = np.bincount(3 * samples[:, 0] + samples[:, 1], minlength=9)
    assert scipy.stats.chisquare(counts, SAMPLES * np.outer(*probs).ravel()).pvalue > 1e-3
    np.testing.assert_array_equal(dist.mode(), probs.argmax(axis=1))


def test_bins_come_back_within_half_a_bin():
    dist = Bins(jnp.zeros((A, K)), LOW, HIGH)
    low, high = np.array(LOW), np.array(HIGH)
    actions = jax.random.uniform(jax.random.key(0), (1009, A)) * (high - low)[None] + low[None]
    back = dist.decode(dist.encode(actions.astype(jnp.float32)))
    half = (high - low) / K / 2
    assert (np.abs(back - actions) <= half * (1 + 1e-4)).all()
    assert (np.abs(back - actions).max(axis=0) > 0.9 * half).all()  # and no better: there are K bins, not more
    every = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[:, None], (K, A))
    np.testing.assert_array_equal(dist.encode(dist.decode(every)), every)
    np.testing.assert_array_equal(dist.encode(jnp.array(LOW)), np.zeros(A))
    np.testing.assert_array_equal(dist.encode(jnp.array(HIGH)), np.full(A, K - 1))
    np.testing.assert_array_equal(dist.encode(jnp.array(HIGH) + 100.0), np.full(A, K - 1))


# Numbers


def test_two_hot_is_inverted_by_its_mean():
    bins = symlog_bins(63, 1000.0)
    x = jnp.concatenate([jnp.linspace(-1000, 1000, 997), jnp.array([0.0, 1e-3, *bins])])
    weights = two_hot(x, bins)
    assert (weights >= 0).all() and ((weights > 0).sum(axis=-1) <= 2).all()
    assert_close(weights.sum(axis=-1), np.ones(len(x)))
    np.testing.assert_allclose(weights @ np.array(bins, np.float32), x, rtol=2e-6, atol=1e-6)
    assert_close(weights[-63:], np.eye(63))
    assert_close(two_hot(jnp.array([-5e3, 5e3]), bins), np.eye(63)[[0, -1]])  # beyond the bins
    assert bins[31] == 0 and math.isclose(bins[0], -1000) and math.isclose(bins[-1], 1000)
    assert np.ptp(np.diff(np.sign(bins) * np.log1p(np.abs(bins)))) < 1e-12  # equally far apart as logarithms


def test_two_hot_learns_the_mean_of_its_targets():
    """Where returns are random, so a value; a mean of logarithms would be another number."""
    targets = jnp.array([0.0, 0.0, 0.0, 100.0])
    bins = symlog_bins(31, 200.0)
    best = jnp.log(two_hot(targets, bins).mean(axis=0) + 1e-12)  # minimises the mean cross-entropy
    loss = lambda logits: jax.vmap(TwoHot(logits, bins).loss)(targets).mean()
    assert np.abs(jax.grad(loss)(best)).max() < 1e-6
    assert_close(TwoHot(best, bins).mean(), 25.0, rtol=1e-4)
    assert TwoHot(best, bins).mode() == 0


@pytest.mark.parametrize("kind", ["scalar", "two_hot"])
def test_values_start_at_zero_and_can_be_learned(kind):
    head = make_value_head(D, ValueHeadConfig(kind, num_bins=31, limit=100.0), jax.random.key(0))
    y = jax.random.normal(jax.random.key(1), (B, T, D))
    assert_close(head(y).mean(), np.zeros((B, T)), atol=1e-4)
    assert head(y).loss(jnp.ones((B, T))).shape == (B, T)
    targets = 3.0 * y[..., 0]

    @jax.jit
    def learned(head):
        total = lambda head: head(y).loss(targets).mean()
        descend = lambda head, _: (jax.tree.map(lambda p, g: p - 0.5 * g, head, jax.grad(total)(head)), total(head))
        return jax.lax.scan(descend, head, length=300)

    head, losses = learned(head)
    error = np.square(head(y).mean() - targets).mean() / np.square(targets).mean()
    assert losses[-1] < losses[0] and error < (1e-3 if kind == "scalar" else 0.2)


def test_a_scalar_has_half_the_squared_error():
    assert_close(Scalar(jnp.array([1.0, 2.0])).loss(jnp.array([4.0, 2.0])), np.array([4.5, 0.0]))


# What happens next


OBS = spaces.Dict({"cell": spaces.Box(2, 6, (2,), jnp.int32), "speed": spaces.Box(-1.0, 1.0, (3,))})


def test_dynamics_losses_equal_hand_computed_ones():
    head = make_dynamics_head(OBS, D, DynamicsHeadConfig(reward_values=(0.0, 1.0)), jax.random.key(0))
    logits, means = jax.random.normal(jax.random.key(1), (B, 2, 5)), jax.random.normal(jax.random.key(2), (B, 3))
    reward = TwoHot(jnp.log(jnp.array([[0.25, 0.75]] * B)), (0.0, 1.0))
    prediction = Dynamics(reward, (logits, means), head.parts)
    cell = jax.random.randint(jax.random.key(3), (B, 2), 2, 7)
    speed = jax.random.normal(jax.random.key(4), (B, 3))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    expected = [
        -sum(log_probs[b, i, cell[b, i] - 2] for i in range(2)) + 0.5 * np.square(means[b] - speed[b]).sum()
        for b in range(B)
    ]
    assert_close(prediction.obs_loss({"cell": cell, "speed": speed}), np.array(expected))
    assert_close(prediction.reward.loss(jnp.ones(B)), np.full(B, -math.log(0.75)))
    assert_close(prediction.reward.mean(), np.full(B, 0.75))
    assert_close(prediction.reward.mode(), np.ones(B))
    likeliest = prediction.next_obs()
    np.testing.assert_array_equal(likeliest["cell"], logits.argmax(axis=-1) + 2)
    np.testing.assert_array_equal(likeliest["speed"], means)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.Box(-1.0, 1.0, (2,)),
        spaces.Box(0, 4, (2,), jnp.int32),
        OBS,
        spaces.Tuple((spaces.Discrete(3), spaces.Tuple((spaces.Discrete(2), OBS)))),
    ],
)
@pytest.mark.parametrize("integers", ["tables", "numbers"])
def test_a_predicted_observation_is_one_of_the_space(space, integers):
    """Of its structure, shapes and dtypes, so that a planner may go on from it as from a true one."""
    config = DynamicsHeadConfig(integers=integers, hidden=(7,))
    head = jax.jit(lambda key: make_dynamics_head(space, D, config, key))(jax.random.key(0))
    y = jax.random.normal(jax.random.key(1), (B, T, D))
    predicted = jax.jit(lambda y: head(y).next_obs())(y)
    true = jax.vmap(jax.vmap(lambda key: plain(space.sample(key))))(jax.random.split(jax.random.key(2), (B, T)))
    like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)
    assert like(predicted) == like(true)
    assert jax.jit(lambda y: head(y).obs_loss(true))(y).shape == (B, T)


def plain(tree):
    """With dicts for gymnax's ordered ones."""
    if isinstance(tree, dict):
        return {name: plain(child) for name, child in tree.items()}
    return tuple(plain(child) for child in tree) if isinstance(tree, tuple) else tree


def test_dynamics_of_a_dark_room_can_be_learned():
    """The next cell and the reward, from features that tell them."""
    cells = jnp.arange(9)
    y = jax.nn.one_hot(cells, D)
    head = make_dynamics_head(spaces.Discrete(9), D, DynamicsHeadConfig(reward_values=(0.0, 1.0)), jax.random.key(0))
    next_cells, rewards = (cells + 4) % 9, (cells == 7).astype(jnp.float32)
    loss = lambda head: (head(y).obs_loss(next_cells) + head(y).reward.loss(rewards)).mean()
    assert_close(loss(head), math.log(9) + math.log(2))  # nothing is known at the start
    descend = lambda head, _: (jax.tree.map(lambda p, g: p - 5 * g, head, jax.grad(loss)(head)), None)
    head, _ = jax.jit(lambda head: jax.lax.scan(descend, head, length=50))(head)
    np.testing.assert_array_equal(head(y).next_obs(), next_cells)
    np.testing.assert_array_equal(head(y).reward.mode(), rewards)


# What is refused


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (ActionHeadConfig, {"continuous": "beta"}, "continuous='beta' must be one of tanh_gaussian, bins"),
        (ActionHeadConfig, {"sd": "fixed"}, "sd='fixed' must be one of free, state"),
        (ActionHeadConfig, {"num_bins": 0}, "num_bins=0 must be a positive integer"),
        (ActionHeadConfig, {"hidden": (3, 0)}, r"hidden=\(3, 0\) must be positive integers"),
        (ActionHeadConfig, {"scale": -1.0}, "scale=-1.0 must be finite and at least 0"),
        (ValueHeadConfig, {"kind": "vector"}, "kind='vector' must be one of scalar, two_hot"),
        (ValueHeadConfig, {"num_bins": 10}, "num_bins=10 must be odd and at least 3"),
        (ValueHeadConfig, {"limit": 0.0}, "limit=0.0 must be finite and above 0"),
        (DynamicsHeadConfig, {"reward_values": (1.0,)}, r"reward_values=\(1.0,\) must be empty, or two or more"),
        (DynamicsHeadConfig, {"reward_values": (1.0, 0.0)}, "reward_values=.* rising"),
        (DynamicsHeadConfig, {"integers": "words"}, "integers='words' must be one of numbers, tables"),
    ],
)
def test_wrong_options_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


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
    for space, message in (
        (spaces.Box(0.0, 1.0, (8, 8, 3)), "obs_space=.* must hold no images"),
        (spaces.Space(), "obs_space=.* must be a Box, a Discrete"),
    ):
        with pytest.raises(ValueError, match=message):
            make_dynamics_head(space, D, DynamicsHeadConfig(), jax.random.key(0))
