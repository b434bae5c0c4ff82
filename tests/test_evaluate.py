import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams, EnvState
from two_episodes import TwoEpisodes, constant, on_host, scout

import icrl_envs
from icrl_jax.agents import empirical_mean, learner, oracle, prompted, thompson_gaussian, ucb1, uniform
from icrl_jax.agents.in_context import in_context
from icrl_jax.core import Agent, Transition, partial
from icrl_jax.evaluate import episode_returns, evaluate, offline_suboptimality, tv_distance
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import Record, rollout, start

EPISODIC = TwoEpisodes()
BANDIT = icrl_envs.make("gaussian_bandit", num_arms=5)
B, T, E = 7, 11, 13

run = on_host(evaluate, static_argnames=("env", "num_steps", "num_episodes"))
offline = on_host(offline_suboptimality, static_argnames=("env",))


def bandits(num_tasks=B):
    return jax.vmap(BANDIT.sample_task)(jax.random.split(jax.random.key(2), num_tasks))


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


@functools.partial(on_host, static_argnums=(1, 4))
def one_rollout(agent, env, task, key, num_steps):
    return rollout(agent, env, start(agent, env, task, key), key, num_steps)[1]


def test_regret_equals_a_plain_loop(getkey):
    key, tasks, agent = getkey(), bandits(), thompson_gaussian(5)
    found = run(agent, BANDIT, tasks, key, num_steps=T)
    for b in range(B):
        task = at(tasks, b)
        record = one_rollout(agent, BANDIT, task, jax.random.fold_in(key, b), T)
        means, total = np.asarray(task.means), 0.0
        for t, action in enumerate(record.transition.action):
            total += means.max() - means[action]
            np.testing.assert_allclose(found.curves["regret"][b, t], total, rtol=1e-5)
        np.testing.assert_allclose(found.metrics["cumulative_regret"][b], total, rtol=1e-5)
        np.testing.assert_array_equal(found.record.transition.feedback[b], record.transition.feedback)
    assert set(found.metrics) == {"cumulative_regret"} and set(found.curves) == {"regret"}


def test_tasks_run_in_groups_give_the_same_numbers(monkeypatch, getkey):
    key, tasks, agent = getkey(), bandits(), thompson_gaussian(5)
    found = run(agent, BANDIT, tasks, key, num_steps=T)
    monkeypatch.setattr(sys.modules["icrl_jax.evaluate"], "_tasks_at_once", lambda num_tasks, bytes_per_task: 3)
    env = icrl_envs.make("gaussian_bandit", num_arms=5)  # another one, or the compiled function would be used again
    grouped = run(agent, env, tasks, key, num_steps=T)
    chex.assert_trees_all_close(grouped, found, rtol=1e-6)


def test_memories_that_do_not_fit_the_cache_share_out_the_tasks():
    tasks_at_once = sys.modules["icrl_jax.evaluate"]._tasks_at_once
    devices, megabyte = jax.device_count(), 2**20
    assert tasks_at_once(100 * devices, 4) == 100  # a classical agent's counts
    assert tasks_at_once(100 * devices, megabyte // 2) == 8
    assert tasks_at_once(13 * devices, megabyte // 2) == 7  # two groups, even as they can be
    assert tasks_at_once(100 * devices, 64 * megabyte) == 1


def loop_returns(record, b, num_episodes):
    """Returns of the first episodes of row b, summed one reward after another."""
    returns, total = [], 0.0
    over = record.transition.terminated[b] | record.transition.truncated[b]
    for reward, done in zip(record.transition.feedback[b], over, strict=True):
        total += reward
        if done:
            returns.append(total)
            total = 0.0
    assert len(returns) >= num_episodes
    return returns[:num_episodes]


@pytest.mark.parametrize("make_agent", [scout, lambda: uniform(EPISODIC), lambda: constant(jnp.int32(3))])
def test_episodic_returns_equal_a_plain_loop(make_agent, getkey):
    tasks = EPISODIC.tasks("all")
    found = run(make_agent(), EPISODIC, tasks, getkey(), num_episodes=E)
    for b in range(5):
        returns = loop_returns(found.record, b, E)
        np.testing.assert_array_equal(found.curves["return"][b], returns)
        assert found.metrics["first_return"][b] == returns[0]
        np.testing.assert_allclose(found.metrics["final_return"][b], np.mean(returns[-2:]))  # ceil(13 / 10) = 2
        np.testing.assert_allclose(found.metrics["mean_return"][b], np.mean(returns), rtol=1e-6)


def scripted(returns):
    """A record of one-step episodes."""
    T = len(returns)
    zeros = jnp.zeros(T)
    transition = Transition(zeros, zeros, jnp.asarray(returns, jnp.float32), zeros, jnp.ones(T, bool), zeros > 0)
    return Record(transition, zeros > 0, zeros > 0, {}, {})


@pytest.mark.parametrize(("num_episodes", "last"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_final_return_is_the_mean_of_the_last_tenth_rounded_up(num_episodes, last):
    from icrl_jax.evaluate import _score

    values = np.arange(30.0) ** 2
    metrics, _ = _score(EPISODIC, None, scripted(values), num_episodes)
    np.testing.assert_allclose(metrics["final_return"], values[num_episodes - last : num_episodes].mean(), rtol=1e-6)
    assert metrics["first_return"] == values[0]


def test_rewards_hidden_from_the_agent_still_score():
    record = scripted([9.0, 9.0])._replace(env_info={"reward": jnp.array([1.0, 2.0])})
    np.testing.assert_array_equal(episode_returns(record, 2), [1.0, 2.0])


def test_preferences_in_episodes_score_by_the_hidden_return(getkey):
    env = icrl_envs.preferences(icrl_envs.make("dark_room", "icprl", size=3, horizon=5))
    tasks = env.tasks("all")
    found = run(uniform(env), env, tasks, getkey(), num_episodes=2)
    assert {"mean_return", "weak_regret", "strong_regret"} <= set(found.metrics)
    expected = np.asarray(found.record.env_info["reward"]).reshape(9, 2, 5).sum(2)
    np.testing.assert_allclose(found.curves["return"], expected)
    assert (found.metrics["strong_regret"] >= found.metrics["weak_regret"]).all() and expected.any()


def test_success_is_the_share_of_episodes_with_one(getkey):
    env = icrl_envs.make("reach", "t2mir", num_steps=60)
    tasks = icrl_envs.sample_tasks(env, getkey(), 3)
    best = icrl_envs.revealed(env)
    found = run(oracle(best), best, tasks, getkey(), num_episodes=2)
    assert found.curves["success"].shape == (3, 2) and (found.metrics["success"] == 1).all()
    found = run(uniform(env), env, tasks, getkey(), num_episodes=2)
    assert (found.metrics["success"] < 1).any()


def test_copies_are_refused(getkey):
    with pytest.raises(ValueError, match=r"^env=copies\(\.\.\.\): must be one environment to be evaluated$"):
        evaluate(uniform(BANDIT), icrl_envs.copies(BANDIT, 3), bandits(), getkey(), num_steps=T)


def test_an_episode_that_did_not_end_has_no_return(getkey):
    """The tasks' own episodes are longer than the family's: better nan than a part of a return."""
    tasks = EPISODIC.tasks("all").replace(max_steps_in_episode=jnp.full(5, 7), secret=jnp.zeros(5, jnp.int32))
    found = run(constant(jnp.int32(3)), EPISODIC, tasks, getkey(), num_episodes=5)  # 15 steps for episodes of 7
    np.testing.assert_array_equal(np.isnan(found.curves["return"]), [[False, False, True, True, True]] * 5)
    assert np.isnan(found.metrics["mean_return"]).all() and (found.metrics["first_return"] == 0).all()


def test_the_memory_survives_episodes_and_is_empty_in_each_task(getkey):
    found = run(scout(), EPISODIC, EPISODIC.tasks("all"), getkey(), num_episodes=E)
    assert found.metrics["first_return"].mean() < 1 and (found.metrics["final_return"] == 1).all()


def test_each_task_gets_its_own_context(getkey):
    tasks, key = bandits(), getkey()
    data = run(uniform(BANDIT), BANDIT, tasks, getkey(), num_steps=T).record.transition
    agent = functools.partial(prompted, empirical_mean(5), online=False)
    found = run(partial(agent), BANDIT, tasks, key, num_steps=3, context=data)
    for b in range(B):
        counts, means = np.zeros(5), np.zeros(5)
        for action, reward in zip(data.action[b], data.feedback[b], strict=True):
            counts[action] += 1
            means[action] += (reward - means[action]) / counts[action]
        expected = int(np.argmax(np.where(counts == 0, np.inf, means)))
        np.testing.assert_array_equal(found.record.transition.action[b], [expected] * 3)
    shuffled = jax.tree.map(lambda x: x[::-1], data)
    other = run(partial(agent), BANDIT, tasks, key, num_steps=3, context=shuffled)
    assert (other.record.transition.action != found.record.transition.action).any()


def test_all_agents_meet_the_same_tasks_and_noise(getkey):
    key, quiet = getkey(), bandits()
    pulls = []
    for agent in (uniform(BANDIT), ucb1(5), empirical_mean(5)):
        transition = run(agent, BANDIT, quiet, key, num_steps=T).record.transition
        pulls.append(transition.feedback - np.take_along_axis(np.asarray(quiet.means), transition.action, axis=1))
    np.testing.assert_allclose(pulls[0], pulls[1], atol=1e-6)
    np.testing.assert_allclose(pulls[0], pulls[2], atol=1e-6)
    assert len(np.unique(pulls[0].round(5))) == B * T


def test_a_task_scores_the_same_among_others(getkey):
    key, tasks = getkey(), bandits()
    all_tasks = run(thompson_gaussian(5), BANDIT, tasks, key, num_steps=T)
    few = run(thompson_gaussian(5), BANDIT, at(tasks, slice(0, 3)), key, num_steps=T)
    np.testing.assert_allclose(few.curves["regret"], all_tasks.curves["regret"][:3], rtol=1e-6)


@struct.dataclass
class CorridorParams(EnvParams):
    pay: jax.Array = struct.field(default_factory=lambda: jnp.ones(()))
    max_steps_in_episode: int = 4


class Corridor(Environment):
    """A user's own gymnax environment, which knows nothing of this library: walk right three times to be paid."""

    @property
    def default_params(self):
        return CorridorParams()

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1)
        done = state.time >= 3
        return jnp.ones(2) * state.time.astype(jnp.float32), state, jnp.where(done, params.pay, 0.0), done, {}

    def reset_env(self, key, params):
        return jnp.zeros(2), EnvState(time=jnp.zeros((), jnp.int32))

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(0.0, 3.0, (2,))


def test_a_users_own_gymnax_environment_works(getkey):
    tasks = CorridorParams(pay=jnp.array([1.0, 5.0]), max_steps_in_episode=jnp.array([4, 4]))
    env = Corridor()
    found = run(uniform(env), env, tasks, getkey(), num_episodes=3)
    np.testing.assert_array_equal(found.curves["return"], [[1.0] * 3, [5.0] * 3])


@pytest.mark.parametrize("size", [None, 0, -3, 10.5])
def test_a_size_that_does_not_fit_the_family_is_refused(size, getkey):
    with pytest.raises(ValueError, match=rf"num_steps={size}: must be an integer of at least 1 for GaussianBandit"):
        evaluate(uniform(BANDIT), BANDIT, bandits(), getkey(), num_steps=size, num_episodes=3)
    with pytest.raises(ValueError, match=rf"num_episodes={size}: must be an integer of at least 1 for TwoEpisodes"):
        evaluate(scout(), EPISODIC, EPISODIC.tasks(), getkey(), num_episodes=size, num_steps=3)


def test_one_task_is_refused_where_many_are_wanted(getkey):
    with pytest.raises(ValueError, match=r"env_params: must be stacked \[B, ...\]"):
        evaluate(uniform(BANDIT), BANDIT, BANDIT.default_params, getkey(), num_steps=3)


def test_an_agent_may_be_plain_functions(getkey):
    key, agent = getkey(), uniform(BANDIT)
    plain = Agent(lambda key: agent.init(key), lambda carry, key, timestep: agent.act(carry, key, timestep))
    ours, theirs = (evaluate(x, BANDIT, bandits(), key, num_steps=3) for x in (agent, plain))
    np.testing.assert_array_equal(ours.record.transition.action, theirs.record.transition.action)


def test_more_steps_than_learned_positions_are_refused(getkey):
    model = TransformerConfig(width=8, num_layers=1, num_heads=2, context_len=5, positions="learned")
    policy = Policy(model, BANDIT.observation_space(), BANDIT.action_space(), getkey())
    with pytest.raises(ValueError, match="num_steps=6 is more than context_len=5"):
        evaluate(in_context(policy), BANDIT, bandits(), getkey(), num_steps=6)


def test_longer_episodes_than_the_table_are_refused(getkey):
    model = TransformerConfig(8, 1, 2, context_len=99, positions="episodes", max_episode_len=1)
    policy = Policy(model, EPISODIC.observation_space(), EPISODIC.action_space(), getkey())
    with pytest.raises(ValueError, match="episode_steps=.* is more than max_episode_len=1"):
        evaluate(in_context(policy), EPISODIC, EPISODIC.tasks(), getkey(), num_episodes=2)


def random_contexts(tasks, num_steps):
    return run(uniform(BANDIT), BANDIT, tasks, jax.random.key(5), num_steps=num_steps).record.transition


@pytest.mark.parametrize("unseen", ["first", "never", "zero"])
def test_offline_suboptimality_equals_direct_computation_after_every_prefix(unseen, getkey):
    tasks = bandits()
    contexts = random_contexts(tasks, T)
    found = offline(empirical_mean(5, unseen), BANDIT, tasks, contexts, getkey())
    assert found.shape == (B, T + 1)
    score = {"first": np.inf, "never": -np.inf, "zero": 0.0}[unseen]
    for b in range(B):
        means = np.asarray(tasks.means)[b]
        for n in range(T + 1):
            action, reward = contexts.action[b, :n], contexts.feedback[b, :n]
            index = [reward[action == a].mean() if (action == a).any() else score for a in range(5)]
            np.testing.assert_allclose(found[b, n], means.max() - means[np.argmax(index)], rtol=1e-6, atol=1e-7)


def test_offline_suboptimality_is_that_of_the_prompted_agent(getkey):
    """The whole data set as context, and one decision."""
    tasks = bandits()
    contexts = random_contexts(tasks, T)
    lost = offline(empirical_mean(5), BANDIT, tasks, contexts, getkey())[:, -1]
    agent = partial(functools.partial(prompted, empirical_mean(5), online=False))
    acted = run(agent, BANDIT, tasks, getkey(), num_steps=1, context=contexts)
    np.testing.assert_allclose(lost, acted.metrics["cumulative_regret"], rtol=1e-6)


def repeats(weights):
    """Does what it saw last with probability 1/2 and otherwise draws by fixed weights."""
    return learner(partial(_nothing), partial(_last), partial(_weighted, jnp.asarray(weights)))


def _nothing():
    return jnp.zeros(5)


def _last(carry, transition):
    return jax.nn.one_hot(transition.action, 5)


def _weighted(weights, last, key, obs):
    probs = jnp.where(jnp.sum(last) > 0, (weights + last) / 2, weights)
    return jax.random.categorical(key, jnp.log(probs)), {"probs": probs}


def test_tv_distance_is_that_of_a_plain_loop(getkey):
    """Both see the same histories; one forgets what was done, the other repeats it half of the time."""
    random = np.random.default_rng(3)
    p, q = random.dirichlet(np.ones(5), 2).astype(np.float32)
    actions, flat = random.integers(0, 5, (B, T)).astype(np.int32), np.ones((B, T, 1), np.float32)
    no = np.zeros((B, T), bool)
    histories = Transition(flat, actions, np.zeros((B, T), np.float32), flat, no, no)
    between = on_host(tv_distance)
    fixed = learner(partial(_nothing), partial(_look_away), partial(_weighted, jnp.asarray(q)))
    found = between(repeats(p), fixed, histories, getkey())
    expected = np.empty((B, T))
    for b in range(B):
        for t in range(T):
            mine = p if t == 0 else (p + np.eye(5)[actions[b, t - 1]]) / 2
            expected[b, t] = 0.5 * sum(abs(mine[a] - q[a]) for a in range(5))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.shape == (B, T) and np.ptp(found) > 0.1
    np.testing.assert_allclose(
        between(repeats(p), repeats(q), histories, getkey())[:, 1:], expected[0, 0] / 2, rtol=1e-5
    )
    assert (between(fixed, fixed, histories, getkey()) == 0).all()
    first, last = (learner(partial(_nothing), partial(_look_away), partial(_certain, jnp.int32(a))) for a in (0, 4))
    np.testing.assert_array_equal(between(first, last, histories, getkey()), 1)
    with pytest.raises(ValueError, match=r"^info holds \[\]: must hold 'probs' for a distance between agents to exist"):
        between(fixed, constant(jnp.int32(3)), histories, getkey())


def _look_away(carry, transition):
    return carry


def _certain(action, carry, key, obs):
    return action, {"probs": jax.nn.one_hot(action, 5)}
