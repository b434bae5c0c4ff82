import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_envs import revealed
from icrl_jax.core import Transition
from icrl_jax.data.behaviours import mixture
from icrl_jax.data.contexts import as_timesteps
from icrl_jax.methods.dpt import dpt, make_behaviour, prefix_loss, sample_example
from icrl_jax.methods.supervised import OptimConfig, Row
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start
from icrl_jax.train import Schedule, fit, init_seeds

ENV = tiny.BANDIT
A, B, T = 3, 5, 7
METHOD = dpt(ENV, tiny.dpt_config())
KEYS = jax.random.split(jax.random.key(0), 1)


@pytest.fixture(scope="module")
def policy():
    return init_params(jax.random.key(0))


def init_params(key):
    params = METHOD.init(key).params
    return jax.tree.map(lambda p: 1.5 * p, params)  # opinions strong enough to tell decisions apart


@functools.lru_cache
def batch():
    """B examples as training draws them."""
    behaviour = make_behaviour(ENV, tiny.dpt_config())
    draw = jax.jit(jax.vmap(lambda key: sample_example(ENV, behaviour, T, key)))
    return jax.device_get(draw(jax.random.split(jax.random.key(4), B)))


@on_host
def parallel_probs(policy, context):
    """What training sees: the probabilities after every prefix of one context, [T + 1, A]."""
    _, prediction, _ = policy(None, jax.tree.map(lambda x: x[None], as_timesteps(context, jnp.ones(1))))
    return prediction.probs[0]


@functools.partial(on_host, static_argnames=("num_steps", "env"))
def act(agent, task, key, num_steps=T, env=ENV):
    return rollout(agent, env, start(agent, env, task, key), key, num_steps)[1]


def test_acting_through_its_own_history_equals_the_parallel_forward_of_training(policy):
    """The alignment of training and acting: a token out of place on either side shows here."""
    record = act(METHOD.agent(policy), ENV.default_params, jax.random.key(1))
    probs = parallel_probs(policy, record.transition)
    np.testing.assert_allclose(record.info["probs"], probs[:-1], rtol=1e-4, atol=1e-6)
    assert np.abs(np.diff(probs, axis=0)).max() > 0.05  # what was seen matters
    chosen = np.take_along_axis(probs[:-1], record.transition.action[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(record.info["log_prob"], np.log(chosen), rtol=1e-4, atol=1e-5)


def test_greedy_takes_the_likeliest_arm_and_the_other_one_samples(policy):
    greedy = act(METHOD.agent(policy, greedy=True), ENV.default_params, jax.random.key(1), num_steps=T)
    np.testing.assert_array_equal(greedy.transition.action, greedy.info["probs"].argmax(axis=-1))
    tasks = jax.tree.map(lambda x: jnp.broadcast_to(x, (2003, *jnp.shape(x))), ENV.default_params)
    first = functools.partial(rollout_first, METHOD.agent(policy))
    actions = np.asarray(jax.jit(jax.vmap(first))(tasks, jax.random.split(jax.random.key(8), 2003)))
    shares = np.bincount(actions, minlength=A) / 2003
    np.testing.assert_allclose(shares, greedy.info["probs"][0], atol=4 * 0.5 / 2003**0.5)
    assert shares.max() < 0.95


def rollout_first(agent, task, key):
    return rollout(agent, ENV, start(agent, ENV, task, key), key, 1)[1].transition.action[0]


def test_offline_it_answers_from_its_context_alone_by_the_argmax(policy):
    context = jax.tree.map(lambda x: x[0], batch().context)
    agent = METHOD.agent(policy, context, online=False)
    record = act(agent, ENV.default_params, jax.random.key(2))
    probs = parallel_probs(policy, context)[-1]
    np.testing.assert_allclose(record.info["probs"], np.broadcast_to(probs, (T, A)), rtol=1e-4, atol=1e-6)
    assert (record.transition.action == probs.argmax()).all()
    sampled = act(METHOD.agent(policy, context, online=False, greedy=False), ENV.default_params, jax.random.key(2))
    np.testing.assert_allclose(sampled.info["probs"], record.info["probs"], rtol=1e-5)
    empty = act(METHOD.agent(policy, None, online=False), ENV.default_params, jax.random.key(2))
    expected = parallel_probs(policy, context)[:1]
    np.testing.assert_allclose(empty.info["probs"], np.broadcast_to(expected, (T, A)), rtol=1e-4, atol=1e-6)


def test_online_it_goes_on_from_its_context(policy):
    context = jax.tree.map(lambda x: x[0, :4], batch().context)
    record = act(METHOD.agent(policy, context), ENV.default_params, jax.random.key(2), num_steps=3)
    whole = jax.tree.map(lambda a, b: np.concatenate([a, b]), context, record.transition)
    np.testing.assert_allclose(record.info["probs"], parallel_probs(policy, whole)[4:-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train_empty", [True, False])
def test_the_loss_at_every_prefix_by_hand(policy, train_empty):
    loss, log = on_host(prefix_loss, static_argnums=3)(policy, batch(), jax.random.key(0), train_empty)
    losses = np.empty((B, T + 1))
    for b in range(B):
        context = jax.tree.map(lambda x: x[b], batch().context)  # noqa: B023
        for n, probs in enumerate(parallel_probs(policy, context)):
            losses[b, n] = -np.log(probs[batch().target_action[b]])
    np.testing.assert_allclose(loss, losses[:, 0 if train_empty else 1 :].mean(), rtol=1e-5)
    np.testing.assert_allclose(log["last_loss"], losses[:, -1].mean(), rtol=1e-5)


def test_the_answer_after_a_prefix_depends_on_that_prefix_only(policy):
    context = jax.tree.map(lambda x: x[0], batch().context)
    for n in range(T):
        later = jax.tree.map(lambda x: np.concatenate([x[: n + 1], x[n + 1 :][::-1] + 1]), context)  # noqa: B023
        later = later._replace(terminated=context.terminated, truncated=context.truncated, action=context.action)
        before, after = parallel_probs(policy, context), parallel_probs(policy, later)
        np.testing.assert_array_equal(before[: n + 2], after[: n + 2])
    assert (before[-1] != parallel_probs(policy, context._replace(feedback=context.feedback + 1))[-1]).any()


def test_contexts_come_from_their_task_and_labels_are_its_best_arms():
    """Told apart by rewards without noise: each reward is the mean of its arm."""
    env = icrl_envs.make("gaussian_bandit", num_arms=A, noise_sd=0.0)
    behaviour = mixture(env, omega=0.0)
    draw = on_host(jax.vmap(lambda key: sample_example(env, behaviour, 97, key)))
    example = draw(jax.random.split(jax.random.key(6), B))
    for b in range(B):
        action, reward = example.context.action[b], example.context.feedback[b]
        means = np.array([reward[action == a].max(initial=-1.0) for a in range(A)])
        for a in range(A):
            assert (reward[action == a] == means[a]).all()
        assert example.target_action[b] == means.argmax()
    assert len(set(np.asarray(example.target_action))) > 1
    np.testing.assert_array_equal(example.query_obs, np.ones((B, 1)))
    assert not example.context.terminated.any()


def draws(agent, num=4001):
    """The behaviours that `init` draws: p1 [N, A], arm [N], omega [N]."""
    return laws(jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(9), num)))


def laws(carry):
    log_p1, arm, omega = jax.device_get(carry)
    p1 = np.exp(log_p1)
    return p1 / p1.sum(axis=-1, keepdims=True), arm, omega


def test_a_mixture_draws_eleven_weights_and_uniform_dirichlets():
    p1, arm, omega = draws(mixture(ENV))
    values, counts = np.unique(omega.round(4), return_counts=True)
    np.testing.assert_allclose(values, np.arange(11) / 10, atol=1e-6)
    np.testing.assert_allclose(counts / 4001, 1 / 11, atol=5 * (1 / 11 / 4001) ** 0.5)
    np.testing.assert_allclose(p1.mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(p1.var(axis=0), 1 / 18, rtol=0.1)  # of Dirichlet(1, 1, 1): (1/3)(2/3)/4
    np.testing.assert_allclose(np.bincount(arm) / 4001, 1 / 3, atol=0.04)
    assert (draws(mixture(ENV, omega=0.5), 11)[2] == 0.5).all()


def pulls(agent, task, num=503, steps=37):
    """Arms pulled in `num` contexts of one task, and the behaviours that pulled them."""
    world = revealed(ENV)

    def one(key):
        state = start(agent, world, task, key)
        return state.carry, rollout(agent, world, state, key, steps)[1].transition.action

    carry, actions = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(10), num))
    return laws(carry), np.asarray(actions)


@pytest.mark.parametrize("expert", [False, True])
def test_actions_follow_the_mixture(expert):
    """In each context arms are iid from (1 - omega) p1 + omega p2; p2 is the best arm for the expert."""
    task = ENV.default_params.replace(means=jnp.array([0.2, 0.9, 0.4]))
    (p1, arm, omega), actions = pulls(mixture(ENV, expert=expert), task)
    p2 = np.eye(A)[np.ones_like(arm) if expert else arm]
    expected = (1 - omega[:, None]) * p1 + omega[:, None] * p2
    shares = (actions[..., None] == np.arange(A)).mean(axis=1)
    spread = (expected * (1 - expected) / actions.shape[1]) ** 0.5
    z = (shares - expected)[spread > 0.01] / spread[spread > 0.01]
    assert abs(z.mean()) < 5 / len(z) ** 0.5 and abs(z.std() - 1) < 0.15
    assert (shares[spread == 0] == expected[spread == 0]).all()
    early, late = ((actions[:, half][..., None] == np.arange(A)).mean(axis=1) for half in (slice(0, 18), slice(19, 37)))
    assert abs((early - late).mean()) < 0.02


def test_an_expert_with_all_weight_only_pulls_the_best_arm():
    task = ENV.default_params.replace(means=jnp.array([0.2, 0.9, 0.4]))
    assert (pulls(mixture(ENV, expert=True, omega=1.0), task, num=7)[1] == 1).all()


@pytest.mark.parametrize("omega", [-0.1, 1.5])
def test_weights_outside_the_unit_interval_are_refused(omega):
    with pytest.raises(ValueError, match=rf"omega={omega}: must be in \[0, 1\]"):
        mixture(ENV, omega=omega)


def test_fixed_data_are_the_same_for_every_seed_and_run():
    method = dpt(ENV, tiny.dpt_config(num_tasks=11))
    build = jax.jit(lambda key: method.init(key).data)
    data = [build(jax.random.key(seed)) for seed in (0, 1)]
    jax.tree.map(np.testing.assert_array_equal, *data)
    assert data[0].context.feedback.shape == (11, T)
    assert len(np.unique(np.asarray(data[0].context.feedback))) == 11 * T


def collected(monkeypatch, config, key):
    """The examples that a batch of rows 0 ..= 10 is made of."""
    parts = {}
    with monkeypatch.context() as patch:
        keep = lambda *args, **kwargs: parts.update(kwargs, collect=args[1])
        patch.setitem(dpt.__globals__, "supervised", keep)
        dpt(ENV, config)
    rows = Row(jnp.arange(11), jax.random.split(key, 11))
    return jax.device_get(jax.jit(jax.vmap(parts["collect"], in_axes=(None, 0)))(parts["data"](), rows))


def test_shuffling_permutes_each_context_and_nothing_else(monkeypatch):
    key = jax.random.key(3)
    plain = collected(monkeypatch, tiny.dpt_config(num_tasks=11), key)
    mixed = collected(monkeypatch, tiny.dpt_config(num_tasks=11, shuffle=True), key)
    order, mixed_order = (example.context.feedback.argsort(axis=1) for example in (plain, mixed))
    moved = order[np.arange(11)[:, None], mixed_order.argsort(axis=1)]  # where each transition came from
    assert (np.sort(moved, axis=1) == np.arange(T)).all() and len({tuple(row) for row in moved}) == 11
    for b in range(11):
        unmixed = jax.tree.map(lambda x: x[b][moved[b]], plain.context)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, unmixed, jax.tree.map(lambda x: x[b], mixed.context))  # noqa: B023
    np.testing.assert_array_equal(plain.target_action, mixed.target_action)
    again = collected(monkeypatch, tiny.dpt_config(num_tasks=11, shuffle=True), jax.random.key(4))
    assert (again.context.feedback != mixed.context.feedback).any()


BAD = [
    ({"horizon": 8}, "horizon=8: must be below model.context_len=8"),
    ({"num_updates": 0}, "num_updates=0: must be at least 1"),
    ({"batch_size": -2}, "batch_size=-2: must be at least 1"),
    ({"num_tasks": 0}, "num_tasks=0: must be at least 1"),
    ({"behaviour": "nobody"}, "behaviour='nobody': must be 'mixture', 'expert_mixture' or 'thompson'"),
    ({"shuffle": True}, "shuffle=True: must be False with num_tasks=None"),
    (
        {"shuffle": True, "num_tasks": 11, "behaviour": "thompson"},
        "shuffle=True: must be False with behaviour='thompson'",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny.dpt_config(**options)


def test_an_environment_that_is_no_bandit_is_refused():
    with pytest.raises(ValueError, match="env=TwoEpisodes: dpt is built for bandits"):
        dpt(TwoEpisodes(), tiny.dpt_config())


HISTORIES = [
    [],
    [(0, 0.9), (1, 0.4), (0, 0.6), (1, 0.7), (0, 0.8), (0, 0.7)],
    [(1, 0.2), (0, 0.3), (1, 0.1), (0, 0.4), (2, 0.5)],
]
"""Two arms tried and one not; two bad arms and a glimpse of the third."""


def posterior_of_best(history, noise_sd=0.3, draws=400_000):
    """P(arm a is best | history) by importance sampling from the prior, means iid U[0, 1]."""
    means = np.random.default_rng(1).uniform(size=(draws, A))
    log_weight = sum((-0.5 * ((reward - means[:, arm]) / noise_sd) ** 2 for arm, reward in history), np.zeros(draws))
    weight = np.exp(log_weight - log_weight.max())
    return np.bincount(means.argmax(axis=1), weight, minlength=A) / weight.sum()


def as_context(history):
    arms, rewards = (np.array(x) for x in zip(*history, strict=True))
    ones, never = np.ones((len(arms), 1), np.float32), np.zeros(len(arms), bool)
    return Transition(ones, arms.astype(np.int32), rewards.astype(np.float32), ones, never, never)


@pytest.mark.slow
def test_a_small_trained_dpt_gives_the_posterior_probability_that_each_arm_is_best():
    model = TransformerConfig(width=32, num_layers=2, num_heads=2, context_len=12, positions="none")
    optim = OptimConfig(learning_rate=5e-3)
    method = dpt(ENV, tiny.dpt_config(model=model, optim=optim, num_updates=1000, batch_size=128, horizon=6))
    trained = jax.tree.map(lambda x: x[0], fit(KEYS, method, Schedule(1, 1000)).params)
    untrained = jax.tree.map(lambda x: x[0], init_seeds(KEYS, method).params)
    gaps, untrained_gaps, argmax_gaps = [], [], []
    for history in HISTORIES:
        expected = posterior_of_best(history)
        answer, blank = (offline_answer(method, policy, history) for policy in (trained, untrained))
        gaps.append(np.abs(answer - expected).max())
        untrained_gaps.append(np.abs(blank - expected).max())
        argmax_gaps.append(np.abs(np.eye(A)[answer.argmax()] - expected).max())
    print(gaps, untrained_gaps, argmax_gaps)
    assert max(gaps) < 0.05
    assert min(untrained_gaps) > 0.1 and min(argmax_gaps) > 0.1  # neither would pass, at any of the three


def offline_answer(method, policy, history):
    context = as_context(history) if history else None
    record = act(method.agent(policy, context, online=False), ENV.default_params, jax.random.key(0), 1)
    return record.info["probs"][0]
