"""Q-learning against a plain loop over the same transitions, alone and with a table that many streams share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_jax.agents import as_learner, q_learning, uniform
from icrl_jax.agents.q_learning import QTable
from icrl_jax.core import TimeStep, Transition
from icrl_jax.rollout import replay, rollout, start

T, N = 97, 7
SMALL = {"size": 3, "horizon": 5, "observation": "cell"}
ROOM = icrl_envs.make("dark_room_hard", "ad_eps", **SMALL)  # the goal ends an episode, and so does the fifth step
MDP = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, horizon=7)
RATES, DECAY, DISCOUNT, INITIAL = (0.7, 0.2), 53, 0.8, 0.3


def states(env, obs):
    return obs if env is MDP else 3 * obs[..., 0] + obs[..., 1]


def by_hand(env, history: Transition, num_actions, num_states=25, most=0):
    """Step by step, state by state; all but the last transition, as after a replay. Every field is [T, n]."""
    q = np.full((num_states * (most + 1), num_actions), INITIAL)
    paid = 0  # rewards of the episode, at most so many
    for t in range(T - 1):
        after = min(paid + (most > 0 and history.feedback[t, 0] > 0), most)
        rate = RATES[0] + (RATES[1] - RATES[0]) * min(t / DECAY, 1)
        old, errors = q.copy(), {}
        for n in range(history.feedback.shape[1]):
            s = num_states * paid + states(env, history.obs[t, n])
            then = num_states * after + states(env, history.next_obs[t, n])
            value = 0 if history.terminated[t, n] else DISCOUNT * old[then].max()
            at = s, history.action[t, n]
            errors.setdefault(at, []).append(history.feedback[t, n] + value - old[at])
        for at, found in errors.items():
            q[at] += rate * np.mean(found)
        paid = 0 if (history.terminated | history.truncated)[t].any() else after
    return q


@functools.partial(on_host, static_argnames="env")
def learned(agent, env, key):
    other = uniform(env)
    _, record = rollout(other, env, start(other, env, env.sample_task(key), key), key, T)
    return replay(agent, agent.init(key), record.transition, key)[0], record.transition


@pytest.mark.parametrize("env", [ROOM, MDP], ids=["room", "mdp"])
@pytest.mark.parametrize("copied", [False, True])
def test_the_table_is_that_of_a_plain_loop(env, copied, getkey):
    agent = q_learning(env, learning_rate=RATES, decay_steps=DECAY, discount=DISCOUNT, initial=INITIAL)
    table, history = learned(agent, icrl_envs.copies(env, N) if copied else env, getkey())
    if not copied:
        history = jax.tree.map(lambda x: x[:, None], history)
    expected = by_hand(env, history, env.num_actions)
    np.testing.assert_allclose(table.values, expected[: len(table.values)], rtol=1e-5, atol=1e-6)
    assert (expected[len(table.values) :] == np.float64(INITIAL)).all() and table.counts == T - 1
    assert history.truncated.any() and history.terminated.any() == (env is ROOM)


def test_rewards_that_are_counted_are_a_part_of_the_state(getkey):
    """In a room whose goal pays at every step but is no end, up to two are told apart; a new episode begins at none."""
    room = icrl_envs.make("dark_room", "ad_eps", **SMALL)
    agent = q_learning(
        room, learning_rate=RATES, decay_steps=DECAY, discount=DISCOUNT, initial=INITIAL, count_rewards=2
    )
    table, history = learned(agent, room, getkey())
    expected = by_hand(room, jax.tree.map(lambda x: x[:, None], history), room.num_actions, 9, 2)
    assert (expected[9:18] != INITIAL).any() and (expected[18:] != INITIAL).any()
    np.testing.assert_allclose(table.values, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="shared=True: must be False"):
        as_learner(agent, room, N, 5, shared=True)


def decide(agent, env, values, count, obs, key, num=2003, rewards=0):
    """Many decisions at one state."""
    table = QTable(jnp.asarray(values, jnp.float32), jnp.int32(count), jnp.int32(rewards))
    no = jnp.zeros((), bool)
    blank = Transition(jnp.zeros_like(obs), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros_like(obs), no, no)
    act = lambda key: agent.act(table, key, TimeStep(obs, blank, no))[1]
    return np.bincount(on_host(jax.vmap(act))(jax.random.split(key, num)), minlength=env.num_actions) / num


def test_ties_are_broken_at_random_and_only_ties(getkey):
    agent = q_learning(ROOM, epsilon=(0.0, 0.0), learning_rate=(0.0, 0.0))
    values = np.zeros((9, 5))
    values[5] = [1, 3, 2, 3, 3]
    obs = jnp.array([1, 2])
    np.testing.assert_allclose(decide(agent, ROOM, values, 1, obs, getkey()), np.array([0, 1, 0, 1, 1]) / 3, atol=0.04)


@pytest.mark.parametrize("rewards", [0, 1, 2])
def test_it_goes_by_what_it_learned_after_so_many_rewards(rewards, getkey):
    agent = q_learning(MDP, epsilon=(0.0, 0.0), learning_rate=(0.0, 0.0), count_rewards=2)
    values = np.repeat(np.eye(3)[[1, 2, 0]], 5, axis=0)  # after 0, 1 and 2
    shares = decide(agent, MDP, values, 1, jnp.int32(3), getkey(), num=11, rewards=rewards)
    np.testing.assert_array_equal(shares, values[5 * rewards])


@pytest.mark.parametrize("count, epsilon", [(0, 0.8), (12, 0.5), (24, 0.2), (1000, 0.2)])
def test_epsilon_falls_in_a_straight_line_and_stays(count, epsilon, getkey):
    agent = q_learning(MDP, epsilon=(0.8, 0.2), learning_rate=(0.0, 0.0), decay_steps=24)
    values = np.zeros((5, 3)) + np.array([0, 0, 1])
    # What it is shown teaches it too: it decides after one step more.
    shares = decide(agent, MDP, values, count - 1, jnp.int32(2), getkey(), num=4001)
    np.testing.assert_allclose(shares, [epsilon / 3, epsilon / 3, 1 - epsilon * 2 / 3], atol=0.03)


@pytest.mark.parametrize("shared", [True, False])
def test_it_learns_the_dark_room(shared, getkey):
    """Sixteen streams that share a table all find a goal that most of those that do not share one miss."""
    env = icrl_envs.make("dark_room", "ad_eps", size=7, horizon=10)
    tasks, rounds = env.tasks("test"), 40

    @on_host
    def final(key):
        learner = as_learner(q_learning(env, decay_steps=300), env, 16, 10, shared)

        def one(task, key):
            key_init, key_learn = jax.random.split(key)
            state = learner.init(key_init, task)
            state, _ = jax.lax.scan(
                lambda s, k: (learner.learn(s, k)[0], None), state, jax.random.split(key_learn, rounds)
            )
            return learner.learn(state, key)[1].transition.feedback.sum(0).mean()

        return jax.vmap(one)(tasks, jax.random.split(key, len(tasks.goal)))

    found, best = final(getkey()), jax.vmap(env.optimal_return)(tasks)
    if shared:
        np.testing.assert_array_equal(found, best)
    else:
        assert found.mean() < 0.8 * best.mean()


class Many(icrl_envs.Wrapper):
    def observation_space(self, params=None):
        return spaces.Box(0, 9, (20,), jnp.int32)


@pytest.mark.parametrize(
    "env, message",
    [
        (TwoEpisodes(), "must have observations in a Discrete, or in a Box of integers, not in Box"),
        (icrl_envs.make("point_robot"), "must be one with discrete actions, not Box"),
        (Many(MDP), f"states x actions, not {3 * 10**20}"),
    ],
)
def test_other_spaces_are_refused_by_name(env, message):
    with pytest.raises(ValueError, match=message):
        q_learning(env)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("epsilon", (0.5, 1.5)), ("learning_rate", 0.5), ("decay_steps", 0), ("decay_steps", 2.5)),
        *(("discount", -0.1), ("initial", float("nan"))),
    ],
)
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        q_learning(MDP, **{name: value})
