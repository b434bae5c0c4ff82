"""DIT: its weights by hand, its labels and losses against plain NumPy, its agent against DPT's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_envs import revealed
from icrl_jax.agents import oracle
from icrl_jax.core import Transition
from icrl_jax.data.behaviours import noisy_expert
from icrl_jax.data.contexts import asked
from icrl_jax.evaluate import evaluate
from icrl_jax.methods import dit as module
from icrl_jax.methods.dit import DITConfig, Learned, dit, draw_sample, weighted_loss
from icrl_jax.methods.dpt_mdp import DPTMDPConfig, asked_loss, dpt_mdp
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.actor_critic import ActorCritic
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start
from icrl_jax.train import Schedule, fit

SIZE, HORIZON = 5, 3  # of the room, and of its episodes
ROOM = icrl_envs.make("dark_room", "dit", size=SIZE, horizon=HORIZON)
BANDIT = tiny.BANDIT
B, T, A = 5, 7, 5


def config(**options):
    model = TransformerConfig(width=8, num_layers=2, num_heads=2, context_len=T + 1, positions="none")
    return DITConfig(**{"model": model, "num_updates": 12, "batch_size": 5, "horizon": T, **options})


@functools.lru_cache
def init(env=ROOM, weights="critic"):
    chosen = config(weights=weights, labels="best_arm" if env is BANDIT else "pairs")
    params = jax.jit(lambda key: dit(env, chosen).init(key).params)(jax.random.key(0))
    # Opinions strong enough to tell decisions apart, also where a head begins with none.
    return jax.tree.map(lambda p: 2.5 * p + 0.5 * np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape), params)


def paid(feedback, ends=(), terminated=()):
    """A trajectory of which only these rewards, and where episodes ended, matter."""
    feedback, nothing = np.float32(feedback), np.zeros(len(feedback), bool)
    over, cut = nothing.copy(), nothing.copy()
    over[list(terminated)], cut[list(ends)] = True, True
    return Transition(feedback[:, None], nothing.astype(np.int32), feedback, feedback[:, None], over, cut)


# -- weights ----------------------------------------------------------------------------------------------------------

# Rewards, where an episode ends, C with discount 1/2, and its mean.
WEIGHTS = [
    ([0, 0, 1, 2, 0], (), [0.5, 1.0, 2.0, 2.0, 0.0], 1.1),
    ([0, 0, 1, 2, 0], (1,), [0.0, 0.0, 2.0, 2.0, 0.0], 0.8),
    ([4, 0, 0, 0, -2], (), [3.875, -0.25, -0.5, -1.0, -2.0], 0.025),
]


@pytest.mark.parametrize("kind", ["truncated", "terminated"])
@pytest.mark.parametrize(("feedback", "ends", "returns", "mean"), WEIGHTS)
def test_weights_by_returns_equal_hand_computed_values(feedback, ends, returns, mean, kind):
    context = paid(feedback, **{"ends" if kind == "truncated" else "terminated": ends})
    np.testing.assert_allclose(on_host(module.returns_to_go, static_argnums=1)(context, 0.5), returns, atol=1e-6)
    expected = [500 * max(c - mean, 0) ** 2 for c in returns]
    found = on_host(module.return_weights, static_argnums=(1, 2))(context, 0.5, 500.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_papers_discount_and_scale_are_the_defaults():
    """gamma 0.8 and lambda 500: C = 0.64, 0.8, 1, 0 of mean 0.61."""
    found = on_host(module.return_weights, static_argnums=(1, 2))(
        paid([0, 0, 1, 0]), DITConfig().discount, DITConfig().scale
    )
    np.testing.assert_allclose(found, [500 * 0.03**2, 500 * 0.19**2, 500 * 0.39**2, 0], rtol=1e-4)


PULLS = [
    ([(0, -1.0), (0, -3.0), (1, -1.5), (1, -0.5)], 1, 0.5),  # means -2 and -1; arm 2, never pulled, is not their better
    ([(2, 0.5), (2, 0.7), (2, 0.0)], 2, 0.0),
    ([(0, 1.0), (1, 3.0), (2, 2.0), (1, 4.0)], 1, 3.5 - 6.5 / 3),
]


@pytest.mark.parametrize(("pulls", "best", "margin"), PULLS)
def test_the_best_arm_and_its_margin_equal_hand_computed_values(pulls, best, margin):
    arms, rewards = (np.array(x) for x in zip(*pulls, strict=True))
    context = paid(rewards)._replace(action=arms.astype(np.int32))
    arm, found = on_host(module.best_arm, static_argnums=1)(context, 3)
    assert arm == best
    np.testing.assert_allclose(found, margin, atol=1e-6)


@functools.lru_cache
def drawn(env=ROOM, **options):
    """B tasks and examples of them."""
    chosen = config(**options)

    @on_host
    @jax.vmap
    def draw(key):
        return env.sample_task(jax.random.split(key, 3)[0], "train"), draw_sample(env, chosen, key)

    return draw(jax.random.split(jax.random.key(4), B))


@on_host
def answers(model, inputs):
    """What a policy says at every input of one sequence, probabilities [T', A]; or what a critic expects, [T']."""
    _, found, _ = model(None, jax.tree.map(lambda x: x[None], inputs))
    return found[1].mean()[0] if isinstance(model, ActorCritic) else found.probs[0]


def after(model, context, n, query_obs):
    """Its answer to one query after the first n transitions of a context; what pads them comes after the answer."""
    whole = jax.tree.map(lambda x: np.concatenate([x[:n], np.zeros_like(x[n:])]), context)
    queries = np.repeat(query_obs[None], T + 1, axis=0)  # the others are forgotten, or the same in any case
    return answers(model, jax.tree.map(np.asarray, asked(whole, queries)))[n]


@pytest.mark.parametrize(("temperature", "max_weight"), [(0.5, 20.0), (2.0, 1.01)])
def test_weights_by_a_critic_are_exponential_in_advantages_that_nothing_later_tells(temperature, max_weight):
    critic, context = init().critic, drawn(expert_share=0.5)[1].context
    chosen = config(weights="critic", temperature=temperature, max_weight=max_weight)
    weight, loss = on_host(lambda critic, context: module.advantage_weights(critic, context, chosen))(critic, context)
    returns, values = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        one = jax.tree.map(lambda x: x[b], context)  # noqa: B023
        for h in reversed(range(T)):
            follows = returns[b, h + 1] if h + 1 < T and h % HORIZON != HORIZON - 1 else 0.0
            returns[b, h] = one.feedback[h] + 0.8 * follows
            values[b, h] = after(critic, one, h, one.obs[h])
    assert returns.max() > 1 and np.ptp(values) > 0.5
    expected = np.minimum(np.exp((returns - values) / temperature), max_weight)
    np.testing.assert_allclose(weight, expected, rtol=1e-4)
    np.testing.assert_allclose(loss, (0.5 * (values - returns) ** 2).mean(), rtol=1e-5)
    assert (expected == max_weight).any() and (expected < 1).any()


def test_the_critic_learns_the_returns_and_not_to_please_the_policy():
    """What the policy says does not move it, nor do the weights that it gives."""
    gradient = jax.jit(jax.grad(weighted_loss, has_aux=True), static_argnums=(3, 4))
    batch = drawn(expert_share=0.5)[1]
    of = lambda learned, batch: gradient(learned, batch, jax.random.key(0), config(weights="critic"), A)[0]
    learned = init()
    louder = learned._replace(policy=jax.tree.map(lambda p: 3 * p, learned.policy))
    once, again = of(learned, batch), of(louder, batch)
    jax.tree.map(np.testing.assert_array_equal, once.critic, again.critic)
    assert jax.tree.leaves(once.critic) and any((x != 0).any() for x in jax.tree.leaves(once.critic))
    assert not all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (once.policy, again.policy)), strict=True))


# -- labels -----------------------------------------------------------------------------------------------------------


def test_pairs_are_drawn_as_they_count_and_stay_together():
    context, weight = drawn()[1].context, np.float32([0, 1, 0, 2, 5, 0, 0])
    context = jax.tree.map(lambda x: x[0], context)
    context = context._replace(obs=np.arange(T)[:, None], action=10 + np.arange(T))
    query_obs, action, counts = on_host(module.draw_pairs, static_argnums=3)(
        jax.random.key(0), context, jnp.asarray(weight), 4001
    )
    np.testing.assert_array_equal(action, 10 + query_obs[:, 0])
    np.testing.assert_allclose(counts, weight.mean(), rtol=1e-6)
    shares = np.bincount(query_obs[:, 0], minlength=T) / 4001
    assert (shares[weight == 0] == 0).all()
    np.testing.assert_allclose(shares, weight / weight.sum(), atol=5 * (0.25 / 4001) ** 0.5)


@functools.partial(on_host, static_argnums=(3, 4))
def loss(learned, batch, key, chosen, num_actions=A):
    return weighted_loss(learned, batch, key, chosen, num_actions)


@pytest.mark.parametrize("weights", ["returns", "uniform"])
def test_the_loss_of_pairs_is_in_expectation_that_of_every_pair_after_every_prefix(weights):
    """sum_h' w_h' sum_h -log T(a_h' | s_h', D_h) over all h' < T and h <= T (W)."""
    policy, chosen = init().policy, config(weights=weights, expert_share=0.6)
    batch, expected = drawn(expert_share=0.6)[1], []
    for b in range(B):
        one = jax.tree.map(lambda x: x[b], batch.context)  # noqa: B023
        weight = np.ones(T) if weights == "uniform" else np.asarray(module.return_weights(one, 0.8, 500.0))
        for step in range(T):
            for n in range(T + 1):
                expected.append(-weight[step] * np.log(after(policy, one, n, one.obs[step])[one.action[step]]))
    many = jax.jit(jax.vmap(lambda key: weighted_loss(Learned(policy, None), batch, key, chosen, A)[0]))
    found = np.asarray(many(jax.random.split(jax.random.key(1), 503)))
    assert abs(found.mean() - np.mean(expected)) < 5 * found.std() / 503**0.5
    assert found.std() < found.mean()


def test_one_step_that_counts_is_asked_after_every_prefix():
    """With discount 0 only step 4, which was paid, is above the mean: (1 - 1/T)^2 of it, shared by T steps."""
    policy, batch = init().policy, jax.tree.map(lambda x: x[:1], drawn()[1])
    batch = batch._replace(context=batch.context._replace(feedback=np.float32(np.arange(T) == 4)[None]))
    one = jax.tree.map(lambda x: x[0], batch.context)
    losses = [-np.log(after(policy, one, n, one.obs[4])[one.action[4]]) for n in range(T + 1)]
    found, log = loss(Learned(policy, None), batch, jax.random.key(0), config(discount=0.0, scale=3.0))
    weight = 3 * (1 - 1 / T) ** 2 / T
    np.testing.assert_allclose(found, weight * np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(log["last_loss"], weight * losses[-1], rtol=1e-5)
    assert np.ptp(losses) > 0.01


def test_a_trajectory_without_reward_teaches_nothing():
    batch = drawn()[1]
    batch = batch._replace(context=batch.context._replace(feedback=np.zeros((B, T), np.float32)))
    gradient = jax.jit(jax.grad(weighted_loss, has_aux=True), static_argnums=(3, 4))
    found, log = gradient(Learned(init().policy, None), batch, jax.random.key(0), config(), A)
    assert all((x == 0).all() for x in jax.tree.leaves(found)) and log["nonzero_weights"] == 0


@pytest.mark.parametrize("weights", ["returns", "uniform"])
def test_cloning_predicts_what_was_done_next(weights):
    policy, batch = init().policy, drawn(expert_share=0.6)[1]
    expected = np.zeros((B, T))
    for b in range(B):
        one = jax.tree.map(lambda x: x[b], batch.context)  # noqa: B023
        weight = np.ones(T) if weights == "uniform" else np.asarray(module.return_weights(one, 0.8, 500.0))
        for h in range(T):
            expected[b, h] = -weight[h] * np.log(after(policy, one, h, one.obs[h])[one.action[h]])
    found, log = loss(Learned(policy, None), batch, jax.random.key(0), config(labels="next", weights=weights))
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(log["last_loss"], expected[:, -1].mean(), rtol=1e-5)


@pytest.mark.parametrize("weights", ["returns", "uniform"])
def test_in_bandits_the_best_arm_of_the_whole_context_is_the_label_everywhere(weights):
    chosen = {"labels": "best_arm", "behaviour": "mixture"}
    policy, batch = init(BANDIT, "returns").policy, drawn(BANDIT, **chosen)[1]
    expected = []
    for b in range(B):
        one = jax.tree.map(lambda x: x[b], batch.context)  # noqa: B023
        means = [one.feedback[one.action == a].mean() for a in range(3) if (one.action == a).any()]
        arms = [a for a in range(3) if (one.action == a).any()]
        weight = 500 * (max(means) - np.mean(means)) ** 2 if weights == "returns" else 1.0
        for n in range(T + 1):
            expected.append(-weight * np.log(after(policy, one, n, one.obs[0])[arms[int(np.argmax(means))]]))
    found, _ = loss(Learned(policy, None), batch, jax.random.key(0), config(weights=weights, **chosen), 3)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)


def test_optimal_labels_on_the_same_contexts_are_dpt():
    policy, (_, batch) = init().policy, drawn(labels="optimal", weights="uniform")
    found, _ = loss(Learned(policy, None), batch, jax.random.key(0), config(labels="optimal", weights="uniform"))
    expected, _ = on_host(asked_loss)(policy, batch, jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, batch.context, drawn()[1].context)


# -- contexts ---------------------------------------------------------------------------------------------------------


def test_contexts_are_trajectories_of_their_task_in_order():
    tasks, examples = drawn()
    context, ended = examples.context, np.arange(T) % HORIZON == HORIZON - 1
    np.testing.assert_array_equal(context.truncated, np.broadcast_to(ended, (B, T)))
    np.testing.assert_array_equal(context.obs[:, 1:][:, ~ended[:-1]], context.next_obs[:, :-1][:, ~ended[:-1]])
    np.testing.assert_array_equal(context.feedback, (context.next_obs == tasks.goal[:, None]).all(axis=-1))
    goals = {tuple(goal) for goal in np.asarray(ROOM.tasks("train").goal)}
    assert {tuple(goal) for goal in tasks.goal} <= goals and len(np.unique(tasks.goal, axis=0)) > 1


def test_a_noisy_expert_is_right_as_often_as_its_share_says():
    """p + (1 - p) / A, at every step of every context alike, and otherwise any other action."""
    task = ROOM.default_params.replace(goal=jnp.array([4, 4]))
    world, agent = revealed(ROOM), noisy_expert(ROOM, 0.3)
    best_at = lambda cell: jnp.where(cell[0] < 4, 0, jnp.where(cell[1] < 4, 2, 4))

    def one(key):
        _, record = rollout(agent, world, start(agent, world, task, key), key, T)
        return record.transition.action, jax.vmap(best_at)(record.transition.obs)

    action, best = on_host(jax.vmap(one))(jax.random.split(jax.random.key(0), 601))
    right, num = action == best, 601 * T
    assert abs(right.mean() - (0.3 + 0.7 / A)) < 4 * (0.25 / num) ** 0.5
    assert abs(right.mean(axis=1).std() - (0.44 * 0.56 / T) ** 0.5) < 0.02  # no context is better than another
    wrong = (action - best)[~right] % A
    np.testing.assert_allclose(np.bincount(wrong, minlength=A)[1:] / wrong.size, 0.25, atol=0.04)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_outside_the_unit_interval_are_refused(share):
    with pytest.raises(ValueError, match=rf"share={share}: must be in \[0, 1\]"):
        noisy_expert(ROOM, share)


# -- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["step", "episode"])
@pytest.mark.parametrize("online", [True, False])
def test_it_acts_as_dpt_does(update, online):
    model, learned = config().model, init()
    of_dpt = dpt_mdp(ROOM, DPTMDPConfig(model=model, horizon=T, update=update)).agent
    of_dit = dit(ROOM, config(update=update)).agent
    context = jax.tree.map(lambda x: x[0], drawn()[1].context)
    agents = of_dpt(learned.policy, context, online), of_dit(learned, context, online)

    @on_host
    def act(agent):
        key = jax.random.key(1)
        return rollout(agent, ROOM, start(agent, ROOM, ROOM.default_params, key), key, T)[1]

    jax.tree.map(np.testing.assert_array_equal, *map(act, agents))


# -- options ----------------------------------------------------------------------------------------------------------

BAD = [
    ({"horizon": 8}, "horizon=8: must be below model.context_len=8"),
    ({"behaviour": "expert"}, "behaviour='expert': must be one of 'noisy_expert', 'mixture'"),
    ({"labels": "best"}, "labels='best': must be one of 'pairs', 'next', 'best_arm', 'optimal'"),
    ({"weights": "advantage"}, "weights='advantage': must be one of 'returns', 'critic', 'uniform'"),
    ({"update": "never"}, "update='never': must be one of 'step', 'episode'"),
    ({"expert_share": 1.1}, r"expert_share=1.1: must be a number in 0 \.\.= 1"),
    ({"discount": -0.1}, r"discount=-0.1: must be a number in 0 \.\.= 1"),
    ({"scale": -1.0}, "scale=-1.0: must be a finite number of at least 0"),
    ({"temperature": 0.0}, "temperature=0.0: must be a finite number above 0"),
    ({"max_weight": 0}, "max_weight=0: must be a finite number above 0"),
    ({"labels": "optimal"}, "weights='returns': must be 'uniform' with labels='optimal'"),
    (
        {"labels": "best_arm", "weights": "critic"},
        "weights='critic': must be 'returns' or 'uniform' with labels='best_arm'",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_families_without_what_dit_needs_are_refused():
    unsolved = TwoEpisodes()
    unsolved.optimal_action = None
    with pytest.raises(ValueError, match="env='TwoEpisodes': must be a family with optimal_action"):
        dit(unsolved, config())
    with pytest.raises(ValueError, match="labels='best_arm': must be another, as DarkRoom has no arms"):
        dit(ROOM, config(labels="best_arm"))
    with pytest.raises(ValueError, match="labels='optimal': must be another, as TwoEpisodes has no reset_anywhere"):
        dit(TwoEpisodes(), config(labels="optimal", weights="uniform"))
    assert dit(TwoEpisodes(), config())


def learned(room, **options):
    """The return of each online episode of a small policy after 200 updates, on the goals that it was trained on."""
    model = TransformerConfig(width=16, num_layers=2, num_heads=2, context_len=10, positions="none", dtype="float32")
    optim = OptimConfig(learning_rate=1e-2, clip=None)
    sizes = {"model": model, "optim": optim, "num_updates": 200, "batch_size": 32, "horizon": 9}
    method = dit(room, DITConfig(integers="tables", **sizes, **options))
    state = fit(jax.random.split(jax.random.key(0), 1), method, Schedule(1, 200))
    agent = method.agent(jax.tree.map(lambda x: x[0], state.params))
    tasks = jax.tree.map(lambda x: x.repeat(31, axis=0), room.tasks("train"))
    return np.asarray(evaluate(agent, room, tasks, jax.random.key(1), num_episodes=5).curves["return"]).mean(axis=0)


@pytest.mark.slow
def test_a_small_dit_does_better_than_whom_it_learns_from_and_cloning_does_not():
    room = icrl_envs.make("dark_room", "dit", size=3, horizon=9)
    tasks = jax.tree.map(lambda x: x.repeat(31, axis=0), room.tasks("train"))
    by, best = (
        np.asarray(evaluate(agent, revealed(room), tasks, jax.random.key(1), num_episodes=5).curves["return"]).mean()
        for agent in (noisy_expert(room, 0.2), oracle(room))
    )
    by_returns, by_advantages, cloned = (
        learned(room, **options) for options in ({}, {"weights": "critic"}, {"labels": "next", "weights": "uniform"})
    )
    print(by, best, by_returns, by_advantages, cloned)
    assert by_returns[-1] > 1.3 * by and by_advantages[-1] > 1.3 * by and cloned[-1] < 1.1 * by < best
