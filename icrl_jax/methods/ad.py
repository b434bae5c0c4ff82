"""AD, Algorithm Distillation: predict what a learning algorithm does next, given all that it did before.

Laskin, Wang, Oh, Parisotto, Spencer, Steigerwald, Strouse, Hansen, Filos, Brooks, Gazeau, Sahni, Singh, Mnih,
*In-context Reinforcement Learning with Algorithm Distillation*, ICLR 2023, https://arxiv.org/abs/2210.14215. What is
imitated decides what is learned in context: the histories of a learner teach to improve (AD), those of an expert do not
(ED), those of an expert under ever less noise do without any learner (AD-eps, Zisman et al. 2024,
https://arxiv.org/abs/2312.12275), and histories can be chosen by how well they teach (LHF, Chen et al. 2025,
https://arxiv.org/abs/2505.15143).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
from gymnax.environments import spaces

from icrl_envs import TaskFamily
from icrl_jax.agents import trained
from icrl_jax.core import Agent, Array, Method, Tree
from icrl_jax.data.histories import Distilled
from icrl_jax.data.stored import StoredHistories, open_histories
from icrl_jax.data.windows import Window, sample_window
from icrl_jax.methods.sources import HistoriesConfig, count_tasks, make_histories
from icrl_jax.methods.stored import check_histories, check_horizon, find_histories, window_feed
from icrl_jax.methods.supervised import OptimConfig, Row, supervised
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.heads import Prediction
from icrl_jax.models.kinds import ModelConfig, kind_of
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig


@dataclass(frozen=True)
class ADConfig:
    """What AD learns from, and with."""

    model: ModelConfig = field(default_factory=TransformerConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    histories: HistoriesConfig = field(default_factory=HistoriesConfig)
    num_updates: int = 1000
    """Gradient steps."""
    batch_size: int = 32
    """Windows per update."""
    horizon: int = 400
    """Transitions in a window, predicted one and all."""
    mask: float = 0.0
    """Probability with which a token of the input is hidden in training (the paper's 0.3 to 0.5)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all actions (the paper's 0.2 in the hard room)."""
    temperature: float = 1.0
    """Of the actions that are sampled; 0 takes the likeliest."""

    def __post_init__(self):
        for name in ("num_updates", "batch_size", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least 1")
        for name in ("mask", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be in [0, 1)")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}: must be a finite number of at least 0")
        if self.model.context_len == 1:
            raise ValueError(f"model={kind_of(self.model)!r}: must be one that remembers what came before")
        if isinstance(self.model, TransformerConfig):
            self.model.check_horizon(self.horizon * self.embedding.num_tokens, "tokens of the horizon")

    def tokens_per_row(self, env: TaskFamily) -> int:
        """Inputs of the model in one window."""
        return self.horizon * self.embedding.num_tokens

    def env_steps(self, env: TaskFamily, num_seeds: int) -> int:
        """Steps of all histories, which all seeds share."""
        if self.histories.source == "logged":
            return int(open_histories(str(self.histories.store)).steps.sum())
        return count_tasks(env, self.histories) * self.histories.num_streams * self.histories.num_steps


def ad(env: TaskFamily, config: ADConfig, data: Callable[[], Distilled] | StoredHistories | None = None) -> Method:
    """AD on any family: windows of histories, and at every position the action that was taken there.

    Args:
      data: builds what is distilled, the same at every call; or histories on disk, which are streamed; by default what
        `config.histories` says.
    Raises:
      ValueError: label smoothing of actions that are continuous; a source that the family does not fit; histories
        shorter than the window.
    """

    def init_params(key: Array) -> Policy:
        spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
        return Policy(config.model, *spaces, key, config.embedding)

    loss = partial(action_loss, mask=config.mask, label_smoothing=config.label_smoothing)
    return distil(env, config, init_params, loss, partial(trained, temperature=config.temperature), data)


def distil(
    env: TaskFamily,
    config: ADConfig,
    init_params: Callable[[Array], Tree],
    loss: Callable[[Tree, Window, Array], tuple[Array, dict]],
    agent: Callable[..., Agent],
    data: Callable[[], Distilled] | StoredHistories | None = None,
    every: int = 1,
    made_of: Callable[[Window], Window] | None = None,
) -> Method:
    """What lowers a loss of windows of histories, from wherever `config` or `data` says; see `ad` and `supervised`.

    Args:
      every: windows begin at multiples of so many steps.
      made_of: what is learned from a window, in the place of the window itself.
    """
    if config.label_smoothing and not isinstance(env.action_space(env.default_params), spaces.Discrete):
        raise ValueError(f"label_smoothing={config.label_smoothing}: must be 0 with the actions of env={env.name}")
    histories, horizon = config.histories, config.horizon
    build, feed, collect = None, None, partial(_collect, length=horizon, every=every)
    if isinstance(data, StoredHistories):
        data.check_env(env)
        feed, collect = window_feed(lambda _: data, partial(check_horizon, data, horizon), horizon, every)
    elif data is not None:
        build = data
    else:
        made = partial(make_histories, env, histories)
        if histories.source != "logged":
            check_horizon(jax.eval_shape(made).histories, horizon)  # refuses early what does not fit
        if histories.store is None:
            build = made
        else:
            check = partial(check_histories, env, histories, horizon)
            feed, collect = window_feed(partial(find_histories, env, histories), check, horizon, every)
    return supervised(
        init_params,
        collect if made_of is None else lambda data, row: made_of(collect(data, row)),
        loss,
        agent,
        config.optim,
        config.num_updates,
        config.batch_size,
        tokens_per_row=config.tokens_per_row(env),
        data=build,
        least_rows=config.model.least_rows(config.tokens_per_row(env)),
        feed=feed,
    )


def _collect(data: Distilled, row: Row, length: int, every: int) -> Window:
    return sample_window(data.histories, row.key, length, data.weights, every)


def action_loss(
    policy: Policy, batch: Window, key: Array, mask: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Array, dict]:
    """-log P(a_t | o_t and all before it in the window), the mean over positions and rows (Laskin et al., equation 3).

    Args:
      mask: probability with which a token of the input is hidden.
      label_smoothing: s, takes (1 - s) of this and s of the mean over all actions.
    """
    _, prediction, aux = policy(None, batch.timesteps, key, mask)
    losses_BT = action_losses(prediction, batch.transitions.action, label_smoothing)
    return losses_BT.mean() + sum(aux.losses.values()), {"last_loss": losses_BT[:, -1].mean(), **aux.losses}


def action_losses(prediction: Prediction, actions: Tree, label_smoothing: float = 0.0) -> Array:
    """`action_loss` at each position, float32 [B, T]."""
    losses_BT = -prediction.log_prob(prediction.encode(actions))
    if label_smoothing:
        of_all = jax.nn.log_softmax(prediction.logits)  # type: ignore[union-attr]
        losses_BT = (1 - label_smoothing) * losses_BT - label_smoothing * of_all.mean(axis=-1)
    return losses_BT
