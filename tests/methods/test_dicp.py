"""DICP: the loss is that of actions and of what they bring, and planning beats the policy that was learned with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import PlanConfig
from icrl_jax.core import Transition
from icrl_jax.data.contexts import asked, timesteps_of
from icrl_jax.data.windows import Window
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.ad import ad
from icrl_jax.methods.dicp import (
    DICPConfig,
    DICPDPTConfig,
    ForesightConfig,
    asked_joint_loss,
    dicp,
    dicp_dpt,
    joint_loss,
    returns_to_go,
)
from icrl_jax.methods.dpt_mdp import sample_example
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start

SIZE, H = 3, 5
ENV = icrl_envs.make("dark_room", preset="dicp", size=SIZE, horizon=H)
CONFIG = DICPConfig(
    model=TransformerConfig(width=24, num_layers=2, num_heads=2, context_len=4 * H),
    embedding=EmbeddingConfig(integers="tables"),
    optim=OptimConfig(learning_rate=1e-2),
    histories=HistoriesConfig(num_streams=3, num_steps=8 * H, q_epsilon=1.0),
    num_updates=300,
    batch_size=16,
    horizon=4 * H,
    foresight=ForesightConfig((0.0, 1.0)),
    plan=PlanConfig(5, 3),
)

ON_DPT = DICPDPTConfig(
    model=TransformerConfig(width=24, num_layers=2, num_heads=2, context_len=3 * H + 1, positions="none"),
    optim=OptimConfig(learning_rate=1e-2),
    num_updates=300,
    batch_size=16,
    horizon=3 * H,
    integers="tables",
    foresight=ForesightConfig((0.0, 1.0)),
    plan=PlanConfig(5, 3),
)


@pytest.fixture(scope="module")
def method():
    return dicp(ENV, CONFIG)


@pytest.fixture(scope="module")
def untrained(method):
    def noisy(key):
        return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), method.init(key).params)

    return on_host(noisy)(jax.random.key(0))


@on_host
def live(agent, key):
    return rollout(agent, ENV, start(agent, ENV, ENV.default_params, key), key, 3 * H)[1].transition


@functools.partial(on_host, static_argnames="options")
def losses(world, batch, key, options=()):
    return joint_loss(world, batch, key, ForesightConfig((0.0, 1.0), **dict(options)))


@pytest.fixture(scope="module")
def batch(method, untrained):
    transitions = live(method.agent(untrained), jax.random.key(2))
    return jax.tree.map(lambda x: x[None], Window(timesteps_of(transitions), transitions))


def test_the_loss_is_the_mean_cross_entropy_of_actions_and_of_what_they_bring(untrained, batch):
    """By what the model says as it acts, a step at a time."""

    @on_host
    def said(world):
        def act(carry, xs):
            timestep, action = xs
            carry, prediction = world.step(carry, timestep)
            foreseen = world.foresee(carry, timestep.obs, action[:, None])
            return carry, (prediction.logits, foreseen.reward.logits[:, 0], foreseen.obs[0][:, 0])

        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (batch.timesteps, batch.transitions.action))
        return jax.lax.scan(act, world.body.init_carry(1), inputs)[1]

    def cross_entropy(logits, label):
        logits = np.asarray(logits, np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_probs, label[..., None], axis=-1)[..., 0]

    action, reward, obs = (x[:, 0] for x in said(untrained))
    done = jax.tree.map(lambda x: np.asarray(x[0]), batch.transitions)
    of_action, of_reward = cross_entropy(action, done.action), cross_entropy(reward, done.feedback.astype(int))
    of_obs = cross_entropy(obs, done.next_obs).sum(axis=-1)
    assert len(np.unique(done.next_obs, axis=0)) > 3 and done.truncated.sum() == 3
    loss, log = losses(untrained, batch, jax.random.key(0), (("dynamics_weight", 0.7),))
    np.testing.assert_allclose(log["last_loss"], of_action[-1], rtol=1e-3)
    np.testing.assert_allclose(log["reward_loss"], of_reward.mean(), rtol=1e-3)
    np.testing.assert_allclose(log["obs_loss"], of_obs.mean(), rtol=1e-3)
    np.testing.assert_allclose(loss, of_action.mean() + 0.7 * (of_reward.mean() + of_obs.mean()), rtol=1e-3)


def test_returns_to_go_are_those_of_episodes_that_end_in_the_window():
    reward = np.array([1, 0, 2, 0.5, 4, 8, 16], np.float32)
    ends = np.array([0, 1, 0, 0, 1, 0, 0], bool)
    no = np.zeros(7, bool)
    for terminated, truncated in ((ends, no), (no, ends)):
        ret, known = on_host(returns_to_go)(Transition(None, None, reward, None, terminated, truncated))
        np.testing.assert_allclose(ret[:5], [1, 0, 6.5, 4.5, 4])
        assert known.tolist() == [True] * 5 + [False] * 2


def test_returns_are_learned_where_they_are_known(batch):
    """All steps of the batch but the last episode's, which is cut off."""
    config = dataclasses.replace(CONFIG, foresight=ForesightConfig((0.0, 1.0), return_to_go=True))
    cut = jax.tree.map(lambda x: x[:, :-1], batch)

    @on_host
    def both(key, cut):
        world = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), dicp(ENV, config).init(key).params)
        at = jnp.arange(3 * H - 1)
        _, foreseen, _ = world(cut.timesteps, cut.transitions.obs, cut.transitions.action, at)
        return joint_loss(world, cut, key, config.foresight), foreseen.ret

    (loss, log), foreseen = both(jax.random.key(0), cut)
    reward = np.asarray(cut.transitions.feedback)[0, : 2 * H].reshape(2, H)
    target = np.cumsum(reward[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    expected = foreseen.loss(jnp.pad(target, (0, H - 1))[None])[0, : 2 * H]
    np.testing.assert_allclose(log["return_loss"], expected.mean(), rtol=1e-3)
    rest = log["reward_loss"] + log["obs_loss"] + log["return_loss"]
    assert loss > rest and log["return_loss"] > 1


def test_a_few_steps_stand_for_all(untrained, batch):
    """All of them in any order, and fewer of them on average."""
    whole = losses(untrained, batch, jax.random.key(0))
    for one, other in zip(
        *map(jax.tree.leaves, (whole, losses(untrained, batch, jax.random.key(1), (("dynamics_steps", 3 * H),)))),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    keys = jax.random.split(jax.random.key(2), 503)
    one = lambda world, batch, key: joint_loss(world, batch, key, ForesightConfig((0.0, 1.0), dynamics_steps=2))[1][
        "obs_loss"
    ]
    drawn = on_host(jax.vmap(one, in_axes=(None, None, 0)))(untrained, batch, keys)
    assert drawn.std() > 0.05
    np.testing.assert_allclose(drawn.mean(), whole[1]["obs_loss"], atol=4 * drawn.std() / np.sqrt(503))


def test_planning_finds_what_a_random_source_never_learned_to(method):
    """Its histories are of random actions: the policy is no better, but knows what they bring."""

    @on_host
    def train(key):
        state, log = jax.lax.scan(method.update, method.init(key), jax.random.split(key, CONFIG.num_updates))
        return state.params, log

    world, log = train(jax.random.key(0))
    assert log["obs_loss"][-30:].mean() < 0.05
    tasks = jax.tree.map(lambda x: x.repeat(7, axis=0), ENV.tasks("train"))
    returns = {}
    for depth in (0, 3):
        plan = dataclasses.replace(CONFIG.plan, plan_depth=depth)
        agent = dicp(ENV, dataclasses.replace(CONFIG, plan=plan)).agent(world)
        returns[depth] = evaluate(agent, ENV, tasks, jax.random.key(1), num_episodes=4).metrics["final_return"].mean()
    assert returns[3] > returns[0] + 1


def test_without_planning_it_is_ad(untrained):
    """With weights of the same form, too."""
    plain = dicp(ENV, dataclasses.replace(CONFIG, plan=PlanConfig(plan_depth=0)))
    lived = live(plain.agent(untrained), jax.random.key(3))
    alone = ad(ENV, CONFIG).agent(untrained.policy)
    jax.tree.map(np.testing.assert_array_equal, lived, live(alone, jax.random.key(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamics_weight": 0.0}, "dynamics_weight=0.0: must be a finite number above 0"),
        ({"dynamics_steps": 0}, "dynamics_steps=0: must be None or at least 1"),
        ({"dynamics_steps": 4 * H + 1}, "dynamics_steps=21: must be None or at most horizon=20"),
        ({"reward_values": (1.0, 0.0)}, "reward_values=.* must be empty, or two or more rising numbers"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dicp(ENV, dataclasses.replace(CONFIG, foresight=ForesightConfig(**options)))


@pytest.mark.parametrize(("option", "value"), [("query", "first"), ("update", "episode"), ("horizon", 0)])
def test_wrong_options_of_dpt_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}={value!r}: must be "):
        dataclasses.replace(ON_DPT, **{option: value})


def test_returns_of_separate_transitions_are_refused():
    with pytest.raises(ValueError, match="return_to_go=True: must be False with behaviours that are 'random'"):
        dataclasses.replace(ON_DPT, foresight=ForesightConfig(return_to_go=True))


def test_continuous_actions_are_sampled():
    env = icrl_envs.make("point_robot", num_steps=H)
    histories = dataclasses.replace(CONFIG.histories, source="noise_curriculum", num_tasks=3)
    method = dicp(
        env, dataclasses.replace(CONFIG, histories=histories, foresight=ForesightConfig(), plan=PlanConfig(2, 2))
    )

    @on_host
    def learn_and_act(key):
        state, log = method.update(method.init(key), key)
        agent, task = method.agent(state.params), env.sample_task(key)
        return log, rollout(agent, env, start(agent, env, task, key), key, H)[1]

    log, record = learn_and_act(jax.random.key(0))
    assert all(np.isfinite(log[name]) and log[name] > 0 for name in ("reward_loss", "obs_loss"))
    assert record.transition.action.shape == (H, 2) and record.transition.action.std() > 0.01
    assert np.isfinite(record.info["planned_return"]).all()


def test_on_dpt_the_queries_are_those_of_the_best_action_and_of_what_the_context_did(getkey):
    """Each loss by what the model says as it acts: of the best action at each query, of the context at each step."""
    method = dicp_dpt(ENV, ON_DPT)
    example = jax.jit(lambda key: sample_example(ENV, ON_DPT, key))(getkey())

    @on_host
    def both(key):
        world = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), method.init(key).params)
        _, log = asked_joint_loss(world, jax.tree.map(lambda x: x[None], example), key, ON_DPT.foresight)

        def act(carry, xs):
            timestep, label, (obs, action, reward, next_obs) = jax.tree.map(lambda x: x[None], xs)
            carry, prediction = world.step(carry, timestep)
            foreseen = jax.tree.map(lambda x: x[:, 0], world.foresee(carry, obs, action[:, None]))
            return carry, (-prediction.log_prob(label), foreseen.reward.loss(reward), foreseen.obs_loss(next_obs))

        inputs, done = asked(example.context, example.query_obs), example.context
        last = lambda x: jnp.concatenate([x, x[:1]])  # nothing was done after the last query
        steps = jax.tree.map(last, (done.obs, done.action, done.feedback, done.next_obs))
        lost = jax.lax.scan(act, world.body.init_carry(1), (inputs, example.target_action, steps))[1]
        return log, lost

    log, (of_action, of_reward, of_obs) = both(getkey())
    np.testing.assert_allclose(log["last_loss"], of_action[-1, 0], rtol=1e-3)
    np.testing.assert_allclose(log["reward_loss"], of_reward[:-1].mean(), rtol=1e-3)
    np.testing.assert_allclose(log["obs_loss"], of_obs[:-1].mean(), rtol=1e-3)


def test_on_dpt_it_learns_and_plans():
    method = dicp_dpt(ENV, ON_DPT)

    @on_host
    def train(key):
        state, log = jax.lax.scan(method.update, method.init(key), jax.random.split(key, ON_DPT.num_updates))
        return state.params, log

    world, log = train(jax.random.key(0))
    assert log["obs_loss"][-30:].mean() < 0.1 and log["loss"][-30:].mean() < log["loss"][:10].mean() / 2
    tasks = jax.tree.map(lambda x: x.repeat(5, axis=0), ENV.tasks("train"))
    found = evaluate(method.agent(world), ENV, tasks, jax.random.key(1), num_episodes=3).metrics["final_return"].mean()
    assert found > 2  # chance: 0.6
