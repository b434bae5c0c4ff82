"""What was written is read again, and what is not whole is never read."""

import collections
import dataclasses
import functools
import json
import resource
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from by_hand import histories

import icrl_envs
from icrl_jax.core import Transition
from icrl_jax.data import manifest, store
from icrl_jax.data.histories import Distilled
from icrl_jax.data.manifest import StoreError
from icrl_jax.data.skeleton import put_together, take_apart
from icrl_jax.data.store import write_histories, write_in_blocks
from icrl_jax.data.stored import open_histories

H, M, N, T = 5, 7, 3, 37
ENV = icrl_envs.make("dark_room", "ad_eps", observation="cell", size=3, horizon=H)
WHOLE = histories(lambda m, n: np.random.default_rng([m, n]).integers(1, H + 1, T), T, H, num_tasks=M, num_streams=N)
WEIGHTS = jnp.arange(M * N).reshape(M, N) % 5
SOURCE = {"num_steps": 37, "lhf": True}


class KilledError(Exception):
    pass


def content(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


def block(first, num_tasks):
    return jax.tree.map(lambda x: np.asarray(x)[first : first + num_tasks], Distilled(WHOLE, WEIGHTS))


def write(directory, block_tasks=2, source=SOURCE, block=block, between=None):
    write_in_blocks(directory, ENV, Distilled(WHOLE, WEIGHTS), block, block_tasks, source, between)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Streams are cut, and several lie in one chunk, as those of a large store do and do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "CHUNK_BYTES", 61)  # 20 steps of 3 bytes, 15 of 4; 1 stream of 37 bytes
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    write(directory)
    return directory


@pytest.fixture
def copied(written, tmp_path):
    """The same, to be mistreated."""
    return shutil.copytree(written, tmp_path / "copied")


def test_what_was_written_is_read(written):
    found = open_histories(written)
    whole = found.read_all()
    chex.assert_trees_all_equal(whole, WHOLE)
    chex.assert_trees_all_equal_dtypes(whole, WHOLE)
    assert whole.form == WHOLE.form == found.form and found.shape == (M, N, T)
    np.testing.assert_array_equal(found.weights, WEIGHTS)
    np.testing.assert_array_equal(found.env_params, WHOLE.env_params)
    assert found.about["env"]["options"]["size"] == 3 and found.about["source"] == SOURCE


def test_windows_are_those_of_memory_wherever_chunks_end(written, getkey):
    rng = np.random.default_rng(0)
    task, stream, first = (rng.integers(0, end, 101) for end in (M, N, T - 19 + 1))
    found = open_histories(written).transitions(task, stream, first, 19)
    index = task[:, None], stream[:, None], first[:, None] + np.arange(19)
    expected = jax.tree.map(lambda x: np.asarray(x)[index], WHOLE.transitions)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_dtypes(found, expected)
    assert isinstance(found, Transition)


def test_it_is_a_zarr_that_others_read(written):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(written / "transitions.obs")}}
    found = tensorstore.open(spec, read=True).result()
    np.testing.assert_array_equal(found.read().result(), WHOLE.transitions.obs)
    assert found.chunk_layout.read_chunk.shape == (1, 1, 20, 3)
    assert json.loads((written / "zarr.json").read_text())["node_type"] == "group"


def test_a_chunk_of_zeros_is_written_too(written):
    truncated = list((written / "transitions.truncated").rglob("c/*/*/*"))
    assert len(truncated) == M * N and not np.asarray(WHOLE.transitions.truncated).any()


def test_whole_histories_are_written_in_one_call_without_weights(tmp_path):
    without = WHOLE.transitions._replace(next_obs=None)
    whole = jax.tree.map(lambda x: x, WHOLE)
    whole = type(whole)(without, whole.update, whole.steps, None, whole.form)
    write_histories(tmp_path / "new" / "folder", ENV, whole)
    found = open_histories(tmp_path / "new" / "folder")
    assert found.weights is None and found.env_params is None and found.about["source"] is None
    chex.assert_trees_all_equal(found.read_all(), whole)


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.ones((M, 2)), r"weights=\(7, 2\): must be of shape \(7, 3\)"),
        (np.ones(M), r"weights=\(7,\): must be of shape"),
        (np.where(np.arange(M * N) == 13, np.nan, 1).reshape(M, N), r"weights\[4, 1\]=nan: must be finite"),
        (np.where(np.arange(M * N) == 5, -1, 1).reshape(M, N), r"weights\[1, 2\]=-1: must be finite and at least 0"),
        (np.eye(M, N), r"weights\[3\]=\[0.0, 0.0, 0.0\]: must be above 0 for some stream"),
    ],
)
def test_wrong_weights_are_refused_before_anything_is_written(weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_histories(tmp_path / "new", ENV, WHOLE, weights)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size, chunk_tasks", [(61, 1), (1331, 2), (1332, 3), (10**5, 7)])
def test_small_tasks_share_a_chunk(size, chunk_tasks, tmp_path, monkeypatch):
    """The largest array has 444 bytes a task."""
    monkeypatch.setattr(manifest, "CHUNK_BYTES", size)
    killed = []

    def once(done, num_tasks):
        killed.append(done)
        if len(killed) == 1 and done < num_tasks:
            raise KilledError

    for _ in range(2 if chunk_tasks < M else 1):
        try:
            write(tmp_path, block_tasks=1, between=once)
        except KilledError:
            assert not (tmp_path / "manifest.json").exists()
    assert killed == [*range(chunk_tasks, M, chunk_tasks), M]  # whole chunks, none of them twice
    found = open_histories(tmp_path)
    assert {layout["chunk"][0] for layout in found.about["arrays"].values()} == {chunk_tasks}
    if chunk_tasks > 1:
        assert len(list((tmp_path / "transitions.obs" / "c").glob("*/0/0/0"))) == -(-M // chunk_tasks)
    whole = found.read_all()
    chex.assert_trees_all_equal(whole, WHOLE)
    task, stream, first = np.array([6, 2, 3]), np.array([1, 2, 0]), np.array([18, 5, 0])
    windows = open_histories(tmp_path).transitions(task, stream, first, 19)
    index = task[:, None], stream[:, None], first[:, None] + np.arange(19)
    chex.assert_trees_all_equal(windows, jax.tree.map(lambda x: np.asarray(x)[index], WHOLE.transitions))
    path = tmp_path / "transitions.action" / "c" / str(6 // chunk_tasks) / "0/0"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(StoreError, match=f"transitions.action/c/{6 // chunk_tasks}/0/0 is damaged"):
        open_histories(tmp_path).transitions(np.array([6]), np.array([0]), np.array([0]), 1)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_killed_writer_goes_on_and_ends_with_the_same_bytes(after, written, tmp_path):
    made = []

    def until(first, num_tasks):
        if len(made) == after:
            raise KilledError
        made.append((first, num_tasks))
        return block(first, num_tasks)

    with pytest.raises(KilledError):
        write(tmp_path, block=until)
    with pytest.raises(StoreError, match=f"is unfinished: {2 * after} of 7 tasks are written"):
        open_histories(tmp_path)
    again = []
    write(tmp_path, block=lambda *which: again.append(which) or block(*which))
    assert made + again == [(0, 2), (2, 2), (4, 2), (6, 1)]
    assert content(tmp_path) == content(written)


def test_a_block_that_was_being_written_is_written_again(written, tmp_path, monkeypatch):
    """KilledError when its chunks are on disk, and before it says so; other bytes stand where the block will be."""
    calls = []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 100:
            raise KilledError
        return manifest.facts(path)

    monkeypatch.setattr(store, "facts", interrupted)
    with pytest.raises(KilledError):
        write(tmp_path, block_tasks=3, block=lambda *which: jax.tree.map(np.ones_like, block(*which)))
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "CHUNK_BYTES", 61)
    assert list((tmp_path / "steps" / "c").iterdir())
    with pytest.raises(StoreError, match="is unfinished: 0 of 7"):
        open_histories(tmp_path)
    write(tmp_path)
    assert content(tmp_path) == content(written)


def test_between_blocks_one_hears_how_far_it_is(tmp_path):
    heard = []
    write(tmp_path, block_tasks=3, between=lambda *how_far: heard.append(how_far))
    assert heard == [(3, 7), (6, 7), (7, 7)]


def killed_at_once(directory):
    def kill(done, num_tasks):
        raise KilledError

    with pytest.raises(KilledError):
        write(directory, between=kill)


def test_other_settings_than_those_of_an_unfinished_store_are_refused(tmp_path):
    killed_at_once(tmp_path)
    with pytest.raises(StoreError, match="source.num_steps is 37, not 41"):
        write(tmp_path, source={**SOURCE, "num_steps": 41})
    other = icrl_envs.make("dark_room", "ad_eps", observation="cell", size=3, horizon=H, start="corner")
    with pytest.raises(StoreError, match="env.options.start is 'centre', not 'corner'"):
        write_in_blocks(tmp_path, other, Distilled(WHOLE, WEIGHTS), block, 2, SOURCE)
    write(tmp_path)


def test_a_chunk_of_a_killed_call_that_was_lost_is_missed(tmp_path):
    killed_at_once(tmp_path)
    (tmp_path / "update/c/1/0/0").unlink()
    with pytest.raises(StoreError, match="update/c/1/0/0 is missing"):
        write(tmp_path)


def test_a_block_that_lost_its_record_is_missed(tmp_path):
    def kill(done, num_tasks):
        if done == 6:
            raise KilledError

    with pytest.raises(KilledError):
        write(tmp_path, between=kill)
    (tmp_path / "unfinished" / "2.json").unlink()
    for refused in (write, open_histories):
        with pytest.raises(StoreError, match="unfinished/2.json is missing; delete .* to begin anew"):
            refused(tmp_path)


def test_a_disk_that_is_full_is_one_clear_error(tmp_path):
    """A limit on the size of files stands for it; small ones, as the manifest, are written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = jnp.tile(WHOLE.transitions.obs, (1, 1, 500, 1))
    large = dataclasses.replace(WHOLE, transitions=WHOLE.transitions._replace(obs=rows))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=f"File too large: '{tmp_path}'"):
            patch.setattr(manifest, "CHUNK_BYTES", 2**20)
            write_histories(tmp_path, ENV, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(StoreError, match="is unfinished: 0 of 7"):
        open_histories(tmp_path)


def test_a_block_that_is_not_what_was_announced_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"tasks 0 ..= 1 are .*transitions.feedback.shape is \[2, 3, 37\]"):
        write(tmp_path, block=lambda first, num: block(0, 3))
    form = WHOLE.form._replace(least_steps=3)
    wrong = lambda first, num: block(first, num)._replace(histories=type(WHOLE)(*parts(block(first, num)), form))
    with pytest.raises(StoreError, match="form.least_steps is 37, not 3"):
        write(tmp_path, block=wrong)


def parts(distilled):
    found = distilled.histories
    return found.transitions, found.update, found.steps, found.env_params


def test_folders_that_hold_other_things_are_left_alone(written, tmp_path):
    before = content(written)
    with pytest.raises(StoreError, match="holds histories already"):
        write(written)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="must be new or empty; it holds thesis.tex"):
        write(tmp_path)
    with pytest.raises(StoreError, match="holds no histories: it has no manifest.json"):
        open_histories(tmp_path)
    assert content(written) == before and len(content(tmp_path)) == 1


def test_two_writers_do_not_meet(tmp_path):
    def second(first, num_tasks):
        write(tmp_path)
        return block(first, num_tasks)

    with pytest.raises(StoreError, match="is being written by another process"):
        write(tmp_path, block=second)
    write(tmp_path)


CHUNK = "transitions.action/c/2/1/0"


def read_window(found):
    return found.transitions(np.array([2]), np.array([1]), np.array([0]), 11)


def test_a_chunk_that_was_cut_short_or_lost_is_refused_at_opening(copied):
    path = copied / CHUNK
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"{CHUNK} has 40 bytes, not 41"):
        open_histories(copied)
    path.unlink()
    with pytest.raises(StoreError, match=f"{CHUNK} is missing"):
        open_histories(copied)


def test_a_flipped_byte_is_refused_when_it_is_first_read_and_no_other_chunk_is(copied):
    path = copied / CHUNK
    flipped = bytearray(path.read_bytes())
    flipped[0] ^= 1
    path.write_bytes(flipped)
    found = open_histories(copied)
    found.transitions(np.array([2]), np.array([2]), np.array([0]), 11)
    for read in (read_window, type(found).read_all, type(found).verify):
        with pytest.raises(StoreError, match=f"{CHUNK} is damaged"):
            read(found)


@pytest.mark.parametrize("part", [0, 1])
def test_chunks_in_each_others_place_are_refused(part, copied):
    """Each is whole by itself; a window from the end of one to the beginning of the next reads both."""
    one, other = (copied / f"transitions.obs/c/{m}/1/{part}/0" for m in (2, 3))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(StoreError, match=f"transitions.obs/c/2/1/{part}/0 is damaged"):
        open_histories(copied).transitions(np.array([2]), np.array([1]), np.array([15]), 11)


def test_what_is_damaged_after_it_was_checked_is_refused(copied):
    """By the checksum that each chunk carries, or because it is gone: never zeros in its place."""
    found = open_histories(copied)
    found.verify()
    path = copied / CHUNK
    flipped = bytearray(path.read_bytes())
    flipped[0] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(StoreError, match=CHUNK):
        read_window(found)
    path.unlink()
    with pytest.raises(StoreError, match=CHUNK):
        read_window(found)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "manifest.json is damaged"),
        (lambda text: text[: len(text) // 2], "manifest.json is damaged"),
        (lambda text: "[]", "manifest.json is damaged"),
        (lambda text: resealed(text, schema=2), "schema=2: must be 1"),
        (lambda text: resealed(text, files={CHUNK: [41, "0" * 64]}), f"{CHUNK} is damaged"),
        (lambda text: resealed(text, without=CHUNK), f"{CHUNK} is not listed in manifest.json"),
        (lambda text: resealed(text, files={CHUNK: [43, "0" * 64]}), f"{CHUNK} has 41 bytes, not 43"),
        (lambda text: resealed(text, files={"transitions.obs/zarr.json": [1, ""]}), "obs/zarr.json has .* bytes"),
    ],
)
def test_a_wrong_manifest_is_refused(change, message, copied):
    path = copied / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match=message):
        read_window(open_histories(copied))


def resealed(text, files=None, without=None, **fields):
    """A manifest that somebody made with care, and wrongly."""
    about = json.loads(text)
    del about["digest"]
    about["files"].pop(without, None)
    return json.dumps(manifest.seal({**about, **fields, "files": {**about["files"], **(files or {})}}))


def test_an_array_that_is_not_described_as_it_was_is_refused(copied):
    path = copied / "transitions.obs/zarr.json"
    path.write_text(path.read_text().replace("uint8", "int8_").replace("int8_", "int8 "))
    with pytest.raises(StoreError, match="transitions.obs/zarr.json is damaged"):
        open_histories(copied)


def test_another_environment_is_refused_naming_both(written):
    found = open_histories(written)
    found.check_env(ENV)
    found.check_env(icrl_envs.make("dark_room", "ad_eps", observation="cell", size=3, horizon=H))
    with pytest.raises(StoreError, match="env.name is 'DarkRoom', not 'GaussianBandit'"):
        found.check_env(icrl_envs.make("gaussian_bandit"))
    with pytest.raises(StoreError, match="env.options.horizon is 5, not 7"):
        found.check_env(icrl_envs.make("dark_room", "ad_eps", observation="cell", size=3, horizon=7))
    with pytest.raises(StoreError, match="env.options._plus is"):  # the order of actions
        found.check_env(icrl_envs.make("dark_room", "dpt", observation="cell", size=3, horizon=H, start="centre"))


@pytest.mark.parametrize("name", ["house_navigation", "tabular_mdp", "linear_bandit", "point_robot"])
def test_an_environment_is_described_alike_before_and_after_it_was_used(name):
    env, other = icrl_envs.make(name), icrl_envs.make(name)
    jax.eval_shape(functools.partial(env.reset, params=env.default_params), jax.random.key(0))
    assert manifest.describe_env(env) == manifest.describe_env(other)
    json.dumps(manifest.describe_env(env))


def test_trees_are_taken_apart_and_put_together():
    task = ENV.default_params.replace(goal=np.arange(2), max_steps_in_episode=np.array(H))
    tree = {"a": (np.arange(3), None), "b": [task]}
    skeleton, arrays = take_apart(tree, "x")
    assert list(arrays) == ["x.a.0", "x.b.0.max_steps_in_episode", "x.b.0.goal"]
    chex.assert_trees_all_equal(put_together(json.loads(json.dumps(skeleton)), arrays), tree)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": 3}, "a=3: must be an array, or a dict"),
        ({"a/b": np.zeros(2)}, "'a/b': must be of letters"),
        ({"a": jax.random.key(0)}, "a=key.*: must be no typed key"),
        (collections.namedtuple("Local", "a")(np.zeros(2)), "class='.*test_store:Local': must be a named tuple"),
    ],
)
def test_trees_that_json_cannot_name_are_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        take_apart(tree)


def test_a_skeleton_calls_nothing_but_named_tuples_and_dataclasses():
    for kind in ("subprocess:Popen", "os:system", "nowhere:Nothing", "builtins:eval"):
        with pytest.raises(ValueError, match=f"class='{kind}': must be a named tuple or a dataclass"):
            put_together({"kind": kind, "parts": {}}, {})
