"""Games with cards (POPGym, Morad et al. 2023): count them, guess the next one, find pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs.drawing import bars, cells
from icrl_envs.memory.deck import KINDS, card_colours, deal, deck_size, full_deck, num_kinds, shuffled
from icrl_envs.memory.episodes import MemoryTask, share, stream_key
from icrl_envs.memory.recall import Recall

RANKS = KINDS["ranks"]


@struct.dataclass
class CountRecallState(EnvState):
    value: jax.Array  # int32 []: kind of the card that is counted now
    query: jax.Array  # int32 []: kind that is asked about
    values_left: jax.Array  # int32 [kinds]: in the deck of counted cards
    queries_left: jax.Array  # int32 [kinds]: in the deck of questions


class CountRecall(Recall):
    """How many cards of this kind were dealt, the one on show included? (POPGym: 52, 104 or 208 cards, N.)

    Observation: kind of the card just dealt, then the kind asked about, which comes from a second deck (both one-hot).
    Actions: the counts 0 ..= N/kinds. Reward: 1/(N-1) right, -1/(N-1) wrong. The episode terminates when the decks are
    dealt, after N - 1 steps.

    Args:
      num_decks: at least 1.
      deck_type: how cards are told apart: "colors" (2 kinds), "suits" (4) or "ranks" (13).
    """

    presets = {
        "easy": {"num_decks": 1, "deck_type": "colors"},
        "medium": {"num_decks": 2, "deck_type": "suits"},
        "hard": {"num_decks": 4, "deck_type": "ranks"},
    }

    def __init__(self, num_decks: int = 1, deck_type: str = "colors"):
        self.num_cards = deck_size(num_decks)
        self.kinds = num_kinds(deck_type, *KINDS)
        super().__init__(self.num_cards - 1, self.num_cards - 1, self.num_cards // self.kinds + 1)

    def first_state(self, key):
        """Deals the first card and the first question."""
        full = full_deck(self.num_cards, self.kinds)
        return self._deal(key, jnp.int32(0), full, full)

    def next_state(self, key, state):
        """Deals another card and another question."""
        return self._deal(key, state.time, state.values_left, state.queries_left)

    def _deal(self, key, time, values_left, queries_left):
        key_value, key_query = jax.random.split(key)
        value, values_left = deal(key_value, values_left)
        query, queries_left = deal(key_query, queries_left)
        return CountRecallState(time=time, value=value, query=query, values_left=values_left, queries_left=queries_left)

    def show(self, state):
        """The card and the question."""
        return jnp.concatenate(
            [jax.nn.one_hot(kind, self.kinds, dtype=jnp.float32) for kind in (state.value, state.query)]
        )

    def answer(self, state):
        """The count of the kind asked about."""
        return (full_deck(self.num_cards, self.kinds) - state.values_left)[state.query]

    def observation_space(self, params=None) -> spaces.Box:
        """Two kinds, one-hot."""
        return spaces.Box(0.0, 1.0, (2 * self.kinds,))

    def render(self, state, params):
        """The card and the question above the counts."""
        colours = card_colours(self.kinds)
        counts = 1 - state.values_left.astype(jnp.float32) * (self.kinds / self.num_cards)
        pixels = 8 * self.kinds
        shown = cells(jnp.asarray(colours)[jnp.stack([state.value, state.query])][None], pixels)
        return jnp.concatenate([shown, bars(counts, 96, 16, colours)])


@struct.dataclass
class HigherLowerState(EnvState):
    card: jax.Array  # int32 []: rank that is shown
    next_card: jax.Array  # int32 []: rank that comes next, hidden
    left: jax.Array  # int32 [13]: cards of each rank below the next one


class HigherLower(Recall):
    """Is the next card higher or lower than this one? (POPGym: 1, 2 or 3 decks; N cards together.)

    Observation: rank of the card on show (one-hot, 13). Actions: higher, lower. Reward: 1/N right, -1/N wrong, 0 if the
    ranks are equal. The episode terminates when the deck is dealt, after N - 1 steps.

    The oracle sees the hidden card, as everywhere: `optimal_action` is always right and `optimal_return` is what the
    expected ties leave. The best that a perfect memory does without foresight is `counting_action`.

    Args:
      num_decks: at least 1.
    """

    presets = {"easy": {"num_decks": 1}, "medium": {"num_decks": 2}, "hard": {"num_decks": 3}}

    def __init__(self, num_decks: int = 1):
        self.num_cards = deck_size(num_decks)
        super().__init__(self.num_cards - 1, self.num_cards, 2)

    def first_state(self, key):
        """Deals the first card, and the second face down."""
        key_card, key_next = jax.random.split(key)
        card, left = deal(key_card, full_deck(self.num_cards, RANKS))
        next_card, left = deal(key_next, left)
        return HigherLowerState(time=jnp.int32(0), card=card, next_card=next_card, left=left)

    def next_state(self, key, state):
        """Turns the next card, and deals another face down."""
        next_card, left = deal(key, state.left)
        return state.replace(card=state.next_card, next_card=next_card, left=left)

    def show(self, state):
        """The card on show."""
        return jax.nn.one_hot(state.card, RANKS, dtype=jnp.float32)

    def answer(self, state):
        """0 if the hidden card is higher, else 1."""
        return (state.next_card < state.card).astype(jnp.int32)

    def asks(self, state):
        """Not if the ranks are equal."""
        return state.next_card != state.card

    def counting_action(self, state: HigherLowerState, params) -> jax.Array:
        """The more likely of both, int32 [], for who remembers all cards dealt so far; higher if they are even."""
        unseen = state.left + jax.nn.one_hot(state.next_card, RANKS, dtype=jnp.int32)
        margin = jnp.sum(jnp.sign(np.arange(RANKS, dtype=np.int32) - state.card) * unseen)
        return (margin < 0).astype(jnp.int32)

    def optimal_return(self, params):
        """12/13: of N - 1 pairs of neighbours, N/13 - 1 are ties on average; each of the others pays 1/N.

        Every pair is as likely a tie, so a lower limit leaves its share of the steps.
        """
        return (1 - 1 / RANKS) * share(params.max_steps_in_episode, self.num_steps)

    def observation_space(self, params=None) -> spaces.Box:
        """A rank, one-hot."""
        return spaces.Box(0.0, 1.0, (RANKS,))

    def render(self, state, params):
        """The card on show and the hidden one above what is left of each rank."""
        colours = card_colours(RANKS)
        left = state.left.astype(jnp.float32) * (RANKS / self.num_cards)
        shown = cells(jnp.asarray(colours)[jnp.stack([state.card, state.next_card])][None], 8 * RANKS)
        return jnp.concatenate([shown, bars(left, 96, 16, colours)])


@struct.dataclass
class ConcentrationState(EnvState):
    cards: jax.Array  # int32 [N]: the kind at each place
    found: jax.Array  # bool [N]: stays face up
    seen: jax.Array  # bool [N]: face up in the observation
    first: jax.Array  # int32 []: place of the first of two cards, -1 before it is turned


class Concentration(MemoryTask):
    """Turn two cards at a time to find pairs (POPGym: 52 or 104 cards, N, of 2 or 13 kinds).

    Observation: for each place the kind that lies face up there or "face down" (one-hot, N x (kinds + 1)); of a failed
    pair both cards are shown once. Actions: the place of the card to turn. Reward: 2/N for a pair, -2/T for two cards
    that are none (or twice the same place), 0 for a first card. Turning a card that is face up already costs 1/T for
    each card turned in this try, and ends the try. The episode terminates with the last pair and is truncated after
    T = ceil(2 N - N/(2 N - 1)) steps. Places outside are clipped.

    Args:
      num_decks: at least 1.
      deck_type: what makes a pair: "colors" (2 kinds) or "ranks" (13).
    """

    presets = {
        "easy": {"num_decks": 1, "deck_type": "colors"},
        "medium": {"num_decks": 2, "deck_type": "colors"},
        "hard": {"num_decks": 1, "deck_type": "ranks"},
    }
    rare_reset = True

    def __init__(self, num_decks: int = 1, deck_type: str = "colors"):
        self.num_cards = n = deck_size(num_decks)
        self.kinds = num_kinds(deck_type, "colors", "ranks")
        super().__init__(math.ceil(2 * n - n / (2 * n - 1)))

    def optimal_action(self, state, params):
        """The partner of the first card, or the first card not found."""
        partner = ~self._at(state.first) & (state.cards == state.cards[state.first])
        return jnp.argmax(~state.found & (partner | (state.first < 0))).astype(jnp.int32)

    def expected_reward(self, state, action, params):
        """Exactly the reward: it is never random."""
        place = jnp.clip(action, 0, self.num_cards - 1)
        turned = jnp.where(state.first < 0, 1, 2)
        fails = state.found[place] | (turned == 2)
        failure = jnp.where(fails, -turned, 0).astype(jnp.float32) / self.num_steps
        return jnp.where(self._is_pair(state, place), jnp.float32(2 / self.num_cards), failure)

    def optimal_return(self, params):
        """All pairs and no failure: a pair in every second step, 1 in the end."""
        return share(params.max_steps_in_episode // 2, self.num_cards // 2)

    def step_env(self, key, state, action, params):
        """Turns one card."""
        reward = self.expected_reward(state, action, params)
        place = jnp.clip(action, 0, self.num_cards - 1)
        turned = self._at(place) | self._at(state.first)
        found = state.found | (turned & self._is_pair(state, place))
        tried = (state.first >= 0) | state.found[place]
        state = state.replace(
            time=state.time + 1,
            found=found,
            seen=state.found | turned,
            first=jnp.where(tried, jnp.int32(-1), place.astype(jnp.int32)),
        )
        return self._show(state), state, reward, found.all(), {}

    def reset_env(self, key, params):
        """Lays out all cards face down."""
        cards = np.arange(self.num_cards, dtype=np.int32) % self.kinds
        nothing = jnp.zeros(self.num_cards, bool)
        state = ConcentrationState(
            time=jnp.int32(0),
            cards=shuffled(stream_key(key, params), cards),
            found=nothing,
            seen=nothing,
            first=jnp.int32(-1),
        )
        return self._show(state), state

    def _is_pair(self, state, place):
        """Whether the card at `place` completes a pair."""
        new = ~state.found[place] & (place != state.first) & (state.first >= 0)
        return new & (state.cards[place] == state.cards[state.first])

    def _at(self, place):
        return np.arange(self.num_cards, dtype=np.int32) == place

    def _show(self, state):
        faces = jnp.where(state.seen, state.cards, self.kinds)
        return jax.nn.one_hot(faces, self.kinds + 1, dtype=jnp.float32).reshape(-1)

    @property
    def num_actions(self) -> int:
        """Number of places."""
        return self.num_cards

    def action_space(self, params=None) -> spaces.Discrete:
        """The places."""
        return spaces.Discrete(self.num_cards)

    def observation_space(self, params=None) -> spaces.Box:
        """A kind or "face down" at each place, one-hot."""
        return spaces.Box(0.0, 1.0, (self.num_cards * (self.kinds + 1),))

    def render(self, state, params):
        """All cards, rows of 13; those face down are pale."""
        colours = jnp.asarray(card_colours(self.kinds))[state.cards]
        pale = 191 + colours // 4
        return cells(jnp.where(state.seen[:, None], colours, pale).reshape(-1, RANKS, 3))
