import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from icrl_jax.core import SEED_AXES
from icrl_jax.methods.dpt import dpt
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.train import (
    NonFiniteLossError,
    Schedule,
    chunk_key,
    compile_chunk,
    fit,
    init,
    init_seeds,
    make_chunk,
    over_seeds,
    train,
)

SCHEDULE = Schedule(num_chunks=3, updates_per_chunk=4)
KEYS = jax.random.split(jax.random.key(11), 3)
RATES = {"learning_rate": jnp.array([0.03, 0.1, 0.3])}


def chance(agent, key):
    """Stands for an evaluation: depends on the key of the chunk, and on nothing else."""
    return {"draw": jax.random.normal(key)}


def logged(logs):
    """A callback that keeps the logs."""
    return lambda done, log, state: logs.append((done, log))


@pytest.fixture(scope="module")
def fitted():
    logs = []
    state = fit(KEYS, tiny.regression(), SCHEDULE, chance, [logged(logs)])
    return jax.device_get(state), logs


def stacked(logs):
    return jax.tree.map(lambda *x: np.stack(x, axis=-1), *[log for _, log in logs])


def without_key(state):
    """Typed keys compare as their data."""
    order = jax.random.key_data(state.extra["key_order"])
    return jax.device_get(state._replace(extra={**state.extra, "key_order": order}))


def test_train_on_the_device_equals_fit_from_the_host(fitted):
    state, logs = fitted
    on_device = jax.jit(jax.vmap(lambda key: train(key, tiny.regression(), SCHEDULE, chance), out_axes=(SEED_AXES, 0)))
    other, other_logs = on_device(KEYS)
    assert (other_logs.pop("first_nonfinite") == -1).all()
    chex.assert_trees_all_close(without_key(state), without_key(other), rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(stacked(logs), jax.device_get(other_logs), rtol=1e-5, atol=1e-7)
    assert [done for done, _ in logs] == [1, 2, 3]


def test_training_vmapped_over_seeds_equals_the_seeds_one_by_one(fitted):
    state, logs = fitted
    alone = jax.jit(lambda key: train(key, tiny.regression(), SCHEDULE, chance))
    states, logs_alone = zip(*[alone(key) for key in KEYS], strict=True)
    for name in ("params", "opt_state", "step"):
        one_by_one = jax.tree.map(lambda *x: np.stack(x), *[getattr(s, name) for s in states])
        chex.assert_trees_all_close(jax.device_get(getattr(state, name)), one_by_one, rtol=1e-5, atol=1e-6)
    losses = np.stack([log["loss"] for log in logs_alone])
    np.testing.assert_allclose(stacked(logs)["loss"], losses, rtol=1e-5)
    assert len(np.unique(losses)) == losses.size  # seeds differ


def test_training_vmapped_over_learning_rates_equals_each_alone():
    method = tiny.regression()
    together = jax.jit(jax.vmap(lambda h: train(KEYS[0], method, SCHEDULE, hparams=h), out_axes=(SEED_AXES, 0)))
    alone = jax.jit(lambda h: train(KEYS[0], method, SCHEDULE, hparams=h))
    state, logs = together(RATES)
    for i, rate in enumerate(RATES["learning_rate"]):
        state_alone, logs_alone = alone({"learning_rate": rate})
        np.testing.assert_allclose(state.params["w"][i], state_alone.params["w"], rtol=1e-5)
        np.testing.assert_allclose(logs["loss"][i], logs_alone["loss"], rtol=1e-5)
    from_host = fit(KEYS[jnp.zeros(3, int)], method, SCHEDULE, state=init_seeds(KEYS[jnp.zeros(3, int)], method, RATES))
    np.testing.assert_allclose(from_host.params["w"], state.params["w"], rtol=1e-5)


def test_the_same_seed_gives_the_same_numbers_bit_for_bit(fitted):
    logs = []
    state = fit(KEYS, tiny.regression(), SCHEDULE, chance, [logged(logs)])
    chex.assert_trees_all_equal(without_key(state), without_key(fitted[0]))
    chex.assert_trees_all_equal(stacked(logs), stacked(fitted[1]))


def test_a_dpt_trains_alike_with_others_from_the_host_and_alone_on_the_device():
    method, schedule, keys = dpt(tiny.BANDIT, tiny.dpt_config(num_tasks=11)), Schedule(2, 2), KEYS[:2]
    logs = []
    state = fit(keys, method, schedule, None, [logged(logs)])
    _, on_device = jax.jit(lambda key: train(key, method, schedule))(keys[1])
    np.testing.assert_allclose(stacked(logs)["loss"][1], on_device["loss"], rtol=1e-6)
    assert {x.shape[0] for x in jax.tree.leaves(state.data)} == {11}


def test_seeds_in_turn_equal_seeds_at_once():
    """What runs on CPU against the vmap that runs elsewhere."""
    method = tiny.regression()
    update = make_chunk(method, 3, chance)
    chunk = lambda state, key, i: update(state, chunk_key(key, i))
    axes = {"in_axes": (SEED_AXES, 0, None), "out_axes": (SEED_AXES, 0)}
    state = init_seeds(KEYS, method)
    (in_turn, log), (at_once, expected_log) = (
        jax.jit(over)(state, KEYS, np.int32(1)) for over in (over_seeds(chunk), jax.vmap(chunk, **axes))
    )
    chex.assert_trees_all_close(log, expected_log, rtol=1e-5)
    chex.assert_trees_all_close(in_turn.params, at_once.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(in_turn.data, at_once.data)
    assert len(np.unique(log["loss"])) == len(KEYS)  # seeds differ


def test_resuming_at_a_chunk_equals_never_having_stopped(fitted):
    method = tiny.regression()
    half = fit(KEYS, method, SCHEDULE._replace(num_chunks=2), chance)
    logs = []
    state = fit(KEYS, method, SCHEDULE, chance, [logged(logs)], first=2, state=half)
    chex.assert_trees_all_equal(without_key(state), without_key(fitted[0]))
    chex.assert_trees_all_equal(logs[0], fitted[1][2])


def test_chunks_and_initialisation_share_no_key():
    keys = jnp.stack([chunk_key(KEYS[0], i) for i in range(7)] + [jax.random.split(KEYS[0])[0], KEYS[0]])
    data = [tuple(np.asarray(jax.random.key_data(key))) for key in keys]
    assert len(set(data)) == len(data)


def test_data_is_one_copy_for_all_seeds(fitted):
    state = init_seeds(KEYS, tiny.regression())
    for x, y in (state.data, fitted[0].data):
        assert x.shape == (tiny.NUM_SAMPLES, tiny.WIDTH) and y.shape == (tiny.NUM_SAMPLES,)
    assert state.params["w"].shape == (3, tiny.WIDTH)


def longest_constant(method):
    """Characters of the longest literal in the program that a chunk lowers to."""
    state = init_seeds(KEYS, method)
    chunk = jax.vmap(make_chunk(method, 2), in_axes=(SEED_AXES, 0), out_axes=(SEED_AXES, 0))
    return max(map(len, re.findall(r"dense<([^>]*)>", jax.jit(chunk).lower(state, KEYS).as_text())))


def test_no_large_array_is_baked_into_the_compiled_program():
    assert longest_constant(tiny.regression()) < 1000
    captured = jnp.asarray(jax.device_get(tiny.samples()[0]))

    def data():
        return captured, captured[:, 0]

    method = tiny.regression(data=data)
    leaky = method._replace(update=lambda s, key: method.update(s._replace(data=data()), key))
    assert longest_constant(leaky) > 1000  # the test can fail


def test_fit_compiles_once_however_many_chunks():
    counts = []
    for num_chunks in (1, 7):
        before = len(tiny.TRACES)
        fit(KEYS, tiny.regression(), SCHEDULE._replace(num_chunks=num_chunks))
        counts.append(len(tiny.TRACES) - before)
    assert counts[0] == counts[1] > 0


def test_the_state_is_donated():
    method = tiny.regression()
    state = init_seeds(KEYS, method)
    chunk = compile_chunk(method, SCHEDULE, KEYS, state)
    after, _ = chunk(state, KEYS, np.int32(0))
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state, state.data)))
    assert not any(x.is_deleted() for x in jax.tree.leaves(after))


def diverging(rates):
    """One seed after another with its learning rate; schedules constant, no clipping."""
    optim = OptimConfig(learning_rate=0.1, schedule="constant", warmup=0.0, clip=None)
    method = tiny.regression(optim)
    return method, init_seeds(KEYS, method, {"learning_rate": jnp.array(rates, jnp.float32)})


def test_a_nonfinite_loss_stops_training_and_names_update_and_seed():
    rates, logs = [0.1, 1e19, 0.1], []  # squares of 1e19 overflow: the second loss is infinite
    method, state = diverging(rates)
    schedule = Schedule(5, 1)
    with pytest.raises(NonFiniteLossError, match=r"run 1 .* at update 2$"):
        fit(KEYS, method, schedule, None, [logged(logs)], state=state)
    assert [done for done, _ in logs] == [1]  # no callback saw the bad chunk
    _, state = diverging(rates)
    with pytest.raises(NonFiniteLossError, match=r"at update 2$"):  # in the middle of a chunk
        fit(KEYS, method, Schedule(2, 4), state=state)


def test_parameters_that_are_not_finite_stop_training_before_a_loss_shows_it():
    """Or else the last checkpoint would hold them, and nothing good would be left."""
    method, state = diverging([0.1, 0.1, np.inf])
    logs = []
    with pytest.raises(NonFiniteLossError, match=r"run 2 .* at update 1$"):
        fit(KEYS, method, Schedule(5, 1), None, [logged(logs)], state=state)
    assert not logs


def test_training_goes_on_past_a_nonfinite_loss_if_told_to():
    method, state = diverging([0.1, 1e19, 0.1])
    logs = []
    state = fit(KEYS, method, SCHEDULE, None, [logged(logs)], state=state, stop_nonfinite=False)
    losses = stacked(logs)["loss"]
    assert np.isfinite(losses[[0, 2]]).all() and not np.isfinite(losses[1]).any()
    assert (state.step == 12).all()
    method, state = diverging([0.1, 0.1, 0.1])
    fine = fit(KEYS, method, SCHEDULE, state=state)
    np.testing.assert_allclose(fine.params["w"][0], state_of(method)["w"], rtol=1e-5)


def state_of(method):
    state, _ = jax.jit(lambda: train(KEYS[0], method, SCHEDULE))()
    return state.params


def test_the_log_is_the_mean_over_the_updates_of_a_chunk():
    method = tiny.regression()
    state, losses = init(KEYS[0], method), []
    keys = jax.random.split(jax.random.split(chunk_key(KEYS[0], 0))[0], 4)
    for key in keys:
        state, log = jax.jit(method.update)(state, key)
        losses.append(float(log["loss"]))
    _, logs = jax.jit(lambda: train(KEYS[0], method, Schedule(1, 4)))()
    np.testing.assert_allclose(logs["loss"][0], np.mean(losses), rtol=1e-5)
