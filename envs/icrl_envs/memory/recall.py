"""Games of recall: what is shown does not depend on the actions, and one answer is right."""

from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from icrl_envs.memory.episodes import MemoryTask, share, stream_key


class Recall(MemoryTask):
    """A right answer pays 1/num_questions, a wrong one as much less than 0, and a step that does not ask pays 0.

    All episodes are `num_steps` long and the last step terminates; a task's own lower limit truncates before. Answers
    outside the action space are clipped.
    A game defines `first_state`, `next_state`, `show`, `answer` and `asks`; `time` is counted here.
    """

    rare_reset = True

    def __init__(self, num_steps: int, num_questions: int, num_answers: int):
        super().__init__(num_steps)
        self.num_questions = num_questions
        self.num_answers = num_answers

    def first_state(self, key: jax.Array) -> Any:
        """Draws the state of the first observation, whose `time` is 0."""
        raise NotImplementedError

    def next_state(self, key: jax.Array, state: Any) -> Any:
        """Draws what is shown next; `state.time` is already that of the result."""
        raise NotImplementedError

    def show(self, state: Any) -> jax.Array:
        """The observation."""
        raise NotImplementedError

    def answer(self, state: Any) -> jax.Array:
        """The right answer, int32 [], whenever the step asks."""
        raise NotImplementedError

    def asks(self, state: Any) -> jax.Array:
        """Whether this step asks, bool []: the last `num_questions` do, unless a game says otherwise."""
        return state.time >= self.num_steps - self.num_questions

    def optimal_action(self, state, params):
        """The right answer; where nothing is asked, any answer is as good."""
        return self.answer(state)

    def expected_reward(self, state, action, params):
        """Exactly the reward: it is never random."""
        right = jnp.clip(action, 0, self.num_answers - 1) == self.answer(state)
        payment = jnp.where(right, 1, -1).astype(jnp.float32) / self.num_questions
        return jnp.where(self.asks(state), payment, jnp.float32(0))

    def optimal_return(self, params):
        """All answers right: 1, or the share of the questions that come before the task's limit."""
        return share(params.max_steps_in_episode - (self.num_steps - self.num_questions), self.num_questions)

    def step_env(self, key, state, action, params):
        """Takes the answer, shows what comes next."""
        reward = self.expected_reward(state, action, params)
        state = self.next_state(stream_key(key, params), state.replace(time=state.time + 1))
        return self.show(state), state, reward, state.time >= self.num_steps, {}

    def is_truncated(self, state, params):
        """Whether the task's limit cuts the game short, bool []."""
        return (state.time >= params.max_steps_in_episode) & (state.time < self.num_steps)

    def reset_env(self, key, params):
        """Starts a new game."""
        state = self.first_state(stream_key(key, params))
        return self.show(state), state

    @property
    def num_actions(self) -> int:
        """Number of answers."""
        return self.num_answers

    def action_space(self, params=None) -> spaces.Discrete:
        """The answers."""
        return spaces.Discrete(self.num_answers)
