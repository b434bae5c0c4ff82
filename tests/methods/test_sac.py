# ruff: noqa: N806
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import Aim, AimParams
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_jax.core import TimeStep, Transition
from icrl_jax.methods.sac import SACConfig, Weights, improve, loss, sac_learner, store
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.mlp import MLPConfig

POINT = icrl_envs.make("point_robot", num_steps=5)
N, T, B = 3, 7, 13
OPTIM = OptimConfig(learning_rate=0.01, weight_decay=0.0, schedule="constant", warmup=0.0, clip=None)
SMALL = SACConfig(
    model=MLPConfig(width=6, num_layers=2, activation="relu"),
    optim=OPTIM,
    **{"num_streams": N, "num_steps": T, "batch_size": B, "buffer_size": 5 * N, "random_steps": 4 * N},
)


@functools.partial(on_host, static_argnums=0)
def begin(config, key, task=POINT.default_params):
    return sac_learner(POINT, config).init(key, task)


@functools.partial(on_host, static_argnums=0)
def go_on(config, state, key):
    return sac_learner(POINT, config).learn(state, key)


def batch(seed=0):
    draw = np.random.default_rng(seed)
    obs, next_obs, action = draw.uniform(-1, 1, (3, B, 2)).astype(np.float32)
    ends = draw.uniform(size=(2, B)) < 0.3
    return jax.tree.map(jnp.asarray, Transition(obs, action, np.float32(draw.normal(size=B)), next_obs, *ends))


def opinionated(state):
    """At the start all values are zero."""
    state = jax.tree.map(jnp.asarray, state)
    for critics, key in zip(
        (state.params.critics, state.extra["targets"]), jax.random.split(jax.random.key(7)), strict=True
    ):
        critics.head.readout.out[...] = jax.random.normal(key, (2, 6, 1))
    return state


@pytest.mark.parametrize("learn_alpha", [False, True])
def test_the_loss_and_its_gradients_are_those_of_three_losses_by_themselves(learn_alpha):
    config = dataclasses.replace(SMALL, alpha=0.3, discount=0.9, learn_alpha=learn_alpha)
    state, data, key = opinionated(begin(config, jax.random.key(0))), batch(), jax.random.key(1)
    weights, targets = state.params, jax.tree.map(lambda x: 0.7 * x, state.extra["targets"])
    key_now, key_next = jax.random.split(key)
    seen = lambda obs: TimeStep(obs, data, np.zeros(B, bool))
    values = jax.vmap(lambda critic, seen, action: critic(seen, action), in_axes=(0, None, None))

    @on_host
    def targets_by_hand():
        _, policy = weights.actor.step((), seen(data.next_obs))
        choice = policy.sample(key_next)
        return values(targets, seen(data.next_obs), jnp.tanh(choice)), policy.log_prob(choice)

    next_values, log_prob = targets_by_hand()
    soft = next_values.min(axis=0) - 0.3 * log_prob
    y = data.feedback + 0.9 * np.where(data.terminated, 0, soft)  # whatever was truncated
    assert data.truncated.any() and data.terminated.any()

    def critic_loss(critics):
        return 0.5 * jnp.square(values(critics, seen(data.obs), data.action) - y[None]).sum(axis=0).mean()

    def actor_loss(actor):
        _, policy = actor.step((), seen(data.obs))
        choice = policy.sample(key_now)
        log_prob = policy.log_prob(choice)
        return (0.3 * log_prob - values(weights.critics, seen(data.obs), jnp.tanh(choice)).min(axis=0)).mean(), log_prob

    def alpha_loss(log_alpha, log_prob):
        return (jnp.exp(log_alpha) * (-log_prob + 2.0)).mean()  # two dimensions, within -1 and 1

    @on_host
    def by_hand():
        found_critic, grad_critics = jax.value_and_grad(critic_loss)(weights.critics)
        (found_actor, log_prob), grad_actor = jax.value_and_grad(actor_loss, has_aux=True)(weights.actor)
        found_alpha, grad_alpha = jax.value_and_grad(alpha_loss)(weights.log_alpha, log_prob)
        total = found_critic + found_actor + found_alpha
        return total, Weights(grad_actor, grad_critics, grad_alpha if learn_alpha else jnp.zeros(()))

    got = on_host(jax.value_and_grad(lambda weights: loss(weights, targets, data, key, config)))(weights)
    chex.assert_trees_all_close(got, by_hand(), rtol=1e-4, atol=1e-5)
    assert (got[1].log_alpha != 0) == learn_alpha


@functools.partial(on_host, static_argnums=0)
def improved(config, state, buffer, seen):
    learned = state.params, state.opt_state, state.extra["targets"]
    return improve(config, learned, buffer, seen, jnp.float32(0.01), jax.random.key(1))


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_targets_follow_the_critics(tau):
    config = dataclasses.replace(SMALL, tau=tau)
    state = opinionated(begin(config, jax.random.key(0)))
    weights, _, targets = improved(config, state, batch(), jnp.int32(B))
    old = state.extra["targets"]
    expected = jax.tree.map(lambda old, new: (1 - tau) * old + tau * new, old, weights.critics)
    chex.assert_trees_all_close(targets, expected, atol=1e-5)


def test_batches_are_drawn_from_what_was_seen_and_no_more():
    """What is not filled yet pays NaN here: a draw of it spoils the critics."""
    config = dataclasses.replace(SMALL, batch_size=503)
    state = begin(config, jax.random.key(0))
    data = batch()
    spoiled = data._replace(feedback=jnp.where(jnp.arange(B) < 4, data.feedback, jnp.nan))
    outs = [improved(config, state, spoiled, jnp.int32(seen))[0].critics.head.readout.out[...] for seen in (4, 5)]
    assert np.isfinite(outs[0]).all() and np.isnan(outs[1]).all()


def test_the_buffer_is_a_ring_of_the_latest_transitions():
    buffer, kept = jax.tree.map(lambda x: np.zeros((5 * N, *x.shape[1:]), x.dtype), batch()), []
    write = on_host(store)
    for t in range(13):
        new = jax.tree.map(lambda x: x[:N], batch(t))
        buffer, kept = write(buffer, new, jnp.int32(t)), [*kept, new][-5:]
        expected = np.sort(np.concatenate([x.feedback for x in kept]))
        np.testing.assert_array_equal(np.sort(buffer.feedback)[np.sort(buffer.feedback) != 0], expected)
    where = [int(np.argmax(buffer.feedback == x.feedback[0])) for x in kept]
    for at, x in zip(where, kept, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[at : at + N], b), buffer, x)  # noqa: B023


@pytest.fixture(scope="module")
def rounds():
    """Two rounds, the first of which has four random steps of each stream."""
    first = begin(SMALL, jax.random.key(0))
    middle, record = go_on(SMALL, first, jax.random.key(1))
    last, more = go_on(SMALL, middle, jax.random.key(2))
    return first, middle, last, record, more


def steps_of_adam(state):
    return [x.count for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")]


def test_what_is_handed_out_is_what_is_remembered(rounds):
    first, middle, _, record, _ = rounds
    assert record.transition.feedback.shape == (T, N)
    latest = jax.tree.map(lambda x: x[T - 5 :], record.transition)  # the ring holds five steps, from the sixth on anew
    in_ring = jax.tree.map(lambda x: np.roll(x, T % 5, axis=0).reshape(5 * N, *x.shape[2:]), latest)
    jax.tree.map(np.testing.assert_array_equal, middle.extra["buffer"], in_ring)
    assert not any(x.any() for x in jax.tree.leaves(first.extra["buffer"]))
    next_obs = np.asarray(record.transition.next_obs)
    np.testing.assert_allclose(next_obs, record.transition.obs + 0.1 * record.transition.action, atol=1e-6)
    assert record.transition.truncated[4].all()


def test_gradient_steps_are_counted_from_where_random_actions_end(rounds):
    _, middle, last, _, _ = rounds
    assert steps_of_adam(middle) == [T - 4] and steps_of_adam(last) == [2 * T - 4]
    twice = dataclasses.replace(SMALL, num_gradients=3)
    assert steps_of_adam(go_on(twice, begin(twice, jax.random.key(0)), jax.random.key(1))[0]) == [3 * (T - 4)]


def test_every_step_and_round_draws_anew(monkeypatch):
    """What is drawn is written down as digits."""

    def scribe(config, learned, buffer, seen, rate, key):
        weights, *others = learned
        digit = jax.random.randint(key, (), 0, 10).astype(jnp.float32)
        return weights._replace(log_alpha=10 * weights.log_alpha + digit), *others

    monkeypatch.setitem(sac_learner.__globals__, "improve", scribe)
    config = dataclasses.replace(SMALL, random_steps=0, num_steps=3, alpha=1.0)
    state, _ = go_on(config, begin(config, jax.random.key(0)), jax.random.key(1))
    state, _ = go_on(config, state, jax.random.key(2))
    digits = f"{int(state.params.log_alpha):06d}"
    assert len(set(digits[:3])) > 1 and len(set(digits[3:])) > 1 and digits[:3] != digits[3:]


def test_the_first_actions_are_uniform():
    config = dataclasses.replace(SMALL, num_streams=101, buffer_size=101, random_steps=101 * T)
    state = begin(config, jax.random.key(3))
    after, record = go_on(config, state, jax.random.key(4))
    action = np.sort(np.asarray(record.transition.action).ravel())
    even = np.linspace(-1, 1, action.size)
    assert np.abs(action - even).max() < 4 / action.size**0.5
    np.testing.assert_allclose(record.info["log_prob"], -2 * np.log(2), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)


def test_afterwards_actions_are_those_of_the_actor(rounds):
    _, _, _, record, more = rounds
    assert (record.info["log_prob"][:4] == record.info["log_prob"][0, 0]).all()
    assert len(np.unique(more.info["log_prob"])) == T * N
    np.testing.assert_allclose(more.transition.action, np.tanh(more.info["choice"]), atol=1e-5)


def test_a_continuing_rollout_equals_one_long_one():
    long = dataclasses.replace(SMALL, num_steps=2 * T)
    first, key = begin(SMALL, jax.random.key(5)), jax.random.key(6)
    middle, part_1 = go_on(SMALL, first, key)
    last, part_2 = go_on(SMALL, middle, key)
    state, whole = go_on(long, first, key)
    together = jax.tree.map(lambda a, b: np.concatenate([a, b]), part_1, part_2)
    chex.assert_trees_all_close(whole, together, atol=1e-5)
    chex.assert_trees_all_close(last.params, state.params, atol=1e-5)


def learned(env, config, rounds):
    """`(keys, tasks) -> (states, record [S, rounds, T, N])`, vmapped over learners."""
    learner = sac_learner(env, config)

    def one(key, task):
        return jax.lax.scan(learner.learn, learner.init(key, task), jax.random.split(key, rounds))

    return on_host(jax.vmap(one))


def test_vmap_over_tasks_and_seeds_equals_one_by_one():
    keys, tasks = jax.random.split(jax.random.key(1), 3), icrl_envs.sample_tasks(POINT, jax.random.key(2), 2)
    tasks = jax.tree.map(lambda x: x[jnp.array([0, 0, 1])], tasks)
    together, record = learned(POINT, SMALL, 2)(keys, tasks)
    for i, key in enumerate(keys):
        alone, parts = begin(SMALL, key, jax.tree.map(lambda x: x[i], tasks)), []  # noqa: B023
        for key_round in jax.random.split(key, 2):
            alone, part = go_on(SMALL, alone, key_round)
            parts.append(part.transition)
        got = jax.tree.map(lambda x: x[i], (together.params, record.transition))  # noqa: B023
        one_by_one = alone.params, jax.tree.map(lambda *x: np.stack(x), *parts)
        chex.assert_trees_all_close(got, one_by_one, atol=1e-4)
    assert (record.transition.action[0] != record.transition.action[1]).any()


AIM = dataclasses.replace(
    SMALL,
    model=MLPConfig(width=32, num_layers=2, activation="relu"),
    **{"num_streams": 20, "num_steps": 10, "batch_size": 64, "buffer_size": 4000, "random_steps": 100, "tau": 0.05},
)
TARGETS = np.array([[0.5, 2.0], [1.2, 0.1]], np.float32)


def aimed(config, rounds):
    tasks = jax.vmap(lambda target: AimParams(target=target))(jnp.asarray(TARGETS))
    state, record = learned(Aim(), config, rounds)(jax.random.split(jax.random.key(0), 2), tasks)
    late = jax.tree.map(lambda x: np.asarray(x[:, -10:]).reshape(2, -1, *x.shape[4:]), record)
    return state, late


def test_the_best_soft_policy_is_found():
    """Of exp(-(a - target)^2 / alpha), a Gaussian of variance alpha / 2, and critics that know the reward."""
    state, late = aimed(AIM, 150)
    action = late.transition.action
    np.testing.assert_allclose(action.mean(axis=1), TARGETS, atol=0.15)
    np.testing.assert_allclose(action.std(axis=1), (0.2 / 2) ** 0.5, rtol=0.25)
    np.testing.assert_allclose(np.exp(state.params.log_alpha), 0.2, rtol=1e-6)
    tried = jnp.asarray(TARGETS)[:, None] + jnp.array([[0.0, 0.0], [0.4, 0.0], [0.0, -0.6]])[None]

    @on_host
    def values(weights, action):
        last = jax.tree.map(lambda x: jnp.asarray(x[0, :3]), late.transition)
        seen = TimeStep(last.obs, last, jnp.zeros(3, bool))
        return jax.vmap(lambda critic: critic(seen, action))(weights.critics)

    for i in range(2):
        found = values(jax.tree.map(lambda x: x[i], state.params), tried[i])  # noqa: B023
        np.testing.assert_allclose(found, np.broadcast_to([0, -0.16, -0.36], (2, 3)), atol=0.12)


def test_a_learned_alpha_keeps_the_entropy_that_is_wanted():
    """Minus two, for actions within -1 and 1; these are within -1 and 3, so log 2 more in each dimension."""
    state, late = aimed(dataclasses.replace(AIM, learn_alpha=True, alpha=1.0), 200)
    np.testing.assert_allclose(-late.info["log_prob"].mean(axis=1), 2 * np.log(2) - 2, atol=0.25)
    assert (np.exp(state.params.log_alpha) < 0.5).all()
    np.testing.assert_allclose(late.transition.action.mean(axis=1), TARGETS, atol=0.15)


def test_a_point_robot_learns_where_to_go():
    """Learning curves rise: three goals at once."""
    env = icrl_envs.make("point_robot", preset="t2mir")
    tasks = jax.tree.map(lambda x: x[:3], env.tasks("train"))
    config = SACConfig(
        model=MLPConfig(width=32, num_layers=2, activation="relu"),
        optim=dataclasses.replace(OPTIM, learning_rate=3e-3),
        **{"batch_size": 64, "learn_alpha": True},
    )
    _, record = learned(env, config, 100)(jax.random.split(jax.random.key(0), 3), tasks)
    returns = record.transition.feedback.sum(axis=(2, 3))
    best = np.asarray(jax.vmap(env.optimal_return)(tasks))
    print(returns[:, ::10].round(1), returns[:, -10:].mean(axis=1), best)
    lost = best[:, None] - returns
    assert (lost[:, -10:].mean(axis=1) < 0.25 * lost[:, :5].mean(axis=1)).all()


WRONG = [
    ({"buffer_size": 7}, "buffer_size=7 must be a multiple of num_streams=3"),
    ({"batch_size": 0}, "batch_size=0 must be a positive integer"),
    ({"random_steps": -1}, "random_steps=-1 must be 0 or a positive integer"),
    ({"discount": -0.1}, r"discount=-0.1 must be in \[0, 1\]"),
    ({"tau": 0.0}, r"tau=0.0 must be in \(0, 1\]"),
    ({"alpha": 0.0}, "alpha=0.0 must be finite and above 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="env=TwoEpisodes: must have continuous actions for sac_learner"):
        sac_learner(TwoEpisodes(), SMALL)
