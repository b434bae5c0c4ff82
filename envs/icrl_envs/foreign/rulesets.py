"""Tasks for XLand-MiniGrid of our own making: its benchmarks must be downloaded, and their generator is not shipped.

A task is a goal, the production rules that make what it needs, and the objects that lie about at the start. Codes are
those of `xminigrid.core`: a goal is uint8 [5], a rule uint8 [7], an object uint8 [2] (tile, colour), filled with zeros.
"""

from typing import Any, NamedTuple

import numpy as np

from icrl_envs.task_family import is_int, require

TILES = (3, 4, 5, 11, 12)  # ball, square, pyramid, hex, star: all can be carried
COLOURS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)  # all but black, the floor's
AGENT_HOLD_GOAL, AGENT_NEAR_GOAL, TILE_NEAR_GOAL = 1, 3, 4
AGENT_HOLD_RULE, AGENT_NEAR_RULE, TILE_NEAR_RULE = 1, 2, 3


class Rulesets(NamedTuple):
    """N tasks, or one; the fields of `xminigrid.types.RuleSet`."""

    goal: Any  # uint8 [N, 5]
    rules: Any  # uint8 [N, R, 7]
    init_tiles: Any  # uint8 [N, I, 2]


def make_rulesets(num_rulesets: int = 1000, num_rules: int = 1, num_distractors: int = 2, seed: int = 0) -> Rulesets:
    """Makes tasks that differ in their goal or in their rules, all of them solvable.

    The goal is to hold an object, to stand beside it, or to put two objects side by side. The object, unless there are
    no rules, does not exist at first: the last rule makes it of others, one of which the rule before makes, and so on.
    A rule changes what is picked up, what one walks up to, or a pair put side by side. Distractors are of no use.

    Args:
      num_rulesets: N.
      num_rules: R, the depth of the chain, 0 ..= 8; the benchmark "trivial" has 0.
      num_distractors: objects of no use, 0 ..= 8.
      seed: of NumPy's generator; the first tasks of a longer list are those of a shorter one.
    Raises:
      ValueError: an argument outside its range, or more tasks than there are.
    """
    require(is_int(num_rulesets, 1), "num_rulesets", num_rulesets, "an integer of at least 1")
    require(is_int(num_rules, 0, 8), "num_rules", num_rules, "an integer in 0 ..= 8")
    require(is_int(num_distractors, 0, 8), "num_distractors", num_distractors, "an integer in 0 ..= 8")
    rng = np.random.default_rng(seed)
    objects = [(tile, colour) for tile in TILES for colour in COLOURS]
    found: dict[bytes, Rulesets] = {}
    for _ in range(1000 + 20 * num_rulesets):
        ruleset = _draw(rng, iter([objects[i] for i in rng.permutation(len(objects))]), num_rules, num_distractors)
        found.setdefault(ruleset.goal.tobytes() + ruleset.rules.tobytes(), ruleset)
        if len(found) == num_rulesets:
            return Rulesets(*map(np.stack, zip(*found.values(), strict=True)))
    raise ValueError(f"num_rulesets={num_rulesets!r}: with num_rules={num_rules} there are few more than {len(found)}")


def _draw(rng, objects, num_rules, num_distractors) -> Rulesets:
    wanted = next(objects)
    kind = rng.choice([AGENT_HOLD_GOAL, AGENT_NEAR_GOAL, TILE_NEAR_GOAL])
    lying = [next(objects)] if kind == TILE_NEAR_GOAL else []
    goal = _code(5, kind, [wanted, *lying])
    rules = []
    for _ in range(num_rules):  # from the goal backwards
        product, wanted = wanted, next(objects)
        kind = rng.choice([AGENT_HOLD_RULE, AGENT_NEAR_RULE, TILE_NEAR_RULE])
        beside = [next(objects)] if kind == TILE_NEAR_RULE else []
        rules.append(_code(7, kind, [wanted, *beside], product))
        lying += beside
    lying += [wanted, *(next(objects) for _ in range(num_distractors))]
    init_tiles = np.zeros((2 + num_rules + num_distractors, 2), np.uint8)  # the most there can be; zeros are empty
    init_tiles[: len(lying)] = lying
    return Rulesets(goal, np.array(rules or [_code(7, 0, [])]), init_tiles)


def _code(length, kind, inputs, *product) -> np.ndarray:
    """Inputs in one order: two objects side by side are the same pair either way, and so the same task."""
    numbers = np.ravel([*sorted(inputs), *product])
    code = np.zeros(length, np.uint8)
    code[0] = kind
    code[1 : 1 + len(numbers)] = numbers
    return code
