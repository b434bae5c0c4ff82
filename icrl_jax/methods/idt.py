# ruff: noqa: N806
"""IDT, In-context Decision Transformer: predict what a learner does by decisions that each stand for several steps.

Huang, Hu, Chen, Sun, Yang, *In-Context Decision Transformer: Reinforcement Learning via Hierarchical Chain-of-Thought*,
ICML 2024, https://arxiv.org/abs/2405.20692; the third backbone of DICP (`methods/dicp.py`). A context of decisions is
as many times shorter than one of steps. Its episodes are sorted by their returns, so that they improve whoever made
them, and returns-to-go say how good the next one is to be.

From the paper: three modules that make decisions, act on them and review what was done (`models/decider.py`), decisions
drawn from a Gaussian by reparameterisation every c steps and learned from the actions alone, n episodes in ascending
order, returns-to-go that begin at the best of their returns, and one target return for all tasks in acting.

Chosen otherwise, or where the sources leave it open:

- The n episodes are those of a window in a history, which begins with one; the paper draws them one by one. DICP's code
  sorts all of a history, and its windows begin in the middle of an episode.
- A decision is one token, of the return-to-go, the observation and the review of the last decision, and a step is one,
  of the decision, the last action, its reward and the observation; the paper has one token for each of these.
- A review is of transitions whole, as in DICP's code; the paper's is of observations and actions, and rewards and ends
  of episodes are tokens beside it. It consists of as many numbers as a Gaussian has parameters, as in both codes.
- A decision is drawn once, in training only: the agent takes its mean, and draws actions. The codes draw it in acting,
  too, DICP's for every step anew, which no loss rewards.
- DICP's code tells the agent the best return of each task, which says how far the goal is; here it is told nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from icrl_envs import TaskFamily
from icrl_envs.task_family import require
from icrl_jax.agents import trained
from icrl_jax.core import Array, Method
from icrl_jax.data.collect import episode_steps
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.data.histories import Distilled, ascending
from icrl_jax.data.stored import StoredHistories
from icrl_jax.data.windows import Window
from icrl_jax.methods.ad import ADConfig, action_loss, distil
from icrl_jax.models.decider import Aimed, Decider, DecisionConfig


@dataclass(frozen=True)
class IDTConfig(ADConfig):
    """What IDT learns from, and with: as AD, and what its decisions are. The three models are alike."""

    decisions: DecisionConfig = field(default_factory=DecisionConfig)

    def __post_init__(self):
        tokens, c = self.embedding.tokens, self.decisions.decision_steps
        require(tokens == "transition", "tokens", tokens, "'transition', one for each step")
        super().__post_init__()
        require(self.horizon % c == 0, "horizon", self.horizon, f"a multiple of decision_steps={c}")

    def tokens_per_row(self, env: TaskFamily) -> int:
        """Inputs of the three models in one window."""
        return 2 * self.horizon + self.horizon // self.decisions.decision_steps


def idt(env: TaskFamily, config: IDTConfig, data: Callable[[], Distilled] | StoredHistories | None = None) -> Method:
    """IDT on a family whose episodes are all as long: `ad`'s loss and histories, by decisions.

    Args:
      data: as that of `ad`.
    Raises:
      ValueError: as `ad`; episodes that do not all last as long, or not a whole number of decisions; a horizon of no
        whole number of episodes.
    """
    init_params = partial(make_decider, env, config)
    loss = partial(action_loss, mask=config.mask, label_smoothing=config.label_smoothing)
    agent = partial(trained, temperature=config.temperature)
    return distil(env, config, init_params, loss, agent, data, *episodes_of(env, config))


def make_decider(env: TaskFamily, config: IDTConfig, key: Array) -> Decider:
    """The model for a family."""
    spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
    return Decider(config.model, *spaces, key, config.embedding, config.decisions)


def episodes_of(env: TaskFamily, config: IDTConfig) -> tuple[int, Callable[[Window], Window]]:
    """How `distil` is to read windows: from which steps on, and what is made of them.

    Raises:
      ValueError: see `idt`.
    """
    require(not getattr(env, "terminates", True), "env", env.name, "one whose episodes all last as long")
    H, c = episode_steps(env), config.decisions.decision_steps
    require(H % c == 0, "decision_steps", c, f"a divisor of {H}, the steps of an episode of env={env.name}")
    require(config.horizon % H == 0, "horizon", config.horizon, f"a multiple of {H}, the steps of an episode")
    return H, partial(aimed_at_best, episode_steps=H)


def aimed_at_best(window: Window, episode_steps: int) -> Window:
    """The episodes of a window in ascending order, each aimed at the return of the best; `timesteps` are `Aimed`.

    Raises:
      ValueError: histories without `next_obs`.
    """
    require(window.transitions.next_obs is not None, "next_obs", None, "in the histories that IDT distils")
    transitions = ascending(window.transitions, episode_steps)
    best = transitions.feedback[-episode_steps:].sum()
    return Window(Aimed(timesteps_of(transitions), best), transitions)  # type: ignore[arg-type]
