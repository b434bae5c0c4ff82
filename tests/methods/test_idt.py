"""IDT: episodes are sorted and aimed at the best, training and acting are aligned, decisions carry what they must."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_jax.agents import PlanConfig
from icrl_jax.core import Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.data.histories import Distilled, Form, Histories
from icrl_jax.data.windows import Window, window_of
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.dicp import DICPIDTConfig, ForesightConfig, dicp_idt
from icrl_jax.methods.idt import IDTConfig, aimed_at_best, episodes_of, idt
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.decider import Aimed, DecisionConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start

SIZE, H, C, A = 3, 6, 3, 5
ENV = icrl_envs.make("dark_room", preset="ad_eps", observation="cell", size=SIZE, horizon=H)
CONFIG = IDTConfig(
    model=TransformerConfig(width=16, num_layers=1, num_heads=2, context_len=4 * H),
    embedding=EmbeddingConfig(integers="tables"),
    optim=OptimConfig(learning_rate=1e-2),
    histories=HistoriesConfig(num_streams=3, num_steps=8 * H, stride=2),
    num_updates=7,
    batch_size=4,
    horizon=4 * H,
    decisions=DecisionConfig(C, 5, 4.0),
)
ON_IDT = DICPIDTConfig(
    **{field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)},
    foresight=ForesightConfig((0.0, 1.0), dynamics_steps=7),
    plan=PlanConfig(2, 2),
)


def noisy(key, method):
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), method.init(key).params)


@functools.partial(on_host, static_argnames="num_steps")
def act(agent, key, num_steps):
    return rollout(agent, ENV, start(agent, ENV, ENV.default_params, key), key, num_steps)[1]


@pytest.fixture(scope="module")
def method():
    return idt(ENV, CONFIG)


@pytest.fixture(scope="module")
def policy(method):
    return on_host(noisy, static_argnums=1)(jax.random.key(0), method)


def test_acting_over_episodes_equals_the_parallel_forward_of_training(method, policy):
    """When the return that it asks for is what the histories are aimed at."""
    record = act(method.agent(policy), jax.random.key(1), 4 * H)

    @on_host
    def predict(policy, transitions, target):
        timesteps = jax.tree.map(lambda x: x[None], timesteps_of(transitions))
        return policy(None, Aimed(timesteps, target[None]))[1].probs[0]

    probs = predict(policy, record.transition, jnp.float32(4.0))
    np.testing.assert_allclose(record.info["probs"], probs, rtol=1e-4, atol=1e-6)
    assert np.abs(np.diff(probs, axis=0)).max() > 0.05
    assert np.abs(predict(policy, record.transition, jnp.float32(5.0)) - probs).max() > 1e-3


def test_episodes_are_sorted_and_aimed_at_the_best(getkey):
    """Those that pay alike stay in order; nothing else is changed."""
    rng, E = np.random.default_rng(0), 7
    reward = rng.integers(0, 2, (E, H)).astype(np.float32)
    reward[4] = reward[1][::-1]
    time = np.arange(E * H).astype(np.int32)
    ends, no = time % H == H - 1, np.zeros(E * H, bool)
    transitions = Transition(time, time + 100, reward.reshape(-1), time + 1, no, ends)
    (timesteps, target), sorted_ = on_host(aimed_at_best, static_argnums=1)(window_of(transitions), H)
    order = sorted(range(E), key=lambda e: (reward[e].sum(), e))
    assert order != list(range(E))
    times = np.concatenate([time[e * H : (e + 1) * H] for e in order])
    np.testing.assert_array_equal(sorted_.obs, times)
    np.testing.assert_array_equal(sorted_.action, times + 100)
    np.testing.assert_array_equal(sorted_.feedback, reward.reshape(-1)[times])
    np.testing.assert_array_equal(sorted_.truncated, ends)
    assert target == reward.sum(axis=1).max()
    np.testing.assert_array_equal(timesteps.obs, times)
    np.testing.assert_array_equal(timesteps.prev.action[1:], times[:-1] + 100)
    assert timesteps.reset.tolist() == [True] + [False] * (E * H - 1)


def test_windows_begin_with_an_episode():
    assert episodes_of(ENV, CONFIG)[0] == H


def repeated(num_streams=257) -> Histories:
    """Three episodes a stream, all of which pay alike: in the first one the actions of the second half are random, and
    the last of them is repeated from then on, but for the first halves, which are the same always."""
    rng = np.random.default_rng(0)
    time = np.broadcast_to(np.arange(3 * H), (1, num_streams, 3 * H))
    action = np.repeat(rng.integers(0, A, (1, num_streams, 1)), 3 * H, axis=2)
    action[..., C : H - 1] = rng.integers(0, A, (1, num_streams, H - 1 - C))
    action[time % H < C] = 2
    cell = np.stack([time % H % SIZE, time // C % SIZE], axis=-1)
    no, ends = np.zeros(action.shape, bool), time % H == H - 1
    transitions = Transition(cell, action, np.zeros(action.shape, np.float32), cell, no, ends)
    form = Form(("int32", "int32", "float32", "int32", "bool", "bool"), H, False, 3 * H)
    arrays = np.zeros(action.shape, np.uint8), np.full((1, num_streams), 3 * H), ENV.default_params
    return Histories(jax.tree.map(jnp.asarray, transitions), *jax.tree.map(jnp.asarray, arrays), form)


def test_what_earlier_episodes_tell_goes_through_reviews_and_decisions():
    """The last action of a decision decides on those two decisions later: low never sees it, high sees its review."""
    config = dataclasses.replace(CONFIG, horizon=3 * H, num_updates=200, batch_size=32)
    method = idt(ENV, config, data=lambda: Distilled(repeated(), None))

    @on_host
    def train(key):
        state, log = jax.lax.scan(method.update, method.init(key), jax.random.split(key, config.num_updates))
        fresh = repeated(2003).transitions
        batch = jax.vmap(lambda x: aimed_at_best(window_of(x), H))(jax.tree.map(lambda x: x[0], fresh))
        probs = state.params(None, batch.timesteps)[1].probs
        return log["loss"], (probs.argmax(-1) == batch.transitions.action).mean(axis=0)

    losses, accuracy = train(jax.random.key(0))
    np.testing.assert_allclose(accuracy[C:H], 1 / A, atol=0.05)
    assert accuracy[:C].min() > 0.97 and accuracy[H:].min() > 0.97
    assert losses[-30:].mean() == pytest.approx(np.log(A) / 6, abs=0.08)  # one step in six is chance


def test_without_planning_dicp_on_idt_is_idt(method):
    """With weights of the same form, too."""
    world = on_host(noisy, static_argnums=1)(jax.random.key(0), dicp_idt(ENV, ON_IDT))
    plain = dicp_idt(ENV, dataclasses.replace(ON_IDT, plan=PlanConfig(plan_depth=0)))
    lived, alone = (act(agent, jax.random.key(3), 4 * H) for agent in (plain.agent(world), method.agent(world.policy)))
    jax.tree.map(np.testing.assert_array_equal, lived, alone)
    assert dicp_idt(ENV, ON_IDT).agent(world).act.func is not plain.agent(world).act.func  # the one that plans


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (ENV, {"decisions": DecisionConfig(4)}, "decision_steps=4: must be a divisor of 6, the steps of an episode"),
        (ENV, {"horizon": 3 * C}, "horizon=9: must be a multiple of 6, the steps of an episode"),
        (TwoEpisodes(), {}, "env='TwoEpisodes': must be one whose episodes all last as long"),
    ],
)
def test_families_that_do_not_fit_are_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        idt(env, dataclasses.replace(CONFIG, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 4 * H - 1}, "horizon=23: must be a multiple of decision_steps=3"),
        ({"embedding": EmbeddingConfig("modality")}, "tokens='modality': must be 'transition', one for each step"),
        ({"horizon": 5 * H}, "tokens of the horizon=30 is more than context_len=24"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)


def test_more_steps_than_there_are_positions_for_decisions_are_refused(method, policy):
    tasks = jax.tree.map(lambda x: x[:1], ENV.tasks("train"))
    with pytest.raises(ValueError, match="num_steps=30 is more than context_len=24"):
        evaluate(method.agent(policy), ENV, tasks, jax.random.key(0), num_episodes=5)


def test_histories_without_what_followed_are_refused():
    transitions = Transition(*(jnp.zeros(H) for _ in range(6)))._replace(next_obs=None)
    with pytest.raises(ValueError, match="next_obs=None: must be in the histories that IDT distils"):
        aimed_at_best(Window(timesteps=None, transitions=transitions), H)
