import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from icrl_jax.core import SEED_AXES
from icrl_jax.methods.ad import ADConfig, ad
from icrl_jax.methods.dpt import dpt
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig, check_hparams, make_schedule, rows_at_once, supervised
from icrl_jax.models import moe
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.train import Schedule, fit, train

SEEN, BATCH = 7, 3  # samples, and how many a batch; the seventh of an epoch is left out
KEYS = jax.random.split(jax.random.key(23), 2)


def spy(num_samples=6, batch_size=BATCH):
    """A method whose log tells which samples a batch held, and the key of its first row."""

    def loss(params, batch, key):
        index, draw = batch
        present = jnp.zeros(num_samples).at[index].add(1.0)
        place = {f"place_{i}": index[i].astype(jnp.float32) for i in range(batch_size)}
        return jnp.zeros(()) * params["w"], {"draw": draw[0], **{f"s{i}": x for i, x in enumerate(present)}, **place}

    return supervised(
        init_params=lambda key: {"w": jnp.zeros(())},
        collect=lambda data, row: (data[row.index], jax.random.uniform(row.key)),
        loss=loss,
        agent=lambda params: None,
        optim=OptimConfig(),
        num_updates=12,
        batch_size=batch_size,
        tokens_per_row=1,
        data=lambda: jnp.arange(num_samples),
        num_samples=num_samples,
    )


def orders(log, batch_size=BATCH):
    """Which samples each update saw, in which order, [..., updates, batch]."""
    return np.stack([log[f"place_{i}"] for i in range(batch_size)], axis=-1).astype(int)


@pytest.fixture(scope="module")
def seen():
    """One update a chunk, so that the log is that of each update: [S, updates]."""
    run = jax.vmap(lambda key: train(key, spy(), Schedule(12, 1)), out_axes=(SEED_AXES, 0))
    return jax.device_get(jax.jit(run)(KEYS)[1])


def test_each_epoch_visits_every_sample_once_in_an_order_of_its_own(seen):
    epochs = orders(seen).reshape(2, 6, 6)
    np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(6), epochs.shape))
    assert len({tuple(epoch) for seed in epochs for epoch in seed}) == 12  # of 720: a repeat would be a coincidence


def test_rows_get_fresh_keys_at_every_update(seen):
    assert len(np.unique(seen["draw"])) == seen["draw"].size


def test_what_does_not_fill_a_batch_is_left_out_of_its_epoch():
    _, log = jax.jit(lambda: train(KEYS[0], spy(SEEN), Schedule(10, 1)))()
    epochs = orders(log).reshape(5, 6)
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({(set(range(SEEN)) - set(epoch)).pop() for epoch in epochs}) > 1


def test_resuming_in_the_middle_of_an_epoch_goes_on_in_the_same_order(seen):
    method, logs = spy(), []
    state = fit(KEYS, method, Schedule(3, 1))  # an epoch and a half
    callback = lambda done, log, state: logs.append(log)
    fit(KEYS, method, Schedule(12, 1), callbacks=[callback], first=3, state=state)
    resumed = orders({name: np.stack([log[name] for log in logs], axis=-1) for name in logs[0]})
    np.testing.assert_array_equal(resumed, orders(seen)[:, 3:])


def rates(optim, num_updates):
    schedule = make_schedule(optim, num_updates)
    return [float(schedule(step)) for step in range(num_updates)]


def test_the_cosine_schedule_at_hand_computed_points():
    got = rates(OptimConfig(warmup=0.2), 20)  # 4 updates up, 16 down
    np.testing.assert_allclose(got[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(got[4], 1.0)
    np.testing.assert_allclose(got[8], 0.5 * (1 + math.cos(math.pi / 4)), rtol=1e-6)
    np.testing.assert_allclose(got[12], 0.5, rtol=1e-6)
    np.testing.assert_allclose(got[19], 0.5 * (1 + math.cos(math.pi * 15 / 16)), rtol=1e-5)


def test_the_constant_schedule_stays_at_its_peak():
    np.testing.assert_allclose(rates(OptimConfig(warmup=0.2, schedule="constant"), 10), [0.5] + [1.0] * 9)
    np.testing.assert_allclose(rates(OptimConfig(warmup=0.0, schedule="constant"), 5), [1.0] * 5)
    np.testing.assert_allclose(rates(OptimConfig(warmup=0.0), 4)[:3:2], [1.0, 0.5], rtol=1e-6)


def test_the_linear_schedule_at_hand_computed_points():
    got = rates(OptimConfig(warmup=0.2, schedule="linear"), 10)  # 2 updates up, 8 down
    np.testing.assert_allclose(got, [0.5, 1.0, *np.arange(8, 0, -1) / 8], rtol=1e-6)
    np.testing.assert_allclose(rates(OptimConfig(warmup=0.0, schedule="linear"), 4), [1.0, 0.75, 0.5, 0.25])


def test_the_first_update_is_adamw_by_hand():
    """Adam's first step is the sign of the gradient; decay pulls towards zero; the schedule multiplies both."""
    optim = OptimConfig(learning_rate=0.1, weight_decay=0.3, warmup=0.5, clip=None)  # 6 of 12 updates up: 1/6
    method = tiny.regression(optim)
    state = method.init(jax.random.key(0), {"learning_rate": 0.2})
    after, log = jax.jit(method.update)(state, jax.random.key(1))
    np.testing.assert_allclose(log["learning_rate"], 0.2 / 6, rtol=1e-6)
    w, moved = np.asarray(state.params["w"]), np.asarray(after.params["w"] - state.params["w"])
    np.testing.assert_allclose(np.abs(moved / (0.2 / 6) + 0.3 * w), 1.0, rtol=1e-3)


def test_the_traced_learning_rate_multiplies_the_update():
    method = tiny.regression(OptimConfig(learning_rate=0.1, clip=0.01))
    update = jax.jit(method.update)
    moved = []
    for rate in (None, 0.1, 0.2):
        state = method.init(jax.random.key(0), None if rate is None else {"learning_rate": rate})
        moved.append(np.asarray(update(state, jax.random.key(1))[0].params["w"] - state.params["w"]))
    np.testing.assert_array_equal(moved[0], moved[1])
    np.testing.assert_allclose(moved[2], 2 * moved[1], rtol=1e-4, atol=1e-7)
    assert np.abs(moved[1]).min() > 0


def test_gradients_are_clipped_but_logged_as_they_were():
    """Adam's steps do not care for the scale of a gradient, except through its memory."""
    clipped, free = (tiny.regression(OptimConfig(clip=clip)) for clip in (0.5, None))
    states, logs = zip(
        *[jax.jit(m.update)(m.init(jax.random.key(0)), jax.random.key(1)) for m in (clipped, free)], strict=True
    )
    np.testing.assert_array_equal(logs[0]["gradient_norm"], logs[1]["gradient_norm"])
    assert logs[0]["gradient_norm"] > 1
    squares = [sum(float(x.sum()) for x in jax.tree.leaves(adam_of(s).nu)) for s in states]
    np.testing.assert_allclose(squares[0], 0.01 * 0.5**2, rtol=1e-3)  # (1 - beta2) norm^2
    np.testing.assert_allclose(squares[1], 0.01 * float(logs[1]["gradient_norm"]) ** 2, rtol=1e-3)


def adam_of(state):
    (adam,) = [x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "nu")) if hasattr(x, "nu")]
    return adam


def test_the_gradient_over_groups_of_rows_is_that_of_the_whole_batch(monkeypatch):
    """12 rows of 8 tokens: all at once, then 6 at a time, as experts want more tokens than the cache holds. Their
    balance is left out, as that of a group is not that of the batch."""
    sizes, mean_over_groups = [], supervised.__globals__["_mean_over_groups"]
    spy = lambda function, rows, size: sizes.append(size) or mean_over_groups(function, rows, size)
    monkeypatch.setitem(supervised.__globals__, "_mean_over_groups", spy)
    model = dataclasses.replace(tiny.dpt_config().model, moe=moe.MoEConfig(num_experts=3, balance_weight=0.0))
    config = tiny.dpt_config(batch_size=12, model=model)
    method = dpt(tiny.BANDIT, config)
    state = jax.jit(method.init)(jax.random.key(0))
    expected, expected_log = jax.device_get(jax.jit(method.update)(state, jax.random.key(1)))
    monkeypatch.setitem(rows_at_once.__globals__, "TOKENS_IN_CACHE", 31)
    monkeypatch.setattr(moe, "TOKENS_TOGETHER", 47)
    method = dpt(tiny.BANDIT, config)
    after, log = jax.device_get(jax.jit(method.update)(state, jax.random.key(1)))
    assert sizes == [12, 6]
    chex.assert_trees_all_close(log, expected_log, rtol=1e-5)
    for gradient, whole in zip(*(jax.tree.leaves(adam_of(s).mu) for s in (after, expected)), strict=True):
        np.testing.assert_allclose(gradient, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
        assert np.abs(whole).max() > 0


def test_rows_are_gathered_by_what_a_core_caches_and_only_on_cpu(monkeypatch):
    assert [rows_at_once(64, tokens) for tokens in (1, 101, 501, 5000)] == [64, 8, 2, 1]
    assert rows_at_once(7, 200) == 1  # of the divisors 1 and 7
    assert [rows_at_once(64, 501, least_rows=least) for least in (3, 32, 99)] == [2, 32, 64]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert rows_at_once(64, 5000) == 64


EXPERTS = {"moe": moe.MoEConfig(num_task_experts=3)}


@pytest.mark.parametrize(
    ("model", "tokens", "rows"),
    [
        (TransformerConfig(), 101, 1),
        (TransformerConfig(**EXPERTS), 101, 41),  # of at least 4,096 tokens
        (TransformerConfig(**EXPERTS), 4096, 1),
        (S5Config(), 101, 32),
        (S5Config(mlp_ratio=2, **EXPERTS), 101, 41),
        (S5Config(mlp_ratio=2, **EXPERTS), 1024, 32),
        (GRUConfig(), 101, 32),
        (MLPConfig(), 101, 1),
    ],
)
def test_models_want_rows_together_for_their_loops_and_experts(model, tokens, rows):
    assert model.least_rows(tokens) == rows
    assert rows_at_once(64, 5000, rows) == {1: 1, 41: 32, 32: 32}[rows]
    assert rows_at_once(31, 5000, rows) == (1 if rows == 1 else 31)  # it is prime


def test_dpt_and_ad_ask_for_what_their_models_want(monkeypatch):
    """Rows of 8 tokens, and of 3 for each of 7 steps."""
    asked = []
    for method in dpt, ad:
        monkeypatch.setitem(method.__globals__, "supervised", lambda *args, **options: asked.append(options))
    model = dataclasses.replace(tiny.dpt_config().model, context_len=21, **EXPERTS)
    dpt(tiny.BANDIT, tiny.dpt_config(model=model))
    histories = HistoriesConfig(source="ucb1", num_tasks=5, num_steps=7, num_streams=1)
    ad(tiny.BANDIT, ADConfig(model, EmbeddingConfig(tokens="modality"), histories=histories, horizon=7))
    assert [(options["tokens_per_row"], options["least_rows"]) for options in asked] == [(8, 512), (21, 196)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate=0.0: must be a finite number above 0"),
        ({"learning_rate": math.inf}, r"learning_rate=inf"),
        ({"learning_rate": math.nan}, r"learning_rate=nan"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1: must be a number of at least 0"),
        ({"schedule": "steps"}, r"schedule='steps': must be 'cosine', 'linear' or 'constant'"),
        ({"warmup": 1.0}, r"warmup=1.0: must be in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2=1.0: must be in \(0, 1\)"),
        ({"clip": 0.0}, r"clip=0.0: must be None or a number above 0"),
        ({"eps": 0.0}, r"eps=0.0: must be a finite number above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)


def test_unknown_hparams_and_batches_larger_than_the_data_are_refused():
    with pytest.raises(ValueError, match="hparams='discount': must be 'learning_rate'"):
        check_hparams({"discount": 0.9})
    with pytest.raises(ValueError, match="batch_size=11: must be at most the number of samples, 7"):
        spy(SEEN, batch_size=11)
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        spy(SEEN, batch_size=0)


def test_seeds_under_vmap_draw_the_data_order_once_an_epoch_not_at_every_update():
    """A batched count of updates would turn the `cond` into a select that sorts all samples every time."""
    from icrl_jax.core import SEED_AXES
    from icrl_jax.methods.supervised import _next_indices

    def program(axis, step):
        extra = {"key_order": jax.random.split(jax.random.key(0), 3), "order": jnp.zeros((3, 14), jnp.int32)}
        draw = jax.vmap(lambda extra, step: _next_indices(extra, step, 14, 5), in_axes=(0, axis))
        return str(jax.make_jaxpr(draw)(extra, step))

    assert "cond[" in program(SEED_AXES.step, jnp.int32(0))
    assert "cond[" not in program(0, jnp.zeros(3, jnp.int32))
