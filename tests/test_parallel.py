"""Four virtual CPU devices, in a process of their own, give the numbers that one gives."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from icrl_jax.agents import as_learner, thompson_gaussian, uniform
from icrl_jax.data.collect import collect_histories
from icrl_jax.evaluate import evaluate, offline_suboptimality
from icrl_jax.methods.dpt import dpt
from icrl_jax.methods.ppo import PPOConfig, ppo
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import check_rows, one_after_another, over_rows, pad_rows, replicate
from icrl_jax.train import Schedule, fit

BATCH, TASKS, T = 8, 7, 5  # four devices divide the batch but not the tasks
STEP = 3e-3  # the learning rate, by which Adam moves a weight at most, or nearly
KEYS = jax.random.split(jax.random.key(13), 2)
PPO = PPOConfig(  # whose memories hold a number that all streams share
    model=TransformerConfig(width=4, num_layers=1, num_heads=1, context_len=3, positions="none"),
    embedding=EmbeddingConfig(),
    **{"num_streams": BATCH, "num_steps": T, "num_epochs": 2, "num_minibatches": 2},  # type: ignore[arg-type]
    **{"trial_episodes": None, "trial_steps": 3, "returns": "trial"},  # type: ignore[arg-type]
)


def numbers() -> dict[str, np.ndarray]:
    """Training logs, trained weights and evaluations, from whatever devices there are."""
    found, logs = {}, []
    method = dpt(tiny.BANDIT, tiny.dpt_config(batch_size=BATCH, num_tasks=11))
    quick = lambda agent, key: {"regret": online(agent, key).mean()}
    state = fit(KEYS, method, Schedule(2, 3), quick, [lambda done, log, state: logs.append(log)])
    found |= {name: np.stack([log[name] for log in logs]) for name in logs[0]}
    found |= {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(state.params)}
    agent = method.agent(jax.tree.map(lambda x: x[0], state.params))
    found["online"] = jax.jit(online)(agent, KEYS[0])
    found["offline"] = jax.jit(offline)(agent, KEYS[1])
    found["thompson"] = jax.jit(online)(thompson_gaussian(3), KEYS[0])
    learner = as_learner(thompson_gaussian(3), tiny.BANDIT, 3, T)
    histories = collect_histories(learner, tiny.BANDIT, tasks(), KEYS[0], 2)
    found |= {f"history {name}": x for name, x in histories.transitions._asdict().items()}
    logs.clear()
    keep = [lambda done, log, state: logs.append(log)]
    learned = fit(KEYS[:1], ppo(tiny.BANDIT, PPO), Schedule(2, 1), callbacks=keep)
    found |= {f"ppo {name}": np.stack([log[name] for log in logs]) for name in logs[0]}
    found |= {f"{jax.tree_util.keystr(path)} ppo": x for path, x in jax.tree.leaves_with_path(learned.params)}
    return jax.device_get(found)


def tasks():
    return jax.vmap(tiny.BANDIT.sample_task)(jax.random.split(jax.random.key(2), TASKS))


def online(agent, key):
    return evaluate(agent, tiny.BANDIT, tasks(), key, num_steps=T).curves["regret"]


def offline(agent, key):
    env = tiny.BANDIT
    contexts = evaluate(uniform(env), env, tasks(), key, num_steps=T).record.transition
    return offline_suboptimality(agent, env, tasks(), contexts, key)


def refuse():
    method = dpt(tiny.BANDIT, tiny.dpt_config(batch_size=6))
    fit(KEYS, method, Schedule(1, 1))


SCRIPT = """
import sys
import jax
sys.path.insert(0, sys.argv[1])
import numpy as np
import test_parallel
assert jax.device_count() == 4
try:
    test_parallel.refuse()
except ValueError as error:
    print(error)
np.savez(sys.argv[2], **test_parallel.numbers())
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    path = tmp_path_factory.mktemp("four") / "numbers.npz"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "JAX_USE_SHARDY_PARTITIONER": "1"}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(path)), done.stdout


@pytest.mark.slow
def test_four_devices_give_the_same_numbers_as_one(four):
    if jax.device_count() > 1:
        pytest.skip("this process has several devices already")
    one, several = numbers(), four[0]
    assert one.keys() == several.keys()
    for name in one:
        # Adam divides a gradient by its own size, so the rounding of one near zero moves a weight by a part of a step.
        atol = STEP / 20 if name.startswith(".") else 1e-5
        np.testing.assert_allclose(several[name], one[name], rtol=1e-4, atol=atol, err_msg=name)
    assert one["online"].shape == (TASKS, T) and one["offline"].shape == (TASKS, T + 1)


def test_a_batch_that_the_devices_do_not_divide_is_refused(four):
    assert four[1].strip() == "batch_size=6: must be a multiple of the 4 devices"


@pytest.mark.skipif(jax.device_count() > 1, reason="this process has several devices")
def test_one_device_takes_every_batch_and_leaves_rows_as_they_are():
    check_rows("batch_size", 7)
    rows = {"a": jnp.arange(7), "b": jnp.ones((7, 2))}
    jax.tree.map(np.testing.assert_array_equal, pad_rows(rows), rows)
    assert over_rows(refuse) is refuse


def test_padding_repeats_the_first_rows_until_the_devices_divide_them(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    np.testing.assert_array_equal(pad_rows(jnp.arange(7)), [0, 1, 2, 3, 4, 5, 6, 0])
    np.testing.assert_array_equal(pad_rows(jnp.arange(1)), [0, 0, 0, 0])
    np.testing.assert_array_equal(pad_rows(jnp.arange(8)), np.arange(8))
    with pytest.raises(ValueError, match="batch_size=6: must be a multiple of the 4 devices"):
        check_rows("batch_size", 6)


def test_one_after_another_loops_over_rows_on_cpu_only_and_changes_no_number(monkeypatch):
    function = lambda shared, row: jnp.tanh(row["a"] @ shared) * row["b"]
    rows = {"a": jax.random.normal(KEYS[0], (7, 3)), "b": jnp.arange(7.0)}
    shared = jax.random.normal(KEYS[1], (3,))
    at_once, in_turn = (jax.vmap(f, in_axes=(None, 0)) for f in (function, one_after_another(function)))
    np.testing.assert_allclose(in_turn(shared, rows), at_once(shared, rows), rtol=1e-5)
    assert "scan[" in str(jax.make_jaxpr(in_turn)(shared, rows))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert one_after_another(function) is function


def test_on_one_device_what_was_trained_lies_as_all_else_does():
    """Or programs that were compiled for other arrays would be compiled again for it."""
    assert jax.device_count() == 1
    trained, other = replicate(jnp.zeros(3)), jnp.zeros(3)
    assert trained.sharding == other.sharding and trained.committed == other.committed
