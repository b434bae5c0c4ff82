# ruff: noqa: N802, N803, N806
"""Tokens show what they are said to show, and nothing of what came before a reset."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

import icrl_envs
from icrl_jax.core import TimeStep, Transition
from icrl_jax.models.embeddings import EmbeddingConfig, by_step, interleave, make_embedding, parts_of

B, T, D, A = 5, 7, 13, 3
EVERYTHING = ("obs", "origin", "action", "feedback", "done", "next_obs")


class Struct(NamedTuple):
    """An observation of named parts that is not a dict."""

    cell: jax.Array
    goal: jax.Array


SPACES = {
    "numbers": spaces.Box(-1.0, 1.0, (2,)),
    "table": spaces.Discrete(11),
    "coordinates": spaces.Box(0, 4, (2,), jnp.int32),
    "image": spaces.Box(0, 255, (7, 5, 3), jnp.uint8),
    "grid": spaces.Box(0, 12, (5, 5, 2), jnp.uint8),
    "parts": spaces.Dict({"view": spaces.Box(0.0, 1.0, (5, 5, 1)), "cell": spaces.Discrete(3)}),
    "pair": spaces.Tuple((spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3))),
}
ACTIONS = {"discrete": spaces.Discrete(A), "continuous": spaces.Box(-1.0, 1.0, (A,))}
CASES = {  # each space, with each option somewhere
    "numbers-transition": {"tokens": "transition"},
    "numbers-modality": {"tokens": "modality", "hidden": 7},
    "table-transition": {"tokens": "transition", "hidden": 7},
    "coordinates-modality": {"tokens": "modality", "integers": "tables"},
    "image-transition": {"tokens": "transition"},
    "grid-modality": {"tokens": "modality", "integers": "tables"},
    "parts-modality": {"tokens": "modality", "hidden": 7},
    "pair-transition": {"tokens": "transition", "integers": "tables"},
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.partial(jax.jit, static_argnums=(0, 2))
def draw(space, key, lead):
    flat = jax.vmap(space.sample)(jax.random.split(key, math.prod(lead)))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), flat)


def make_timesteps(obs_space, action_space=ACTIONS["discrete"], lead=(B, T), seed=1):
    keys = jax.random.split(jax.random.key(seed), 8)
    feedback = jax.random.normal(keys[0], lead)
    terminated, truncated, reset = (jax.random.bernoulli(k, 0.3, lead) for k in keys[1:4])
    obs, prev_obs, next_obs = (draw(obs_space, k, lead) for k in keys[4:7])
    prev = Transition(prev_obs, draw(action_space, keys[7], lead), feedback, next_obs, terminated, truncated)
    return TimeStep(obs, prev, reset)


def make(obs_space, action_space=ACTIONS["discrete"], **options):
    config = EmbeddingConfig(**{"inputs": EVERYTHING, "image_channels": (2, 3, 5), **options})
    return jax.jit(lambda key: make_embedding(obs_space, action_space, D, config, key))(jax.random.key(0))


@functools.cache
def example(case):
    """A space, an embedding and inputs."""
    space = SPACES[case.split("-")[0]]
    return space, make(space, **CASES[case]), make_timesteps(space)


embed = jax.jit(lambda embedding, timesteps: embedding(timesteps))


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


@every_case
def test_tokens_have_their_shape_and_depend_on_every_input(case):
    space, embedding, inputs = example(case)
    out = embed(embedding, inputs)
    assert out.shape == (B, T, 1 if "transition" in case else len(EVERYTHING), D)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()
    other = make_timesteps(space, seed=2)
    prev, before = inputs.prev, other.prev
    later, done = ~inputs.reset, prev.terminated | prev.truncated
    for changed in (
        inputs._replace(obs=other.obs),
        inputs._replace(prev=prev._replace(obs=before.obs)),
        inputs._replace(prev=prev._replace(action=(prev.action + 1) % A)),
        inputs._replace(prev=prev._replace(feedback=before.feedback)),
        inputs._replace(prev=prev._replace(next_obs=before.next_obs)),
        inputs._replace(prev=prev._replace(terminated=~done, truncated=jnp.zeros_like(done))),
    ):
        differs = jnp.any(embed(embedding, changed) != out, axis=(-2, -1))
        assert differs[later].mean() > 0.4  # not where what was drawn is what was there, by chance


@every_case
def test_a_reset_hides_the_past(case):
    """Neither values nor gradients of what came before get through, be they NaN."""
    _, embedding, inputs = example(case)
    inputs = inputs._replace(reset=jnp.zeros((B, T), bool).at[:, ::2].set(True))
    poison = lambda x: x.at[:, ::2].set(jnp.asarray(jnp.nan if is_float(x) else 1, x.dtype))
    poisoned = inputs._replace(prev=jax.tree.map(poison, inputs.prev))
    assert_close(embed(embedding, poisoned), embed(embedding, inputs))

    leaves, treedef = jax.tree.flatten(poisoned.prev)

    @jax.jit
    def gradients(embedding, floats):
        def at_resets(embedding, floats):
            prev = treedef.unflatten([floats.get(i, x) for i, x in enumerate(leaves)])
            return jnp.square(embedding(poisoned._replace(prev=prev))[:, ::2]).sum()

        return jax.grad(at_resets, argnums=(0, 1))(embedding, floats)

    of_weights, of_past = gradients(embedding, {i: x for i, x in enumerate(leaves) if is_float(x)})
    assert jax.tree.leaves(of_past)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_weights))
    assert all((np.asarray(x)[:, ::2] == 0).all() for x in jax.tree.leaves(of_past))


@pytest.mark.parametrize("case", ["numbers-transition", "numbers-modality", "image-transition"])
def test_before_a_reset_is_zero(case):
    space, _, inputs = example(case)
    actions = draw(ACTIONS["continuous"], jax.random.key(3), (B, T))
    inputs = inputs._replace(prev=inputs.prev._replace(action=actions))
    embedding = make(space, ACTIONS["continuous"], **CASES[case])
    zeros = jax.tree.map(jnp.zeros_like, inputs.prev)._replace(obs=inputs.obs)
    never, always = jnp.zeros((B, T), bool), jnp.ones((B, T), bool)
    seen_zeros = embed(embedding, TimeStep(inputs.obs, zeros, never))
    assert_close(embed(embedding, inputs._replace(reset=always)), seen_zeros)


@every_case
def test_a_batch_equals_its_rows_and_a_sequence_its_steps(case):
    _, embedding, inputs = example(case)
    together = embed(embedding, inputs)
    steps = jax.jit(lambda e, inputs: jax.lax.map(e, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), inputs)))
    assert_close(jnp.swapaxes(steps(embedding, inputs), 0, 1), together)
    rows = jax.jit(lambda e, inputs: jax.lax.map(e, inputs))  # [T, ...] serves as a batch too
    assert_close(rows(embedding, inputs), together)


@pytest.mark.parametrize("action_space", ACTIONS)
def test_the_token_of_dpt_is_a_linear_map_of_transition_or_query(action_space):
    """Lee et al. 2023: concat(obs, action, next_obs, feedback), or concat(query, zeros)."""
    inputs = make_timesteps(SPACES["numbers"], ACTIONS[action_space])
    dpt = ("origin", "action", "next_obs", "feedback")
    embedding = make(SPACES["numbers"], ACTIONS[action_space], inputs=dpt)
    (weights,) = jax.tree.leaves(embedding)
    assert weights.shape == (2 + A + 2 + 1, D)
    prev, reset = inputs.prev, inputs.reset[..., None]
    action = np.eye(A)[prev.action] if action_space == "discrete" else prev.action
    after = np.concatenate([action, prev.next_obs, prev.feedback[..., None]], axis=-1)
    first = np.where(reset, inputs.obs, prev.obs)
    expected = np.concatenate([first, np.where(reset, 0, after)], axis=-1) @ np.asarray(weights)
    assert_close(embed(embedding, inputs)[:, :, 0], expected)


def test_a_one_hot_equals_a_table():
    """Whatever the token; an entry of a box of integers has rows of its own."""
    space = SPACES["table"]
    inputs = make_timesteps(space)
    (table,) = jax.tree.leaves(make(space, inputs=("obs",)))
    assert_close(embed(make(space, inputs=("obs",)), inputs)[:, :, 0], table[inputs.obs])

    (table,) = jax.tree.leaves(make(space, inputs=("obs",), tokens="modality"))
    modality = embed(make(space, inputs=("obs",), tokens="modality"), inputs)
    assert_close(modality[:, :, 0], np.asarray(table)[:-1][inputs.obs] + np.asarray(table)[-1])

    space = spaces.Box(-2, 4, (2,), jnp.int32)
    inputs = make_timesteps(space)
    embedding = make(space, inputs=("obs",), integers="tables")
    (table,) = jax.tree.leaves(embedding)
    tables = table.reshape(2, 7, D)
    expected = tables[0][inputs.obs[..., 0] + 2] + tables[1][inputs.obs[..., 1] + 2]
    assert_close(embed(embedding, inputs)[:, :, 0], expected)


def test_initial_tokens_have_the_variance_of_their_inputs():
    space = spaces.Box(-1.0, 1.0, (31,))
    inputs = make_timesteps(space)._replace(obs=jax.random.normal(jax.random.key(5), (B, T, 31)))
    config = EmbeddingConfig(inputs=("obs",))
    wide = make_embedding(space, ACTIONS["discrete"], 997, config, jax.random.key(0))
    assert abs(embed(wide, inputs).std() - 1) < 0.1


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (7, 5, 3), (8, 8, 1), (31, 16, 2)])
def test_an_image_is_seen_to_its_last_pixel(shape):
    embedding = make(spaces.Box(0.0, 1.0, shape), inputs=("obs",), image_channels=(3, 5, 7))
    inputs = make_timesteps(spaces.Box(0.0, 1.0, shape), lead=(2,))

    @jax.jit
    def sensitivity(embedding, obs):
        return jax.grad(lambda obs: embedding(inputs._replace(obs=obs))[:, 0, 1].sum())(obs)

    assert (np.abs(sensitivity(embedding, inputs.obs)) > 1e-7).all()


def test_images_of_bytes_are_scaled_to_one():
    (colours,), (ids,) = parts_of(SPACES["image"]), parts_of(SPACES["grid"])
    x = jnp.array([0, 51, 255], jnp.uint8)
    np.testing.assert_allclose(colours.read(x), [0, 0.2, 1])
    np.testing.assert_allclose(ids.read(jnp.array([0, 3, 12], jnp.uint8)), [0, 0.25, 1])
    (colours,), (ids,) = parts_of(SPACES["image"], "tables"), parts_of(SPACES["grid"], "tables")
    np.testing.assert_allclose(colours.read(x), [0, 0.2, 1])  # colours are numbers always
    np.testing.assert_allclose(ids.read(jnp.array([3, 12], jnp.uint8)), np.eye(13)[[3, 12]])
    inputs = make_timesteps(SPACES["image"])
    scaled = lambda obs: obs.astype(jnp.float32) / 255
    prev = inputs.prev._replace(obs=scaled(inputs.prev.obs), next_obs=scaled(inputs.prev.next_obs))
    as_floats = TimeStep(scaled(inputs.obs), prev, inputs.reset)
    same = make(spaces.Box(0.0, 1.0, (7, 5, 3)), inputs=("obs",))
    assert_close(embed(make(SPACES["image"], inputs=("obs",)), inputs), embed(same, as_floats))


def test_parts_of_a_dict_may_be_items_or_fields():
    space = spaces.Dict({"cell": spaces.Discrete(3), "goal": spaces.Box(-1.0, 1.0, (2,))})
    as_dict = make_timesteps(space)
    fields = lambda obs: Struct(obs["cell"], obs["goal"])
    prev = as_dict.prev._replace(obs=fields(as_dict.prev.obs), next_obs=fields(as_dict.prev.next_obs))
    as_struct = TimeStep(fields(as_dict.obs), prev, as_dict.reset)
    embedding = make(space)
    np.testing.assert_array_equal(embed(embedding, as_struct), embed(embedding, as_dict))


def test_a_pair_of_actions_is_read_as_two():
    """What `preferences` asks for, where an action is a pair."""
    env = icrl_envs.preferences(icrl_envs.make("gaussian_bandit", num_arms=A))
    obs_space, action_space = env.observation_space(env.default_params), env.action_space(env.default_params)
    inputs = make_timesteps(obs_space, action_space)
    embedding = make(obs_space, action_space, inputs=("action",))
    (table,) = jax.tree.leaves(embedding)
    tables, pair = table.reshape(2, A, D), inputs.prev.action
    expected = np.where(inputs.reset[..., None], 0, tables[0][pair[..., 0]] + tables[1][pair[..., 1]])
    assert_close(embed(embedding, inputs)[:, :, 0], expected)


@pytest.mark.parametrize("kind", ACTIONS)
def test_ranked_pairs_show_who_is_preferred_first_and_not_who_was_proposed_first(kind):
    space = icrl_envs.wrappers._Stacked(ACTIONS[kind], 2)
    embedding, timesteps = make(SPACES["numbers"], space, inputs=("ranked",)), make_timesteps(SPACES["numbers"], space)
    label = jax.random.randint(jax.random.key(2), (B, T), 0, 3) / 2  # 1/2 is a tie
    timesteps = timesteps._replace(prev=timesteps.prev._replace(feedback=label))
    pair = timesteps.prev.action
    seen = jax.nn.one_hot(pair, A) if kind == "discrete" else pair
    y = label[..., None]
    ranked = [y * seen[:, :, 0] + (1 - y) * seen[:, :, 1], y * seen[:, :, 1] + (1 - y) * seen[:, :, 0]]
    expected = jnp.concatenate(ranked, axis=-1) @ embedding.tokens[0].maps[0][...]
    expected = jnp.where(timesteps.reset[..., None], 0, expected)
    assert_close(embed(embedding, timesteps)[:, :, 0], expected)
    swapped = timesteps.prev._replace(action=jnp.flip(pair, axis=2), feedback=1 - label)
    np.testing.assert_array_equal(embed(embedding, timesteps), embed(embedding, timesteps._replace(prev=swapped)))
    with pytest.raises(ValueError, match="must be of pairs"):
        make(SPACES["numbers"], ACTIONS[kind], inputs=("ranked",))


def test_a_token_by_itself_is_the_one_that_the_next_step_would_have():
    """So a planner may ask about an action before anything has followed it."""
    inputs = make_timesteps(SPACES["table"])._replace(reset=jnp.zeros((B, T), bool))
    embedding = make(SPACES["table"], tokens="modality", inputs=("action", "feedback", "obs"))
    tokens = embed(embedding, inputs)
    assert_close(embedding.token(action=inputs.prev.action), tokens[:, :, 0])
    assert_close(embedding.token(obs=inputs.obs), tokens[:, :, 2])
    joined = make(SPACES["table"], inputs=("obs", "action"))
    assert_close(joined.token(obs=inputs.obs, action=inputs.prev.action), embed(joined, inputs)[:, :, 0])
    with pytest.raises(ValueError, match="must be those of one token: obs and action"):
        joined.token(action=inputs.prev.action)
    alone = make(SPACES["table"], inputs=("action",))
    assert_close(alone.token(action=inputs.prev.action), embed(alone, inputs)[:, :, 0])


def test_a_query_is_a_token_of_its_own_beside_one_of_all_that_happened():
    inputs, other = (make_timesteps(SPACES["table"], seed=seed) for seed in (1, 2))
    config = EmbeddingConfig(tokens="query", inputs=("obs", "action", "feedback"))
    assert config.groups == (("action", "feedback"), ("obs",)) and config.num_tokens == 1  # is remembered
    embedding = make(SPACES["table"], tokens="query", inputs=config.inputs)
    tokens, asked, lived = (
        embed(embedding, x) for x in (inputs, inputs._replace(obs=other.obs), inputs._replace(prev=other.prev))
    )
    assert tokens.shape == (B, T, 2, D)
    np.testing.assert_array_equal(asked[:, :, 0], tokens[:, :, 0])
    np.testing.assert_array_equal(lived[:, :, 1], tokens[:, :, 1])
    assert (asked[:, :, 1] != tokens[:, :, 1]).any() and (lived[:, :, 0] != tokens[:, :, 0]).any()


def test_interleaving_is_undone_by_step():
    x = jax.random.normal(jax.random.key(0), (B, T, 3, D))
    reset = jax.random.bernoulli(jax.random.key(1), 0.4, (B, T))
    tokens, resets = interleave(x, reset)
    assert tokens.shape == (B, T * 3, D) and resets.shape == (B, T * 3) and resets.dtype == bool
    np.testing.assert_array_equal(by_step(tokens, 3), x)
    np.testing.assert_array_equal(tokens[2, 3 * 4 + 1], x[2, 4, 1])
    np.testing.assert_array_equal(resets[:, ::3], reset)  # the first token of a step alone
    assert resets.sum() == reset.sum()
    np.testing.assert_array_equal(by_step(tokens, 3)[:, :, -1], tokens[:, 2::3])  # where actions are answered


def test_equal_spaces_make_equal_modules():
    """So nothing is compiled again for an environment that was made again."""
    first, again = (make(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(A)) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(again)


def test_seeds_vmap():
    config = EmbeddingConfig(inputs=EVERYTHING, tokens="modality", image_channels=(2, 3, 5))
    space, inputs = SPACES["parts"], make_timesteps(SPACES["parts"])
    build = lambda key: make_embedding(space, ACTIONS["discrete"], D, config, key)
    keys = jax.random.split(jax.random.key(0), 2)
    out = jax.jit(jax.vmap(lambda key: build(key)(inputs)))(keys)
    assert_close(out[1], embed(build(keys[1]), inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "word"}, "tokens='word' must be one of transition, modality"),
        ({"integers": "words"}, "integers='words' must be one of numbers, tables"),
        ({"inputs": ()}, r"inputs=\(\) must be one or more of obs, origin"),
        ({"inputs": ("obs", "obs")}, "inputs=.* each at most once"),
        ({"inputs": ("reward",)}, "inputs=.*reward.* must be one or more of obs"),
        ({"tokens": "query", "inputs": ("action", "feedback")}, 'inputs=.* must have "obs" and others'),
        ({"tokens": "query", "inputs": ("obs",)}, 'inputs=.* must have "obs" and others'),
        ({"hidden": -1}, "hidden=-1 must be 0 or a positive integer"),
        ({"image_channels": (3, 0)}, r"image_channels=\(3, 0\) must be one or more positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingConfig(**options)


def test_wrong_spaces_are_refused():
    with pytest.raises(ValueError, match="obs_space=.*must be a Box, a Discrete"):
        make(spaces.Space())
    with pytest.raises(ValueError, match=r"obs_space\['a'\]=.*must be a Box, a Discrete"):
        make(spaces.Dict({"a": spaces.Space()}))
    with pytest.raises(ValueError, match="action_space=.*must be a Box, a Discrete"):
        make(SPACES["table"], spaces.Space())
    with pytest.raises(ValueError, match="obs_space=.*must have finite bounds"):
        make(spaces.Box(-np.inf, np.inf, (2,), jnp.int32), integers="tables")
