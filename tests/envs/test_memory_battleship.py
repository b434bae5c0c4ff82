import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.memory.battleship import BattleshipState, _always_fit

SMALL = icrl_envs.make("battleship", board_size=3, ship_sizes=(2, 1))
TASK = SMALL.default_params
SHIPS = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
HIT, MISS = 1 / 3, -1 / 6


@functools.partial(on_host, static_argnums=0)
def play(env, ships, actions):
    task = env.default_params

    def step(state, action):
        obs, state, reward, terminated, _ = env.step_env(jax.random.key(0), state, action, task)
        return state, (obs[0], reward, terminated, env.is_truncated(state, task))

    first, _ = env.reset_env(jax.random.key(0), task)
    state = BattleshipState(time=jnp.int32(0), ships=ships, shots=jnp.zeros(ships.shape, bool))
    return first, *jax.lax.scan(step, state, jnp.asarray(actions, jnp.int32))[1]


@pytest.mark.parametrize(
    "shots, hits, terminated, truncated",
    [
        ([1, 2, 6], [1, 1, 1], [0, 0, 1], [0, 0, 0]),
        ([1, 1, 0, 0, 2, 6], [1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0] * 6),  # a second shot at a hit misses
        ([0, 1, 2, 3, 4, 5, 7, 8, 6], [0, 1, 1, 0, 0, 0, 0, 0, 1], [0] * 8 + [1], [0] * 8 + [1]),
        ([0] * 9, [0] * 9, [0] * 9, [0] * 8 + [1]),
        ([-5, 6, 99], [0, 1, 0], [0] * 3, [0] * 3),  # clipped to the first cell and the last
    ],
)
def test_a_scripted_game(shots, hits, terminated, truncated):
    first, *rest = play(SMALL, SHIPS, shots)
    np.testing.assert_array_equal(first, [0])
    rewards = np.where(hits, HIT, MISS)
    for got, expected in zip(rest, (hits, rewards, terminated, truncated), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("preset, size, water", [("easy", 8, 52), ("medium", 10, 88), ("hard", 12, 132)])
def test_a_scripted_game_of_every_preset(preset, size, water):
    """The ships of 2, 3, 3 and 4 cells lie at the left of the first four rows; they are sunk one after the other."""
    env, ships = icrl_envs.make("battleship", preset), np.zeros((size, size), bool)
    for row, length in enumerate((2, 3, 3, 4)):
        ships[row, :length] = True
    shots = [0, 0, size - 1, 99999, *np.flatnonzero(ships)[1:]]
    hits = [1, 0, 0, 0] + 11 * [1]
    first, hit, reward, terminated, truncated = play(env, ships, shots)
    np.testing.assert_array_equal(hit, hits)
    np.testing.assert_allclose(reward, np.where(hits, 1 / 12, -1 / water), rtol=1e-6)
    np.testing.assert_array_equal(terminated, 14 * [0] + [1])
    assert first == 0 and not truncated.any() and env.default_params.max_steps_in_episode == size**2


@pytest.mark.parametrize("preset, size", [("easy", 8), ("medium", 10), ("hard", 12)])
def test_returns_of_every_preset(preset, size, getkey):
    """1 for the oracle, 0 for firing once everywhere; and 12 cells of ships."""
    env = icrl_envs.make("battleship", preset)

    @functools.partial(on_host, compiler_options={"xla_backend_optimization_level": 0})
    @jax.vmap
    def episode(key):
        def step(state, action):
            best = env.optimal_action(state, TASK)
            _, after, reward, terminated, _ = env.step_env(key, state, jnp.where(action < 0, best, action), TASK)
            return after, (reward, terminated)

        _, state = env.reset_env(key, TASK)
        oracle = jax.lax.scan(step, state, jnp.full(12, -1, jnp.int32))[1]
        return state.ships, oracle, jax.lax.scan(step, state, jnp.arange(size**2, dtype=jnp.int32))[1]

    ships, (best, terminated), (swept, _) = episode(jax.random.split(getkey(), 7))
    assert env.num_steps == env.num_actions == size**2 and ships.shape == (7, size, size)
    assert (ships.sum((1, 2)) == 12).all()
    np.testing.assert_allclose(best.sum(1), env.optimal_return(env.default_params), rtol=1e-6)
    np.testing.assert_array_equal(terminated, np.tile(np.arange(12) == 11, (7, 1)))
    np.testing.assert_allclose(swept.sum(1), 0, atol=1e-6)


def places(free, length):
    """Every straight run of free cells."""
    size = len(free)
    for line, start in itertools.product(range(size), range(size - length + 1)):
        across = np.zeros_like(free)
        across[line, start : start + length] = True
        for ship in (across, across.T) if length > 1 else (across,):
            if (free & ship).sum() == length:
                yield ship


def board_law(size, lengths):
    """Probability of every board, as bits."""
    law = collections.Counter({0: 1.0})
    cells = 1 << np.arange(size**2)
    for length in lengths:
        after = collections.Counter()
        for board, probability in law.items():
            ships = list(places((board & cells).reshape(size, size) == 0, length))
            for ship in ships:
                after[board | int(ship.ravel() @ cells)] += probability / len(ships)
        law = after
    return law


@pytest.mark.parametrize("size, lengths", [(3, (2,)), (3, (2, 2)), (3, (3, 1)), (4, (3, 2))])
def test_boards_follow_their_law(size, lengths, getkey):
    n, env = 20_000, icrl_envs.make("battleship", board_size=size, ship_sizes=lengths)
    ships = on_host(jax.vmap(lambda key: env.reset_env(key, TASK)[1].ships))(jax.random.split(getkey(), n))
    drawn = collections.Counter((ships.reshape(n, -1) @ (1 << np.arange(size**2))).tolist())
    law = board_law(size, lengths)
    assert set(drawn) <= set(law) and sum(law.values()) == pytest.approx(1)
    chi_squared = sum((drawn[board] - n * p) ** 2 / (n * p) for board, p in law.items())
    assert abs(chi_squared - (len(law) - 1)) < 5 * np.sqrt(2 * (len(law) - 1))


def test_ships_that_are_accepted_always_have_room():
    accepted = [
        lengths
        for lengths in itertools.chain.from_iterable(itertools.product((1, 2, 3), repeat=k) for k in (1, 2, 3))
        if _always_fit(lengths, 3)
    ]
    assert (2, 1) in accepted and (3, 3) not in accepted and (2, 2) in accepted
    for lengths in accepted:  # a dead end would lose probability
        assert sum(board_law(3, lengths).values()) == pytest.approx(1)


@on_host
def fire(key, shots, action):
    state = SMALL.reset_env(key, TASK)[1].replace(shots=shots)
    return SMALL.step_env(key, state, action, TASK), SMALL.expected_reward(state, jnp.clip(action, 0, 8), TASK)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**9 - 1), st.integers(-(2**31), 2**31 - 1))
def test_bounds_hold_and_actions_are_clipped(seed, shots, action):
    shots = ((shots >> np.arange(9)) % 2 == 1).reshape(3, 3)
    (obs, after, reward, _, _), clipped = fire(jax.random.key(seed), shots, np.int32(action))
    assert obs in (0, 1) and reward == clipped == np.float32(HIT if obs else MISS)
    assert (after.shots >= shots).all() and after.ships.sum() == 3


def test_the_picture_shows_ships_and_shots():
    shots = np.zeros((3, 3), bool)
    shots[0, :2] = True
    state = BattleshipState(time=jnp.int32(0), ships=SHIPS, shots=shots)
    cells = on_host(SMALL.render)(state, TASK)[8::16, 8::16]
    blue, red, dark, white = [46, 105, 178], [200, 60, 60], [70, 70, 78], [255, 255, 255]
    np.testing.assert_array_equal(cells, [[blue, red, dark], [white, white, white], [dark, white, white]])


FIT = "lengths in 1 ..= {} that fit on the board however the earlier ones lie"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"board_size": 1}, "board_size=1: must be an integer of at least 2"),
        ({"board_size": 8.0}, "board_size=8.0: must be an integer of at least 2"),
        ({"board_size": 3}, f"ship_sizes=(2, 3, 3, 4): must be {FIT.format(3)}"),
        ({"ship_sizes": ()}, f"ship_sizes=(): must be {FIT.format(8)}"),
        ({"ship_sizes": (0, 2)}, f"ship_sizes=(0, 2): must be {FIT.format(8)}"),
        ({"ship_sizes": 4}, f"ship_sizes=4: must be {FIT.format(8)}"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make("battleship", **arguments)
    assert str(refused.value) == message
