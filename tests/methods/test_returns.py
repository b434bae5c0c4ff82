import jax
import numpy as np
import pytest
from two_episodes import on_host

from icrl_jax.methods.returns import gae

T = 13
GAMMA, LAMBDA = 0.9, 0.7
RNG = np.random.default_rng(5)
REWARD, VALUE, NEXT_VALUE = RNG.normal(size=(3, T)).astype(np.float32)
TERMINAL = np.isin(np.arange(T), [3, 12])
TRUNCATED = np.isin(np.arange(T), [0, 7])

advantages = on_host(gae)


def by_hand(terminal, cut):
    """From the definition: the sum of (gamma lambda)^k delta_{t+k} up to the first cut."""
    out = np.zeros(T)
    for t in range(T):
        weight = 1.0
        for u in range(t, T):
            after = 0.0 if terminal[u] else GAMMA * NEXT_VALUE[u]
            out[t] += weight * (REWARD[u] + after - VALUE[u])
            weight *= GAMMA * LAMBDA
            if cut[u]:
                break
    return out


@pytest.mark.parametrize("last_ends", [True, False])
def test_advantages_equal_a_plain_loop(last_ends):
    terminal = TERMINAL & ((np.arange(T) < T - 1) | last_ends)
    cut = terminal | TRUNCATED
    got = advantages(REWARD, VALUE, NEXT_VALUE, terminal, cut, GAMMA, LAMBDA)
    np.testing.assert_allclose(got, by_hand(terminal, cut), rtol=1e-5, atol=1e-6)


def test_three_steps_by_hand():
    """Truncated after the first, terminated after the second, and cut off by the end of the rollout."""
    never = np.zeros(3, bool)
    terminal, cut = never.copy(), never.copy()
    terminal[1] = cut[0] = cut[1] = True
    one = lambda *x: np.array(x, np.float32)
    got = advantages(one(1, 2, 3), one(10, 20, 30), one(100, 200, 300), terminal, cut, 0.5, 0.5)
    np.testing.assert_allclose(got, [1 + 50 - 10, 2 - 20, 3 + 150 - 30])
    got = advantages(one(1, 2, 3), one(10, 20, 30), one(20, 30, 300), never, never, 0.5, 0.5)
    np.testing.assert_allclose(got, [1 + (-3 + 123 / 4) / 4, -3 + 123 / 4, 123])


def test_a_trace_of_one_gives_returns_and_of_zero_one_step():
    never = np.zeros(T, bool)
    consistent = np.append(VALUE[1:], NEXT_VALUE[-1])
    got = advantages(REWARD, VALUE, consistent, never, never, GAMMA, 1.0) + VALUE
    expected = [
        sum(GAMMA**k * r for k, r in enumerate(REWARD[t:])) + GAMMA ** (T - t) * NEXT_VALUE[-1] for t in range(T)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    got = advantages(REWARD, VALUE, NEXT_VALUE, never, never, GAMMA, 0.0)
    np.testing.assert_allclose(got, REWARD + GAMMA * NEXT_VALUE - VALUE, rtol=1e-5, atol=1e-6)


def test_what_cannot_matter_may_be_nan():
    spoiled = np.where(TERMINAL, np.nan, NEXT_VALUE).astype(np.float32)
    got = advantages(REWARD, VALUE, spoiled, TERMINAL, TERMINAL, GAMMA, LAMBDA)
    np.testing.assert_allclose(got, by_hand(TERMINAL, TERMINAL), rtol=1e-5, atol=1e-6)


def test_many_streams_are_vmapped():
    both = on_host(jax.vmap(gae, in_axes=(0, 0, 0, 0, 0, None, None)))
    never = np.zeros(T, bool)
    got = both(
        *(np.stack([x, y]) for x, y in ((REWARD, VALUE), (VALUE, REWARD), (NEXT_VALUE, REWARD), (TERMINAL, never))),
        np.stack([TERMINAL, never]),
        GAMMA,
        LAMBDA,
    )
    alone = advantages(REWARD, VALUE, NEXT_VALUE, TERMINAL, TERMINAL, GAMMA, LAMBDA)
    other = advantages(VALUE, REWARD, REWARD, never, never, GAMMA, LAMBDA)
    np.testing.assert_allclose(got, [alone, other], rtol=1e-6)
