import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import EPISODE_STEPS, HIDDEN, TwoEpisodes, TwoEpisodesParams, constant, on_host, scout, spied

import icrl_envs
from icrl_jax.agents import learner, uniform
from icrl_jax.core import Agent, partial
from icrl_jax.rollout import Trial, replay, rollout, start

ENV = TwoEpisodes()
BANDIT = icrl_envs.make("gaussian_bandit", num_arms=5)
T = 47

begin = on_host(start, static_argnums=1)
relive = on_host(replay)


@functools.partial(on_host, static_argnames=("env", "num_steps", "next_task", "trial"))
def run(agent, task, key, env=ENV, num_steps=T, next_task=None, trial=None):
    return rollout(agent, env, start(agent, env, task, key), key, num_steps, next_task, trial)


@functools.partial(on_host, static_argnames=("num_steps", "next_task", "trial"))
def proceed(agent, state, key, num_steps, next_task=None, trial=None):
    return rollout(agent, ENV, state, key, num_steps, next_task, trial)


def task(secret):
    return TwoEpisodesParams(secret=np.int32(secret), max_steps_in_episode=np.int32(EPISODE_STEPS))


def at(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


def over(record):
    return np.asarray(record.transition.terminated | record.transition.truncated)


def test_continued_rollout_equals_one_long_rollout(getkey):
    trial, key = Trial(steps=7, episodes=3), getkey()
    first = begin(scout(), ENV, task(2), key)
    state, long = proceed(scout(), first, key, 29, ENV.sample_task, trial)
    middle, part_1 = proceed(scout(), first, key, 18, ENV.sample_task, trial)
    last, part_2 = proceed(scout(), middle, key, 11, ENV.sample_task, trial)
    chex.assert_trees_all_equal(long, jax.tree.map(lambda a, b: np.concatenate([a, b]), part_1, part_2))
    chex.assert_trees_all_equal(state, last)
    assert len(np.unique(long.env_info["secret"])) > 1


def test_episodes_reset_by_themselves_and_the_memory_survives_them(getkey):
    _, record = run(scout(), task(3), getkey())
    first_end = int(np.argmax(over(record)))
    later = jax.tree.map(lambda x: np.asarray(x)[first_end + 1 :], record)
    assert later.transition.terminated.all() and (later.transition.feedback == 1).all()
    assert (later.transition.obs[:, 0] == 0).all() and (later.transition.obs[:, 2] == HIDDEN).all()
    assert len(np.unique(later.transition.obs[:, 1])) == len(later.transition.obs)
    np.testing.assert_array_equal(record.reset, np.arange(T) == 0)
    assert not record.trial_end.any()


def test_next_obs_is_the_true_final_observation(getkey):
    _, record = run(uniform(ENV), task(3), getkey())
    obs, next_obs, done = *map(np.asarray, (record.transition.obs, record.transition.next_obs)), over(record)
    assert (next_obs[done, 2] == 3).all() and (next_obs[~done, 2] == HIDDEN).all()
    np.testing.assert_array_equal(next_obs[:, 0], obs[:, 0] + 1)
    np.testing.assert_array_equal(next_obs[:, 1], obs[:, 1])
    np.testing.assert_array_equal(next_obs[:-1][~done[:-1]], obs[1:][~done[:-1]])
    assert (obs[1:][done[:-1], 0] == 0).all()


def test_terminated_and_truncated_are_distinct(getkey):
    _, record = run(uniform(ENV), task(3), getkey())
    terminated, truncated = np.asarray(record.transition.terminated), np.asarray(record.transition.truncated)
    np.testing.assert_array_equal(terminated, record.transition.action == 3)
    np.testing.assert_array_equal(truncated, (record.transition.obs[:, 0] == EPISODE_STEPS - 1) & ~terminated)
    assert terminated.any() and truncated.any()


@pytest.mark.parametrize("trial", [Trial(steps=2), Trial(episodes=2), Trial(steps=2, episodes=1)])
def test_tasks_change_only_at_trial_ends_and_there_the_agent_forgets(trial, getkey):
    _, record = run(spied(scout()), task(1), getkey(), next_task=ENV.sample_task, trial=trial)
    secret, transition = np.asarray(record.env_info["secret"]), record.transition
    ends, cut = _trial_ends(transition, trial)
    np.testing.assert_array_equal(record.trial_end, ends)
    np.testing.assert_array_equal(record.reset, np.concatenate([[True], ends[:-1]]))
    assert (np.diff(secret) != 0)[ends[:-1]].any() and not (np.diff(secret) != 0)[~ends[:-1]].any()
    for t in range(1, T):
        given, memory = at(record.info["timestep"], t), record.info["carry"][t]
        before = at(transition, t - 1)
        if ends[t - 1]:
            chex.assert_trees_all_equal(given.prev, jax.tree.map(np.zeros_like, given.prev))
            assert given.reset and memory == -1 and given.obs[0] == 0
        else:
            chex.assert_trees_all_equal(given.prev, before)
            assert not given.reset
    assert np.asarray(transition.truncated)[cut].all() and not np.asarray(transition.terminated)[cut].any()
    assert cut.any() == (trial.steps is not None)
    assert (transition.next_obs[:, 0] == transition.obs[:, 0] + 1).all()  # the true one, also where a trial was cut


def _trial_ends(transition, trial):
    """Counts in plain Python; `cut`: where the steps ran out in the middle of an episode."""
    steps = episodes = 0
    ends, cut = [], []
    for t in range(T):
        natural = transition.terminated[t] or transition.obs[t, 0] == EPISODE_STEPS - 1
        steps, episodes = steps + 1, episodes + int(natural)
        ends.append(steps == trial.steps or episodes == trial.episodes)
        cut.append(steps == trial.steps and not natural)
        if ends[-1]:
            steps = episodes = 0
    return np.array(ends), np.array(cut)


def test_without_next_task_the_trial_ends_but_the_task_stays(getkey):
    _, record = run(spied(scout()), task(1), getkey(), trial=Trial(episodes=2))
    assert (record.env_info["secret"] == 1).all()
    assert (record.info["carry"][record.reset] == -1).all() and record.reset.sum() > 2


def test_all_agents_meet_the_same_noise(getkey):
    key, task = getkey(), BANDIT.default_params
    records = [
        run(agent, task, key, env=BANDIT)[1].transition for agent in (uniform(BANDIT), constant(2), _greedy_for_keys())
    ]
    pulled = np.asarray(records[0].action) == 2
    assert 0 < pulled.sum() < T
    np.testing.assert_array_equal(records[0].feedback[pulled], records[1].feedback[pulled])
    np.testing.assert_array_equal(records[1].feedback, records[2].feedback)


def _greedy_for_keys():
    return learner(partial(jnp.zeros, ()), partial(_keep), partial(_draw_much))


def _keep(carry, transition):
    return carry


def _draw_much(carry, key, obs):
    noise = sum(jax.random.normal(k) for k in jax.random.split(key, 7))
    return jnp.int32(2) + (noise > 1e9).astype(jnp.int32), {}


def test_all_agents_meet_the_same_episode_starts(getkey):
    """Step by step: where two agents both stand at the start of an episode at t, it is the same start."""
    key = getkey()
    obs = [np.asarray(run(agent, task(3), key)[1].transition.obs) for agent in (uniform(ENV), constant(3))]
    both = obs[0][:, 0] == 0
    assert 1 < both.sum() < T
    np.testing.assert_array_equal(obs[0][both, 1], obs[1][both, 1])


def test_start_and_steps_share_no_randomness(getkey):
    """`split(key)[i]` equals `fold_in(key, i)`: a start that merely splits the key would repeat the draws of steps."""
    state, record = run(Agent(partial(_bits), partial(_act_bits)), {}, getkey(), env=_Bits(), num_steps=7)
    draws = [record.transition.obs[0], record.transition.next_obs, record.info["bits"], state.carry]
    draws = np.concatenate([np.ravel(x) for x in draws])
    assert len(np.unique(draws)) == len(draws)


def _bits(key):
    """What a key gives, and what the keys give that are split from it."""
    return jax.vmap(jax.random.bits)(jnp.concatenate([key[None], jax.random.split(key, 3)]))


def _act_bits(carry, key, timestep):
    return carry, jnp.zeros((), jnp.int32), {"bits": _bits(key)}


class _Bits(icrl_envs.TaskFamily):
    default_params = {}

    def reset_env(self, key, params):
        return _bits(key), jnp.zeros(())

    def step_env(self, key, state, action, params):
        return _bits(key), state, jnp.zeros(()), jnp.zeros((), bool), {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def action_space(self, params):
        return ENV.action_space()


def test_info_and_env_info_are_stacked(getkey):
    _, record = run(spied(scout()), task(1), getkey())
    assert record.info["carry"].shape == record.env_info["secret"].shape == (T,)
    np.testing.assert_array_equal(record.env_info["expected_reward"], record.transition.action == 1)
    assert set(record.env_info) == {"secret", "expected_reward"}
    assert all(x.shape[0] == T for x in jax.tree.leaves(record))


def test_vmap_over_tasks_equals_one_by_one(getkey):
    tasks, keys = jax.device_get(ENV.tasks("all")), jax.random.split(getkey(), 5)
    together = on_host(jax.vmap(run.__wrapped__, in_axes=(None, 0, 0)))(scout(), tasks, keys)
    alone = [run(scout(), at(tasks, i), keys[i]) for i in range(5)]
    chex.assert_trees_all_equal(together, jax.tree.map(lambda *x: np.stack(x), *alone))


def test_the_next_task_is_drawn_in_a_branch():
    """Not at every step, where drawing one may cost a hundred times the step."""
    drawn = []

    def draw(key):
        drawn.append(None)
        return jax.lax.optimization_barrier(ENV.sample_task(key))

    program = jax.make_jaxpr(jax.vmap(partial(run.__wrapped__, scout(), next_task=draw, trial=Trial(steps=7))))
    equations = str(program(ENV.tasks("train"), jax.random.split(jax.random.key(0), 3)))
    assert drawn and equations.index("cond[") < equations.index("optimization_barrier")


def test_next_task_without_trial_is_refused(getkey):
    with pytest.raises(ValueError, match="next_task is given without trial"):
        run(scout(), task(1), getkey(), next_task=ENV.sample_task)


@pytest.mark.parametrize("trial", [Trial(), Trial(steps=0), Trial(steps=5, episodes=0), Trial(episodes=-2)])
def test_trial_without_a_proper_limit_is_refused(trial, getkey):
    with pytest.raises(ValueError, match="each limit at least 1"):
        run(scout(), task(1), getkey(), trial=trial)


def test_replay_honours_resets_inside_the_history(getkey):
    key = getkey()
    state, record = run(scout(), task(1), key, next_task=ENV.sample_task, trial=Trial(episodes=3))
    assert record.reset.sum() > 2
    carry, (actions, _) = relive(scout(), np.int32(-1), record.transition, key, record.reset)
    np.testing.assert_array_equal(actions, record.transition.action)
    np.testing.assert_array_equal(carry, state.carry)
    _, (actions, _) = relive(scout(), np.int32(-1), record.transition, key)  # the test can fail
    assert (actions != record.transition.action).any()


def test_replay_continues_with_prev(getkey):
    key = getkey()
    _, record = run(spied(scout()), task(1), key)
    carry, given = np.int32(-1), relive(spied(scout()), np.int32(-1), record.transition, key)[1][1]
    for low, high in ((0, 13), (13, 30), (30, T)):
        part = jax.tree.map(lambda x: x[low:high], record.transition)  # noqa: B023
        prev = None if low == 0 else at(record.transition, low - 1)
        carry, (_, info) = relive(spied(scout()), carry, part, key, prev=prev)
        chex.assert_trees_all_equal(info["timestep"], jax.tree.map(lambda x: x[low:high], given["timestep"]))  # noqa: B023
        np.testing.assert_array_equal(info["carry"], given["carry"][low:high])
