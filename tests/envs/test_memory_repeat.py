"""RepeatFirst, RepeatPrevious, Autoencode, and what all memory families share: the stream and the deck."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.memory.deck import deal, shuffled

ENVS = {
    "repeat_first": icrl_envs.make("repeat_first"),
    "repeat_previous": icrl_envs.make("repeat_previous"),
    "repeat_now": icrl_envs.make("repeat_previous", k=1),
    "autoencode": icrl_envs.make("autoencode"),
}
SPADE, DIAMOND, CLUB, HEART = range(4)
LENGTHS = {
    ("repeat_first", "easy"): 51,
    ("repeat_first", "medium"): 415,
    ("repeat_first", "hard"): 831,
    ("repeat_previous", "easy"): 51,
    ("repeat_previous", "medium"): 103,
    ("repeat_previous", "hard"): 155,
    ("autoencode", "easy"): 103,
    ("autoencode", "medium"): 207,
    ("autoencode", "hard"): 311,
}
QUESTIONS = {  # whose answers pay 1 / QUESTIONS; k
    ("repeat_first", "medium"): (415, None),
    ("repeat_first", "hard"): (831, None),
    ("repeat_previous", "medium"): (104 - 32, 32),
    ("repeat_previous", "hard"): (156 - 64, 64),
    ("autoencode", "medium"): (104, None),
    ("autoencode", "hard"): (156, None),
}


@functools.partial(on_host, static_argnames="env")
def play(env, actions, key, stream=0):
    """One episode: its observations (one more than actions), states, and what every step gave."""
    task = env.default_params.replace(stream=jnp.uint32(stream))
    obs, state = env.reset_env(jax.random.fold_in(key, 0), task)

    def step(state, x):
        action, key = x
        obs, after, reward, terminated, _ = env.step_env(key, state, action, task)
        return after, (state, obs, reward, terminated, env.is_truncated(after, task))

    keys = jax.random.split(jax.random.fold_in(key, 1), len(actions))
    last, (states, later, *rest) = jax.lax.scan(step, state, (actions, keys))
    return jnp.concatenate([obs[None], later]), states, *rest


def suits(name, obs):
    return obs[:, -4:].argmax(-1)


@pytest.mark.parametrize("name", ENVS)
def test_an_episode_follows_the_definition(name, getkey):
    """Rewards and ends recomputed from nothing but the cards that were shown."""
    env, n = ENVS[name], 52
    T = 103 if name == "autoencode" else 51
    actions = np.random.default_rng(7).integers(0, 4, T).astype(np.int32)
    obs, _, reward, terminated, truncated = play(env, actions, getkey())
    shown = suits(name, obs)
    if name == "autoencode":
        asked = np.concatenate([np.full(n - 1, -1), shown[:n][::-1]])
        np.testing.assert_array_equal(obs[:, 0], [0] * (n - 1) + [1] * (T + 1 - (n - 1)))
        np.testing.assert_array_equal(obs[:, 0] + obs[:, 1], 1)
        assert (shown[n:] == 0).all()
        scale = 1 / n
    elif name == "repeat_first":
        asked, scale = np.full(T, shown[0]), 1 / (n - 1)
    else:
        k = 4 if name == "repeat_previous" else 1
        asked, scale = np.concatenate([np.full(k - 1, -1), shown[: n - k]]), 1 / (n - k)
    expected = np.where(asked < 0, 0, np.where(actions == asked, scale, -scale))
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    np.testing.assert_array_equal(terminated, np.arange(T) == T - 1)
    assert not truncated.any()
    np.testing.assert_array_equal(np.bincount(shown[:n], minlength=4), 13)
    assert (obs[:, -4:].sum(-1) == 1).all()


@pytest.mark.parametrize("name, preset", QUESTIONS)
def test_an_episode_of_every_preset_follows_the_definition(name, preset, getkey):
    """The first half of the answers is right."""
    env, T, (questions, k) = icrl_envs.make(name, preset), LENGTHS[name, preset], QUESTIONS[name, preset]
    key = getkey()
    shown = suits(name, play(env, np.zeros(T, np.int32), key)[0])
    if name == "repeat_first":
        asked = np.full(T, shown[0])
    elif name == "repeat_previous":
        asked = np.append(np.full(k - 1, -1), shown[: T + 1 - k])
    else:
        asked = np.append(np.full(questions - 1, -1), shown[:questions][::-1])
    actions = np.where(np.arange(T) < T - questions // 2, asked, (asked + 1) % 4).astype(np.int32)
    _, _, reward, terminated, truncated = play(env, actions, key)
    expected = np.where(asked < 0, 0, np.where(actions == asked, 1, -1)) / questions
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    assert (asked >= 0).sum() == questions and (reward < 0).sum() == questions // 2
    np.testing.assert_array_equal(terminated, np.arange(T) == T - 1)
    assert not truncated.any()


def state_of(name, cards, time=None):
    """The state after these cards were dealt."""
    env = ENVS[name]
    _, state = env.reset(jax.random.key(0), env.default_params)
    left = jnp.asarray(13 - np.bincount(cards, minlength=4), jnp.int32)
    time = jnp.int32(len(cards) - 1 if time is None else time)
    if name == "repeat_first":
        return state.replace(time=time, first=jnp.int32(cards[0]), card=jnp.int32(cards[-1]), left=left)
    if name == "repeat_previous":
        return state.replace(time=time, window=jnp.asarray([0, 0, 0, *cards][-4:], jnp.int32), left=left)
    stack = np.zeros(52, np.int32)
    stack[: len(cards)] = cards[::-1]
    return state.replace(time=time, stack=jnp.asarray(stack), left=left)


@pytest.mark.parametrize(
    "name, cards, action, reward",
    [
        ("repeat_first", [CLUB], CLUB, 1 / 51),
        ("repeat_first", [CLUB, HEART], CLUB, 1 / 51),
        ("repeat_first", [CLUB, HEART], HEART, -1 / 51),
        ("repeat_previous", [CLUB, HEART, HEART], CLUB, 0),  # fewer than 4 cards: nothing is asked
        ("repeat_previous", [CLUB, HEART, HEART, SPADE], CLUB, 1 / 48),
        ("repeat_previous", [CLUB, HEART, HEART, SPADE], SPADE, -1 / 48),
        ("repeat_previous", [CLUB, HEART, HEART, SPADE, SPADE], HEART, 1 / 48),
        ("autoencode", [CLUB, HEART], HEART, 0),  # watching
        ("autoencode", [DIAMOND] * 26 + [HEART] * 26, HEART, 1 / 52),
        ("autoencode", [DIAMOND] * 26 + [HEART] * 26, DIAMOND, -1 / 52),
    ],
)
def test_rewards_worked_by_hand(name, cards, action, reward):
    env, state = ENVS[name], state_of(name, cards)
    got = env.step(jax.random.key(0), state, jnp.int32(action), env.default_params)[2]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reward, rtol=1e-6)


def test_recited_cards_are_asked_newest_first():
    env = ENVS["autoencode"]
    state, step = state_of("autoencode", [SPADE] * 50 + [HEART, CLUB]), jax.jit(env.step_env)
    for action, reward in ((CLUB, 1), (HEART, 1), (SPADE, 1), (HEART, -1)):
        obs, state, got, *_ = step(jax.random.key(0), state, jnp.int32(action), env.default_params)
        np.testing.assert_allclose(got, reward / 52, rtol=1e-6)
        np.testing.assert_array_equal(obs, [1, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("name", ["repeat_first", "repeat_previous", "autoencode"])
def test_the_oracle_earns_1_in_the_longest_episodes(name, getkey):
    env, T = icrl_envs.make(name, "hard"), LENGTHS[name, "hard"]
    task = env.sample_task(getkey())

    @on_host
    def returns(key):
        def step(state, key):
            _, after, reward, terminated, _ = env.step_env(key, state, env.optimal_action(state, task), task)
            return after, (reward, terminated)

        state = env.reset_env(key, task)[1]
        return jax.lax.scan(step, state, jax.random.split(key, T))[1]

    reward, terminated = returns(getkey())
    np.testing.assert_allclose(reward.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(env.optimal_return(task), 1)
    np.testing.assert_array_equal(terminated, np.arange(T) == T - 1)


@pytest.mark.parametrize(
    "name, limit, share",
    [
        ("repeat_first", 10, 10 / 51),
        ("repeat_first", 99, 1),
        ("repeat_previous", 3, 0),  # k = 4
        ("repeat_previous", 10, 7 / 48),
        ("autoencode", 51, 0),
        ("autoencode", 61, 10 / 52),
    ],
)
def test_a_lower_limit_leaves_the_questions_before_it(name, limit, share):
    env = icrl_envs.make(name, "easy")
    task = env.default_params.replace(max_steps_in_episode=limit)
    np.testing.assert_allclose(env.optimal_return(task), share, rtol=1e-6)


def test_presets_hold_the_sizes_of_the_paper():
    assert {key: icrl_envs.make(*key).num_steps for key in LENGTHS} == LENGTHS
    assert (icrl_envs.make("repeat_previous", "medium").k, icrl_envs.make("repeat_previous", "hard").k) == (32, 64)
    assert icrl_envs.make("repeat_first", "hard").num_cards == 16 * 52
    assert icrl_envs.make("autoencode", "hard").num_cards == 3 * 52


@pytest.mark.parametrize("name", ["repeat_first", "repeat_previous"])
def test_answers_outside_are_clipped(name):
    env, state = ENVS[name], state_of(name, [HEART, SPADE, SPADE, SPADE])
    reward = functools.partial(env.expected_reward, state, params=env.default_params)
    assert reward(action=jnp.int32(99)) == reward(action=jnp.int32(HEART)) > 0
    assert reward(action=jnp.int32(-99)) == reward(action=jnp.int32(SPADE)) < 0


@functools.partial(on_host, static_argnums=0)
def answer_and_clip(env, state, action):
    key, task = jax.random.key(0), env.default_params
    return [env.step_env(key, state, a, task)[:4] for a in (action, jnp.clip(action, 0, 3))]


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([("repeat_first", 51), ("repeat_previous", 48), ("autoencode", 52)]),
    st.integers(0, 2**31 - 1),
    st.integers(1, 52),
    st.integers(-(2**31), 2**31 - 1),
)
def test_bounds_hold_wherever_one_is(game, seed, num_dealt, action):
    name, questions = game
    cards = np.random.default_rng(seed).permutation(np.arange(52) % 4)[:num_dealt]
    one, clipped = answer_and_clip(ENVS[name], state_of(name, cards), np.int32(action))
    chex.assert_trees_all_equal(one, clipped)
    assert np.isclose(abs(one[2]), [0, 1 / questions], rtol=1e-6).any() and np.isin(one[0], (0, 1)).all()


def test_dealing_is_drawing_without_replacement(getkey):
    """All 30 orders of 2 + 2 + 1 cards are as likely as each other; an empty deck stays empty."""
    n = 60_000

    def one(key):
        def draw(left, key):
            kind, left = deal(key, left)
            return left, kind

        return jax.lax.scan(draw, jnp.array([2, 2, 1], jnp.int32), jax.random.split(key, 7))

    left, kinds = on_host(jax.vmap(one))(jax.random.split(getkey(), n))
    orders, counts = np.unique(kinds[:, :5], axis=0, return_counts=True)
    assert len(orders) == 30 and (np.sort(orders, axis=1) == [0, 0, 1, 1, 2]).all()
    assert (np.abs(counts - n / 30) < 5 * np.sqrt(n / 30)).all()
    assert (left == 0).all() and (kinds[:, 5:] == 2).all()


def test_shuffling_makes_all_orders_equally_likely(getkey):
    n, cards = 60_000, np.array([0, 0, 1, 1, 12], np.int32)
    drawn = on_host(jax.vmap(lambda key: shuffled(key, cards)))(jax.random.split(getkey(), n))
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 30 and (np.sort(orders, axis=1) == cards).all()
    assert (np.abs(counts - n / 30) < 5 * np.sqrt(n / 30)).all()


@pytest.mark.parametrize("name", ["repeat_first", "autoencode"])
def test_the_stream_of_a_task_decides_the_cards(name, getkey):
    env, key, nothing = ENVS[name], getkey(), np.zeros(51, np.int32)
    one, again, other = (play(env, nothing, key, stream)[0] for stream in (6, 6, 7))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_training_streams_are_even_and_test_streams_odd(getkey):
    env, key = ENVS["repeat_first"], getkey()
    sample = on_host(icrl_envs.sample_tasks, static_argnums=(0, 2, 3))
    for split, parities in (("train", {0}), ("test", {1}), ("all", {0, 1})):
        task = sample(env, key, 999, split)
        assert task.stream.dtype == np.uint32 and set(task.stream % 2) == parities
        assert len(np.unique(task.stream)) == 999 and (task.max_steps_in_episode == 51).all()


def test_episodes_are_drawn_anew_at_auto_reset(getkey):
    env, task = ENVS["repeat_first"], ENVS["repeat_first"].default_params
    state = env.reset(getkey(), task)[1].replace(time=jnp.int32(50))
    first = []
    for _ in range(20):
        _, after, _, terminated, truncated, info = env.step(getkey(), state, jnp.int32(0), task)
        assert terminated and not truncated and info["final_observation"].shape == (4,)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        assert after.time == 0
        first.append(int(after.first))
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    "time, limit, end",
    [(49, 51, [False, False]), (50, 51, [True, False]), (49, 50, [False, True]), (50, 50, [True, False])],
)
def test_only_a_task_shorter_than_the_game_truncates(time, limit, end):
    env = ENVS["repeat_first"]
    task = env.default_params.replace(max_steps_in_episode=limit)
    state = env.reset(jax.random.key(0), task)[1].replace(time=jnp.int32(time))
    _, _, _, terminated, truncated, _ = env.step(jax.random.key(1), state, jnp.int32(0), task)
    assert [bool(terminated), bool(truncated)] == end


def colours_at(image, pixels):
    middle = pixels // 2
    return np.asarray(image)[middle::pixels, middle::pixels]


def test_pictures_show_what_is_remembered():
    black, white = [46, 105, 178], [255, 255, 255]  # spades are blue
    for name, cards, pixels, at, colour in (
        ("repeat_first", [SPADE, HEART], 32, (0, 0), black),
        ("repeat_previous", [SPADE], 16, (0, 3), black),
        ("repeat_previous", [SPADE], 16, (0, 2), white),
        ("autoencode", [HEART, SPADE], 16, (0, 0), black),
        ("autoencode", [HEART, SPADE], 16, (0, 2), white),
    ):
        image = jax.jit(ENVS[name].render)(state_of(name, cards), ENVS[name].default_params)
        assert image.dtype == jnp.uint8
        np.testing.assert_array_equal(colours_at(image, pixels)[at], colour)


@pytest.mark.parametrize("name", ENVS)
def test_pictures_of_a_trajectory_vmap(name, getkey):
    env = ENVS[name]
    states = play(env, np.zeros(51, np.int32), getkey())[1]
    images = on_host(jax.vmap(env.render, (0, None)))(states, env.default_params)
    assert images.dtype == np.uint8 and images.shape[0] == 51 and images.shape[-1] == 3
    assert len(np.unique(images.reshape(51, -1), axis=0)) >= 4


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("repeat_first", {"num_decks": 0}, "num_decks=0: must be an integer of at least 1"),
        ("autoencode", {"num_decks": 1.5}, "num_decks=1.5: must be an integer of at least 1"),
        ("repeat_previous", {"num_decks": True}, "num_decks=True: must be an integer of at least 1"),
        ("repeat_previous", {"k": 0}, "k=0: must be an integer in 1 ..= 51"),
        ("repeat_previous", {"k": 52}, "k=52: must be an integer in 1 ..= 51"),
        ("repeat_previous", {"num_decks": 2, "k": 104}, "k=104: must be an integer in 1 ..= 103"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make(name, **arguments)
    assert str(refused.value) == message
