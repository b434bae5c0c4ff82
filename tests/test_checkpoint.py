import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax import checkpoint
from icrl_jax.checkpoint import CheckpointError, DamagedCheckpoint, list_steps, restore, save
from icrl_jax.core import TrainState


def state(width=5, scale=1.0, data=None):
    """Every kind of leaf a method may carry."""
    params = {"w": scale * jnp.linspace(-1.0, 1.0, width), "half": jnp.full((2, 3), 1 / 3, jnp.bfloat16)}
    extra = {
        "key": jax.random.split(jax.random.key(7), 2),
        "rbg": jax.random.key(3, impl="rbg"),
        "flag": jnp.array([True]),
    }
    opt_state = (jnp.zeros((), jnp.int32), [jnp.array([np.nan, -0.0, np.inf])], ())
    return TrainState(params, opt_state, extra, data, jnp.int32(3))


def as_bytes(tree):
    leaves = jax.tree.leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): checkpoint._key_data(leaf) for path, leaf in leaves}
    return {path: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for path, x in arrays.items()}


def files(directory, step):
    """The largest first."""
    found = [path for path in (directory / str(step)).rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def truncate(directory, step):
    for path in files(directory, step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(directory, step):
    """One bit in each file in which the arrays are."""
    data = [path for path in files(directory, step) if path.parent.name == "d"]
    assert data
    for path in data:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def tell_another_digest(directory, step):
    """The bytes are readable but others than were saved."""
    (path,) = [path for path in files(directory, step) if path.parent.name == "meta" and path.name == "metadata"]
    path.write_text(path.read_text().replace(json.loads(path.read_text())["digest"], "0" * 64))


def remove_a_part(directory, step):
    shutil.rmtree(directory / str(step) / "state")


def empty(directory, step):
    shutil.rmtree(directory / str(step))
    (directory / str(step)).mkdir()


DAMAGE = [truncate, flip_bits, tell_another_digest, remove_a_part, empty]


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    save(directory, 2, state(scale=2.0))
    save(directory, 5, state(scale=5.0))
    return directory


@pytest.fixture
def saved(two_saved, tmp_path):
    return shutil.copytree(two_saved, tmp_path / "checkpoints")


def test_a_round_trip_keeps_every_bit(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = restore(saved, jax.eval_shape(state))
    assert restored.step == 5 and restored.data_digest is None
    assert as_bytes(restored.state) == as_bytes(state(scale=5.0))
    assert jax.tree.structure(restored.state) == jax.tree.structure(state())
    kinds = [jax.random.key_impl(restored.state.extra[name]) for name in ("key", "rbg")]
    assert kinds == [jax.random.key_impl(state().extra[name]) for name in ("key", "rbg")]


def test_data_are_not_saved_but_taken_from_the_target(tmp_path):
    data = jnp.arange(100_003.0)
    save(tmp_path, 1, state(data=data), checkpoint.digest(data))
    assert sum(path.stat().st_size for path in files(tmp_path, 1)) < 100_000
    restored = restore(tmp_path, state(data=data + 1))
    np.testing.assert_array_equal(restored.state.data, data + 1)
    assert restored.data_digest == checkpoint.digest(data) != checkpoint.digest(data + 1)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(saved, damage):
    damage(saved, 5)
    with pytest.warns(DamagedCheckpoint, match=r"checkpoint 5 in .* is damaged .*; falling back to checkpoint 2"):
        restored = restore(saved, state())
    assert restored.step == 2
    assert as_bytes(restored.state) == as_bytes(state(scale=2.0))


def test_every_file_that_matters_is_verified(saved):
    """Cutting any one file short is either noticed or changes nothing."""
    for path in files(saved, 5):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedCheckpoint)
            restored = restore(saved, state())
        assert as_bytes(restored.state) == as_bytes(state(scale=float(restored.step))), path
        path.write_bytes(content)
    assert restore(saved, state()).step == 5


def test_all_damaged_is_an_error_that_names_them(saved):
    truncate(saved, 2)
    truncate(saved, 5)
    with pytest.raises(CheckpointError, match=r"checkpoint 5 .*checkpoint 2 .*no checkpoint is whole"):
        restore(saved, state())


def test_a_half_written_checkpoint_is_none(saved, monkeypatch):
    """As a kill in the middle of `save` leaves it: Orbax's temporary folder, never renamed."""
    (saved / "5").rename(saved / "7.orbax-checkpoint-tmp")
    assert list_steps(saved) == [2]
    assert restore(saved, state()).step == 2
    save(saved, 7, state(scale=7.0))
    assert list_steps(saved) == [2, 7]
    assert as_bytes(restore(saved, state()).state) == as_bytes(state(scale=7.0))


def test_no_checkpoint_at_all_is_an_error(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        assert list_steps(directory) == []
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            restore(directory, state())


def test_what_is_no_checkpoint_is_refused_or_ignored(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()
    assert list_steps(tmp_path) == []
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "model.pt").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"checkpoint 4 in .* is damaged"):
        restore(tmp_path, state())


def test_another_configuration_is_refused_naming_the_fields(saved):
    with pytest.raises(CheckpointError, match=r"checkpoint 5 .* differs in \.params\['w'\]$"):
        restore(saved, state(width=7))
    renamed = state()._replace(extra={"key": state().extra["key"]})
    with pytest.raises(CheckpointError, match=r"differs in \.extra\['flag'\], \.extra\['rbg'\]$"):
        restore(saved, renamed)
    counted = state()._replace(step=jnp.float32(3))
    with pytest.raises(CheckpointError, match=r"differs in \.step$"):
        restore(saved, counted)


def test_a_stale_newer_step_is_set_aside_and_never_lost(saved):
    truncate(saved, 5)
    save(saved, 3, state(scale=3.0))
    assert list_steps(saved) == [2, 3]
    (aside,) = saved.glob("set_aside_5_*")
    assert (aside / "state").is_dir()
    save(saved, 5, state(scale=5.5))
    assert list_steps(saved) == [2, 3, 5] and aside.is_dir()
    assert as_bytes(restore(saved, state()).state) == as_bytes(state(scale=5.5))


def test_saving_the_same_step_again_keeps_the_older_one_aside(saved):
    save(saved, 5, state(scale=9.0))
    assert as_bytes(restore(saved, state()).state) == as_bytes(state(scale=9.0))
    (aside,) = saved.glob("set_aside_5_*")
    aside.rename(saved / "6")
    assert as_bytes(restore(saved, state()).state) == as_bytes(state(scale=5.0))


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, checkpoint.KEEP + 3):
        save(tmp_path, step, state())
    assert list_steps(tmp_path) == [3, 4, 5]


def test_the_digest_tells_values_shapes_types_and_names_apart():
    trees = [{"a": np.zeros(6, np.float32)}, {"a": np.zeros((2, 3), np.float32)}, {"b": np.zeros(6, np.float32)}]
    trees += [{"a": np.zeros(6, np.int32)}, {"a": np.full(6, -0.0, np.float32)}, {"a": np.ones(6, np.float32)}]
    assert len({checkpoint.digest(tree) for tree in trees}) == len(trees)
    assert checkpoint.digest({"a": trees[0]["a"], "b": 1.0}) == checkpoint.digest({"b": 1.0, "a": trees[0]["a"].copy()})
