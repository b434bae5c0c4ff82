import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_envs import preferences
from icrl_envs.bandits import LinearBandit
from icrl_envs.wrappers import Wrapper
from icrl_jax.agents.proposing import proposing
from icrl_jax.core import Agent, partial
from icrl_jax.data.contexts import asked, timesteps_of
from icrl_jax.data.preferences import compare, compare_anywhere
from icrl_jax.methods.icpo import (
    ICPOConfig,
    Sample,
    draw_sample,
    icpo,
    is_choice,
    loss_of,
    preference_loss,
    tokens_of,
)
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start
from icrl_jax.train import Schedule, train

A, B, T = 5, 3, 7
MODEL = TransformerConfig(width=8, num_layers=1, num_heads=2, context_len=8, positions="none")
DUELS = icrl_envs.make("dueling_bandit", num_arms=A, temperature=0.5)
INNER = icrl_envs.make("dark_room", "icprl", size=3, horizon=5)
ROOM = preferences(INNER, temperature=0.5)
WORLDS = {"bandit": DUELS, "room": ROOM}


def config(**options) -> ICPOConfig:
    return ICPOConfig(**{"model": MODEL, "num_updates": 12, "batch_size": 5, "horizon": T, **options})


OPTIONS = config(beta=0.3, preferred_factor=0.9, other_factor=0.6, behaviours=("random", "noisy_expert"), num_asked=2)
VISITED = config(reference="learned", behaviours=("noisy_expert",), asked="visited")


@functools.cache
def learned(world="bandit", **options):
    """Untrained, with opinions strong enough to tell decisions apart."""
    init = jax.jit(lambda key: icpo(WORLDS[world], config(**options)).init(key).params)
    return jax.tree.map(lambda p: 1.5 * p, init(jax.random.key(0)))


@functools.partial(on_host, static_argnums=(0, 1))
def draw(env, options, key):
    return jax.vmap(lambda key: draw_sample(env, options, key))(jax.random.split(key, B))


@functools.partial(on_host, static_argnames="options")
def loss_and_gradient(params, batch, options):
    return jax.value_and_grad(loss_of, has_aux=True)(params, batch, jax.random.key(0), options)


@pytest.mark.parametrize("f, g", [(1.0, 1.0), (1.0, 0.3), (0.4, 1.0)])
@pytest.mark.parametrize("label", [1.0, 0.0, 0.5])
def test_the_gradient_of_two_actions_is_the_one_derived_by_hand(f, g, label):
    """With logits z, p = softmax(z), w preferred to l and m = beta (f log p_w - g log p_l):
    d loss / d z_w = -beta sigmoid(-m) (f p_l + g p_w), and minus that for z_l."""
    beta, z = 0.7, np.array([0.4, -1.1])
    found = jax.grad(lambda z: preference_loss(jax.nn.log_softmax(z), jnp.float32(label), beta, f, g))(jnp.float32(z))
    p = np.exp(z) / np.exp(z).sum()
    by_hand = np.zeros(2)
    for w, share in ((0, label), (1, 1 - label)):
        other = 1 - w
        m = beta * (f * np.log(p[w]) - g * np.log(p[other]))
        slope = -beta / (1 + np.exp(m)) * (f * p[other] + g * p[w])
        by_hand += share * slope * np.where(np.arange(2) == w, 1, -1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


def swapped(batch: Sample, context=True) -> Sample:
    pair, label = batch.answer
    batch = batch._replace(answer=(pair[:, :, :, ::-1], 1 - label))
    turned = batch.context._replace(action=batch.context.action[:, :, ::-1], feedback=1 - batch.context.feedback)
    return batch._replace(context=turned) if context else batch


def test_swapping_pairs_and_labels_changes_nothing():
    batch = draw(DUELS, OPTIONS, jax.random.key(1))
    (loss, _), gradient = loss_and_gradient(learned(), batch, OPTIONS)
    (again, _), other = loss_and_gradient(learned(), swapped(batch), OPTIONS)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    chex.assert_trees_all_close(gradient, other, atol=1e-6)
    relabelled = batch._replace(answer=(batch.answer[0], 1 - batch.answer[1]))
    assert abs(loss_and_gradient(learned(), relabelled, OPTIONS)[0][0] - loss) > 1e-3


def test_pairs_shown_with_their_labels_tell_who_came_first_and_labels_to_learn_do_not():
    told, params = config(layout="labelled"), learned(layout="labelled")
    batch = draw(DUELS, OPTIONS, jax.random.key(1))
    loss, again, shown = (
        on_host(loss_of, static_argnums=3)(params, one, jax.random.key(0), told)[0]
        for one in (batch, swapped(batch, context=False), swapped(batch))
    )
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    assert abs(shown - loss) > 1e-5


class PoisonedBandit(LinearBandit):
    def sample_reward(self, key, mean, params):
        return jnp.float32(jnp.nan)


class Poisoned(Wrapper):
    reset_anywhere = property(lambda self: self.env.reset_anywhere)

    def step_env(self, key, state, action, params):
        obs, state, _, terminated, info = self.env.step_env(key, state, action, params)
        return obs, state, jnp.float32(jnp.nan), terminated, info


POISONED = {
    "bandit": preferences(PoisonedBandit(A, 2, 0.0), temperature=0.5),
    "room": preferences(Poisoned(INNER), temperature=0.5),
}


@pytest.mark.parametrize("world, options", [("bandit", VISITED), ("room", OPTIONS)])
def test_no_reward_reaches_a_training_batch(world, options):
    """Rewards that are all NaN change nothing in what is learned from."""
    clean, poisoned = (draw(worlds[world], options, jax.random.key(2)) for worlds in (WORLDS, POISONED))
    chex.assert_trees_all_equal(clean, poisoned)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(poisoned))


@functools.partial(on_host, static_argnames=("env", "num_steps"))
def act(agent, env, key, num_steps=T):
    return rollout(agent, env, start(agent, env, env.default_params, key), key, num_steps)[1]


@pytest.mark.parametrize("world", WORLDS)
def test_no_reward_reaches_an_agent_and_it_acts_as_it_is_trained(world):
    """Online the probabilities are those of the parallel pass of training, whatever the rewards are."""
    agent = icpo(WORLDS[world], config()).agent(learned(world))
    record, poisoned = (act(agent, worlds[world], jax.random.key(3)) for worlds in (WORLDS, POISONED))
    chex.assert_trees_all_equal(record.transition, poisoned.transition)
    assert np.isnan(poisoned.env_info["reward"]).all() and np.isfinite(record.env_info["reward"]).all()
    assert record.transition.action.shape == (T, 2)
    inputs = jax.tree.map(lambda x: x[None], timesteps_of(record.transition))
    probs = on_host(lambda policy, inputs: policy(None, inputs)[1].probs)(learned(world).policy, inputs)[0]
    np.testing.assert_allclose(record.info["probs"], probs, rtol=1e-4, atol=1e-6)
    assert np.abs(np.diff(probs, axis=0)).max() > 0.01
    chosen = np.take_along_axis(probs, record.transition.action, axis=1)
    np.testing.assert_allclose(record.info["log_prob"], np.log(chosen), rtol=1e-3)


def test_offline_it_proposes_what_is_likeliest_given_its_context():
    context = jax.tree.map(lambda x: x[0], draw(ROOM, OPTIONS, jax.random.key(4)).context)
    record = act(icpo(ROOM, config()).agent(learned("room"), context, online=False), ROOM, jax.random.key(5))
    inputs = asked(context, jnp.repeat(record.transition.obs[:1], T + 1, axis=0))
    probs = on_host(lambda policy, inputs: policy(None, inputs)[1].probs)(
        learned("room").policy, jax.tree.map(lambda x: x[None], inputs)
    )
    np.testing.assert_allclose(record.info["probs"][0], probs[0, -1], rtol=1e-4, atol=1e-6)
    best = record.info["probs"].argmax(axis=-1)
    np.testing.assert_array_equal(record.transition.action, np.stack([best, best], axis=-1))


@pytest.mark.parametrize("proposal, temperature", [("samples", 2.0), ("distinct", 1.0), ("challenger", 1.0)])
def test_proposals_follow_their_law(proposal, temperature):
    agent, num = proposing(learned().policy, proposal, temperature=temperature), 4001
    first = jax.jit(lambda key: start(agent, DUELS, DUELS.default_params, key))(jax.random.key(0))
    run = on_host(jax.vmap(lambda key: agent.act(first.carry, key, first.timestep)[1:]))
    pairs, info = run(jax.random.split(jax.random.key(6), num))
    inputs = jax.tree.map(lambda x: x[None], first.timestep)
    logits = on_host(lambda policy, inputs: policy.step(policy.body.init_carry(1), inputs)[1].logits)
    p = np.exp(logits(learned().policy, inputs)[0] / temperature)
    p = p / p.sum()
    np.testing.assert_allclose(info["probs"][0], p, rtol=1e-5)
    assert p.max() < 0.9
    expected = p[:, None] * p[None]
    if proposal == "distinct":
        expected = expected * (1 - np.eye(A)) / (1 - p)[:, None]
    if proposal == "challenger":
        expected = np.eye(A)[p.argmax()][:, None] * p[None]
    found = np.histogram2d(*pairs.T, bins=np.arange(A + 1))[0] / num
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(expected.max() / num))
    np.testing.assert_array_less(found[expected == 0], 1e-9)


def test_the_loss_by_hand_where_pairs_of_one_action_count_nothing():
    options, batch = OPTIONS, draw(DUELS, OPTIONS, jax.random.key(7))
    pair, label = batch.answer
    assert (pair[..., 0] == pair[..., 1]).any()
    (loss, log), _ = loss_and_gradient(learned(), batch, options)
    inputs = jax.vmap(asked)(batch.context, batch.query_obs)
    log_p = np.log(on_host(lambda policy, inputs: policy(None, inputs)[1].probs)(learned().policy, inputs))
    losses, preferred = np.zeros((B, T + 1, 2)), np.zeros((B, T + 1, 2))
    for b, t, k in np.ndindex(B, T + 1, 2):
        w, other = pair[b, t, k] if label[b, t, k] else pair[b, t, k][::-1]
        margin = 0.3 * (0.9 * log_p[b, t, w] - 0.6 * log_p[b, t, other])
        losses[b, t, k] = 0 if w == other else np.log1p(np.exp(-margin))
        preferred[b, t, k] = log_p[b, t, w]
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(log["last_loss"], losses[:, -1].mean(), rtol=1e-4)
    np.testing.assert_allclose(log["preferred_log_prob"], preferred.mean(), rtol=1e-4)
    alone = batch._replace(answer=(np.repeat(pair[..., :1], 2, axis=-1), label))
    _, gradient = loss_and_gradient(learned(), alone, options)
    assert all((x == 0).all() for x in jax.tree.leaves(gradient))


def test_a_choice_is_between_actions_that_differ_anywhere():
    pairs = jnp.array([[[[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 3.0]]]])  # [1, 2, 2, 2]
    np.testing.assert_array_equal(is_choice(pairs, 2), [[False, True]])
    np.testing.assert_array_equal(is_choice(jnp.array([[[1, 1], [1, 2]]]), 2), [[False, True]])


def test_comparisons_apart_are_proposed_as_those_of_the_context():
    """By one who draws an arm for each context, and proposes no other."""
    same = Agent(partial(_draw_arm), partial(_propose_it))
    made = on_host(jax.vmap(lambda key: compare(DUELS, same, DUELS.default_params, key, 3, 5)))
    context, apart = made(jax.random.split(jax.random.key(11), 7))
    arm = context.action[:, :1, :1]
    assert (context.action == arm).all() and (apart.action == arm).all() and len(np.unique(arm)) > 1
    assert apart.feedback.shape == (7, 5) and (apart.feedback[:, :3] != context.feedback).any()


def _draw_arm(key):
    return jax.random.randint(key, (), 0, A)


def _propose_it(arm, key, timestep):
    return arm, jnp.stack([arm, arm]), {}


def test_a_learned_reference_is_what_is_proposed_and_is_moved_by_that_alone():
    options, params = VISITED, learned(reference="learned")
    batch = draw(DUELS, options, jax.random.key(8))
    (loss, _), gradient = loss_and_gradient(params, batch, options)
    same = params._replace(reference=params.policy)
    (at_reference, _), _ = loss_and_gradient(same, batch, options)
    inputs = jax.vmap(asked)(batch.context, batch.query_obs)
    log_p = np.log(on_host(lambda policy, inputs: policy(None, inputs)[1].probs)(params.policy, inputs))
    pair = batch.answer[0]
    proposed = np.take_along_axis(log_p, pair[:, :, 0], axis=2).mean()
    counted = (pair[..., 0] != pair[..., 1]).mean()
    np.testing.assert_allclose(at_reference, np.log(2) * counted - proposed, rtol=1e-4)
    turned = batch._replace(answer=(pair, 1 - batch.answer[1]))
    _, other = loss_and_gradient(params, turned, options)
    chex.assert_trees_all_close(gradient.reference, other.reference, atol=1e-7)  # whoever is preferred
    assert (
        max(np.abs(x).max() for x in jax.tree.leaves(jax.tree.map(np.subtract, gradient.policy, other.policy))) > 1e-3
    )


def test_labels_of_dp2t_are_the_best_actions():
    """Told by the goals that fit all best actions of a row."""
    sample = draw(ROOM, config(objective="labels"), jax.random.key(9))
    assert sample.answer.shape == (B, T + 1)
    towards = on_host(jax.vmap(jax.vmap(jax.vmap(INNER.towards, (None, 0)), (0, None)), (0, None)))
    fits = towards(sample.query_obs, jnp.asarray(INNER.cells)) == sample.answer[..., None]
    assert fits.all(axis=1).any(axis=1).all() and not fits.all()


@pytest.mark.parametrize("where", ["anywhere", "visited"])
def test_contexts_are_comparisons_as_they_are_lived(where):
    """Moved by what is preferred, from where the last one led; those to learn from are others."""
    sample = draw(ROOM, config(behaviours=("noisy_expert",), asked=where), jax.random.key(10))
    context = sample.context
    first_wins = (context.feedback == 1)[..., None]
    winner = np.where(first_wins, context.action, context.action[..., ::-1])[..., 0]
    moved = on_host(jax.vmap(jax.vmap(INNER.moved)))(context.obs, winner)
    np.testing.assert_array_equal(moved, context.next_obs)
    np.testing.assert_array_equal(context.obs[:, 1:5], context.next_obs[:, :4])
    assert context.truncated[:, 4].all() and (context.obs[:, 5] == 0).all()  # anew from the corner
    pair, label = sample.answer
    assert pair.shape == (B, T + 1, 1, 2) and set(np.unique(label)) <= {0.0, 1.0}
    assert (pair[:, :T, 0] != context.action).any()
    at_start = (sample.query_obs[:, 0] == 0).all()
    assert at_start == (where == "visited")


@pytest.mark.parametrize("world", WORLDS)
def test_comparisons_to_learn_from_are_all_in_one_state_and_labelled_there(world):
    """At temperature 0 labels say which is better where it is asked."""
    env, num = preferences(WORLDS[world].env, temperature=0.0), 29

    @on_host
    def compared(key):
        task = env.sample_task(key)
        obs, (pairs, labels) = compare_anywhere(env, task, key, num)
        state = env.reset_env(key, task)[1]
        if world == "room":
            state = state.replace(cell=obs)
        return pairs, labels, jax.vmap(jax.vmap(env.score, (None, 0, None)), (None, 0, None))(state, pairs, task)

    pairs, labels, scores = compared(jax.random.key(12))
    assert pairs.shape == (num, 2) and len(np.unique(pairs, axis=0)) > 7
    better = np.sign(scores[:, 0] - scores[:, 1])
    assert (labels[better != 0] == (better[better != 0] > 0)).all() and (better != 0).sum() > 7


def test_what_is_shown_of_a_comparison():
    assert tokens_of(DUELS, config()).inputs == ("ranked", "origin", "next_obs")
    assert tokens_of(DUELS, config(layout="labelled")).inputs == ("origin", "action", "next_obs", "feedback")
    assert tokens_of(ROOM, config()).groups == (("ranked", "next_obs", "origin"), ("obs",))


def predictive(wins, losses, spread):
    """P(the first of two arms wins | so many wins and losses), their utilities' difference being N(0, spread^2)."""
    gap = np.linspace(-6, 6, 4001) * spread
    p = 1 / (1 + np.exp(-gap))
    weight = np.exp(-0.5 * (gap / spread) ** 2) * p**wins * (1 - p) ** losses
    return (weight * p).sum() / weight.sum()


@pytest.mark.slow
def test_a_small_trained_icpo_gives_the_posterior_probability_to_be_preferred():
    """Between two arms no form of the policy is in the way: sigmoid(beta (log p_0 - log p_1)) is that probability."""
    env = icrl_envs.make("dueling_bandit", num_arms=2, dim=1, temperature=0.3)
    spread = abs(float(env.features[0, 0] - env.features[1, 0])) / 0.3  # theta is N(0, 1)
    model = TransformerConfig(width=32, num_layers=2, num_heads=2, context_len=8, positions="none")
    options = config(model=model, optim=OptimConfig(learning_rate=5e-3), num_updates=600, batch_size=64, beta=0.5)
    method = icpo(env, options)
    params = jax.jit(lambda key: train(key, method, Schedule(1, 600)))(jax.random.key(0))[0].params
    one, no, gaps, blind = jnp.ones((T, 1)), jnp.zeros(T, bool), [], []
    for labels in ([1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1]):
        duels = jnp.tile(jnp.array([0, 1]), (T, 1))
        context = timesteps_of(_comparisons(one, duels, jnp.float32(jnp.array(labels)), no))
        probs = params.policy(None, jax.tree.map(lambda x: x[None], context))[1].probs[0]
        for t in range(T):
            wins = sum(labels[:t])
            found = 1 / (1 + float(probs[t, 1] / probs[t, 0]) ** 0.5)
            expected = predictive(wins, t - wins, spread)
            gaps.append(abs(found - expected))
            blind.append(abs(0.5 - expected))
    print(np.mean(gaps), max(gaps), np.mean(blind))
    assert max(gaps) < 0.1 and np.mean(gaps) < 0.03 and np.mean(gaps) < 0.2 * np.mean(blind)


def _comparisons(obs, pairs, labels, never):
    from icrl_jax.core import Transition

    return Transition(obs, pairs, labels, obs, never, never)


BAD = [
    ({"horizon": 8}, "horizon=8: must be below model.context_len=8"),
    ({"beta": 0}, "beta=0: must be a finite number above 0"),
    ({"temperature": -1.0}, "temperature=-1.0: must be a finite number above 0"),
    ({"other_factor": 1.5}, r"other_factor=1.5: must be a number in 0 ..= 1"),
    ({"objective": "rewards"}, "objective='rewards': must be one of 'preferences', 'labels'"),
    ({"behaviours": ()}, r"behaviours=\(\): must be one or more of 'random', 'mixture', 'noisy_expert'"),
    ({"layout": "both"}, "layout='both': must be one of 'ranked', 'labelled'"),
    ({"proposal": "any"}, "proposal='any': must be one of 'samples', 'distinct', 'challenger'"),
    ({"num_asked": 0}, "num_asked=0: must be an integer of at least 1"),
    (
        {"asked": "visited", "behaviours": ("mixture",), "num_asked": 2},
        "num_asked=2: must be 1 with asked='visited'",
    ),
    ({"asked": "visited"}, "asked='visited': must be 'anywhere' with behaviours that are 'random'"),
    (
        {"objective": "labels", "reference": "learned"},
        "reference='learned': must be 'uniform' with objective='labels'",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_environments_without_labels_or_without_a_reset_to_anywhere_are_refused():
    with pytest.raises(ValueError, match="env='DarkRoom': must be preferences"):
        icpo(INNER, config())
    with pytest.raises(ValueError, match="asked='anywhere': must be 'visited', without 'random' behaviours: TwoEp"):
        icpo(preferences(TwoEpisodes()), config())
    assert dataclasses.replace(config(), behaviours=("noisy_expert",), asked="visited")
