"""The law of agents: they learn only from what happened, so their own history teaches them the same again."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from two_episodes import TwoEpisodes, on_host, scout

import icrl_envs
from icrl_jax.agents import (
    PlanConfig,
    bayes,
    between_episodes,
    double_thompson,
    empirical_mean,
    lcb,
    linucb,
    noise_curriculum,
    oracle,
    posterior,
    prompted,
    psrl,
    q_learning,
    rucb,
    thompson_beta,
    thompson_gaussian,
    thompson_linear,
    ucb,
    ucb1,
    ucbvi,
    uniform,
    winner_stays,
)
from icrl_jax.agents.planner import Planned
from icrl_jax.core import Agent, TimeStep, Transition, partial
from icrl_jax.methods.dicp import DICPConfig, dicp
from icrl_jax.methods.dpt import dpt
from icrl_jax.methods.dpt_mdp import DPTMDPConfig, dpt_mdp
from icrl_jax.methods.icpo import ICPOConfig, icpo
from icrl_jax.rollout import no_transition, replay, rollout, start

A, N, T = 5, 3, 23
GAUSSIAN = icrl_envs.make("gaussian_bandit", num_arms=A)
BERNOULLI = icrl_envs.make("bernoulli_bandit", num_arms=A)
LINEAR = icrl_envs.make("linear_bandit", num_arms=7, dim=3)
MDP = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, horizon=7)
ROOM = icrl_envs.make("dark_room_hard", "ad_eps", size=3, horizon=5)
DENSE = icrl_envs.make("dark_room", "dpt", size=5, horizon=7)
COPIES = icrl_envs.copies(GAUSSIAN, 2)
DPT = dpt(GAUSSIAN, tiny.dpt_config())  # untrained; its cache of 8 is overwritten twice
ASKED_FIRST = dpt_mdp(DENSE, DPTMDPConfig(tiny.dpt_config().model, horizon=7, query="first"))
DUELS = icrl_envs.make("dueling_bandit", num_arms=A)
ICPO = icpo(DUELS, ICPOConfig(tiny.dpt_config().model, horizon=7))
DICP = dicp(DENSE, DICPConfig(tiny.dpt_config().model, horizon=7, plan=PlanConfig(2, 3)))

AGENTS = {
    "bayes": (bayes(T), icrl_envs.make("bernoulli_bandit", num_arms=2)),
    "between_episodes": (between_episodes(posterior(DENSE), no_transition(DENSE, DENSE.default_params)), DENSE),
    "dicp": (DICP.agent(DICP.init(jax.random.key(0)).params), DENSE),
    "dpt": (DPT.agent(DPT.init(jax.random.key(0)).params), GAUSSIAN),
    "dpt_rereading": (ASKED_FIRST.agent(ASKED_FIRST.init(jax.random.key(0)).params), DENSE),
    "double_thompson": (double_thompson(A), DUELS),
    "empirical_mean": (empirical_mean(A), GAUSSIAN),
    "icpo": (ICPO.agent(ICPO.init(jax.random.key(0)).params), DUELS),
    "lcb": (lcb(A), GAUSSIAN),
    "linucb": (linucb(LINEAR.features), LINEAR),
    "noise_curriculum": (noise_curriculum(thompson_gaussian(A), GAUSSIAN, T), GAUSSIAN),
    "posterior": (posterior(DENSE), DENSE),
    "posterior_of_episodes": (posterior(DENSE, "episode"), DENSE),
    "psrl": (psrl(MDP, draws=3), MDP),
    "psrl_by_the_step": (psrl(MDP, draws=3, decide="step"), MDP),
    "q_learning": (q_learning(MDP, decay_steps=T), MDP),
    "q_learning_of_copies": (q_learning(ROOM, decay_steps=T), icrl_envs.copies(ROOM, 2)),
    "rucb": (rucb(A), DUELS),
    "thompson_beta": (thompson_beta(A), BERNOULLI),
    "thompson_gaussian": (thompson_gaussian(A), GAUSSIAN),
    "thompson_of_many_draws": (thompson_gaussian(A, draws=7), GAUSSIAN),
    "thompson_linear": (thompson_linear(LINEAR.features, 1 / 3, 0.3), LINEAR),
    "ucb": (ucb(A), GAUSSIAN),
    "ucb1": (ucb1(A), GAUSSIAN),
    "ucbvi": (ucbvi(MDP, num_episodes=4, scale=0.01), MDP),
    "ucbvi_lin": (ucbvi(MDP, num_episodes=4, form="lin"), MDP),
    "uniform": (uniform(GAUSSIAN), GAUSSIAN),
    "uniform_over_pairs": (uniform(icrl_envs.preferences(GAUSSIAN)), icrl_envs.preferences(GAUSSIAN)),
    "uniform_over_copies": (uniform(COPIES), COPIES),
    "winner_stays": (winner_stays(A), DUELS),
    "scout": (scout(), TwoEpisodes()),
}


@functools.partial(on_host, static_argnames="env")
def live_and_relive(agent, env, key):
    first = start(agent, env, env.sample_task(key), key)
    state, record = rollout(agent, env, first, key, T)
    carry, (actions, _) = replay(agent, first.carry, record.transition, key)
    return (state.carry, record.transition.action), (carry, actions)


@pytest.mark.parametrize("name", AGENTS)
def test_replaying_its_own_history_gives_an_agent_the_same_memory_and_actions(name, getkey):
    agent, env = AGENTS[name]
    lived, relived = live_and_relive(agent, env, getkey())
    chex.assert_trees_all_equal(lived, relived)
    assert name in ("bayes", "lcb") or len(np.unique(lived[1])) > 1  # who is lucky or cautious keeps to the first arm


def test_replaying_gives_a_prompted_agent_the_same_memory_and_actions(getkey):
    context = live_context(getkey())
    lived, relived = live_and_relive(prompted(thompson_gaussian(A), context), GAUSSIAN, getkey())
    chex.assert_trees_all_equal(lived, relived)


@on_host
def live_context(key):
    agent = uniform(GAUSSIAN)
    return rollout(agent, GAUSSIAN, start(agent, GAUSSIAN, GAUSSIAN.sample_task(key), key), key, N)[1].transition


def test_an_agent_that_learns_from_what_it_returned_is_caught(getkey):
    """It remembers its own choice, which in another's history is not what was done."""
    key = getkey()
    history = live(uniform(GAUSSIAN), key)
    for act, same in ((_peek, False), (_look_back, True)):
        agent = Agent(partial(_nothing), partial(act))
        carry, _ = on_host(replay)(agent, np.int32(0), history, key)
        assert bool(carry == history.action[:-1].sum()) is same


def _nothing(key):
    return jnp.zeros((), jnp.int32)


@on_host
def live(agent, key):
    return rollout(agent, GAUSSIAN, start(agent, GAUSSIAN, GAUSSIAN.sample_task(key), key), key, T)[1].transition


def _peek(carry, key, timestep: TimeStep):
    action = jax.random.randint(key, (), 0, A)
    return carry + action, action, {}


def _look_back(carry, key, timestep: TimeStep):
    return carry + timestep.prev.action, jnp.zeros((), jnp.int32), {}


@pytest.mark.parametrize("name", [name for name in AGENTS if "uniform" not in name and name != "scout"])
def test_agents_learn_from_anothers_history_what_they_would_from_their_own(name, getkey):
    """The action an agent would have taken leaves no trace: two keys, other actions, one memory."""
    agent, env = AGENTS[name]
    both = anothers_history(agent, env, getkey(), jax.random.split(getkey(), 2))
    carries = [jax.tree.map(lambda x: x[i], both) for i in range(2)]  # noqa: B023
    if isinstance(carries[0], Planned):  # what it plans is drawn at random
        carries = [carry.known for carry in carries]
    chex.assert_trees_all_equal(*carries)
    carry = carries[0].memory if name in ("noise_curriculum", "dicp") else carries[0]
    if "posterior" not in name and name != "between_episodes":  # which count only what does not fit
        # The first input shows no transition.
        model = name in ("dicp", "icpo") or "dpt" in name
        learned = carry.length - (name in ("dicp", "dpt", "icpo")) if model else carry.counts.sum()
        assert learned == (7 if name == "dpt_rereading" else T - 1)  # which keeps the newest


@functools.partial(on_host, static_argnames="env")
def anothers_history(agent, env, key, keys):
    other = uniform(env)
    _, record = rollout(other, env, start(other, env, env.sample_task(key), key), key, T)
    return jax.vmap(lambda k: replay(agent, agent.init(key), record.transition, k)[0])(keys)


@pytest.mark.parametrize("name", [name for name in AGENTS if "uniform" not in name])
def test_agents_forget_at_a_reset(name, getkey):
    agent, env = AGENTS[name]
    both = forget(agent, env, getkey())
    (fresh, *first), (forgotten, *again) = (jax.tree.map(lambda x: x[i], both) for i in range(2))  # noqa: B023
    chex.assert_trees_all_equal(first, again)
    if name not in ("dicp", "dpt", "icpo", "between_episodes"):  # which keep what they do not look at any more
        chex.assert_trees_all_equal(fresh, forgotten)


@functools.partial(on_host, static_argnames="env")
def forget(agent, env, key):
    first = start(agent, env, env.sample_task(key), key)
    state, _ = rollout(agent, env, first, key, T)
    again = state.timestep._replace(reset=jnp.ones((), bool), obs=first.timestep.obs)
    both = jax.tree.map(lambda *x: jnp.stack(x), (first.carry, first.timestep), (state.carry, again))
    return jax.vmap(lambda carry, timestep: agent.act(carry, key, timestep))(*both)


def test_agents_of_different_parameters_stack_and_vmap():
    one, other = ucb(A, c=0.0), ucb(A, c=4.0)
    stacked = jax.tree.map(lambda *x: np.stack(x), one, other)
    together = on_host(jax.vmap(lambda agent: live.__wrapped__(agent, jax.random.key(3)).action))(stacked)
    np.testing.assert_array_equal(together, [live(agent, jax.random.key(3)).action for agent in (one, other)])
    assert (together[0] != together[1]).any()


def test_an_agent_built_again_is_not_compiled_again():
    traced = []

    @jax.jit
    def first_action(agent):
        traced.append(None)
        obs = jnp.ones(1)
        no = jnp.zeros((), bool)
        prev = Transition(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), obs, no, no)
        return agent.act(agent.init(jax.random.key(0)), jax.random.key(1), TimeStep(obs, prev, jnp.ones((), bool)))[1]

    for c in (1.0, 2.0):
        first_action(ucb(A, c))
    for _ in range(2):
        first_action(uniform(GAUSSIAN))
    assert len(traced) == 2


def test_the_oracle_explains_what_it_needs(getkey):
    with pytest.raises(TypeError, match="revealed"):
        live(oracle(GAUSSIAN), getkey())
