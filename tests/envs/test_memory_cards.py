"""CountRecall, HigherLower and Concentration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs

COUNTING = {preset: icrl_envs.make("count_recall", preset) for preset in ("easy", "medium", "hard")}
GUESSING = {preset: icrl_envs.make("higher_lower", preset) for preset in ("easy", "medium", "hard")}
STEP_GUESSES = jax.jit(GUESSING["easy"].step_env)
PAIRING = {preset: icrl_envs.make("concentration", preset) for preset in ("easy", "medium", "hard")}


@functools.partial(on_host, static_argnames=("env", "policy"))
def play(env, policy, key, actions=None):
    """One episode: its observations (one more than steps), states, and what every step took and gave."""
    task = env.sample_task(jax.random.fold_in(key, 0))
    obs, state = env.reset_env(jax.random.fold_in(key, 1), task)

    def step(state, x):
        key, action = x
        action = policy(env, state, task, action)
        obs, after, reward, terminated, _ = env.step_env(key, state, action, task)
        return after, (state, obs, action, reward, terminated, env.is_truncated(after, task))

    T = env.num_steps
    actions = jnp.zeros(T, jnp.int32) if actions is None else actions
    _, (states, later, *rest) = jax.lax.scan(step, state, (jax.random.split(jax.random.fold_in(key, 2), T), actions))
    return jnp.concatenate([obs[None], later]), states, *rest


def oracle(env, state, task, action):
    return env.optimal_action(state, task)


def oracle_at_times(env, state, task, action):
    return jnp.where(action % 3 == 0, action, env.optimal_action(state, task))


@pytest.mark.parametrize("preset, decks, kinds", [("easy", 1, 2), ("medium", 2, 4), ("hard", 4, 13)])
def test_counts_follow_the_definition(preset, decks, kinds, getkey):
    """Rewards and ends recomputed from nothing but what was shown."""
    env, n = COUNTING[preset], 52 * decks
    obs, states, action, reward, terminated, truncated = play(env, oracle_at_times, getkey(), np.arange(n - 1) % 7)
    value, query = obs[:, :kinds].argmax(-1), obs[:, kinds:].argmax(-1)
    assert obs.shape == (n, 2 * kinds) and (obs[:, :kinds].sum(-1) == 1).all() and (obs[:, kinds:].sum(-1) == 1).all()
    counts = np.array([(value[: t + 1] == query[t]).sum() for t in range(n - 1)])
    np.testing.assert_allclose(reward, np.where(action == counts, 1, -1) / (n - 1), rtol=1e-6)
    assert len(set(action == counts)) == 2
    np.testing.assert_array_equal(on_host(jax.vmap(lambda state: env.optimal_action(state, None)))(states), counts)
    assert env.optimal_return(env.default_params) == 1
    np.testing.assert_array_equal(terminated, np.arange(n - 1) == n - 2)
    assert not truncated.any()
    for kind in (value, query):
        np.testing.assert_array_equal(np.bincount(kind), n // kinds)


def test_sizes_are_those_of_the_paper():
    assert [(env.num_cards, env.kinds, env.num_actions) for env in COUNTING.values()] == [
        (52, 2, 27),
        (104, 4, 27),
        (208, 13, 17),
    ]
    assert [env.num_steps for env in GUESSING.values()] == [51, 103, 155]
    assert [(env.num_cards, env.kinds, env.num_steps) for env in PAIRING.values()] == [
        (52, 2, 104),
        (104, 2, 208),
        (52, 13, 104),
    ]


def test_a_count_includes_the_card_on_show_and_goes_up_to_all():
    env = icrl_envs.make("count_recall", deck_type="ranks")
    _, state = env.reset(jax.random.key(0), env.default_params)
    state = state.replace(value=jnp.int32(3), query=jnp.int32(3), values_left=jnp.full(13, 4).at[3].set(3))
    reward = functools.partial(env.expected_reward, state, params=env.default_params)
    assert reward(action=jnp.int32(1)) == np.float32(1 / 51) and reward(action=jnp.int32(0)) == -np.float32(1 / 51)
    state = state.replace(values_left=jnp.zeros(13, jnp.int32))
    assert env.num_actions == 5 and env.optimal_action(state, env.default_params) == 4
    reward = functools.partial(env.expected_reward, state, params=env.default_params)
    assert reward(action=jnp.int32(99)) == reward(action=jnp.int32(4)) > 0  # clipped


@pytest.mark.parametrize("preset, n", [("easy", 52), ("medium", 104), ("hard", 156)])
def test_guesses_follow_the_definition(preset, n, getkey):
    env = GUESSING[preset]
    obs, _, action, reward, terminated, _ = play(env, oracle_at_times, getkey(), np.arange(n - 1))
    rank = obs.argmax(-1)
    assert obs.shape == (n, 13) and (np.bincount(rank) == n // 13).all() and (obs.sum(-1) == 1).all()
    change = np.sign(np.diff(rank))
    np.testing.assert_allclose(reward, np.where(action == 0, change, -change) / n, atol=1e-8)
    assert set(change) == {-1, 0, 1}
    np.testing.assert_array_equal(terminated, np.arange(n - 1) == n - 2)


@pytest.mark.parametrize(
    "card, next_card, action, reward",
    [(3, 7, 0, 1 / 52), (3, 7, 1, -1 / 52), (7, 3, 0, -1 / 52), (7, 3, 1, 1 / 52), (5, 5, 0, 0), (5, 5, 1, 0)],
)
def test_guesses_worked_by_hand(card, next_card, action, reward):
    env = GUESSING["easy"]
    _, state = env.reset(jax.random.key(0), env.default_params)
    state = state.replace(card=jnp.int32(card), next_card=jnp.int32(next_card))
    obs, state, got, *_ = STEP_GUESSES(jax.random.key(0), state, jnp.int32(action), env.default_params)
    np.testing.assert_allclose(got, reward, rtol=1e-6)
    assert obs.argmax() == next_card


def test_foresight_loses_ties_only_and_counting_beats_a_rule(getkey):
    env, n, episodes = GUESSING["easy"], 52, 2_000

    @on_host
    @jax.vmap
    def returns(key):
        """What is shown does not depend on the guesses, so one episode serves three guessers."""
        states = play.__wrapped__(env, oracle, key)[1]

        def rewards(state):
            rule = (state.card > 6).astype(jnp.int32)
            guesses = env.optimal_action(state, None), env.counting_action(state, None), rule
            return jnp.stack([env.expected_reward(state, guess, None) for guess in guesses])

        return jax.vmap(rewards)(states).sum(0)

    best, counted, rule = returns(jax.random.split(getkey(), episodes)).T
    expected = (n - 1 - (n - 1) * (n / 13 - 1) / (n - 1)) / n
    for game in GUESSING.values():
        np.testing.assert_allclose(game.optimal_return(game.default_params), expected, rtol=1e-6)
    assert abs(best.mean() - expected) < 5 * best.std() / np.sqrt(episodes)
    assert (best >= counted).all()
    gain = counted - rule
    assert gain.mean() > 5 * gain.std() / np.sqrt(episodes)


def test_counting_weighs_the_cards_not_yet_seen(getkey):
    env = GUESSING["easy"]
    obs, states, *_ = play(env, oracle_at_times, getkey(), np.arange(51))
    action = on_host(jax.vmap(lambda state: env.counting_action(state, None)))(states)
    rank = obs.argmax(-1)
    for t in range(51):
        higher, lower = (rank[t + 1 :] > rank[t]).sum(), (rank[t + 1 :] < rank[t]).sum()
        assert action[t] == (lower > higher)


@pytest.mark.parametrize("preset, n, kinds, T", [("easy", 52, 2, 104), ("medium", 104, 2, 208), ("hard", 52, 13, 104)])
def test_pairs_follow_the_rules(preset, n, kinds, T, getkey):
    """A second implementation, with sets: every observation, reward and end."""
    env = PAIRING[preset]
    assert env.num_actions == n
    actions = np.random.default_rng(3).integers(0, n, T).astype(np.int32)
    obs, states, action, reward, terminated, truncated = play(env, oracle_at_times, getkey(), actions)
    cards = states.cards[0]
    assert (states.cards == cards).all() and (np.bincount(cards) == n // kinds).all()
    faces = obs.reshape(T + 1, n, kinds + 1)
    assert (faces.sum(-1) == 1).all() and (faces[0].argmax(-1) == kinds).all()
    up, tried, over = set(), [], False
    for t, place in enumerate(action):
        tried.append(int(place))
        shown = up | set(tried)
        np.testing.assert_array_equal(
            faces[t + 1].argmax(-1), [cards[i] if i in shown else kinds for i in range(n)], err_msg=str(t)
        )
        if place in up:
            expected, tried = -len(tried) / T, []
        elif len(tried) == 1:
            expected = 0
        else:
            pair = tried[0] != tried[1] and cards[tried[0]] == cards[tried[1]]
            expected = 2 / n if pair else -2 / T
            up |= set(tried) if pair else set()
            tried = []
        over = len(up) == n
        np.testing.assert_allclose(reward[t], expected, rtol=1e-6, err_msg=str(t))
        assert terminated[t] == over and truncated[t] == (t == T - 1)
        if over:
            break


def test_the_oracle_finds_all_pairs_without_failure(getkey):
    env = PAIRING["hard"]
    _, _, _, reward, terminated, truncated = play(env, oracle, getkey())
    last, n = int(np.argmax(terminated)), env.num_cards
    assert last == n - 1 and not truncated[: last + 1].any()
    np.testing.assert_allclose(reward[: last + 1], np.tile([0, 2 / n], n // 2), rtol=1e-6)
    assert env.optimal_return(env.default_params) == 1


def test_a_scripted_game_of_pairs():
    """Places 0-3 hold aces, 4-7 twos, and so on."""
    env = PAIRING["hard"]
    _, state = env.reset(jax.random.key(0), env.default_params)
    state, step = state.replace(cards=jnp.arange(52, dtype=jnp.int32) // 4), jax.jit(env.step_env)
    fail, pair = -1 / 104, 2 / 52
    for place, reward, up in [
        (0, 0, {0}),
        (4, 2 * fail, {0, 4}),  # shown once more, then turned back
        (5, 0, {5}),
        (5, 2 * fail, {5}),  # twice the same place is no pair
        (0, 0, {0}),
        (3, pair, {0, 3}),
        (3, fail, {0, 3}),  # found already: the try is over
        (51, 0, {0, 3, 51}),
        (0, 2 * fail, {0, 3, 51}),  # found already, as the second card
        (99, 0, {0, 3, 51}),  # clipped to the last place
        (48, pair, {0, 3, 48, 51}),
    ]:
        obs, state, got, terminated, _ = step(jax.random.key(0), state, jnp.int32(place), env.default_params)
        np.testing.assert_allclose(got, reward, rtol=1e-6)
        assert set(np.flatnonzero(obs.reshape(52, 14)[:, 13] == 0)) == up and not terminated


@on_host
def step_pairs(key, action):
    env, task = PAIRING["easy"], PAIRING["easy"].default_params
    _, state = env.reset_env(key, task)
    _, state, *_ = env.step_env(key, state, jnp.int32(7), task)
    return [env.step_env(key, state, a, task)[:4] for a in (action, jnp.clip(action, 0, 51))]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_places_outside_are_clipped(seed, action):
    one, clipped = step_pairs(jax.random.key(seed), np.int32(action))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(clipped), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("env", [COUNTING["hard"], GUESSING["easy"], PAIRING["easy"]], ids=lambda env: env.name)
def test_pictures_of_a_trajectory_vmap(env, getkey):
    states = play(env, oracle_at_times, getkey(), np.arange(env.num_steps))[1]
    images = on_host(jax.vmap(env.render, (0, None)))(states, env.default_params)
    assert images.dtype == np.uint8 and images.shape[0] == env.num_steps and images.shape[-1] == 3
    assert len(np.unique(images.reshape(env.num_steps, -1), axis=0)) > 20


def test_cards_face_down_are_drawn_pale():
    env = PAIRING["easy"]
    _, state = env.reset(jax.random.key(0), env.default_params)
    state = state.replace(cards=jnp.arange(52, dtype=jnp.int32) % 2, seen=jnp.arange(52) == 1)
    image = np.asarray(jax.jit(env.render)(state, env.default_params))
    assert image.shape == (64, 208, 3)
    np.testing.assert_array_equal(image[8, [8, 24, 40]], [[196, 196, 197], [200, 60, 60], [196, 196, 197]])


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("count_recall", {"num_decks": -1}, "num_decks=-1: must be an integer of at least 1"),
        ("count_recall", {"deck_type": "kings"}, "deck_type='kings': must be one of 'colors', 'suits', 'ranks'"),
        ("higher_lower", {"num_decks": "2"}, "num_decks='2': must be an integer of at least 1"),
        ("concentration", {"deck_type": "suits"}, "deck_type='suits': must be one of 'colors', 'ranks'"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make(name, **arguments)
    assert str(refused.value) == message
