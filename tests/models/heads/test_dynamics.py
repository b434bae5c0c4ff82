# ruff: noqa: N802, N803, N806
"""What happens next is predicted in the terms of the environment."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from icrl_jax.models.heads import Dynamics, DynamicsHeadConfig, TwoHot, make_dynamics_head

B, T, D = 5, 7, 13
OBS = spaces.Dict({"cell": spaces.Box(2, 6, (2,), jnp.int32), "speed": spaces.Box(-1.0, 1.0, (3,))})


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_values": (1.0,)}, r"reward_values=\(1.0,\) must be empty, or two or more"),
        ({"reward_values": (1.0, 0.0)}, "reward_values=.* rising"),
        ({"integers": "words"}, "integers='words' must be one of numbers, tables"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicsHeadConfig(**options)


def test_wrong_spaces_are_refused():
    for space, message in (
        (spaces.Box(0.0, 1.0, (8, 8, 3)), "obs_space=.* must hold no images"),
        (spaces.Space(), "obs_space=.* must be a Box, a Discrete"),
    ):
        with pytest.raises(ValueError, match=message):
            make_dynamics_head(space, D, DynamicsHeadConfig(), jax.random.key(0))
