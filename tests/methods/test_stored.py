"""Training from disk is training from memory, batch for batch, however the histories came there."""

import dataclasses
import functools
import shutil
import threading

import chex
import jax
import numpy as np
import pytest

import icrl_envs
from icrl_jax.data import manifest
from icrl_jax.data.histories import Distilled
from icrl_jax.data.manifest import StoreError, is_whole
from icrl_jax.data.store import write_histories
from icrl_jax.data.stored import open_histories
from icrl_jax.data.windows import sample_window
from icrl_jax.feed import Ahead
from icrl_jax.methods import stored
from icrl_jax.methods.ad import ADConfig, ad
from icrl_jax.methods.sources import HistoriesConfig, make_histories
from icrl_jax.methods.supervised import row_keys
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.train import Schedule, abstract_seeds, fit, init_seeds, train, update_keys

SIZE, H, L, B = 3, 5, 17, 3
ENV = icrl_envs.make("dark_room", "ad_eps", observation="cell", size=SIZE, horizon=H)
MODEL = TransformerConfig(width=8, num_layers=1, num_heads=2, context_len=L)
CELLS = EmbeddingConfig(inputs=("action", "feedback", "obs"), integers="tables")
SOURCE = HistoriesConfig(num_streams=5, num_steps=11 * H, random_share=0.4, stride=2, lhf=True, kept_share=0.9)
CONFIG = ADConfig(model=MODEL, embedding=CELLS, histories=SOURCE, num_updates=12, batch_size=B, horizon=L)
SCHEDULE = Schedule(num_chunks=4, updates_per_chunk=3)
KEYS = jax.random.split(jax.random.key(11), 2)


def at(directory, config=CONFIG, **options):
    histories = dataclasses.replace(config.histories, store=str(directory), **options)
    return dataclasses.replace(config, histories=histories)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Of one task each, or there would be one block of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "CHUNK_BYTES", 2**9)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Histories that a method made, two tasks at a time."""
    directory = tmp_path_factory.mktemp("data") / "room"
    per_task = stored.predicted_bytes(ENV, SOURCE) / 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "BLOCK_BYTES", int(2.5 * per_task))
        heard = []
        ad(ENV, at(directory)).feed.open(lambda *how_far: heard.append(how_far))
    assert heard == [(2, 7), (4, 7), (6, 7), (7, 7)]
    return directory


@pytest.fixture(scope="module")
def memory():
    return jax.jit(lambda: make_histories(ENV, SOURCE))()


def logged(logs):
    return lambda done, log, state: logs.append(log)


@pytest.fixture(scope="module")
def from_memory():
    logs = []
    state = fit(KEYS, ad(ENV, CONFIG), SCHEDULE, callbacks=[logged(logs)])
    return jax.device_get(state._replace(data=None)), logs


def test_blocks_of_tasks_are_what_they_are_among_all(made, memory):
    found = open_histories(made)
    chex.assert_trees_all_equal(found.read_all(), memory.histories)
    chex.assert_trees_all_equal_dtypes(found.read_all(), memory.histories)
    np.testing.assert_array_equal(found.weights, memory.weights)
    assert (found.weights == 0).any() and type(found.env_params) is type(ENV.default_params)


def test_what_is_fed_is_what_would_be_drawn_in_memory(made, memory):
    keys = update_keys(jax.random.key(5), 7)
    method = ad(ENV, at(made))
    fed = method.feed.open().read(keys)
    drawn = jax.vmap(lambda key: sample_window(memory.histories, key, L, memory.weights))
    expected = jax.jit(jax.vmap(lambda key: drawn(row_keys(key, B))))(keys).transitions
    assert {x.shape[:3] for x in jax.tree.leaves(fed)} == {(7, B, L)}
    chex.assert_trees_all_equal(fed, jax.tree.map(lambda x, y: np.asarray(x).astype(y.dtype), expected, fed))
    assert fed.obs.dtype == np.uint8 and not np.array_equal(fed.action[0], fed.action[1])


def test_training_from_disk_equals_training_from_memory_bit_for_bit(made, from_memory):
    logs = []
    state = fit(KEYS, ad(ENV, at(made)), SCHEDULE, callbacks=[logged(logs)])
    assert state.data is None
    chex.assert_trees_all_equal(jax.device_get(state), from_memory[0])
    chex.assert_trees_all_equal(logs, from_memory[1])
    assert len({float(x) for log in logs for x in log["loss"]}) == 2 * 4


def test_learning_rates_are_swept_from_disk_as_from_memory(made):
    rates, one_chunk = {"learning_rate": np.float32([1e-3, 1e-1])}, SCHEDULE._replace(num_chunks=1)
    keys = KEYS[np.array([0, 0])]
    states = [
        fit(keys, method, one_chunk, state=init_seeds(keys, method, rates))._replace(data=None)
        for method in (ad(ENV, CONFIG), ad(ENV, at(made)))
    ]
    chex.assert_trees_all_equal(*jax.device_get(states))
    weights = jax.tree.leaves(states[0].params)[0]
    assert not np.array_equal(weights[0], weights[1])


def test_going_on_from_disk_equals_never_having_stopped(made, from_memory):
    half = fit(KEYS, ad(ENV, at(made)), SCHEDULE._replace(num_chunks=2))
    logs = []
    state = fit(KEYS, ad(ENV, CONFIG, open_histories(made)), SCHEDULE, None, [logged(logs)], 2, half)
    chex.assert_trees_all_equal(jax.device_get(state), from_memory[0])
    chex.assert_trees_all_equal(logs, from_memory[1][2:])


def test_logged_histories_without_weights_are_trained_on_as_they_are(tmp_path, memory):
    write_histories(tmp_path, ENV, memory.histories)
    data = Distilled(memory.histories, None)
    one_chunk = SCHEDULE._replace(num_chunks=1)
    states = [
        fit(KEYS, method, one_chunk)._replace(data=None)
        for method in (ad(ENV, at(tmp_path, source="logged", lhf=False)), ad(ENV, CONFIG, lambda: data))
    ]
    chex.assert_trees_all_equal(*jax.device_get(states))
    config = at(tmp_path, source="logged", lhf=False)
    assert config.env_steps(ENV, 2) == int(memory.histories.steps.sum())
    assert at(tmp_path).env_steps(ENV, 2) == CONFIG.env_steps(ENV, 2) == 7 * 5 * 55


def test_training_on_the_device_alone_is_refused(made):
    with pytest.raises(ValueError, match="method='one with a feed': must be trained by `fit`"):
        train(KEYS[0], ad(ENV, at(made)), SCHEDULE)
    method = ad(ENV, at(made))
    with pytest.raises(ValueError, match="fed=None: must be what the feed of the method reads"):
        jax.eval_shape(method.update, method.init(KEYS[0]), KEYS[0])


def test_a_store_is_made_when_it_is_opened_and_not_before(tmp_path):
    """So that a trained agent can be loaded where its data are not."""
    small = dataclasses.replace(CONFIG, histories=HistoriesConfig(num_streams=2, num_steps=5 * H, num_tasks=3))
    method = ad(ENV, at(tmp_path / "new", small))
    method.feed.check()
    abstract_seeds(method, 2)
    init_seeds(KEYS, method)
    assert not (tmp_path / "new").exists()
    first = method.feed.open()
    assert is_whole(tmp_path / "new")
    again = ad(ENV, at(tmp_path / "new", small)).feed.open()
    assert again.digest == first.digest == open_histories(tmp_path / "new").digest
    ad(ENV, at(tmp_path / "nowhere", source="logged", lhf=False))


def test_making_goes_on_where_it_was_killed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK_BYTES", int(2.5 * stored.predicted_bytes(ENV, SOURCE) / 7))

    def stop(done, num_tasks):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ad(ENV, at(tmp_path)).feed.open(stop)
    with pytest.raises(StoreError, match="is unfinished: 4 of 7 tasks"):
        open_histories(tmp_path)
    assert ad(ENV, at(tmp_path)).feed.open().digest == open_histories(made).digest


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 12 * H}, "source.num_steps is 55, not 60"),
        ({"source_seed": 3}, "source.source_seed is 0, not 3"),
    ],
)
def test_histories_that_other_options_made_are_refused(options, message, made):
    with pytest.raises(StoreError, match=message):
        ad(ENV, at(made, **options)).feed.check()


def test_what_does_not_fit_the_store_is_refused_early(made, tmp_path, memory):
    other = icrl_envs.make("dark_room", "ad_eps", observation="cell", size=SIZE, horizon=H, start="corner")
    for refused in (lambda: ad(other, at(made)).feed.check(), lambda: ad(other, CONFIG, open_histories(made))):
        with pytest.raises(StoreError, match="env.options.start is 'centre', not 'corner'"):
            refused()
    as_logged = functools.partial(at, source="logged", lhf=False)
    with pytest.raises(StoreError, match="holds no histories"):
        ad(ENV, as_logged(tmp_path)).feed.check()
    write_histories(tmp_path, ENV, memory.histories)
    with pytest.raises(StoreError, match="holds logged histories; to train on them: source='logged'"):
        ad(ENV, at(tmp_path)).feed.check()
    long = dataclasses.replace(as_logged(tmp_path), horizon=41, model=dataclasses.replace(MODEL, context_len=41))
    with pytest.raises(ValueError, match="horizon=41: must be at most 25, the length of the streams"):
        ad(ENV, long).feed.check()
    for options, message in (({}, "store=None: must be the folder"), ({"store": "x", "lhf": True}, "lhf=True: must")):
        with pytest.raises(ValueError, match=message):
            HistoriesConfig(source="logged", **options)


def test_a_chunk_that_is_damaged_stops_training_naming_the_file(made, tmp_path):
    copied = shutil.copytree(made, tmp_path / "copied")
    for path in (copied / "transitions.feedback" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(StoreError, match="transitions.feedback/c/.* is damaged"):
        fit(KEYS, ad(ENV, at(copied)), SCHEDULE)


def test_the_next_chunk_is_read_while_this_one_is_learned_from():
    begun, go_on = [threading.Event() for _ in range(3)], threading.Event()

    def read(i):
        begun[i].set()
        assert i == 0 or go_on.wait(30)
        return i

    with Ahead(read, 0, 3) as ahead:
        assert ahead.take(0) == 0
        assert begun[1].wait(30) and not begun[2].is_set()  # and this thread is free to compute
        go_on.set()
        assert [ahead.take(1), ahead.take(2)] == [1, 2]


def test_what_fails_in_reading_is_raised_where_it_was_wanted():
    def read(i):
        if i == 2:
            raise StoreError("chunk 2")
        return i

    with Ahead(read, 1, 5) as ahead:
        assert ahead.take(1) == 1
        with pytest.raises(StoreError, match="chunk 2"):
            ahead.take(2)
