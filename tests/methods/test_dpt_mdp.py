"""DPT on MDPs: labels, contexts and queries against plain NumPy, and both places of the query against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_jax.agents import posterior, psrl, rereading, uniform
from icrl_jax.core import Agent, partial
from icrl_jax.data.contexts import as_timesteps, asked, scattered
from icrl_jax.evaluate import evaluate, tv_distance
from icrl_jax.methods.dpt import Example, prefix_loss
from icrl_jax.methods.dpt_mdp import DPTMDPConfig, asked_loss, dpt_mdp, sample_example
from icrl_jax.methods.supervised import OptimConfig, Row
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import no_transition, replay, rollout, start
from icrl_jax.train import Schedule, fit

SIZE, HORIZON = 5, 3  # of the room, and of its episodes
ROOM = icrl_envs.make("dark_room", "dpt", size=SIZE, horizon=HORIZON)
MDP = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, horizon=7, concentration=0.2)
STEPS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)])
B, T = 5, 7


def config(**options):
    model = TransformerConfig(width=8, num_layers=2, num_heads=2, context_len=T + 1, positions="none")
    return DPTMDPConfig(**{"model": model, "num_updates": 12, "batch_size": 5, "horizon": T, **options})


FIRST, LAST = dpt_mdp(ROOM, config(query="first")), dpt_mdp(ROOM, config(query="last"))


@functools.lru_cache
def init(method):
    params = jax.jit(lambda key: method.init(key).params)(jax.random.key(0))
    return jax.tree.map(lambda p: 2.5 * p, params)  # opinions strong enough to tell decisions apart


@functools.lru_cache
def drawn(env, **options):
    """The tasks of B examples, and the examples."""
    keys = jax.random.split(jax.random.key(4), B)
    chosen = config(**options)

    @on_host
    @jax.vmap
    def draw(key):
        return env.sample_task(jax.random.split(key, 3)[0], "train"), sample_example(env, chosen, key)

    return draw(keys)


def example(b, env=ROOM, **options):
    return jax.tree.map(lambda x: x[b], drawn(env, **options)[1])


@on_host
def answers(policy, inputs):
    """The probabilities at every input of one sequence, [T, A]."""
    _, prediction, _ = policy(None, jax.tree.map(lambda x: x[None], inputs))
    return prediction.probs[0]


def padded(x, length):
    return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])


def answer_first(policy, context, query_obs):
    """To a query before a context of any length, [A]; what pads it comes after the answer."""
    whole = jax.tree.map(lambda x: padded(x, T), context)
    return answers(policy, jax.tree.map(np.asarray, as_timesteps(whole, query_obs)))[len(context.feedback)]


def answer_last(policy, context, queries):
    """To the last of n + 1 queries, given n transitions, [A]."""
    whole = jax.tree.map(lambda x: padded(x, T), context)
    return answers(policy, jax.tree.map(np.asarray, asked(whole, padded(queries, T + 1))))[len(context.feedback)]


@functools.partial(on_host, static_argnames=("env", "num_steps"))
def act(agent, task, key, env=ROOM, num_steps=T):
    return rollout(agent, env, start(agent, env, task, key), key, num_steps)[1]


def moved(cell, action):
    return np.clip(cell + STEPS[action], 0, SIZE - 1)


def room_values(goal, steps):
    """Q [x, y, A] with so many steps left, by value iteration."""
    values, q = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE, 5))
    for _ in range(steps):
        for x, y in np.ndindex(SIZE, SIZE):
            for a in range(5):
                after = tuple(moved((x, y), a))
                q[x, y, a] = (after == tuple(goal)) + values[after]
        values = q.max(axis=-1)
    return q


def tabular_values(task, steps):
    """Q [S, A] with so many steps left, by value iteration."""
    q = np.zeros_like(task.reward_means)
    for _ in range(steps):
        q = task.reward_means + task.transitions @ q.max(axis=-1)
    return q


@pytest.mark.parametrize("query", ["first", "last"])
def test_labels_equal_value_iteration_in_rooms(query):
    """With steps enough to walk to any goal, as many as the paper's rooms have."""
    tasks, examples = drawn(ROOM, query=query)
    seen = set()
    for b in range(B):
        q = room_values(tasks.goal[b], 2 * SIZE)
        cells, labels = examples.query_obs[b].reshape(-1, 2), examples.target_action[b].reshape(-1)
        assert len(cells) == (1 if query == "first" else T + 1)
        for cell, label in zip(cells, labels, strict=True):
            assert q[(*cell, label)] == q[tuple(cell)].max()
            seen.add((*cell, int(label)))
    assert len(seen) >= 4


@pytest.mark.parametrize("query", ["first", "last"])
def test_labels_equal_value_iteration_in_tabular_mdps(query):
    tasks, examples = drawn(MDP, query=query)
    labels = set()
    for b in range(B):
        q = tabular_values(jax.tree.map(lambda x: x[b], tasks), 7)  # noqa: B023
        np.testing.assert_array_equal(examples.target_action[b], q[examples.query_obs[b]].argmax(axis=-1))
        labels |= set(np.ravel(examples.target_action[b]))
    assert len(labels) > 1


def test_labels_of_visited_states_equal_value_iteration_with_the_steps_that_are_left():
    tasks, examples = drawn(MDP, asked="visited", behaviours=("mixture",))
    changed = 0
    for b in range(B):
        task = jax.tree.map(lambda x: x[b], tasks)  # noqa: B023
        for t, (at, label) in enumerate(zip(examples.query_obs[b], examples.target_action[b], strict=True)):
            best = tabular_values(task, 7 - t % 7)[at].argmax()
            assert label == best
            changed += best != tabular_values(task, 7)[at].argmax()
    assert changed  # so the time that is left has been told apart


def test_random_contexts_are_separate_transitions_of_their_task():
    room = icrl_envs.make("dark_room", "dpt", size=SIZE, horizon=HORIZON)
    key, goal = jax.random.key(3), np.array([1, 2])
    task = room.default_params.replace(goal=jnp.asarray(goal))
    many = on_host(scattered, static_argnums=(0, 3))(room, task, key, 4003)
    np.testing.assert_array_equal(many.next_obs, [moved(*x) for x in zip(many.obs, many.action, strict=True)])
    np.testing.assert_array_equal(many.feedback, (many.next_obs == goal).all(axis=-1))
    cells = np.bincount(many.obs @ [SIZE, 1] * 5 + many.action, minlength=125) / 4003
    np.testing.assert_allclose(cells, 1 / 125, atol=5 * (1 / 125 / 4003) ** 0.5)
    follows = (many.obs[1:] == many.next_obs[:-1]).all(axis=-1).mean()
    assert abs(follows - 1 / 25) < 0.02
    assert not (many.terminated | many.truncated).any()


def test_visited_queries_are_what_the_behaviour_saw_in_order():
    tasks, examples = drawn(ROOM, asked="visited", behaviours=("expert_mixture",))
    context, queries = examples.context, examples.query_obs
    np.testing.assert_array_equal(queries[:, :-1], context.obs)
    ended = np.arange(T) % HORIZON == HORIZON - 1
    np.testing.assert_array_equal(context.truncated, np.broadcast_to(ended, (B, T)))
    np.testing.assert_array_equal(queries[:, 1:][:, ~ended], context.next_obs[:, ~ended])
    np.testing.assert_array_equal(queries[:, 1:][:, ended], 0)  # the corner
    np.testing.assert_array_equal(context.feedback, (context.next_obs == tasks.goal[:, None]).all(axis=-1))
    best = context.action == examples.target_action[:, :-1]
    plain = drawn(ROOM, asked="visited", behaviours=("mixture",))[1]
    assert best.mean() > (plain.context.action == plain.target_action[:, :-1]).mean() + 0.1


def test_contexts_are_of_each_behaviour_as_often():
    """A random context jumps; one of a rollout goes on from where it was."""
    draw = on_host(jax.vmap(lambda key: sample_example(ROOM, config(behaviours=("random", "posterior")), key)))
    context = draw(jax.random.split(jax.random.key(8), 211)).context
    goes_on = np.arange(T - 1) % HORIZON != HORIZON - 1
    lived = (context.obs[:, 1:] == context.next_obs[:, :-1])[:, goes_on].all(axis=(1, 2))
    np.testing.assert_array_equal(context.truncated.any(axis=1), lived)
    assert abs(lived.mean() - 0.5) < 4 * 0.5 / 211**0.5


@pytest.mark.parametrize("env", [ROOM, MDP])
def test_contexts_of_the_posterior_are_its_own_histories(env):
    """Replayed into the exact agent, they get the best action in a possible task, or one that PSRL may take."""
    tasks, examples = drawn(env, behaviours=("posterior",))
    agent = posterior(ROOM, tasks=ROOM.tasks("train")) if env is ROOM else psrl(env, draws=97)
    probs = on_host(jax.vmap(partial(replayed, agent), in_axes=(0, None)))(examples.context, jax.random.key(0))
    taken = np.take_along_axis(probs, examples.context.action[..., None], axis=-1)[..., 0]
    assert (taken > 0).mean() > (0.99 if env is ROOM else 0.9) and probs.max(axis=-1).mean() < 0.95


def replayed(agent, context, key):
    return replay(agent, agent.init(key), context, key)[1][1]["probs"]


def test_queries_are_drawn_apart_from_the_context_and_from_each_other():
    queries = drawn(ROOM, query="last")[1].query_obs
    index = queries @ [SIZE, 1]
    assert len(np.unique(index)) > 10 and (index[:, 1:] != index[:, :-1]).mean() > 0.8
    assert (queries[:, 1:] != drawn(ROOM, query="last")[1].context.next_obs).any(axis=-1).mean() > 0.8


@pytest.mark.parametrize("train_empty", [True, False])
def test_the_loss_at_every_prefix_by_hand(train_empty):
    """Each answer is that to its own query after its own prefix, and the empty one counts only if it is wanted."""
    for method, query, loss in ((FIRST, "first", prefix_loss), (LAST, "last", asked_loss)):
        policy, losses = init(method), np.empty((B, T + 1))
        for b in range(B):
            one = example(b, query=query)
            for n in range(T + 1):
                prefix = jax.tree.map(lambda x: x[:n], one.context)  # noqa: B023
                if query == "first":
                    probs, label = answer_first(policy, prefix, one.query_obs), one.target_action
                else:
                    probs, label = answer_last(policy, prefix, one.query_obs[: n + 1]), one.target_action[n]
                losses[b, n] = -np.log(probs[label])
        batch = drawn(ROOM, query=query)[1]
        found, log = on_host(loss, static_argnums=3)(policy, batch, jax.random.key(0), train_empty)
        np.testing.assert_allclose(found, losses[:, 0 if train_empty else 1 :].mean(), rtol=1e-5)
        np.testing.assert_allclose(log["last_loss"], losses[:, -1].mean(), rtol=1e-5)


def test_where_transitions_led_is_shown_only_if_it_is_wanted():
    batch = drawn(ROOM, query="last")[1]
    elsewhere = batch.context._replace(next_obs=(batch.context.next_obs + 1) % SIZE)
    for shown in (True, False):
        policy = init(dpt_mdp(ROOM, config(next_obs=shown)))
        here, there = (
            on_host(asked_loss)(policy, batch._replace(context=context), jax.random.key(0))[0]
            for context in (batch.context, elsewhere)
        )
        assert (here != there) == shown


def test_the_empty_context_is_trained():
    """Only where it counts does a label before the first transition pull at the weights."""
    batch = drawn(ROOM, query="last")[1]
    other = batch._replace(target_action=batch.target_action.copy())
    other.target_action[:, 0] = (other.target_action[:, 0] + 1) % 5
    gradient = jax.jit(jax.grad(asked_loss, has_aux=True), static_argnums=3)
    for train_empty in (True, False):
        pulls = [gradient(init(LAST), x, jax.random.key(0), train_empty)[0] for x in (batch, other)]
        differ = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, pulls), strict=True)]
        assert any(differ) is train_empty


def before(transitions, t):
    return jax.tree.map(lambda x: x[:t], transitions)


def query_first(policy, lived, t, known):
    return answer_first(policy, before(lived, known), lived.obs[t])


def query_last(policy, lived, t, known):
    return answer_last(policy, before(lived, known), np.append(lived.obs[:known], lived.obs[t : t + 1], axis=0))


@pytest.mark.parametrize("update", ["step", "episode"])
@pytest.mark.parametrize(("query", "answer"), [("first", query_first), ("last", query_last)])
def test_acting_equals_the_parallel_forward_of_training(query, answer, update):
    """The alignment of training and acting, over the ends of episodes: a token out of place on either side shows."""
    method = dpt_mdp(ROOM, config(query=query, update=update))
    policy = init(FIRST if query == "first" else LAST)
    record = act(method.agent(policy), ROOM.default_params, jax.random.key(1))
    known = [t if update == "step" else t // HORIZON * HORIZON for t in range(T)]
    probs = np.stack([answer(policy, record.transition, t, known[t]) for t in range(T)])
    np.testing.assert_allclose(record.info["probs"], probs, rtol=1e-4, atol=1e-6)
    unknown = np.stack([answer(policy, record.transition, t, 0) for t in range(T)])
    assert np.abs(unknown - probs).max() > 0.02  # what was seen matters


@pytest.mark.parametrize(("method", "query"), [(FIRST, "first"), (LAST, "last")])
def test_offline_it_answers_from_its_context_alone_by_the_argmax(method, query):
    context, policy = example(0, query=query).context, init(method)
    for task_key in (2, 3):
        record = act(method.agent(policy, context, online=False), ROOM.default_params, jax.random.key(task_key))
        for t in range(T):
            here = record.transition.obs[t]
            if query == "first":
                probs = answer_first(policy, context, here)
            else:  # replaying a context asks where it was, and at its end where the agent is
                probs = answer_last(policy, context, np.append(context.obs, here[None], axis=0))
            np.testing.assert_allclose(record.info["probs"][t], probs, rtol=1e-4, atol=1e-6)
            assert record.transition.action[t] == probs.argmax()


def test_a_context_counts_from_the_first_episode_on_where_only_finished_ones_do():
    context, policy = example(0, query="last").context, init(LAST)
    context = jax.tree.map(lambda x: x[:4], context)
    agent = dpt_mdp(ROOM, config(query="last", update="episode")).agent(policy, context)
    record = act(agent, ROOM.default_params, jax.random.key(2), num_steps=HORIZON)
    for t in range(HORIZON):
        probs = answer_last(policy, context, np.append(context.obs, record.transition.obs[t : t + 1], axis=0))
        np.testing.assert_allclose(record.info["probs"][t], probs, rtol=1e-4, atol=1e-6)


BANDIT = tiny.BANDIT


def test_where_the_query_is_constant_a_cache_and_both_places_of_the_query_mean_the_same():
    method = dpt_mdp(BANDIT, config(query="first"))
    policy, blank = init(method), no_transition(BANDIT, BANDIT.default_params)
    agents = method.agent(policy), rereading(policy, T, blank)
    cached, reread = (act(agent, BANDIT.default_params, jax.random.key(1), env=BANDIT) for agent in agents)
    np.testing.assert_allclose(cached.info["probs"], reread.info["probs"], rtol=1e-4, atol=1e-6)
    assert np.abs(np.diff(cached.info["probs"], axis=0)).max() > 0.02

    batch = drawn(BANDIT, query="last", behaviours=("mixture",))[1]
    assert (batch.target_action == batch.target_action[:, :1]).all()
    single = Example(batch.context, batch.query_obs[:, 0], batch.target_action[:, 0])
    of_one, of_each = (on_host(loss) for loss in (prefix_loss, asked_loss))
    found = of_one(policy, single, jax.random.key(0))[0], of_each(policy, batch, jax.random.key(0))[0]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_what_is_reread_are_the_newest_transitions():
    policy, kept = init(FIRST), 3
    agent = rereading(policy, kept, no_transition(ROOM, ROOM.default_params))
    record = act(agent, ROOM.default_params, jax.random.key(1))
    for t in range(T):
        newest = jax.tree.map(lambda x: x[max(0, t - kept) : t], record.transition)  # noqa: B023
        probs = answer_first(policy, newest, record.transition.obs[t])
        np.testing.assert_allclose(record.info["probs"][t], probs, rtol=1e-4, atol=1e-6)


def collected(monkeypatch, **options):
    """The examples that a batch of rows 0 ..= 10 is made of."""
    parts = {}
    with monkeypatch.context() as patch:
        patch.setitem(dpt_mdp.__globals__, "supervised", lambda *args, **kwargs: parts.update(kwargs, collect=args[1]))
        dpt_mdp(ROOM, config(num_tasks=11, **options))
    rows = Row(jnp.arange(11), jax.random.split(jax.random.key(3), 11))
    return jax.device_get(jax.jit(jax.vmap(parts["collect"], in_axes=(None, 0)))(parts["data"](), rows))


def test_shuffling_permutes_each_fixed_context_and_leaves_its_queries(monkeypatch):
    plain, mixed = (collected(monkeypatch, shuffle=shuffle) for shuffle in (False, True))
    np.testing.assert_array_equal(plain.query_obs, mixed.query_obs)
    np.testing.assert_array_equal(plain.target_action, mixed.target_action)
    rows = lambda x: np.c_[x.obs, x.action, x.feedback, x.next_obs]
    moved_rows = 0
    for b in range(11):
        one, other = (rows(jax.tree.map(lambda x: x[b], found.context)) for found in (plain, mixed))  # noqa: B023
        moved_rows += (one != other).any()
        np.testing.assert_array_equal(one[np.lexsort(one.T)], other[np.lexsort(other.T)])
    assert moved_rows > 8


VISITED = {"asked": "visited", "behaviours": ("mixture",)}
BAD = [
    ({"horizon": 8}, "horizon=8: must be below model.context_len=8"),
    ({"num_updates": 0}, "num_updates=0: must be at least 1"),
    ({"query": "middle"}, "query='middle': must be one of 'first', 'last'"),
    ({"behaviours": ("random", "thompson")}, r"behaviours=\('random', 'thompson'\): must be one or more of 'random', "),
    ({"behaviours": ()}, r"behaviours=\(\): must be one or more of"),
    ({"continuous": "gaussian"}, "continuous='gaussian': must be one of 'tanh_gaussian', 'bins'"),
    ({"image_channels": ()}, r"image_channels=\(\) must be one or more positive integers"),
    ({"update": "never"}, "update='never': must be one of 'step', 'episode'"),
    ({"asked": "visited"}, "asked='visited': must be 'anywhere' with behaviours that are 'random'"),
    ({**VISITED, "query": "first"}, "asked='visited': must be 'anywhere' with query='first'"),
    ({**VISITED, "shuffle": True, "num_tasks": 11}, "shuffle=True: must be False with asked='visited'"),
    (
        {"shuffle": True, "behaviours": ("posterior",), "num_tasks": 11},
        "shuffle=True: must be False with 'posterior', whose actions adapt",
    ),
    ({"shuffle": True}, "shuffle=True: must be False where contexts are used only once"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


ROBOT = icrl_envs.make("point_robot", num_steps=7)
KEYS = icrl_envs.make("dark_key_to_door", "ad", size=3, horizon=7, train_fraction=0.7)


def test_labels_of_visited_states_go_for_the_key_and_then_for_the_door():
    """Whether the key is held is no part of what is seen."""
    tasks, examples = drawn(KEYS, asked="visited", behaviours=("posterior",))
    moves, went = ["-x", "+x", "-y", "+y", "stay"], set()
    for b in range(B):
        held = False
        for t in range(T):
            cell, label = examples.query_obs[b, t], moves[examples.target_action[b, t]]
            gap = (tasks.door_cell if held else tasks.key_cell)[b] - cell
            axis = 0 if gap[0] else 1
            assert label == (f"{'+' if gap[axis] > 0 else '-'}{'xy'[axis]}" if gap.any() else "stay")
            went.add(held)
            held |= examples.context.feedback[b, t] > 0
    assert went == {False, True}


def test_the_loss_of_continuous_labels_by_hand():
    """Each dimension of an action lies in one of 11 bins."""
    options = {"query": "last", "continuous": "bins"}
    policy, batch = init(dpt_mdp(ROBOT, config(**options))), drawn(ROBOT, **options)[1]
    assert batch.target_action.shape == (B, T + 1, 2) and (abs(batch.target_action) == 1).any()
    assert (abs(batch.target_action) < 1).any()
    inputs = jax.tree.map(np.asarray, jax.vmap(asked)(batch.context, batch.query_obs))
    logits = on_host(lambda policy, inputs: policy(None, inputs)[1].logits)(policy, inputs)
    bins = np.minimum((batch.target_action + 1) / 2 * 11, 10).astype(int)
    chosen = np.take_along_axis(logits, bins[..., None], axis=-1)[..., 0]
    losses = (np.log(np.exp(logits).sum(axis=-1)) - chosen).sum(axis=-1)
    found = on_host(asked_loss)(policy, batch, jax.random.key(0))[0]
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-5)


def test_a_short_training_tells_a_point_robot_where_to_go():
    method, params = trained(ROBOT, T, 250, batch_size=32)
    tasks = icrl_envs.sample_tasks(ROBOT, jax.random.key(1), 101)

    @on_host
    def returns(params, key):
        contexts = jax.vmap(lambda task, key: scattered(ROBOT, task, key, T))(tasks, jax.random.split(key, 101))
        offline = evaluate(
            lambda context: method.agent(params, context, online=False), ROBOT, tasks, key, None, 1, contexts
        )
        others = evaluate(uniform(ROBOT), ROBOT, tasks, key, None, 1), jax.vmap(ROBOT.optimal_return)(tasks)
        return offline.metrics["mean_return"].mean(), others[0].metrics["mean_return"].mean(), others[1].mean()

    dpt, chance, best = returns(params, jax.random.key(2))
    print(dpt, chance, best)
    assert dpt > chance + 0.6 * (best - chance)


def test_a_short_training_finds_keys_and_doors_that_were_held_out():
    """A quarter more of them than by chance, in as many steps."""
    steps = 2 * KEYS.horizon
    model = dataclasses.replace(small(steps), positions="learned")  # which tell how far the episode is
    seen = {"asked": "visited", "behaviours": ("mixture", "posterior")}
    method, params = trained(KEYS, steps, 250, model=model, batch_size=32, **seen)
    tasks = jax.tree.map(lambda x: x.repeat(7, axis=0), KEYS.tasks("test"))

    @on_host
    def returns(agent, key):
        return evaluate(agent, KEYS, tasks, key, num_episodes=2).metrics["mean_return"].mean()

    dpt, chance = (returns(agent, jax.random.key(2)) for agent in (method.agent(params), uniform(KEYS)))
    print(dpt, chance)
    assert dpt > 1.25 * chance > 0.5


def test_families_without_what_dpt_needs_are_refused():
    unsolved = TwoEpisodes()
    unsolved.optimal_action = None
    with pytest.raises(ValueError, match="env='TwoEpisodes': must be a family with optimal_action"):
        dpt_mdp(unsolved, config())
    with pytest.raises(ValueError, match="behaviours='posterior': must be others for GaussianBandit"):
        dpt_mdp(BANDIT, config(behaviours=("posterior",)))
    with pytest.raises(ValueError, match="behaviours='mixture': must be 'random' with the continuous actions of"):
        dpt_mdp(ROBOT, config(behaviours=("mixture",)))
    rooms = icrl_envs.make("dark_key_to_door", "dicp", size=3, horizon=5)
    with pytest.raises(ValueError, match="asked='anywhere': must be 'visited', as .* has no reset_anywhere"):
        dpt_mdp(rooms, config())
    assert dpt_mdp(rooms, config(asked="visited", behaviours=("mixture",)))


def small(steps, width=32):
    return TransformerConfig(
        width=width, num_layers=2, num_heads=2, context_len=steps + 1, positions="none", dtype="float32"
    )


def trained(env, steps, num_updates=600, **options):
    """A small DPT: its method and parameters."""
    options = {"model": small(steps), "optim": OptimConfig(learning_rate=5e-3), "batch_size": 64, **options}
    config = DPTMDPConfig(integers="tables", num_updates=num_updates, horizon=steps, **options)
    method, keys = dpt_mdp(env, config), jax.random.split(jax.random.key(0), 1)
    return method, jax.tree.map(lambda x: x[0], fit(keys, method, Schedule(1, num_updates)).params)


def learned(env, steps, query, **options):
    """Its agent."""
    method, params = trained(env, steps, query=query, **options)
    return method.agent(params)


def unpaid(act, carry, key, timestep):
    """Acts as if nothing had ever been paid."""
    prev = timestep.prev._replace(feedback=jnp.zeros_like(timestep.prev.feedback))
    return act(carry, key, timestep._replace(prev=prev))


@pytest.mark.slow
@pytest.mark.parametrize("query", ["first", "last"])
def test_a_small_trained_dpt_gives_the_exact_posterior(query):
    """In a room of nine cells: the prior before any transition, and what separate transitions leave of it."""
    room, steps = icrl_envs.make("dark_room", "dpt", size=3, horizon=5), 7
    draw = jax.vmap(lambda key: scattered(room, room.sample_task(key), key, steps))
    held = on_host(draw)(jax.random.split(jax.random.key(7), 31))
    exact = posterior(room, "step", room.tasks("train"))
    method = dpt_mdp(room, config(query=query, horizon=steps, model=small(steps)))
    blind = Agent(exact.init, partial(unpaid, exact.act))
    agents = learned(room, steps, query), method.agent(init(method)), blind
    gap, far, unseen = (on_host(tv_distance)(agent, exact, held, jax.random.key(2)) for agent in agents)
    print(gap.mean(axis=0), far.mean(axis=0), unseen.mean(axis=0))
    assert gap[:, 0].mean() < 0.1 and far[:, 0].mean() > 0.3  # before any transition
    assert gap.mean() < 0.8 * unseen.mean() and gap[:, -1].mean() < 0.6 * unseen[:, -1].mean()


@pytest.mark.slow
def test_query_first_and_query_last_learn_the_same_where_the_query_is_constant():
    quick = {"model": small(T, 16), "num_updates": 400, "batch_size": 32, "optim": OptimConfig(learning_rate=1e-2)}
    agents = [learned(BANDIT, T, query, behaviours=("mixture",), **quick) for query in ("first", "last")]
    untrained = dpt_mdp(BANDIT, config())
    held = drawn(BANDIT, behaviours=("mixture",))[1].context
    others = agents[1], untrained.agent(init(untrained))
    gap, far = (on_host(tv_distance)(agents[0], other, held, jax.random.key(2)) for other in others)
    print(gap.mean(axis=0), far.mean(axis=0))
    assert gap.mean() < 0.3 * far.mean() and far.mean() > 0.2
