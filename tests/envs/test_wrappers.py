import functools

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import EPISODE_STEPS, TwoEpisodes, TwoEpisodesParams, constant, on_host, scout, spied

import icrl_envs
from icrl_envs import copies, make, preferences, revealed
from icrl_jax.agents import oracle, uniform
from icrl_jax.rollout import rollout, start

BANDIT = make("gaussian_bandit", num_arms=5)
EPISODIC = TwoEpisodes()
TASK = TwoEpisodesParams(secret=np.int32(3), max_steps_in_episode=np.int32(EPISODE_STEPS))
T = 23
N = 20_000


@functools.partial(on_host, static_argnames="env")
def live(agent, env, task, key):
    return rollout(agent, env, start(agent, env, task, key), key, T)[1]


def test_revealed_shows_state_and_task_but_histories_keep_the_obs(getkey):
    key, env = getkey(), revealed(EPISODIC)
    plain, shown = live(uniform(EPISODIC), EPISODIC, TASK, key), live(spied(uniform(EPISODIC)), env, TASK, key)
    chex.assert_trees_all_equal(plain.transition, shown.transition)
    seen = shown.info["timestep"]
    assert (seen.obs.params.secret == 3).all()
    np.testing.assert_array_equal(seen.obs.obs, plain.transition.obs)
    np.testing.assert_array_equal(seen.obs.state.time, plain.transition.obs[:, 0])
    np.testing.assert_array_equal(seen.obs.state.start, plain.transition.obs[:, 1])
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[1:], seen.prev), jax.tree.map(lambda x: x[:-1], plain.transition)
    )


def test_oracle_wins_every_episode_at_once(getkey):
    record = live(oracle(EPISODIC), revealed(EPISODIC), TASK, getkey())
    assert record.transition.terminated.all() and (record.transition.feedback == 1).all()


def test_copies_are_separate_environments(getkey):
    key, n, env = getkey(), 3, copies(EPISODIC, 3)
    obs, state = jax.device_get(env.reset(key, TASK))
    keys = jax.random.split(key, n)
    alone = jax.device_get([EPISODIC.reset(k, TASK) for k in keys])
    chex.assert_trees_all_equal((obs, state), _stack(alone))
    resets = []
    for t in range(7):
        key, action = jax.random.fold_in(key, t), np.array([0, 3, 1], np.int32)
        together = jax.device_get(env.step(key, state, action, TASK))
        keys = jax.random.split(key, n)
        alone = jax.device_get([EPISODIC.step(keys[i], _at(state, i), action[i], TASK) for i in range(n)])
        chex.assert_trees_all_equal(together, _stack(alone))
        obs, state, _, terminated, truncated, info = together
        np.testing.assert_array_equal(terminated, [False, True, False])
        np.testing.assert_array_equal(info["final_observation"][:, 0], [t % 3 + 1, 1, t % 3 + 1])
        resets.append(np.asarray(terminated | truncated))
    assert {tuple(reset) for reset in resets} == {(False, True, False), (True, True, True)}


def _at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def _stack(trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def test_copies_see_different_noise_and_know_their_means(getkey):
    env, task = copies(BANDIT, 7), BANDIT.default_params
    record = live(constant([0, 1, 2, 3, 4, 4, 4]), env, task, getkey())
    assert record.transition.feedback.shape == (T, 7)
    assert len(np.unique(record.transition.feedback[:, 4:])) == 3 * T
    expected = np.append(np.linspace(0, 1, 5), [1, 1])
    np.testing.assert_allclose(record.env_info["expected_reward"], np.tile(expected, (T, 1)), atol=1e-6)
    np.testing.assert_array_equal(env.optimal_action(env.reset(getkey(), task)[1], task), [4] * 7)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_copies_refuse_wrong_numbers(n):
    with pytest.raises(ValueError, match=f"^n={n!r}: must be an integer of at least 1"):
        copies(BANDIT, n)


@pytest.mark.parametrize("wrapper", [revealed, preferences])
def test_copies_go_outermost(wrapper):
    with pytest.raises(ValueError, match=r"env=copies\(GaussianBandit, 3\): copies goes outermost"):
        wrapper(copies(BANDIT, 3))


def test_the_oracle_of_copies_is_refused():
    with pytest.raises(ValueError, match="copies"):
        oracle(copies(revealed(BANDIT), 3))


@functools.partial(on_host, static_argnames="env")
def compare(env, pair, key):
    """N labels of one pair, and what came with them; arms pay 0, .25, .5, .75, 1 on average."""
    _, state = env.reset(key, env.default_params)
    pair = jnp.asarray(pair, jnp.int32)
    _, _, label, _, _, info = jax.vmap(lambda k: env.step(k, state, pair, env.default_params))(jax.random.split(key, N))
    return label, info


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_labels_follow_bradley_and_terry(temperature, getkey):
    env = preferences(BANDIT, temperature=temperature)
    for pair, margin in (((4, 1), 0.75), ((1, 4), -0.75), ((2, 3), -0.25), ((2, 2), 0.0)):
        label, _ = compare(env, np.array(pair), getkey())
        p = 1 / (1 + np.exp(-margin / temperature))
        assert abs(label.mean() - p) < 5 * np.sqrt(p * (1 - p) / N)
        assert set(np.unique(label)) == {0.0, 1.0}


def test_the_score_can_be_chosen(getkey):
    """Here the lower arm is preferred."""
    env = preferences(BANDIT, score=lambda state, action, params: -action.astype(jnp.float32), temperature=0.0)
    assert (compare(env, np.array([0, 4]), getkey())[0] == 1).all()


def test_at_temperature_0_the_better_wins_and_ties_are_a_fair_coin(getkey):
    env = preferences(BANDIT, temperature=0.0)
    assert (compare(env, np.array([4, 1]), getkey())[0] == 1).all()
    assert (compare(env, np.array([1, 2]), getkey())[0] == 0).all()
    assert abs(compare(env, np.array([2, 2]), getkey())[0].mean() - 0.5) < 5 * 0.5 / np.sqrt(N)


@pytest.mark.parametrize(
    "temperature, noise, tie_margin", [(0.5, 0.0, 0.3), (0.5, 0.2, 0.3), (0.0, 0.2, 0.3), (1.0, 0.5, 0.0)]
)
def test_labels_with_ties_and_noise_follow_their_law(temperature, noise, tie_margin, getkey):
    """As Rao and Kupper, then turned round; after a tie a coin says who moves."""
    env = preferences(BANDIT, None, temperature, noise, tie_margin)
    p = lambda margin: 1 / (1 + np.exp(-margin / temperature)) if temperature else float(margin > 0)
    for pair, gap in (((4, 1), 0.75), ((1, 2), -0.25), ((3, 3), 0.0)):
        wins, losses = p(gap - tie_margin), p(-gap - tie_margin)
        wins, losses = (1 - noise) * wins + noise * losses, (1 - noise) * losses + noise * wins
        label, info = compare(env, np.array(pair), getkey())
        shares = [np.mean(label == value) for value in (1.0, 0.0, 0.5)]
        np.testing.assert_allclose(shares, [wins, losses, 1 - wins - losses], atol=5 * 0.5 / np.sqrt(N))
        first_moved = np.asarray(info["winner"]) == pair[0]
        assert pair[0] == pair[1] or abs(first_moved.mean() - (1 + wins - losses) / 2) < 5 * 0.5 / np.sqrt(N)
        assert first_moved[label == 1].all()
    _, state = env.reset(getkey(), env.default_params)
    label, info = compare(env, np.array([4, 1]), getkey())
    expected = env.expected_reward(state, jnp.array([4, 1]), env.default_params)
    assert abs(info["reward"].mean() - expected) < 5 * info["reward"].std() / np.sqrt(N)


def test_regrets_do_not_depend_on_how_labels_are_told():
    """Those of the dueling bandit are gaps of the probability to win without ties or noise."""
    plain, told = (icrl_envs.make("dueling_bandit", **how) for how in ({}, {"noise": 0.3, "tie_margin": 0.5}))
    key, task = jax.random.key(0), plain.default_params
    regrets = [
        env.step(key, env.reset(key, task)[1], jnp.array([1, 2]), task)[-1]["weak_regret"] for env in (plain, told)
    ]
    np.testing.assert_array_equal(*regrets)


def test_a_compared_family_is_the_wrapped_one():
    options = {"temperature": 0.5, "noise": 0.1, "tie_margin": 0.2}
    env = make("icrl_envs:compared", family="dark_room", family_preset="icprl", size=5, **options)
    assert (env.name, env.size, env.action_space().shape) == ("DarkRoom", 5, (2,))
    assert {name: getattr(env, name) for name in options} == options
    obs, state = env.reset_anywhere(jax.random.key(0), env.default_params)
    np.testing.assert_array_equal(obs, state.cell)


def test_the_environment_moves_by_the_winner_and_shows_its_reward_only_in_info(getkey):
    label, info = compare(preferences(BANDIT), np.array([4, 1]), getkey())
    np.testing.assert_array_equal(info["winner"], np.where(label == 1, 4, 1))
    for arm, mean in ((4, 1.0), (1, 0.25)):
        reward = np.asarray(info["reward"])[info["winner"] == arm]
        assert abs(reward.mean() - mean) < 5 * 0.3 / np.sqrt(len(reward))


def test_episodes_move_by_the_winner(getkey):
    env = preferences(EPISODIC, temperature=0.0)
    first, second = (live(constant(pair), env, TASK, getkey()) for pair in ([3, 1], [1, 2]))
    assert first.transition.terminated.all() and (first.transition.feedback == 1).all()
    assert not second.transition.terminated.any() and second.transition.truncated.any()


def test_gaps_of_reward_are_no_regrets_where_episodes_go_on(getkey):
    env = preferences(EPISODIC)
    assert "weak_regret" not in live(constant([3, 1]), env, TASK, getkey()).env_info


def test_regrets_worked_by_hand(getkey):
    for pair, weak, strong in (((4, 1), 0.0, 0.75), ((1, 2), 0.5, 0.75), ((3, 3), 0.25, 0.25)):
        _, info = compare(preferences(BANDIT), np.array(pair), getkey())
        np.testing.assert_allclose(info["weak_regret"], weak, atol=1e-6)
        np.testing.assert_allclose(info["strong_regret"], strong, atol=1e-6)


def test_feedback_is_the_label_and_weak_regret_at_most_strong(getkey):
    env = preferences(BANDIT)
    record = live(uniform(env), env, BANDIT.sample_task(getkey()), getkey())
    assert record.transition.action.shape == (T, 2)
    assert set(np.unique(record.transition.feedback)) == {0.0, 1.0}
    weak, strong = record.env_info["weak_regret"], record.env_info["strong_regret"]
    assert (weak >= 0).all() and (weak <= strong).all() and (weak < strong).any()
    assert set(record.env_info) == {"winner", "reward", "weak_regret", "strong_regret", "expected_reward"}


def test_expected_reward_of_a_pair_is_the_mean_of_the_winners(getkey):
    env = preferences(BANDIT, temperature=0.2)
    _, info = compare(env, jnp.array([4, 3]), getkey())
    _, state = env.reset(getkey(), env.default_params)
    expected = env.expected_reward(state, jnp.array([4, 3]), env.default_params)
    assert abs(info["reward"].mean() - expected) < 5 * info["reward"].std() / np.sqrt(N)


def test_revealed_preferences_serve_an_oracle_without_regret(getkey):
    env = preferences(BANDIT)
    record = live(oracle(env), revealed(env), BANDIT.sample_task(getkey()), getkey())
    assert record.transition.action.shape == (T, 2) and (record.env_info["strong_regret"] == 0).all()


def test_copies_of_preferences_are_separate(getkey):
    env = copies(preferences(BANDIT), 3)
    record = live(uniform(env), env, BANDIT.default_params, getkey())
    assert record.transition.action.shape == (T, 3, 2) and record.transition.feedback.shape == (T, 3)
    assert record.env_info["strong_regret"].shape == (T, 3)
    assert len(np.unique(np.asarray(record.transition.action).reshape(T * 3, 2), axis=0)) > 10


def test_copies_of_revealed_show_each_its_state(getkey):
    env = copies(revealed(EPISODIC), 2)
    record = live(spied(uniform(env)), env, TASK, getkey())
    seen = record.info["timestep"].obs
    np.testing.assert_array_equal(seen.state.start, record.transition.obs[..., 1])
    assert record.transition.obs.shape == (T, 2, 3)


@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan"), "1", True, None])
def test_preferences_refuse_wrong_temperatures(temperature):
    with pytest.raises(ValueError, match=f"^temperature={temperature!r}: must be a finite number of at least 0 "):
        preferences(BANDIT, temperature=temperature)


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("noise", 0.6, "a number in 0 ..= 0.5"),
        ("noise", -0.1, "a number in"),
        ("tie_margin", -1.0, "a finite number of"),
    ],
)
def test_preferences_refuse_wrong_ties_and_noise(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}={value!r}: must be {allowed}"):
        preferences(BANDIT, **{argument: value})


def test_preferences_refuse_what_they_cannot_compare():
    class Silent(TwoEpisodes):
        expected_reward = None

    with pytest.raises(
        ValueError, match="score=None: must be given, because Silent knows no optimal_advantage and no "
    ):
        preferences(Silent())
    with pytest.raises(ValueError, match="score=None: must be given, because CartPole-v1 knows no "):
        preferences(gymnax.make("CartPole-v1")[0])


def test_a_wrapper_passes_on_what_it_wraps():
    env = revealed(preferences(BANDIT))
    assert env.num_arms == 5 and env.episodic is False and env.name == "GaussianBandit" and env.tasks is None
    chex.assert_trees_all_equal(env.default_params, BANDIT.default_params)
    with pytest.raises(AttributeError):
        env.no_such_thing  # noqa: B018


def test_an_agent_acts_the_same_through_wrappers(getkey):
    key = getkey()
    one = live(scout(), EPISODIC, TASK, key).transition
    chex.assert_trees_all_equal(one, live(scout(), icrl_envs.Wrapper(EPISODIC), TASK, key).transition)
