"""Decks of cards. A shuffled deck is dealt card by card from what is left of each kind: the state is a few counts."""

import jax
import jax.numpy as jnp
import numpy as np

from icrl_envs.drawing import BLACK, BLUE, PALETTE, RED, YELLOW
from icrl_envs.task_family import is_int, is_name, require

DECK_SIZE = 52
KINDS = {"colors": 2, "suits": 4, "ranks": 13}
"""How many kinds of cards are told apart."""


def deck_size(num_decks: int) -> int:
    """Number of cards; refuses a wrong number of decks."""
    require(is_int(num_decks, 1), "num_decks", num_decks, "an integer of at least 1")
    return DECK_SIZE * num_decks


def num_kinds(deck_type: str, *allowed: str) -> int:
    """Number of kinds; refuses what is not `allowed`."""
    require(is_name(deck_type, allowed), "deck_type", deck_type, f"one of {', '.join(map(repr, allowed))}")
    return KINDS[deck_type]


def full_deck(num_cards: int, kinds: int) -> jax.Array:
    """How many cards there are of each kind, int32 [kinds]."""
    return jnp.full(kinds, num_cards // kinds, jnp.int32)


def deal(key: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kind of the next card of a shuffled deck, int32 [], and what is left then; an empty deck stays empty."""
    num_left = jnp.maximum(left.sum(), 1).astype(jnp.uint32)
    nth = (jax.random.bits(key, (), jnp.uint32) % num_left).astype(jnp.int32)  # uniform to num_left / 2^32, and cheap
    kind = jnp.minimum(jnp.sum(jnp.cumsum(left) <= nth, dtype=jnp.int32), left.size - 1)
    return kind, jnp.maximum(left - jax.nn.one_hot(kind, left.size, dtype=jnp.int32), 0)


def shuffled(key: jax.Array, cards: np.ndarray) -> jax.Array:
    """Cards (kinds below 16, int32 [N]) in random order.

    Sorts random words whose low bits are the kind: several times cheaper than a permutation, which sorts pairs.
    """
    words = jax.random.bits(key, cards.shape, jnp.uint32) & jnp.uint32(0xFFFFFFF0)
    return (jnp.sort(words | cards.astype(np.uint32)) & jnp.uint32(15)).astype(jnp.int32)


def card_colours(kinds: int) -> np.ndarray:
    """What cards are drawn in, uint8 [kinds, 3]: black and red, four colours, or from low blue to high yellow."""
    if kinds == 2:
        return np.array([BLACK, RED], np.uint8)
    return PALETTE[:kinds] if kinds <= len(PALETTE) else np.linspace(BLUE, YELLOW, kinds).astype(np.uint8)
