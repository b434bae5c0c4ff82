# ruff: noqa: N806
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import BEST, KINDS, Aim, AimParams, Probes
from two_episodes import NUM_ACTIONS, TwoEpisodes, on_host

import icrl_envs
from icrl_jax import checkpoint
from icrl_jax.agents import noise_curriculum, uniform
from icrl_jax.core import TimeStep
from icrl_jax.methods.ppo import (
    PPOConfig,
    _begin,
    a2c,
    agent,
    loss,
    numbers,
    play,
    play_and_learn,
    ppo,
    ppo_learner,
    standardised,
)
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start
from icrl_jax.train import Schedule, abstract_seeds, fit, train

ENV = TwoEpisodes()  # terminates where the secret is found, else truncates after three steps
N, T = 5, 11
SEES_ALL = EmbeddingConfig(inputs=("action", "feedback", "done", "obs"))
MODELS = {
    "mlp": MLPConfig(width=6, num_layers=2),
    "gru": GRUConfig(width=6),
    "s5": S5Config(width=6, num_layers=1, state_size=6),
    "transformer": TransformerConfig(width=6, num_layers=1, num_heads=1, context_len=4, positions="rotary"),
}
VARIANTS = {
    **MODELS,
    "lstm": GRUConfig(width=6, num_layers=1, cell="lstm"),
    "s4d": S5Config(width=6, num_layers=1, kind="s4d", state_size=4, norm="post"),
    "relative": TransformerConfig(6, 1, 1, context_len=4, positions="relative", attend="episode"),
    "relic with experts": TransformerConfig(
        **{"width": 6, "num_layers": 1, "num_heads": 1, "context_len": 7, "positions": "episodes"},
        **{"max_episode_len": 3, "sink": "kv0", "moe": MoEConfig(num_experts=3, num_task_experts=2)},
    ),
}
PLAIN = OptimConfig(learning_rate=0.01, weight_decay=0.0, schedule="constant", warmup=0.0, clip=None)


def config(name="gru", **options):
    given = {"num_streams": N, "num_steps": T, "num_minibatches": 1, "num_epochs": 1, "trial_episodes": 2}
    return PPOConfig(**{"model": VARIANTS[name], "embedding": SEES_ALL, "optim": PLAIN, **given, **options})


def opinionated(state):
    """At the start all actions are as likely and all values zero: nothing could be told apart."""
    head, critic = state.params.policy.head.readout, state.params.critic.readout
    head.out[...] = 100 * head.out[...]
    critic.out[...] = jax.random.normal(jax.random.key(7), critic.out.shape)
    return state


@functools.partial(on_host, static_argnums=0)
def round_(config, state, key):
    return play_and_learn(ENV, config, state, key, config.trial)


@functools.partial(on_host, static_argnums=0)
def begin(config, key):
    tasks = jax.vmap(ENV.sample_task)(jax.random.split(key, config.num_streams))
    return opinionated(_begin(ENV, config, tasks, key))


@functools.partial(on_host, static_argnums=0)
def played(config, state, key):
    """What `learn` gets: rollouts afterwards, and (record, experience) [N, T, ...]."""
    given = state.params, state.extra["hparams"]
    one = lambda rollouts, key: play(ENV, config, *given, rollouts, key, config.trial)
    return jax.vmap(one)(state.extra["rollouts"], jax.random.split(key, config.num_streams))


def without_learning(state):
    return at_rate(state, 0)


def at_rate(state, rate):
    hparams = state.extra["hparams"]._replace(learning_rate=np.float32(rate))
    return state._replace(extra={**state.extra, "hparams": hparams})


@pytest.mark.parametrize("model", VARIANTS)
def test_first_minibatch_ratio_is_one(model):
    """The replay reads what the actor read: over the ends of episodes, trials and rounds; if nothing is learned, as in
    the last rounds, always."""
    options = config(model, num_epochs=2)
    state = begin(options, jax.random.key(0))
    for i, rate in enumerate([0.01, 0.01, 0, 0]):
        state, record, log = round_(options, at_rate(state, rate), jax.random.key(i))
        assert log["ratio_gap"] < 1e-4
        assert (log["kl"] < 1e-6) == (rate == 0)
        assert record.reset[1:].any() and record.transition.truncated.any() and record.transition.terminated.any()
        assert np.ptp(record.info["log_prob"]) > 0.3


def test_first_minibatch_ratio_is_one_for_continuous_actions_and_tokens_of_each_modality():
    """A choice is kept as it was before it was squashed."""
    embedding = dataclasses.replace(SEES_ALL, tokens="modality")
    options = config("gru", embedding=embedding, num_epochs=2, trial_episodes=3)
    method = ppo(icrl_envs.make("point_robot", num_steps=4), options)

    @on_host
    def run(key):
        state, log = method.update(method.init(key), key)
        return log, method.update(state, key)[1]

    for log in run(jax.random.key(0)):
        assert log["ratio_gap"] < 1e-4 < log["kl"]


def test_after_the_first_step_the_ratio_is_no_longer_one():
    more = config(num_epochs=3)
    assert round_(more, begin(more, jax.random.key(0)), jax.random.key(0))[2]["kl"] > 1e-4


@pytest.mark.parametrize("clip_ratio", [0.2, None])
def test_the_first_gradient_is_the_plain_policy_gradient(clip_ratio):
    only_policy = config("mlp", clip_ratio=clip_ratio, normalise=False, value_weight=0.0, entropy_weight=0.0)
    state = begin(only_policy, jax.random.key(1))
    _, (_, experience) = played(only_policy, state, jax.random.key(1))

    def plain(params):
        _, (prediction, _), _ = params(None, experience.timestep)
        return -(prediction.log_prob(experience.choice) * experience.advantage).mean()

    clipped = jax.jit(jax.grad(lambda params: loss(params, experience, (), jax.random.key(2), numbers(only_policy))[0]))
    expected = jax.jit(jax.grad(plain))(state.params)
    chex.assert_trees_all_close(clipped(state.params), expected, rtol=1e-4, atol=1e-6)
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 1e-2


def test_the_loss_by_hand():
    """Away from the policy that acted, so that clipping bites; a batch of streams."""
    options = config("mlp", clip_ratio=0.1, entropy_weight=0.3, value_weight=0.7)
    state = begin(options, jax.random.key(1))
    _, (_, experience) = played(options, state, jax.random.key(1))
    params = jax.tree.map(lambda p: 1.3 * p, state.params)

    @on_host
    def both(params):
        _, (prediction, value), _ = params(None, experience.timestep)
        batch = standardised(experience)
        return prediction.probs, value.mean(), loss(params, batch, (), jax.random.key(2), numbers(options))

    probs, value, (total, log) = both(params)
    chosen = np.take_along_axis(probs, experience.choice[..., None], axis=-1)[..., 0]
    ratio = chosen / np.exp(experience.log_prob)
    advantage = (experience.advantage - experience.advantage.mean()) / experience.advantage.std()
    gain = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage).mean()
    error = 0.5 * np.square(value - experience.ret).mean()
    entropy = -(probs * np.log(probs)).sum(axis=-1).mean()
    assert (np.abs(ratio - 1) > 0.1).mean() > 0.2
    np.testing.assert_allclose(total, -gain + 0.7 * error - 0.3 * entropy, rtol=1e-4)
    np.testing.assert_allclose(log["entropy"], entropy, rtol=1e-4)
    np.testing.assert_allclose(log["kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-3)


@pytest.mark.parametrize("returns", ["episode", "trial"])
def test_advantages_are_those_of_a_plain_loop_with_values_read_anew(returns):
    """Values of what was seen, and of the true final observation, from the whole history of each stream."""
    options = config("gru", returns=returns, discount=0.9, trace=0.7, trial_episodes=3, reward_scale=2.5)
    state = begin(options, jax.random.key(3))
    after, (record, experience) = played(options, state, jax.random.key(3))
    transition, step = record.transition, experience.timestep
    seen = jax.tree.map(lambda x, y: np.concatenate([x, y[:, None]], axis=1), step, after.timestep)  # [N, T + 1]
    values = on_host(lambda params, seen: params(None, seen)[1][1].mean())
    value, truncated, terminated = values(state.params, seen), transition.truncated, transition.terminated
    assert truncated.any(axis=0).sum() > 2 and record.trial_end.any()
    never = np.zeros(N, bool)
    for n in range(N):
        following, A = 0.0, np.zeros(T)
        for t in reversed(range(T)):
            next_value = value[n, t + 1]
            if returns == "episode" and truncated[n, t]:  # as if the episode went on
                last = jax.tree.map(lambda x: x[:, t], transition)  # noqa: B023
                going_on = TimeStep(last.next_obs, last._replace(truncated=never), never)
                instead = jax.tree.map(lambda x, y: np.where(_at(t + 1, x), y[:, None], x), seen, going_on)  # noqa: B023
                next_value = values(state.params, instead)[n, t + 1]
                assert abs(next_value - value[n, t + 1]) > 1e-3
            ends = terminated[n, t] if returns == "episode" else record.trial_end[n, t]
            stops = ends | truncated[n, t] if returns == "episode" else ends
            delta = 2.5 * transition.feedback[n, t] + 0.9 * next_value * (not ends) - value[n, t]
            following = delta + 0.9 * 0.7 * following * (not stops)
            A[t] = following
        np.testing.assert_allclose(experience.advantage[n], A, atol=1e-4)
        np.testing.assert_allclose(experience.ret[n], A + value[n, :T], atol=1e-4)


def _at(t, x):
    return (np.arange(T + 1) == t).reshape(1, T + 1, *[1] * (x.ndim - 2))


@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_a_continuing_rollout_equals_one_long_one(model):
    short, long = config(model), config(model, num_steps=2 * T)
    first = without_learning(begin(long, jax.random.key(4)))
    middle, part_1, _ = round_(short, first, jax.random.key(5))
    last, part_2, _ = round_(short, middle, jax.random.key(5))
    state, whole, _ = round_(long, first, jax.random.key(5))
    together = jax.tree.map(lambda a, b: np.concatenate([a, b]), part_1, part_2)
    chex.assert_trees_all_close(whole, together, atol=1e-5)
    chex.assert_trees_all_close(last.extra["rollouts"], state.extra["rollouts"], atol=1e-5)
    assert whole.transition.feedback.shape == (2 * T, N) and last.step == 2


@pytest.mark.parametrize("model, minibatches", [("mlp", T), ("gru", N)])
def test_an_epoch_visits_every_row_once_and_streams_whole(model, minibatches):
    """If nothing is learned, the mean over minibatches is that of the whole round, and every ratio is one."""
    one, many = config(model, normalise=False), config(model, normalise=False, num_minibatches=minibatches)
    state = without_learning(begin(one, jax.random.key(6)))
    state, _, _ = round_(one, state, jax.random.key(5))  # now there are memories
    after, _, log = round_(one, state, jax.random.key(6))
    after_many, _, log_many = round_(many, state, jax.random.key(6))
    for name in ("policy_loss", "value_loss", "entropy"):
        np.testing.assert_allclose(log[name], log_many[name], rtol=1e-4)
    assert abs(log_many["kl"]) < 1e-6
    chex.assert_trees_all_close(after.params, state.params)
    assert log_many["gradient_norm"] > 1.05 * log["gradient_norm"]  # noise, which the mean had lost


def test_rounds_follow_the_schedule_and_the_traced_rate():
    optim = dataclasses.replace(PLAIN, schedule="linear", learning_rate=0.1)
    options = config("mlp", optim=optim, num_updates=4)
    state, rates = begin(options, jax.random.key(0)), []
    state = at_rate(state, 0.2)
    for i in range(4):
        before = state.params
        state, _, log = round_(options, state, jax.random.key(i))
        rates.append(log["learning_rate"])
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state.params)
        np.testing.assert_allclose(max(jax.tree.leaves(moved)) / rates[-1], 1.0, atol=0.35)  # Adam's steps
    np.testing.assert_allclose(rates, [0.2, 0.15, 0.1, 0.05], rtol=1e-5)


def test_numbers_are_traced():
    """Each does something by itself, and all together what the options of the same names do."""
    own = {name: x for name, x in numbers(config())._asdict().items()}
    other = {"learning_rate": 0.03, "discount": 0.5, "trace": 0.2, "clip_ratio": 0.05}
    other |= {"entropy_weight": 0.3, "value_weight": 0.1}
    assert other.keys() == own.keys()
    rows = [{}, *({name: x} for name, x in other.items()), other]
    many = {name: jnp.stack([jnp.float32(row.get(name, own[name])) for row in rows]) for name in own}
    options = config("mlp", num_epochs=3, num_minibatches=5)
    rest = {name: x for name, x in other.items() if name != "learning_rate"}
    changed = dataclasses.replace(options, optim=dataclasses.replace(PLAIN, learning_rate=0.03), **rest)

    @on_host
    def run(key):
        def one(method, hparams=None):
            state = method.init(key, hparams)
            return jnp.concatenate([x.ravel() for x in jax.tree.leaves(method.update(state, key)[0].params)])

        return jax.vmap(lambda hparams: one(ppo(ENV, options), hparams))(many), one(ppo(ENV, changed))

    together, alone = run(jax.random.key(0))
    moved = np.abs(together - together[0]).max(axis=1)
    assert (moved[1:] > 1e-3).all(), moved
    np.testing.assert_allclose(together[-1], alone, atol=1e-4)


def test_gradients_are_clipped():
    """Adam with an enormous eps is gradient descent, which shows the norm."""
    eps = 1e4
    optim = dataclasses.replace(PLAIN, learning_rate=eps, eps=eps, clip=1e-3)
    options = config("mlp", optim=optim)
    state = begin(options, jax.random.key(0))
    after, _, log = round_(options, state, jax.random.key(0))
    moved = jax.tree.map(np.subtract, after.params, state.params)
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-2)
    assert log["gradient_norm"] > 0.01


def test_streams_of_a_learner_stay_in_its_task_and_a_method_meets_others():
    options = config("mlp", num_steps=23)
    learner, method = ppo_learner(ENV, options), ppo(ENV, options)

    @on_host
    def run(key):
        state = learner.init(key, ENV.default_params.replace(secret=jnp.int32(3)))
        state, record = learner.learn(state, key)
        many, _ = method.update(method.init(key), key)
        return record, state.extra["rollouts"], many.extra["rollouts"]

    record, rollouts, many = run(jax.random.key(0))
    assert record.transition.feedback.shape == (23, N)
    assert (record.env_info["secret"] == 3).all() and (rollouts.t == 23).all()
    np.testing.assert_array_equal(record.transition.terminated, record.transition.action == 3)
    np.testing.assert_array_equal(record.reset, np.broadcast_to(np.arange(23)[:, None] == 0, (23, N)))
    assert len(np.unique(record.transition.obs[0, :, 1])) == N  # each stream by itself
    assert set(many.env_params.secret) <= {0, 2, 4} and len(set(many.env_params.secret)) > 1
    assert (many.trial_episodes < 2).all() and (many.t == 23).all()


def test_many_learners_learn_in_turn_each_as_if_alone():
    """In turn: no product of the update has an axis of learners."""
    options = config("mlp", num_minibatches=5)
    keys = jax.random.split(jax.random.key(8), 3)
    states = [begin(options, key) for key in keys]
    many = jax.tree.map(lambda *x: jnp.stack(x), *states)

    def together(states, keys):
        return jax.vmap(lambda state, key: play_and_learn(ENV, options, state, key))(states, keys)

    after, record, _ = on_host(together)(many, keys)
    for i in range(3):
        alone, record_alone, _ = round_(dataclasses.replace(options, trial_episodes=None), states[i], keys[i])
        np.testing.assert_array_equal(record.transition.action[i], record_alone.transition.action)
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[i], after.params), alone.params, atol=1e-4)  # noqa: B023
    steps = N * T // 5  # in a minibatch
    program = str(jax.make_jaxpr(together)(many, keys))
    assert f"f32[{steps},1,6]" in program and f"f32[3,{steps},1,6]" not in program


# Learning

PROBES = Probes()
QUICK = PPOConfig(
    model=MLPConfig(width=16, num_layers=2),
    optim=OptimConfig(learning_rate=0.01, weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.5),
    **{"num_streams": 17, "num_steps": 6, "num_epochs": 4, "num_minibatches": 3},  # type: ignore[arg-type]
    **{"discount": 0.5, "trace": 0.9, "entropy_weight": 0.0, "value_weight": 1.0},  # type: ignore[arg-type]
)


def learned(env, config, rounds):
    """`(keys, tasks) -> (states, feedback [S, rounds])`, vmapped over learners."""
    learner = ppo_learner(env, config)

    def one(key, task):
        def body(state, key):
            state, record = learner.learn(state, key)
            return state, record.transition.feedback.mean()

        return jax.lax.scan(body, learner.init(key, task), jax.random.split(key, rounds))

    return on_host(jax.vmap(one))


@functools.cache
def on_probes(a2c_too=False):
    options = dataclasses.replace(QUICK, clip_ratio=None, num_epochs=1, num_minibatches=1) if a2c_too else QUICK
    keys = jax.random.split(jax.random.key(0), len(KINDS))
    return learned(PROBES, options, 250 if a2c_too else 60)(keys, PROBES.tasks())


@on_host
def opinion(params, obs):
    """The probabilities and the value of one observation."""
    timestep = start(uniform(PROBES), PROBES, PROBES.default_params, jax.random.key(0)).timestep
    timestep = timestep._replace(obs=jnp.full(1, obs, jnp.float32))
    _, (prediction, value) = params.step((), jax.tree.map(lambda x: x[None], timestep))
    return prediction.probs[0], value.mean()[0]


@pytest.mark.parametrize("which", ["ppo", "a2c"])
@pytest.mark.parametrize(
    "kind, obs, value, action",
    [
        ("constant", 0, 1.0, None),  # the critic learns at all
        ("seen", 1, 1.0, None),  # it sees
        ("seen", -1, -1.0, None),
        ("delayed", 1, 1.0, None),
        ("delayed", 0, 0.5, None),  # values travel back in time, discounted, and stop at the end
        ("acted", 0, 1.0, BEST),  # the actor learns at all
        ("matched", -1, 1.0, 0),  # it sees
        ("matched", 1, 1.0, 1),
        ("endless", 0, 2.0, None),  # a time limit is no end: 1 + 1/2 + 1/4 + ...
    ],
)
def test_probes_are_learned(which, kind, obs, value, action):
    state, _ = on_probes(which == "a2c")
    probs, found = opinion(jax.tree.map(lambda x: x[KINDS.index(kind)], state.params), obs)
    np.testing.assert_allclose(found, value, atol=0.1)
    if action is not None:
        assert probs[action] > 0.9


def test_a_run_that_was_saved_goes_on_as_if_nothing_was(tmp_path):
    method, keys = ppo(ENV, config("gru", num_steps=3)), jax.random.split(jax.random.key(0), 2)
    keep = lambda done, log, state: checkpoint.save(tmp_path, done, state) if done == 1 else None
    whole = fit(keys, method, Schedule(2, 2), callbacks=[keep])
    restored = checkpoint.restore(tmp_path, abstract_seeds(method, 2)).state
    resumed = fit(keys, method, Schedule(2, 2), first=1, state=restored)
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(resumed))


def test_vmap_over_tasks_and_seeds_equals_one_by_one():
    keys = jax.random.split(jax.random.key(1), 3)
    tasks = jax.tree.map(lambda x: x[jnp.array([3, 3, 4])], PROBES.tasks())  # two seeds of one task, and another
    together = learned(PROBES, QUICK, 3)(keys, tasks)
    single = learned(PROBES, QUICK, 3)
    for i in range(3):
        alone = single(keys[i : i + 1], jax.tree.map(lambda x: x[i : i + 1], tasks))  # noqa: B023
        got = jax.tree.map(lambda x: x[i : i + 1], together)  # noqa: B023
        chex.assert_trees_all_close(got[0].params, alone[0].params, atol=2e-3)
        np.testing.assert_allclose(got[1], alone[1], atol=1e-6)
    assert (together[1][0] != together[1][1]).any()


def test_continuous_actions_find_the_target():
    targets = jnp.array([[0.5, 2.0], [2.5, -0.5]])
    options = dataclasses.replace(QUICK, entropy_weight=0.001)
    tasks = jax.vmap(lambda target: AimParams(target=target))(targets)
    _, feedback = learned(Aim(), options, 120)(jax.random.split(jax.random.key(0), 2), tasks)
    assert (feedback[:, 0] < -1.5).all() and (feedback[:, -10:].mean(axis=1) > -0.15).all()


def test_with_a_memory_it_learns_to_learn():
    """RL^2: what an episode has shown pays in the next ones of its trial, on tasks never trained on in that trial."""
    options = config("gru", model=GRUConfig(width=24), trial_episodes=4, returns="trial", num_streams=64)
    optim = dataclasses.replace(PLAIN, learning_rate=0.01, clip=0.5)
    options = dataclasses.replace(options, optim=optim, num_steps=12, num_epochs=2, num_minibatches=4)
    method = ppo(ENV, options)

    @on_host
    def run(key):
        state, log = train(key, method, Schedule(10, 12))
        agent, keys = method.agent(state.params), jax.random.split(key, 64)
        one = lambda key: rollout(agent, ENV, start(agent, ENV, ENV.sample_task(key), key), key, 9)[1]
        return log, jax.vmap(one)(keys)

    log, record = run(jax.random.key(0))
    assert log["feedback"][-1] > 1.5 * log["feedback"][0]
    assert record.transition.feedback[:, 5:].mean() > 0.8  # has been shown the secret; by chance it would be 1/5


ROOMS = icrl_envs.make("dark_room", preset="ad_eps")


@functools.cache
def in_rooms(a2c_too=False):
    """Learners of three rooms at once, and the share of the best return in each of their rounds."""
    tasks = jax.tree.map(lambda x: x[:3], ROOMS.tasks("train"))
    model, rate, rounds = MLPConfig(width=32, num_layers=2), 2e-3, 60
    options = PPOConfig(model=model, num_streams=50, num_minibatches=10)
    if a2c_too:
        options, rate, rounds = a2c(model=model, num_streams=50), 5e-3, 300
    options = dataclasses.replace(options, optim=dataclasses.replace(options.optim, learning_rate=rate))
    states, feedback = learned(ROOMS, options, rounds)(jax.random.split(jax.random.key(0), 3), tasks)
    return states, 20 * feedback / np.asarray(jax.vmap(ROOMS.optimal_return)(tasks))[:, None]


@pytest.mark.parametrize("a2c_too, least", [(False, 0.75), (True, 0.4)])
def test_dark_rooms_are_learned(a2c_too, least):
    """Learning curves rise: from the return of random steps to near the best one, or by A2C part of the way."""
    share = in_rooms(a2c_too)[1]
    print(share[:, :: share.shape[1] // 10].round(2), share[:, -1])
    quarters = share.reshape(3, 4, -1).mean(axis=2)
    assert (share[:, 0] < 0.15).all() and (share[:, -5:].mean(axis=1) > least).all()
    assert (quarters[:, 1:] > quarters[:, :1]).all() and (np.diff(quarters.mean(axis=0)) > 0).all()


def test_a_learned_policy_demonstrates():
    """Under noise that falls it comes from chance to what it earns by itself."""
    params, task = (jax.tree.map(lambda x: x[1], x) for x in (in_rooms()[0].params, ROOMS.tasks("train")))
    num_steps = 20 * 20
    noisy = noise_curriculum(agent(params), ROOMS, num_steps)

    @on_host
    def play(player, keys):
        one = lambda key: rollout(player, ROOMS, start(player, ROOMS, task, key), key, num_steps)[1].transition.feedback
        return jax.vmap(one)(keys).reshape(-1, 20, 20).sum(axis=-1).mean(axis=0)  # of each episode

    alone, curve = (play(player, jax.random.split(jax.random.key(1), 31)) for player in (agent(params), noisy))
    assert curve[:2].mean() < 0.3 * alone.mean() and abs(curve[-2:].mean() - alone.mean()) < 0.1 * alone.mean()


def test_a2c_is_one_plain_step_on_each_round():
    options = a2c(num_streams=7, num_steps=5)
    assert (options.num_epochs, options.num_minibatches, options.clip_ratio, options.normalise) == (1, 1, None, False)
    assert options.optim.learning_rate == 1e-4 and options.num_streams == 7


WRONG = [
    ({"num_minibatches": 3}, r"num_minibatches=3 must divide num_streams=5"),
    ({"model": MODELS["mlp"], "num_minibatches": 3}, r"num_minibatches=3 must divide num_streams \* num_steps=55"),
    ({"num_steps": 0}, "num_steps=0 must be a positive integer"),
    ({"trial_steps": 0}, "trial_steps=0 must be a positive integer"),
    ({"discount": 1.5}, r"discount=1.5 must be in \[0, 1\]"),
    ({"trace": -0.1}, r"trace=-0.1 must be in \[0, 1\]"),
    ({"entropy_weight": -1.0}, "entropy_weight=-1.0 must be finite and at least 0"),
    ({"value_weight": float("inf")}, "value_weight=inf must be finite and at least 0"),
    ({"clip_ratio": 0.0}, "clip_ratio=0.0 must be None or finite and above 0"),
    ({"reward_scale": 0.0}, "reward_scale=0.0 must be finite and above 0"),
    ({"returns": "life"}, "returns='life' must be one of episode, trial"),
    ({"model": TransformerConfig(moe=MoEConfig(num_experts=3, noise=True))}, "noise=True must be False: PPO"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_sizes_that_the_devices_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    for options, message in (
        (config(), "num_streams=5: must be a multiple of the 2 devices"),
        (config(num_streams=6, num_minibatches=2), "num_streams / num_minibatches=3: must be a multiple of"),
        (config("mlp", num_streams=6, num_minibatches=2), r"num_streams \* num_steps / num_minibatches=33: must be"),
    ):
        method = ppo(ENV, options)
        with pytest.raises(ValueError, match=message):
            method.update(None, None)


def test_hyper_parameters_that_are_none_are_refused():
    for options, name in (({}, "gamma"), ({"clip_ratio": None}, "clip_ratio")):
        with pytest.raises(ValueError, match=rf"hparams=\['{name}'\]: must be among .*discount, entropy_weight"):
            ppo(ENV, config("mlp", **options)).init(jax.random.key(0), {name: 0.5})


def test_what_a_run_computes():
    options = config("gru", num_streams=6, num_minibatches=3, num_epochs=2, num_updates=7)
    assert options.env_steps(ENV, 2) == 2 * 7 * 6 * T
    inputs = options.num_updates * options.batch_size * options.tokens_per_row(ENV)
    assert options.batch_size == 2 and inputs == 7 * 2 * 6 * T  # of all streams, twice
    steps = config("mlp", num_streams=6, num_minibatches=3, num_epochs=2, num_updates=7)
    assert steps.batch_size == 22 and 7 * steps.batch_size * steps.tokens_per_row(ENV) == 7 * 2 * 6 * T


def test_trials_that_never_end_are_refused():
    bandit = icrl_envs.make("gaussian_bandit", num_arms=NUM_ACTIONS)
    with pytest.raises(ValueError, match="trial_steps=None: must be given with env=GaussianBandit"):
        ppo(bandit, config(trial_episodes=1))
    ppo(bandit, config(trial_steps=7))


def test_sequences_that_the_model_cannot_number_are_refused():
    learned = functools.partial(TransformerConfig, width=6, num_layers=1, num_heads=1)
    ppo(ENV, config(model=learned(context_len=6)))  # two episodes of three steps
    with pytest.raises(ValueError, match="inputs until the memory forgets=6 is more than context_len=5"):
        ppo(ENV, config(model=learned(context_len=5)))
    ppo(ENV, config(model=learned(context_len=5), trial_steps=5))
    with pytest.raises(ValueError, match="is more than context_len=6"):
        ppo_learner(ENV, config(model=learned(context_len=6)))
    ppo_learner(ENV, config(model=learned(context_len=6, width=8, num_heads=2, positions="episodes")))
