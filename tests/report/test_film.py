"""Films of agents: every frame is the state that a step led to, and files hold what was put into them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from two_episodes import TwoEpisodes, constant, scout

import icrl_envs
from icrl_envs.film import GAP, evenly, stack, strip, write_gif, write_png
from icrl_jax.report import episodes_picture, film, write_report
from icrl_jax.run.experiment import EPISODES, draw_episodes

HEIGHT, WIDTH = 5, 7


class Painted(TwoEpisodes):
    """Its picture is one colour: (40 * time, 40 * secret, 200 if found)."""

    def render(self, state, params):
        colour = jnp.stack([40 * state.time, 40 * params.secret, 200 * state.found.astype(jnp.int32)])
        return jnp.broadcast_to(colour.astype(jnp.uint8), (HEIGHT, WIDTH, 3))


@pytest.fixture(scope="module")
def env():
    return Painted()


def colours(frames):
    frames = np.asarray(frames)
    assert (frames == frames[:, :1, :1]).all()
    return frames[:, 0, 0].tolist()


def test_every_frame_is_the_state_a_step_led_to(env, getkey):
    task = env.default_params.replace(secret=jnp.int32(3))
    missed = film(constant(1), env, task, getkey(), 5)
    assert missed.shape == (5, HEIGHT, WIDTH, 3) and missed.dtype == jnp.uint8
    assert colours(missed) == [[40, 120, 0], [80, 120, 0], [120, 120, 0], [40, 120, 0], [80, 120, 0]]
    assert colours(film(constant(3), env, task, getkey(), 2)) == [[40, 120, 200]] * 2


def test_film_through_wrappers(env, getkey):
    from icrl_jax.agents import oracle

    seen = icrl_envs.revealed(env)
    assert colours(film(oracle(env), seen, env.default_params, getkey(), 2)) == [[40, 0, 200]] * 2


def test_what_cannot_be_filmed_is_refused(env, getkey):
    for show in (film, episodes_picture):
        with pytest.raises(ValueError, match=r"env=TwoEpisodes: must define render\(state, params\) to be filmed"):
            show(scout(), TwoEpisodes(), TwoEpisodes().default_params, getkey(), 3)
        with pytest.raises(ValueError, match="must be one environment to be filmed"):
            show(scout(), icrl_envs.copies(env, 2), env.default_params, getkey(), 3)


def test_first_and_last_episodes_one_below_the_other(env, getkey):
    tasks = env.tasks("test")  # secrets 1 and 3
    picture = episodes_picture(constant(3), env, tasks, getkey(), num_steps=8, count=2)
    rows = picture.reshape(-1, 2 * WIDTH + GAP, 3)[:: HEIGHT + GAP]  # the uppermost line of each
    assert rows.shape[0] == 4
    left, right = rows[:, 0].tolist(), rows[:, WIDTH + GAP].tolist()
    assert left == [[40, 40, 0], [40, 40, 0], [40, 120, 200], [40, 120, 200]]
    assert right == [[120, 40, 0], [120, 40, 0], [255, 255, 255], [255, 255, 255]]  # white: episodes of one step
    assert episodes_picture(constant(0), env, tasks, getkey(), num_steps=2) is None
    one = episodes_picture(constant(0), env, tasks, getkey(), num_steps=5, count=3)
    assert one.shape[0] == 2 * HEIGHT + GAP  # the first episode of each task is its last whole one


def test_strip_is_evenly_spaced():
    frames = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, HEIGHT, WIDTH, 3), np.uint8)
    image = strip(frames, 3)
    assert image.shape == (HEIGHT, 3 * WIDTH + 2 * GAP, 3)
    assert image[0, :: WIDTH + GAP, 0].tolist() == [0, 5, 10]
    assert evenly(3, 8).tolist() == [0, 1, 2] and evenly(7, 1).tolist() == [0]
    assert strip(frames[:1], 2)[0, -1].tolist() == [255] * 3
    assert stack([image, image]).shape == (2 * HEIGHT + GAP, *image.shape[1:])


def test_files_hold_what_was_put_into_them(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.choice(np.array([0, 90, 255], np.uint8), (6, HEIGHT, WIDTH, 3))
    frames[3] = frames[2]
    path = write_gif(tmp_path / "new" / "film.gif", jnp.asarray(frames), frames_per_second=20)
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # for ever
        found, times = [], []
        for i in range(image.n_frames):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
            times.append(image.info["duration"])
    assert times == [50, 50, 100, 50, 50]
    assert (np.stack(found) == np.delete(frames, 3, axis=0)).all()
    with Image.open(write_png(tmp_path / "one.png", frames[0])) as image:
        assert (np.asarray(image) == frames[0]).all()


FRAMES = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: write_gif(path, FRAMES, 51), "frames_per_second=51: must be a number above 0, at most 50"),
        (lambda path: write_gif(path, FRAMES, "9"), "frames_per_second='9': must be a number above 0, at most 50"),
        (lambda path: write_gif(path, FRAMES[0]), r"frames: must be uint8 \[T, H, W, 3\] .*, not uint8 \(5, 7, 3\)"),
        (lambda path: write_gif(path, FRAMES[:0]), r"with T at least 1, not uint8 \(0, 5, 7, 3\)"),
        (lambda path: write_png(path, FRAMES[0] / 255), r"not float64 \(1, 5, 7, 3\)"),
        (lambda path: strip(FRAMES, 0), "count=0: must be an integer of at least 1"),
    ],
)
def test_wrong_frames_are_refused(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "film")


def plan(env):
    method = SimpleNamespace(agent=lambda params: constant(params["action"]))
    return SimpleNamespace(env=env, method=method, method_spec=SimpleNamespace(options=SimpleNamespace(horizon=8)))


def test_report_shows_the_episodes_of_a_run(env, results, tmp_path):
    params = {"action": jnp.array([2, 0], jnp.int32)}  # two seeds
    pictures = draw_episodes(tmp_path, plan(env), params)
    assert [path for path, _ in pictures] == [EPISODES] and "within 8 steps" in pictures[0][1]
    page = write_report(tmp_path, results, pictures).read_text()
    assert page.count("data:image/png;base64,iVBOR") == 1


def test_report_embeds_a_film(results, tmp_path):
    write_gif(tmp_path / "film.gif", FRAMES)
    assert "data:image/gif;base64,R0lGOD" in write_report(tmp_path, results, [("film.gif", "")]).read_text()


def test_what_has_no_episodes_or_no_picture_is_left_out(tmp_path):
    params = {"action": jnp.array([2], jnp.int32)}
    assert draw_episodes(tmp_path, plan(icrl_envs.make("gaussian_bandit")), params) == []
    assert draw_episodes(tmp_path, plan(TwoEpisodes()), params) == []
    assert not list(tmp_path.iterdir())


def test_film_of_a_stacked_agent_is_one_of_each(env, getkey):
    films = jax.vmap(lambda action: film(constant(action), env, env.default_params, jax.random.key(0), 3))
    found = films(jnp.array([0, 1], jnp.int32))
    assert colours(found[0]) == [[40, 0, 200]] * 3 and colours(found[1])[-1] == [120, 0, 0]
