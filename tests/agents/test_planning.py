"""Beam search: it finds the best plan of a known world, ties go to the policy, and a cache changes nothing."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import PlanConfig, planning
from icrl_jax.core import TimeStep, Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.models.decider import Aimed, Decider, DecisionConfig
from icrl_jax.models.embeddings import EmbeddingConfig, Part
from icrl_jax.models.heads import Categorical, Dynamics, DynamicsHeadConfig, Scalar, TanhGaussian, TwoHot
from icrl_jax.models.layers import pick
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.models.world import World
from icrl_jax.rollout import replay

S, A, H = 7, 3, 11  # states, actions, steps of an episode


@struct.dataclass
class Known:
    """A model whose memory is the state that it has followed, and whose predictions are right."""

    next_state: jax.Array  # int32 [S, A]
    reward: jax.Array  # float32 [S, A]
    logits: jax.Array  # float32 [S, A]: the policy

    @property
    def body(self):
        return self

    def init_carry(self, batch):
        return jnp.full(batch, -1, jnp.int32)

    def step(self, carry, timestep):
        return timestep.obs, Categorical(self.logits[timestep.obs])

    def branch(self, carry, n, depth):
        return jnp.repeat(carry, n)

    def prune(self, carry, parent):
        return pick(carry, parent)

    def imagine(self, carry, transition):
        """Where it is follows from its own memory, so a branch that was mixed up is somewhere else."""
        state = self.next_state[carry, transition.action]
        return state, Categorical(self.logits[state])

    def foresee(self, carry, obs, actions):
        state = carry[:, None]
        seen = jax.nn.one_hot(self.next_state[state, actions], S)
        return Dynamics(Scalar(self.reward[state, actions]), (seen,), (Part((), (), "int32", num_values=S),))


def known(seed, rewards=None, greed=1.0):
    """A random world; `rewards` that are few tie often."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(S, A)) if rewards is None else rng.choice(rewards, (S, A))
    next_state, logits = rng.integers(0, S, (S, A)), greed * rng.normal(size=(S, A))
    return Known(*map(jnp.asarray, (next_state.astype(np.int32), np.float32(reward), np.float32(logits))))


def timestep_at(state, reset=False, ended=False):
    state, no = jnp.asarray(state, jnp.int32), jnp.zeros((), bool)
    prev = Transition(state, jnp.zeros((), jnp.int32), jnp.zeros(()), state, no, jnp.asarray(ended))
    return TimeStep(state, prev, jnp.asarray(reset))


@functools.partial(on_host, static_argnames=("config", "episode_steps"))
def plan_everywhere(model, config, key, episode_steps=H, temperature=1.0, time=0, lived=0):
    """The first action and the promised return in every state."""
    agent = planning(model, config, episode_steps, temperature)
    carry = agent.init(key)._replace(time=jnp.asarray(time, jnp.int32), lived=jnp.asarray(lived, jnp.int32))
    act = lambda state, key: agent.act(carry, key, timestep_at(state))[1:]
    action, info = jax.vmap(act)(jnp.arange(S), jax.random.split(key, S))
    return action, info["planned_return"]


def best_of_all(model, depth):
    """Every sequence of actions tried: (first action, return) of the best, from each state."""
    next_state, reward = np.asarray(model.next_state), np.asarray(model.reward)
    found = []
    for start in range(S):
        returns = {}
        for actions in itertools.product(range(A), repeat=depth):
            state, returns[actions] = start, 0.0
            for action in actions:
                returns[actions] += reward[state, action]
                state = next_state[state, action]
        best = max(returns, key=returns.get)
        found.append((best[0], returns[best]))
    return tuple(np.array(x) for x in zip(*found, strict=True))


@pytest.mark.parametrize("order", ["policy", "index"])
@pytest.mark.parametrize("depth", [1, 4])
def test_a_wide_beam_finds_the_best_of_all_plans(order, depth, getkey):
    config = PlanConfig(A ** (depth - 1), depth, plan_order=order)
    for seed in range(3):
        model = known(seed)
        action, promised = plan_everywhere(model, config, getkey())
        expected, value = best_of_all(model, depth)
        np.testing.assert_allclose(promised, value, rtol=1e-5)
        np.testing.assert_array_equal(action, expected)


def test_no_plan_reaches_beyond_the_episode(getkey):
    model, config = known(3), PlanConfig(A**3, 4)
    for left in (1, 2, 3):
        action, promised = plan_everywhere(model, config, getkey(), time=H - left)
        expected, value = best_of_all(model, left)
        np.testing.assert_allclose(promised, value, rtol=1e-5)
        np.testing.assert_array_equal(action, expected)


def literal_beam(model, start, config, depth):
    """One that takes the likeliest actions, with lists and sorts: the best plan's first action, and its return."""
    next_state, reward, logits = (np.asarray(x) for x in (model.next_state, model.reward, model.logits))
    plans = [((), start, np.float32(0), 0.0)]  # actions, where they lead, what they pay, how little they are wished for
    for d in range(depth):
        longer = []
        for actions, state, score, lag in plans:
            for a in range(A):
                behind = lag + logits[state].max() - logits[state, a]
                longer.append(((*actions, a), next_state[state, a], score + reward[state, a], behind))
        if d == 0 or config.plan_order == "policy":
            longer.sort(key=lambda plan: plan[3])
        longer.sort(key=lambda plan: -plan[2])  # stable: of those that pay alike, the order stays
        plans = longer[: config.beam_width]
    return plans[0][0][0], plans[0][2]


@pytest.mark.parametrize("order", ["policy", "index"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_narrow_beam_is_that_of_plain_lists_ties_included(order, width, getkey):
    config = PlanConfig(width, 5, plan_order=order)
    differ = 0
    for seed in range(7):
        model = known(seed, rewards=[0, 0, 0, 1])
        action, promised = plan_everywhere(model, config, getkey(), temperature=0.0)
        expected = [literal_beam(model, start, config, 5) for start in range(S)]
        np.testing.assert_array_equal(promised, [score for _, score in expected])
        np.testing.assert_array_equal(action, [first for first, _ in expected])
        differ += (promised < best_of_all(model, 5)[1]).sum()
    assert differ > 0 or width == 5  # the beam is narrow indeed


@pytest.mark.parametrize("order", ["policy", "index"])
def test_where_all_plans_promise_the_same_it_acts_as_the_policy(order, getkey):
    """At any temperature, and whatever is promised until planning begins."""
    never = dataclasses.replace(known(0), reward=jnp.zeros((S, A)))
    later = known(1)
    config, num = PlanConfig(5, 3, plan_order=order, plan_after=2), 2003

    @functools.partial(on_host, static_argnames="lived")
    def shares(model, key, lived):
        run = lambda key: plan_everywhere.__wrapped__(model, config, key, temperature=0.5, lived=lived)[0]
        return jax.nn.one_hot(jax.vmap(run)(jax.random.split(key, num)), A).mean(axis=0)

    for model, lived in ((never, 2), (later, 1)):
        expected = np.asarray(jax.nn.softmax(model.logits / 0.5))
        np.testing.assert_array_less(
            np.abs(shares(model, getkey(), lived) - expected), 5 * np.sqrt(expected * (1 - expected) / num) + 1e-3
        )
        greedy, _ = plan_everywhere(model, config, getkey(), temperature=0.0, lived=lived)
        np.testing.assert_array_equal(greedy, model.logits.argmax(axis=-1))
    planned = shares(later, getkey(), 2)
    assert (planned.max(axis=-1) == 1).any() and np.abs(planned - expected).max() > 0.3


def test_time_is_counted_from_where_an_episode_and_a_task_begin(getkey):
    agent = planning(known(0), PlanConfig(2, 2), H)
    resets, ends = np.array([1, 0, 0, 0, 1, 0], bool), np.array([0, 0, 1, 0, 1, 0], bool)

    @on_host
    def live(key):
        def act(carry, xs):
            carry = agent.act(carry, key, timestep_at(3, *xs))[0]
            return carry, (carry.time, carry.lived)

        return jax.lax.scan(act, agent.init(key), (resets, ends))[1]

    time, lived = live(getkey())
    assert time.tolist() == [1, 2, 1, 2, 1, 2] and lived.tolist() == [1, 2, 3, 4, 1, 2]


@struct.dataclass
class Hoping(Known):
    """Rewards are 0 or 1, and foreseen as the probability of 1."""

    body = Known.body

    def foresee(self, carry, obs, actions):
        dynamics = super().foresee(carry, obs, actions)
        hope = dynamics.reward.value
        return dynamics.replace(reward=TwoHot(jnp.log(jnp.stack([1 - hope, hope], axis=-1)), (0.0, 1.0)))


def test_what_is_unlikely_to_pay_still_counts_unless_only_the_likeliest_reward_does(getkey):
    base = known(2)
    model = Hoping(base.next_state, 0.49 * jax.nn.sigmoid(base.reward), base.logits)
    best, value = best_of_all(model, 3)
    action, promised = plan_everywhere(model, PlanConfig(A**2, 3, "mean"), getkey())
    np.testing.assert_array_equal(action, best)
    np.testing.assert_allclose(promised, value, rtol=1e-5)
    action, promised = plan_everywhere(model, PlanConfig(A**2, 3), getkey(), temperature=0.0)
    np.testing.assert_array_equal(action, base.logits.argmax(axis=-1))
    assert (promised == 0).all() and (best != action).any()


BINS = (-20.0, 20.0)


@struct.dataclass
class Farsighted(Known):
    """It also knows what the best of so many actions in a row pays, [S, A] for the first."""

    value: jax.Array
    body = Known.body

    def foresee(self, carry, obs, actions):
        share = (self.value[carry[:, None], actions] - BINS[0]) / (BINS[1] - BINS[0])
        logits = jnp.log(jnp.stack([1 - share, share], axis=-1))
        return super().foresee(carry, obs, actions).replace(ret=TwoHot(logits, BINS))


@pytest.mark.parametrize("depth", [1, 2])
def test_plans_end_in_the_return_that_is_foreseen(depth, getkey):
    """So that a short one finds what is best for long, but not beyond the end of the episode."""
    base = known(4)
    value = np.asarray(base.reward) + best_of_all(base, 3)[1][np.asarray(base.next_state)]
    model = Farsighted(base.next_state, base.reward, base.logits, jnp.asarray(value, jnp.float32))
    action, promised = plan_everywhere(model, PlanConfig(A, depth), getkey())
    expected, best = best_of_all(base, 4 + depth - 1)
    np.testing.assert_allclose(promised, best, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(action, expected)
    if depth == 2:
        action, promised = plan_everywhere(model, PlanConfig(A, depth), getkey(), time=H - 1)
        np.testing.assert_allclose(promised, best_of_all(base, 1)[1], rtol=1e-5)


@struct.dataclass
class Slope:
    """A point on a line, [B, 1], that actions move; to be near 1 pays."""

    mean: jax.Array  # float32 []: of the policy
    body = Known.body

    def init_carry(self, batch):
        return jnp.zeros((batch, 1))

    def _wish(self, carry):
        mean = jnp.full(carry.shape, self.mean)
        return TanhGaussian(mean, jnp.zeros_like(mean), (-1.0,), (1.0,))

    def step(self, carry, timestep):
        return carry, self._wish(carry)

    def branch(self, carry, n, depth):
        return jnp.repeat(carry, n, axis=0)

    def prune(self, carry, parent):
        return pick(carry, parent)

    def imagine(self, carry, transition):
        carry = carry + transition.action
        return carry, self._wish(carry)

    def foresee(self, carry, obs, actions):
        at = carry + actions[..., 0]
        return Dynamics(Scalar(-jnp.abs(at - 1)), (at,), (Part((), (), "float32"),))


def test_of_continuous_actions_the_best_of_some_samples_is_taken(getkey):
    """Of one step the best that is tried, of more the best in all; where none is left, what the policy draws."""

    @functools.partial(on_host, static_argnames=("config", "temperature"))
    def act(config, key, temperature=1.0, time=0):
        agent = planning(Slope(jnp.float32(-0.5)), config, H, temperature)
        timestep = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.int32 else x, timestep_at(0))
        timestep = timestep._replace(prev=timestep.prev._replace(action=jnp.zeros(1)))
        carry = agent.init(key)._replace(time=jnp.asarray(time, jnp.int32))
        _, action, info = agent.act(carry, key, timestep)
        return action[0], info["planned_return"]

    mode = np.tanh(-0.5)
    tried = [act(PlanConfig(3, 1, plan_samples=n), getkey()) for n in (2, 401)]
    for action, promised in tried:
        np.testing.assert_allclose(promised, action - 1, atol=1e-6)
    assert mode <= tried[0][0] < tried[1][0] and tried[1][0] > 0.9
    action, promised = act(PlanConfig(5, 3, plan_samples=101), getkey())
    assert -0.5 < promised < 0 and action > 0.5  # nearly there at once, and then still
    np.testing.assert_allclose(act(PlanConfig(2, 2), getkey(), temperature=0.0)[0], mode, atol=1e-5)
    free = [
        float(act(PlanConfig(2, 2), key, time=H)[0]) for key in jax.random.split(getkey(), 5)
    ]  # no step is left to plan
    assert len(set(free)) == 5 and all(abs(x - mode) > 1e-4 for x in free)


T, C, STEPS = 17, 7, 5  # steps of a history, inputs that the model sees at once, steps of an episode
ROOM = icrl_envs.make("dark_room", "dicp", size=3, horizon=STEPS)


def random_world(key, tokens="transition", decisions=None):
    """All weights far from zero, so that rewards and observations are foreseen in all variety."""
    spaces = ROOM.observation_space(ROOM.default_params), ROOM.action_space(ROOM.default_params)
    config = TransformerConfig(width=12, num_layers=2, num_heads=2, context_len=C, positions="rotary")
    embedding = EmbeddingConfig(tokens, integers="tables")
    make = Policy if decisions is None else functools.partial(Decider, decisions=decisions)
    world = World(make(config, *spaces, key, embedding), *spaces, embedding, DynamicsHeadConfig(), key)
    leaves, treedef = jax.tree.flatten(world)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True))


def random_history(seed, num_steps, episode_steps=STEPS):
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, 3, (num_steps, 2, 2)).astype(np.int32)
    no, ends = np.zeros(num_steps, bool), np.arange(num_steps) % episode_steps == episode_steps - 1
    action, reward = rng.integers(0, 5, num_steps), rng.integers(0, 2, num_steps)
    return Transition(cell[:, 0], action.astype(np.int32), np.float32(reward), cell[:, 1], no, ends)


@functools.partial(on_host, static_argnames="num_tokens")
def reread(world, timesteps, num_steps, actions, num_tokens):
    """From nothing, what follows so many steps of some histories [R, L]: the policy's logits, and the reward and the
    observation that actions [R] bring, each asked as if it were one more input."""
    x, _, marks, _ = world.policy.tokens(timesteps)
    read = lambda x, index: world.body(None, x, *marks)[1][:, index]
    here = num_steps * num_tokens
    logits = world.policy.head(read(x, here - 1)).logits
    query = world.ask.token(obs=timesteps.obs[:, num_steps - 1], action=actions)
    foreseen = world.dynamics(read(x.at[:, here].set(query), here))
    return logits, foreseen.reward.mode(), foreseen.next_obs()


def reread_beam(reread, history, t, config, episode_steps=STEPS):
    """The literal beam search of a model that reads all of its history, and all that it imagines, for every answer."""
    width, length = config.beam_width, T + config.plan_depth + 1
    obs = jnp.asarray(history.obs[t])
    plans = [([], obs, 0.0, 0.0)]
    for d in range(config.plan_depth):
        rows = []
        for imagined, obs, *_ in plans:
            lived = [*(jax.tree.map(lambda x, i=i: x[i], history) for i in range(t)), *imagined]
            none = jax.tree.map(lambda x: np.zeros_like(x[0]), history)
            blank = [none._replace(obs=np.asarray(obs))] + [none] * (length - len(lived) - 1)
            inputs = timesteps_of(jax.tree.map(lambda *x: jnp.stack(x), *lived, *blank))
            rows += [inputs] * 5
        rows += rows[:1] * (5 * width - len(rows))
        inputs = jax.tree.map(lambda *x: jnp.stack(x), *rows)
        actions = np.tile(np.arange(5, dtype=np.int32), width)
        logits, reward, seen = reread(inputs, t + d + 1, actions)
        longer = []
        for i, (imagined, obs, score, lag) in enumerate(plans):
            for a in range(5):
                r = 5 * i + a
                no = np.zeros((), bool)
                step = Transition(np.asarray(obs), actions[r], reward[r], seen[r], no, no)
                pays = reward[r] if t % episode_steps + d < episode_steps else 0.0
                wish = logits[r].max() - logits[r, a]
                longer.append(([*imagined, step], seen[r], score + pays, lag + wish))
        if d == 0 or config.plan_order == "policy":
            longer.sort(key=lambda plan: plan[3])
        longer.sort(key=lambda plan: -plan[2])
        plans = longer[:width]
    return int(plans[0][0][0].action), plans[0][2]


@pytest.mark.parametrize(("tokens", "order"), [("transition", "policy"), ("modality", "index")])
def test_planning_from_the_cache_chooses_what_rereading_all_of_the_history_does(tokens, order, getkey):
    """Under one sliding window: what it no longer sees, it still knows from what it does."""
    world, config, history = random_world(getkey(), tokens), PlanConfig(4, 3, plan_order=order), random_history(0, T)
    agent = planning(world, config, STEPS, temperature=0.0)
    actions, info = on_host(replay)(agent, agent.init(getkey()), history, getkey())[1]
    num_tokens = world.policy.embed.num_tokens
    assert T * num_tokens > C
    for t in (0, 1, 6, 8, 12, T - 1):
        action, promised = reread_beam(functools.partial(reread, world, num_tokens=num_tokens), history, t, config)
        np.testing.assert_allclose(info["planned_return"][t], promised, rtol=1e-4, atol=1e-4)
        assert actions[t] == action
    assert len(set(actions.tolist())) > 2


@on_host
def reread_decisions(world, timesteps, num_steps, actions):
    """`reread` by the parallel pass that it was trained by, which makes and reviews all decisions anew."""
    rows = timesteps.reset.shape[0]
    aimed = Aimed(timesteps, jnp.full(rows, world.policy.decisions.target_return))
    asked = jnp.repeat(actions[:, None], timesteps.reset.shape[1], axis=1)
    prediction, foreseen, _ = world(aimed, timesteps.obs, asked, jnp.asarray(num_steps - 1)[None])
    logits, reward, seen = prediction.logits[:, num_steps - 1], foreseen.reward.mode(), foreseen.next_obs()
    return logits, reward[:, 0], seen[:, 0]


def test_planning_over_decisions_chooses_what_making_them_all_anew_does(getkey):
    """Also where a plan outlasts the decision that it began under, and few decisions are seen at once."""
    c = 3
    decisions = DecisionConfig(decision_steps=c, target_return=4.0)
    world, history = random_world(getkey(), decisions=decisions), random_history(1, T, 2 * c)
    config, seen = PlanConfig(4, 3), world.policy.high.config.context_len
    agent = planning(world, config, 2 * c, temperature=0.0)
    actions, info = on_host(replay)(agent, agent.init(getkey()), history, getkey())[1]
    assert T // c > seen and (T + config.plan_depth + 1) % c == 0
    for t in (0, 1, 5, 6, 10, 13, T - 1):
        reread = functools.partial(reread_decisions, world)
        action, promised = reread_beam(reread, history, t, config, 2 * c)
        np.testing.assert_allclose(info["planned_return"][t], promised, rtol=1e-4, atol=1e-4)
        assert actions[t] == action
    assert len(set(actions.tolist())) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width=0: must be at least 1"),
        ({"plan_depth": -1}, "plan_depth=-1: must be at least 0"),
        ({"plan_score": "best"}, "plan_score='best': must be one of 'mode', 'mean'"),
        ({"plan_samples": 1}, "plan_samples=1: must be at least 2"),
        ({"plan_after": -1}, "plan_after=-1: must be at least 0"),
        ({"plan_order": "random"}, "plan_order='random': must be one of 'policy', 'index'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PlanConfig(**options)


def test_an_agent_that_does_not_plan_is_refused():
    with pytest.raises(ValueError, match="plan_depth=0: must be at least 1"):
        planning(known(0), PlanConfig(plan_depth=0), H)
