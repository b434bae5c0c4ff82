"""AD: what is distilled is learned, across episodes where it lies across episodes; training and acting are aligned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.core import Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.data.histories import Form, Histories
from icrl_jax.data.windows import Window, window
from icrl_jax.methods.ad import ADConfig, action_loss, ad
from icrl_jax.methods.sources import Distilled, HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start

SIZE, H, A = 3, 5, 5
ENV = icrl_envs.make("dark_room", preset="ad_eps", observation="cell", size=SIZE, horizon=H)
MODEL = TransformerConfig(width=24, num_layers=2, num_heads=2, context_len=4 * H)
CELLS = EmbeddingConfig(inputs=("action", "feedback", "obs"), integers="tables")
SOURCE = HistoriesConfig(num_streams=3, num_steps=8 * H, stride=2)
CONFIG = ADConfig(model=MODEL, embedding=CELLS, histories=SOURCE, num_updates=7, batch_size=4, horizon=4 * H)


@pytest.fixture(scope="module")
def policy():
    return jax.tree.map(lambda p: 1.5 * p, ad(ENV, CONFIG).init(jax.random.key(0)).params)


@functools.partial(on_host, static_argnames="num_steps")
def act(agent, key, num_steps):
    return rollout(agent, ENV, start(agent, ENV, ENV.default_params, key), key, num_steps)[1]


@on_host
def predict(policy, transitions):
    return policy(None, jax.tree.map(lambda x: x[None], timesteps_of(transitions)))[1].probs[0]


@pytest.mark.parametrize("tokens", ["transition", "modality"])
def test_acting_over_episodes_equals_the_parallel_forward_of_training(tokens):
    """The alignment of training and acting, where AD's public code fails."""
    model = dataclasses.replace(MODEL, context_len=4 * H * 3)
    embedding = dataclasses.replace(CELLS, tokens=tokens)
    method = ad(ENV, dataclasses.replace(CONFIG, model=model, embedding=embedding))
    policy = jax.tree.map(lambda p: 1.5 * p, method.init(jax.random.key(0)).params)
    record = act(method.agent(policy), jax.random.key(1), 4 * H)
    assert record.transition.truncated.sum() == 4
    probs = predict(policy, record.transition)
    np.testing.assert_allclose(record.info["probs"], probs, rtol=1e-4, atol=1e-6)
    assert np.abs(np.diff(probs, axis=0)).max() > 0.05


def test_the_loss_is_the_mean_cross_entropy_of_the_actions_taken(policy):
    transitions = act(ad(ENV, CONFIG).agent(policy), jax.random.key(2), 2 * H).transition
    probs = predict(policy, transitions)
    batch = jax.tree.map(lambda x: x[None], Window(timesteps_of(transitions), transitions))
    taken = -np.log(np.take_along_axis(probs, transitions.action[:, None], axis=1))
    loss, log = jax.jit(action_loss)(policy, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, taken.mean(), rtol=1e-5)
    np.testing.assert_allclose(log["last_loss"], taken[-1, 0], rtol=1e-5)
    smooth, _ = jax.jit(functools.partial(action_loss, label_smoothing=0.3))(policy, batch, jax.random.key(0))
    np.testing.assert_allclose(smooth, 0.7 * taken.mean() - 0.3 * np.log(probs).mean(), rtol=1e-5)


def test_masked_tokens_are_hidden_in_training_only(policy):
    transitions = act(ad(ENV, CONFIG).agent(policy), jax.random.key(2), 2 * H).transition
    batch = jax.tree.map(lambda x: x[None], Window(timesteps_of(transitions), transitions))
    masked = jax.jit(functools.partial(action_loss, mask=0.5))
    losses = [masked(policy, batch, jax.random.key(i))[0] for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    hidden = jax.jit(functools.partial(action_loss, mask=1 - 1e-7))(policy, batch, jax.random.key(3))[0]
    blind = jax.tree_util.tree_map_with_path(lambda at, x: 0 * x if "embed" in jax.tree_util.keystr(at) else x, policy)
    np.testing.assert_allclose(hidden, jax.jit(action_loss)(blind, batch, jax.random.key(0))[0], rtol=1e-5)


def test_decoding_samples_at_a_temperature_or_takes_the_likeliest(policy):
    method = ad(ENV, dataclasses.replace(CONFIG, temperature=0.5))
    record = act(method.agent(policy), jax.random.key(1), H)
    probs = np.square(predict(policy, record.transition))
    np.testing.assert_allclose(record.info["probs"], probs / probs.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)
    for agent in (method.agent(policy, greedy=True), ad(ENV, dataclasses.replace(CONFIG, temperature=0)).agent(policy)):
        record = act(agent, jax.random.key(1), H)
        np.testing.assert_array_equal(record.transition.action, predict(policy, record.transition).argmax(-1))


def repeated(num_streams=257) -> Histories:
    """Five episodes a stream: in the first one actions are random; later ones repeat what it began with."""
    rng = np.random.default_rng(0)
    action = rng.integers(0, A, (1, num_streams, 5 * H))
    action[..., H:] = action[..., :1]
    time = np.broadcast_to(np.arange(5 * H), action.shape)
    cell = np.stack([time % H % SIZE, time // H % SIZE], axis=-1)
    no, ends = np.zeros(action.shape, bool), time % H == H - 1
    transitions = Transition(cell, action, np.zeros(action.shape, np.float32), cell, no, ends)
    form = Form(("int32", "int32", "float32", "int32", "bool", "bool"), H, False, 5 * H)
    arrays = np.zeros(action.shape, np.uint8), np.full((1, num_streams), 5 * H), ENV.default_params
    return Histories(jax.tree.map(jnp.asarray, transitions), *jax.tree.map(jnp.asarray, arrays), form)


def test_what_earlier_episodes_tell_is_learned_and_is_out_of_reach_within_one():
    histories = repeated()
    model = dataclasses.replace(MODEL, context_len=5 * H)
    config = dataclasses.replace(
        CONFIG, model=model, horizon=5 * H, num_updates=300, batch_size=32, optim=OptimConfig(learning_rate=1e-2)
    )
    method = ad(ENV, config, data=lambda: Distilled(histories, None))

    @on_host
    def train(key):
        state = method.init(key)
        state, log = jax.lax.scan(method.update, state, jax.random.split(key, config.num_updates))
        return state.params, log["loss"]

    policy, losses = train(jax.random.key(0))
    fresh = repeated(2003)

    @functools.partial(on_host, static_argnums=2)
    def accuracy(policy, first, length):
        of_stream = lambda stream: window(fresh, jnp.int32(0), stream, first, length)
        batch = jax.vmap(of_stream)(jnp.arange(2003))
        probs = policy(None, batch.timesteps)[1].probs
        return (probs.argmax(-1) == batch.transitions.action).mean(axis=0)

    whole, alone = accuracy(policy, 0, 5 * H), accuracy(policy, 4 * H, H)
    chance = pytest.approx(1 / A, abs=0.05)
    assert all(x == chance for x in whole[:H])
    assert whole[H:].min() > 0.97
    assert alone[0] == chance  # the same episode without those before it
    assert losses[-30:].mean() == pytest.approx(np.log(A) / 5, abs=0.08)  # one episode in five is chance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon=0: must be at least 1"),
        ({"model": MLPConfig(width=8)}, "model='mlp': must be one that remembers what came before"),
        ({"mask": 1.0}, "mask=1.0: must be in \\[0, 1\\)"),
        ({"temperature": -1.0}, "temperature=-1.0: must be a finite number of at least 0"),
        ({"horizon": 4 * H + 1}, f"tokens of the horizon={4 * H + 1} is more than context_len={4 * H}"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)


def test_a_window_longer_than_the_streams_is_refused_before_they_are_made():
    histories = dataclasses.replace(SOURCE, stride=4)
    with pytest.raises(ValueError, match=f"horizon={4 * H}: must be at most {2 * H}, the length of the streams"):
        ad(ENV, dataclasses.replace(CONFIG, histories=histories))


def test_label_smoothing_of_continuous_actions_is_refused():
    config = dataclasses.replace(CONFIG, label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing=0.1: must be 0 with the actions of env=PointRobot"):
        ad(icrl_envs.make("point_robot"), config)
