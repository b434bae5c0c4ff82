"""The room in pictures: walks and pictures worked by hand, and rays against others that march in small steps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_envs.drawing import BLUE, GREEN, ORANGE, RED, YELLOW
from icrl_envs.pixel_room import FORWARD, LEFT, RIGHT, STAY, PixelRoom, PixelRoomState
from icrl_envs.ray_casting import CEILING, EYE, FLOOR, ROOF, SIDE_SHADE, WALL_X, WALL_Y, picture

SMALL = PixelRoom(pixels=4, num_headings=4)
WIDE = PixelRoom(pixels=13, num_headings=12)
FAR, BOX, NEAR, REACH = 3 - 0.4 * 2**0.5, 0.4 * 2**0.5, 0.4 * 2**0.5 + 0.4 + 1.05, 2.6
CORNERS = {0: (-FAR, FAR), 1: (FAR, FAR), 2: (FAR, -FAR), 3: (-FAR, -FAR)}
COLOURS = np.array([BLUE, RED, GREEN, YELLOW])


def at(env, x, y, heading):
    return PixelRoomState(
        time=jnp.zeros((), jnp.int32), position=jnp.array([x, y], jnp.float32), heading=jnp.int32(heading)
    )


def room(env, target=0, corners=(0, 1, 2, 3)):
    return env.default_params.replace(target=jnp.int32(target), corners=jnp.array(corners, jnp.int32))


@functools.cache
def jitted(env, name):
    return on_host(getattr(env, name))


def follow(env, task, state, script):
    for action, position, heading, reward in script:
        sure = jitted(env, "expected_reward")(state, jnp.int32(action), task)
        obs, state, got, terminated, _ = jitted(env, "step_env")(jax.random.key(0), state, jnp.int32(action), task)
        np.testing.assert_allclose(state.position, position, atol=1e-5)
        assert state.heading == heading and got == sure == reward and not terminated
        angle = 2 * np.pi * heading / env.num_headings
        np.testing.assert_allclose(obs["heading"], (np.cos(angle), np.sin(angle)), atol=1e-6)
    return state


def test_a_walk_to_the_paying_box_worked_by_hand():
    """To the upper right corner at (2.43, 2.43): it pays within 2.016 of it."""
    half, rise = 0.7 * 3**0.5 / 2, 0.35
    walk = [
        (LEFT, (0, 0), 1, 0),
        (FORWARD, (half, rise), 1, 0),
        (FORWARD, (2 * half, 2 * rise), 1, 0),  # 2.12 from it
        (FORWARD, (3 * half, 3 * rise), 1, 0),  # 1.51, but 36 degrees off
        (LEFT, (3 * half, 3 * rise), 2, 1),
        (STAY, (3 * half, 3 * rise), 2, 1),
        (RIGHT, (3 * half, 3 * rise), 1, 0),
        (RIGHT, (3 * half, 3 * rise), 0, 0),
        (RIGHT, (3 * half, 3 * rise), 11, 0),
        (LEFT, (3 * half, 3 * rise), 0, 0),
    ]
    follow(WIDE, room(WIDE, 1), WIDE.start_state(), walk)
    nothing = [(*step[:3], 0) for step in walk]
    follow(WIDE, room(WIDE, 1, (1, 0, 2, 3)), WIDE.start_state(), nothing)  # red has gone to the upper left
    follow(WIDE, room(WIDE, 0, (1, 0, 2, 3)), WIDE.start_state(), walk)  # where blue is now, it pays


def test_near_is_nearer_than_two_and_facing_within_thirty_degrees():
    task = room(WIDE, 2)
    for away, reward in ((0.01, 0), (-0.01, 1)):  # straight below the lower right box, looking up
        follow(WIDE, task, at(WIDE, FAR, -FAR + NEAR + away, 9), [(STAY, (FAR, -FAR + NEAR + away), 9, reward)])
    side = np.tan(np.radians(30))
    for aside, reward in ((0.01, 0), (0, 1), (-0.01, 1)):
        x, y = FAR - (side + aside), -FAR + 1
        follow(WIDE, task, at(WIDE, x, y, 9), [(STAY, (x, y), 9, reward)])


def test_one_slides_along_walls():
    start = at(WIDE, 2.5, 2.3, 1)  # into the right wall, and then into the corner
    ahead = [(FORWARD, (REACH, REACH), 1, 0), (FORWARD, (REACH, REACH), 1, 0), (LEFT, (REACH, REACH), 2, 0)]
    follow(WIDE, room(WIDE), start, ahead)
    follow(WIDE, room(WIDE), at(WIDE, -2.5, 0, 5), [(FORWARD, (-REACH, 0.35), 5, 0)])


def test_pictures_worked_by_hand():
    """4 x 4 rays, which go 1/4 and 3/4 of the distance to either side; the boxes' tops are 0.2 below the eye."""
    seen = jitted(SMALL, "observe")(at(SMALL, FAR, FAR - 0.9, 1), room(SMALL))["picture"]
    assert seen.shape == (4, 4, 3) and seen.dtype == np.uint8
    side = lambda colour: tuple(int(SIDE_SHADE * x) for x in colour)
    before_red = [  # its front is 0.5 away, the wall behind it 1.47, that to the right 0.57 aside
        [WALL_Y, WALL_Y, WALL_Y, WALL_X],
        [WALL_Y, WALL_Y, WALL_Y, WALL_X],
        [WALL_Y, RED, RED, WALL_X],  # above the front, and on the top 0.8 away
        [side(RED)] * 4,
    ]
    np.testing.assert_array_equal(seen, before_red)
    seen = jitted(SMALL, "observe")(SMALL.start_state(), room(SMALL))["picture"]
    from_the_start = [[ROOF] * 4, [WALL_X] * 4, [side(RED), WALL_X, WALL_X, side(GREEN)], [FLOOR] * 4]
    np.testing.assert_array_equal(seen, from_the_start)
    turned = jitted(SMALL, "observe")(at(SMALL, 0, 0, 3), room(SMALL, 0, (2, 1, 0, 3)))["picture"]  # down
    np.testing.assert_array_equal(turned[2], [side(BLUE), WALL_Y, WALL_Y, side(YELLOW)])


@pytest.mark.parametrize("boxes", [[(1.0, 0.0), (2.5, 0.0)], [(2.5, 0.0), (1.0, 0.0)]])
def test_the_nearer_of_two_boxes_is_seen_and_none_that_one_stands_in(boxes):
    look = on_host(lambda x: picture(jnp.array([x, 0.0]), jnp.zeros(()), jnp.array(boxes), COLOURS[:2], 0.4, 0.8, 3, 4))
    near, far = (SIDE_SHADE * COLOURS[[boxes.index((x, 0.0))] * 2] for x in (1.0, 2.5))
    np.testing.assert_array_equal(look(0.0)[3, 1:3], near.astype(int))
    np.testing.assert_array_equal(look(1.0)[2:, 1:3], np.stack([far.astype(int)] * 2))


def test_the_best_actions_worked_by_hand():
    task, best = room(WIDE, 1), jitted(WIDE, "optimal_action")
    near, far = (FAR, FAR - 1.5), (FAR, FAR - 2.5)  # below the upper right box
    poses = [(far, 3, FORWARD), (far, 4, FORWARD), (far, 5, RIGHT), (far, 0, LEFT), (far, 10, LEFT), (far, 8, RIGHT)]
    poses += [(near, 2, STAY), (near, 3, STAY), (near, 4, STAY), (near, 1, LEFT), (near, 5, RIGHT)]
    for position, heading, action in poses:
        assert best(at(WIDE, *position, heading), task) == action


def marched(env, state, corners, step=0.004):
    """The picture of rays that go in small steps until they are in a box, in a wall, or below or above the room."""
    screen = (2 * np.arange(env.pixels) + 1) / env.pixels - 1
    angle = 2 * np.pi * int(state.heading) / env.num_headings
    ahead, right = np.array([np.cos(angle), np.sin(angle)]), np.array([np.sin(angle), -np.cos(angle)])
    way = np.arange(1, 2500)[:, None] * step
    image = np.zeros((env.pixels, env.pixels, 3))
    for row, column in itertools.product(range(env.pixels), repeat=2):
        ray = ahead + screen[column] * right
        (x, y), z = (np.asarray(state.position) + way * ray).T, EYE - way[:, 0] * screen[row]
        inside = [
            (abs(x - CORNERS[c][0]) < 0.4) & (abs(y - CORNERS[c][1]) < 0.4) & (z > 0) & (z < 0.8) for c in corners
        ]
        events = [z < 0, z > CEILING, abs(x) > 3, abs(y) > 3, *inside]
        first = [event.argmax() if event.any() else len(way) for event in events]
        what, when = int(np.argmin(first)), min(first)
        if what < 4:
            image[row, column] = (FLOOR, ROOF, WALL_X, WALL_Y)[what]
        else:
            shade = 1 if z[when - 1] >= 0.8 else SIDE_SHADE
            image[row, column] = (shade * COLOURS[what - 4]).astype(int)
    return image


def test_pictures_are_those_of_rays_that_march():
    tasks, keys = icrl_envs.sample_tasks(WIDE, jax.random.key(3), 7), jax.random.split(jax.random.key(4), 7)
    seen, states = on_host(jax.vmap(WIDE.reset_anywhere))(keys, tasks)
    boxes = 0
    for b in range(7):
        state = jax.tree.map(lambda x: x[b], states)  # noqa: B023
        expected = marched(WIDE, state, np.asarray(tasks.corners[b]))
        same = (seen["picture"][b] == expected).all(axis=-1)
        assert same.mean() > 0.97  # rays that only touch an edge may go either way
        boxes += (np.ptp(expected, axis=-1) > 40).sum()
    assert boxes > 50


def test_places_are_uniform():
    keys = jax.random.split(jax.random.key(1), 5003)
    where = jax.vmap(lambda key: WIDE.reset_anywhere(key, room(WIDE))[1])
    states = on_host(where)(keys)
    assert np.abs(states.position).max() <= REACH
    np.testing.assert_allclose(np.cov(states.position.T), REACH**2 / 3 * np.eye(2), atol=0.15)
    shares = np.bincount(states.heading, minlength=12) / 5003
    np.testing.assert_allclose(shares, 1 / 12, atol=5 * (1 / 12 / 5003) ** 0.5)


def test_five_arrangements_are_held_out_with_every_colour_paying_in_each():
    env = icrl_envs.make("pixel_room", "dpt")
    rows = {
        split: np.c_[env.tasks(split).corners, env.tasks(split).target].tolist() for split in ("train", "test", "all")
    }
    everything = [[*corners, target] for corners in itertools.permutations(range(4)) for target in range(4)]
    assert sorted(rows["all"]) == everything and sorted(rows["train"] + rows["test"]) == everything
    assert len(rows["test"]) == 20 and len({tuple(row[:4]) for row in rows["test"]}) == 5
    assert [0, 1, 2, 3, 0] in rows["train"]  # the paper's
    assert rows["test"] != np.c_[PixelRoom(split_seed=1).tasks("test").corners].tolist()
    drawn = icrl_envs.sample_tasks(env, jax.random.key(0), 997)
    found, counts = np.unique(np.c_[drawn.corners, drawn.target], axis=0, return_counts=True)
    assert len(found) == 20 and counts.min() > 20


def turn_and_go(position, heading, action, num_headings):
    angle = 2 * np.pi * heading / num_headings
    ahead = np.array(position) + 0.7 * np.array([np.cos(angle), np.sin(angle)])
    after = {LEFT: heading + 1, RIGHT: heading - 1}.get(action, heading) % num_headings
    return tuple(np.clip(ahead, -REACH, REACH).round(6)) if action == FORWARD else position, after


def off_target(position, heading, num_headings):
    gap = np.array(CORNERS[1]) - position
    off = np.arctan2(gap[1], gap[0]) - 2 * np.pi * heading / num_headings
    return np.hypot(*gap), (off + np.pi) % (2 * np.pi) - np.pi


def quickest(position, heading, num_headings, limit):
    """Steps to the first reward at the upper right, by trying all ways."""
    front = seen = {(tuple(position), heading)}
    for step in range(1, limit):
        front = {turn_and_go(*pose, action, num_headings) for pose in front for action in range(4)}
        for pose in front:
            distance, off = off_target(*pose, num_headings)
            if distance < NEAR and abs(off) <= np.radians(30) + 1e-4:
                return step
        front, seen = front - seen, front | seen
    return limit


def test_the_best_actions_are_hardly_slower_than_the_quickest_way():
    env = PixelRoom(pixels=4, num_headings=12)
    poses = on_host(jax.vmap(lambda key: env.reset_anywhere(key, room(env, 1))[1]))(
        jax.random.split(jax.random.key(5), 31)
    )
    starts = [(0.0, 0.0, heading) for heading in (0, 3, 6, 9)]
    starts += [(*map(float, p.round(6)), int(h)) for p, h in zip(poses.position, poses.heading, strict=True)]

    @on_host
    @jax.vmap
    def first_reward(position, heading):
        def step(state, _):
            return env.next_state(state, env.optimal_action(state, room(env, 1)), room(env, 1))

        state = PixelRoomState(time=jnp.zeros((), jnp.int32), position=position, heading=heading)
        return jnp.argmax(jax.lax.scan(step, state, length=25)[1]) + 1

    array = np.array(starts, np.float32)
    taken = first_reward(array[:, :2], array[:, 2].astype(np.int32))
    slower = [int(n) - quickest((x, y), h, 12, int(n)) for n, (x, y, h) in zip(taken, starts, strict=True)]
    assert not any(slower[:4]) and max(slower) <= 1 and np.mean(slower) < 0.2 and taken.max() > 8


def test_render_shows_the_room_and_what_is_seen():
    task = room(WIDE, 3, (2, 1, 0, 3))
    state = WIDE.start_state()
    image = jitted(WIDE, "render")(state, task)
    assert image.shape == (128, 256, 3) and image.dtype == np.uint8
    for colour, (x, y) in zip((GREEN, RED, BLUE, YELLOW), CORNERS.values(), strict=True):
        row, column = round(64 - y * 128 / 6), round(64 + x * 128 / 6)
        assert tuple(image[row, column]) == colour
    assert tuple(image[62, 62]) == ORANGE
    dark = [(image[:64, :64] == 20).sum(), (image[64:, :64] == 20).sum()]  # the ring, lower left
    assert dark[0] < dark[1]
    seen = jitted(WIDE, "observe")(state, task)["picture"]
    np.testing.assert_array_equal(image[[0, 64, 127]][:, [128, 192, 255]], seen[[0, 6, 12]][:, [0, 6, 12]])


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("pixels", 3, "an integer in 4 ..= 64"),
        ("pixels", 25.0, "an integer in 4 ..= 64"),
        ("num_headings", 14, "a multiple of 4 in 4 ..= 360"),
        ("num_steps", 0, "an integer of at least 1"),
        ("split_seed", -1, "an integer in 0 ..= 2147483647"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}={value}: must be {allowed}$"):
        icrl_envs.make("pixel_room", **{argument: value})
