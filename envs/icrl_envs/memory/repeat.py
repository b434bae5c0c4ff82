"""Recite the suits of cards (POPGym, Morad et al. 2023): the first one, a previous one, or all of them backwards."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs.drawing import WHITE, cells
from icrl_envs.memory.deck import DECK_SIZE, KINDS, card_colours, deal, deck_size, full_deck
from icrl_envs.memory.recall import Recall
from icrl_envs.task_family import is_int, require

SUITS = KINDS["suits"]


@struct.dataclass
class RepeatFirstState(EnvState):
    first: jax.Array  # int32 []: suit of the first card
    card: jax.Array  # int32 []: suit of the card that is shown
    left: jax.Array  # int32 [4]: cards left of each suit


class RepeatFirst(Recall):
    """Name the suit of the first card at every step (POPGym: 1, 8 or 16 decks of N = 52 cards together).

    Observation: suit of the card just dealt (one-hot, 4). Actions: the suits. Reward: 1/(N-1) right, -1/(N-1) wrong.
    The episode terminates when the deck is dealt, after N - 1 steps.

    Args:
      num_decks: at least 1.
    """

    presets = {"easy": {"num_decks": 1}, "medium": {"num_decks": 8}, "hard": {"num_decks": 16}}

    def __init__(self, num_decks: int = 1):
        self.num_cards = deck_size(num_decks)
        super().__init__(self.num_cards - 1, self.num_cards - 1, SUITS)

    def first_state(self, key):
        """Deals the card to remember."""
        card, left = deal(key, full_deck(self.num_cards, SUITS))
        return RepeatFirstState(time=jnp.int32(0), first=card, card=card, left=left)

    def next_state(self, key, state):
        """Deals another card."""
        card, left = deal(key, state.left)
        return state.replace(card=card, left=left)

    def show(self, state):
        """The card just dealt."""
        return jax.nn.one_hot(state.card, SUITS, dtype=jnp.float32)

    def answer(self, state):
        """The first suit."""
        return state.first

    def observation_space(self, params=None) -> spaces.Box:
        """A suit, one-hot."""
        return spaces.Box(0.0, 1.0, (SUITS,))

    def render(self, state, params):
        """The first card and the one shown."""
        return cells(jnp.asarray(card_colours(SUITS))[jnp.stack([state.first, state.card])][None], 32)


@struct.dataclass
class RepeatPreviousState(EnvState):
    window: jax.Array  # int32 [k]: the last k suits, the newest last; 0 before the first card
    left: jax.Array  # int32 [4]: cards left of each suit


class RepeatPrevious(Recall):
    """Name the suit shown k - 1 steps ago (POPGym: (decks, k) = (1, 4), (2, 32) or (3, 64); N cards together).

    k = 1 is the card on show, as in POPGym's code. Observation: suit of the card just dealt (one-hot, 4). Actions: the
    suits. Reward: 1/(N-k) right, -1/(N-k) wrong, 0 for the first k - 1 steps. The episode terminates when the deck is
    dealt, after N - 1 steps.

    Args:
      num_decks: at least 1.
      k: 1 ..= N - 1.
    """

    presets = {
        "easy": {"num_decks": 1, "k": 4},
        "medium": {"num_decks": 2, "k": 32},
        "hard": {"num_decks": 3, "k": 64},
    }

    def __init__(self, num_decks: int = 1, k: int = 4):
        self.num_cards = deck_size(num_decks)
        require(is_int(k, 1, self.num_cards - 1), "k", k, f"an integer in 1 ..= {self.num_cards - 1}")
        super().__init__(self.num_cards - 1, self.num_cards - k, SUITS)
        self.k = k

    def first_state(self, key):
        """Deals the first card."""
        card, left = deal(key, full_deck(self.num_cards, SUITS))
        return RepeatPreviousState(time=jnp.int32(0), window=_shift(jnp.zeros(self.k, jnp.int32), card), left=left)

    def next_state(self, key, state):
        """Deals another card."""
        card, left = deal(key, state.left)
        return state.replace(window=_shift(state.window, card), left=left)

    def show(self, state):
        """The card just dealt."""
        return jax.nn.one_hot(state.window[-1], SUITS, dtype=jnp.float32)

    def answer(self, state):
        """The oldest of the last k suits."""
        return state.window[0]

    def observation_space(self, params=None) -> spaces.Box:
        """A suit, one-hot."""
        return spaces.Box(0.0, 1.0, (SUITS,))

    def render(self, state, params):
        """The last k cards, the one that is asked for on the left."""
        dealt = np.arange(self.k) >= self.k - 1 - state.time
        return cells(_colours(state.window, dealt)[None])


@struct.dataclass
class AutoencodeState(EnvState):
    stack: jax.Array  # int32 [N]: suits, the next to recite first
    left: jax.Array  # int32 [4]: cards left of each suit


class Autoencode(Recall):
    """Watch a deck being dealt, then recite its suits backwards (POPGym: 1, 2 or 3 decks; N cards together).

    Observation: mode (one-hot: play, watch), then the suit of the card just dealt (one-hot, 4). Mode is "play" whenever
    the next action counts, so already beside the last card; from then on the suit is always the first. Actions: the
    suits. Reward: 0 for N - 1 steps of watching, then 1/N right, -1/N wrong. The episode terminates after 2 N - 1
    steps.

    Args:
      num_decks: at least 1.
    """

    presets = {"easy": {"num_decks": 1}, "medium": {"num_decks": 2}, "hard": {"num_decks": 3}}

    def __init__(self, num_decks: int = 1):
        self.num_cards = deck_size(num_decks)
        super().__init__(2 * self.num_cards - 1, self.num_cards, SUITS)

    def first_state(self, key):
        """Deals the first card."""
        card, left = deal(key, full_deck(self.num_cards, SUITS))
        return AutoencodeState(time=jnp.int32(0), stack=_push(jnp.zeros(self.num_cards, jnp.int32), card), left=left)

    def next_state(self, key, state):
        """Deals another card, or takes off the one that was recited."""
        card, left = deal(key, state.left)
        dealing = state.time < self.num_cards
        stack = jnp.where(dealing, _push(state.stack, card), _shift(state.stack, jnp.int32(0)))
        return state.replace(stack=stack, left=left)

    def show(self, state):
        """The mode, and the card just dealt."""
        mode = jnp.where(self.asks(state), 0, 1)
        card = jnp.where(state.time < self.num_cards, state.stack[0], 0)
        return jnp.concatenate([jax.nn.one_hot(x, n, dtype=jnp.float32) for x, n in ((mode, 2), (card, SUITS))])

    def answer(self, state):
        """The newest suit that was not recited."""
        return state.stack[0]

    def observation_space(self, params=None) -> spaces.Box:
        """A mode and a suit, both one-hot."""
        return spaces.Box(0.0, 1.0, (2 + SUITS,))

    def render(self, state, params):
        """The cards still to recite, the next one top left."""
        height = jnp.minimum(state.time + 1, self.num_steps - state.time)
        colours = _colours(state.stack, np.arange(self.num_cards) < height)
        return cells(colours.reshape(-1, DECK_SIZE // SUITS, 3))


def _shift(window, card):
    """Forgets the first of a window and puts a card behind the last."""
    return jnp.concatenate([window[1:], card[None]])


def _push(stack, card):
    """Puts a card on top, which is at the front; the lowest falls off."""
    return jnp.concatenate([card[None], stack[:-1]])


def _colours(suits, present):
    """The colours of cards, white where none is."""
    return jnp.where(present[:, None], jnp.asarray(card_colours(SUITS))[suits], jnp.asarray(WHITE, jnp.uint8)[None])
