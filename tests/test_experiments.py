"""Every experiment: its presets build, and a few steps of it leave whole results."""

import dataclasses
import importlib
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

import icrl_envs
import icrl_jax
from experiments import _bandits as bandits
from experiments import _distilled, dpt_bandit
from experiments import _episodes as episodes
from experiments._preferences import world_of
from icrl_jax import agents, checkpoint
from icrl_jax.agents.posterior import weights
from icrl_jax.core import Transition
from icrl_jax.data.histories import Distilled, Form, Histories
from icrl_jax.data.store import write_histories
from icrl_jax.data.stored import open_histories
from icrl_jax.evaluate import evaluate, offline_suboptimality
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.s5 import S5Config
from icrl_jax.report import read_results
from icrl_jax.rollout import replay
from icrl_jax.run.experiment import main, make_plan, run
from icrl_jax.run.folder import read_metrics
from icrl_jax.run.options import OptionsError, parse

ROOT = Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if not p.stem.startswith("_") and p.stem != "sweep")
EXPERIMENTS = {name: importlib.import_module(f"experiments.{name}").EXPERIMENT for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_presets_build(name, monkeypatch):
    monkeypatch.setattr(_distilled, "free_bytes", lambda: 0.9 * 2**37)  # the paper's are for an accelerator
    for config in EXPERIMENTS[name].presets.values():
        plan = make_plan(EXPERIMENTS[name], config)
        assert plan.schedule.num_chunks * plan.schedule.updates_per_chunk == plan.method_spec.options.num_updates
        assert plan.method_spec.options.num_updates >= 750


ASKED = {
    "compare_dark_room",
    "dicp_dark_room",
    "dicp_key_to_door",
    "dit_dark_room",
    "dpt_dark_room",
    "dpt_dark_room_permuted",
    "dpt_pixels",
    "dpt_tabular_mdp",
    "icpo_dark_room",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_takes_any_model_that_remembers_with_options_of_its_own(name, capsys):
    def model(typed):
        config = parse(name, EXPERIMENTS[name].presets, "", ["--model", *typed.split()])
        return EXPERIMENTS[name].method(config).options.model

    preset = EXPERIMENTS[name].method(EXPERIMENTS[name].presets["cpu"]).options.model
    assert model("gru --cell lstm") == GRUConfig(preset.width, preset.num_layers, "lstm")
    s4d = "s5 --width 6 --kind s4d --state-size 4 --mlp-ratio 2"
    experts = MoEConfig(num_experts=3, expert_layers="last")
    if name in ASKED:
        assert model(s4d) == S5Config(6, preset.num_layers, "s4d", 4, mlp_ratio=2)
        with pytest.raises((OptionsError, SystemExit)) as found:  # by its options, or once the family is known
            make_plan(EXPERIMENTS[name], parse(name, EXPERIMENTS[name].presets, "", ["--num-experts", "3"]))
        assert "num_experts=3, num_task_experts=0: must be 0" in capsys.readouterr().err + str(found.value)
    else:
        experts = S5Config(6, preset.num_layers, "s4d", 4, mlp_ratio=2, moe=experts)
        assert model(f"{s4d} --num-experts 3 --expert-layers last") == experts
    with pytest.raises(OptionsError, match="model='mlp': must be one that remembers|must be below model.context_len=1"):
        model("mlp")


def test_offline_the_classics_follow_the_paper_or_its_code():
    """After arm 0 paid -1 nine times and arm 1 -2 once; arm 2 was never seen."""
    pulls = [(0, -1.0)] * 9 + [(1, -2.0)]
    arms, rewards = (np.array(x) for x in zip(*pulls, strict=True))
    one, no = np.ones((10, 1), np.float32), np.zeros(10, bool)
    context = Transition(one, arms.astype(np.int32), rewards.astype(np.float32), one, no, no)
    env = icrl_envs.make("gaussian_bandit", num_arms=3)
    task = jax.tree.map(lambda x: jnp.asarray(x)[None], env.default_params.replace(means=jnp.arange(3.0)))
    for rules, best in (("paper", 0), ("code", 2)):
        for agent, *_ in dpt_bandit.offline_classics(3, rules).values():
            lost = offline_suboptimality(agent, env, task, jax.tree.map(lambda x: x[None], context), jax.random.key(0))
            assert lost[0, -1] == 2 - best


@pytest.mark.parametrize("name", ["dpt_bandit", "dpt_linear_bandit"])
def test_tasks_to_choose_by_are_not_those_of_the_final_tables(name):
    """Random arms cost something else in each task, and the key says which arms."""
    experiment, config, key = EXPERIMENTS[name], EXPERIMENTS[name].presets["cpu"], jax.random.key(0)
    env = experiment.env(config).build()
    random, tasks = agents.uniform(env), bandits.held_out(env, 11)
    watched = jax.jit(experiment.score(env, config, 11))(random, key)
    final = jax.jit(lambda: evaluate(random, env, tasks, key, num_steps=config.dpt.horizon).metrics)()
    assert (np.abs(watched - final[experiment.metric]) > 1e-3).all()


def test_linear_bandit_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dpt_linear_bandit"]
    sizes = (
        "--num-arms 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 --eval-tasks 11"
    )
    argv = [*sizes.split(), "--num-updates", "6", "--num-chunks", "3", "--runs-dir", str(tmp_path)]
    run_dir = run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True))
    results = read_results(run_dir)
    assert {"dpt", "linucb", "thompson_linear", "source", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["oracle"]["cumulative_regret"]["mean"] == 0
    assert results["env_steps"] == 6 * 4 * 7


@pytest.mark.parametrize("query", ["first", "last"])
def test_dpt_dark_room_runs_a_few_steps(tmp_path, query):
    experiment = EXPERIMENTS["dpt_dark_room"]
    sizes = (
        "--size 3 --episode-steps 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 "
        "--eval-tasks 6 --eval-episodes 3 --num-updates 4 --num-chunks 2"
    )
    argv = [*sizes.split(), "--query", query, "--update", "episode", "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert {"dpt", "posterior", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["dpt"]["final_return"]["n"] == 2 and len(results["curves"]["dpt"]["return"]) == 3
    best = results["agents"]["oracle"]["final_return"]["mean"]
    assert results["agents"]["random"]["final_return"]["mean"] < best
    for condition in ("offline_random", "offline_expert"):
        offline = {who: found["offline_return"]["mean"] for who, found in results["conditions"][condition].items()}
        assert set(offline) == {"dpt", "posterior"} and offline["posterior"] <= best
    assert offline["posterior"] == best  # who saw an expert's episode knows the goal
    assert results["env_steps"] == 4 * 4 * 7


def test_dpt_dark_room_permuted_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dpt_dark_room_permuted"]
    sizes = (
        "--size 3 --episode-steps 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 "
        "--eval-tasks 20 --eval-episodes 3 --num-updates 4 --num-chunks 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert {"dpt", "posterior", "random", "oracle"} == set(results["agents"])
    final = {who: found["final_return"]["mean"] for who, found in results["agents"].items()}
    assert final["oracle"] == 2 and final["random"] < 1  # four moves to the far corner, the fifth step stays there
    assert results["agents"]["dpt"]["final_return"]["n"] == 20  # permutations
    assert results["conditions"]["offline_expert"]["posterior"]["offline_return"]["mean"] == 2


def test_dpt_pixels_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dpt_pixels"]
    sizes = (
        "--pixels 6 --width 8 --num-layers 1 --num-heads 2 --context-len 26 --horizon 25 "
        "--image-channels 2 --batch-size 2 --eval-tasks 4 --eval-episodes 2 --num-updates 2 --num-chunks 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    final = {who: found["final_return"]["mean"] for who, found in results["agents"].items()}
    assert {"dpt", "posterior", "random", "oracle"} == set(final)
    assert final["random"] < final["posterior"] < final["oracle"] == (21 + 18) / 2  # 5 or 8 steps to the first reward
    for condition in ("offline_random", "offline_expert"):
        offline = {who: found["offline_return"]["mean"] for who, found in results["conditions"][condition].items()}
        assert set(offline) == {"dpt", "posterior"} and offline["dpt"] < offline["posterior"] <= final["oracle"]
    assert offline["posterior"] == final["oracle"]  # who has seen it paid knows where to go


def test_beliefs_of_known_places_are_those_of_the_exact_agent():
    """After an expert's two episodes from the start, which the agent can follow without being told."""
    pixels, env = importlib.import_module("experiments.dpt_pixels"), icrl_envs.make("pixel_room", "small", num_steps=9)
    task, key = jax.tree.map(lambda x: x[7], env.tasks("test")), jax.random.key(0)
    exact = agents.posterior(env)

    @jax.jit
    def beliefs():
        states, actions = pixels.best_places(env, 19, task, key)
        context = pixels.transitions(env, task, states, actions)
        told = pixels.belief(env, *jax.tree.map(lambda x: x[:18], (states, context)))
        return context, told, replay(exact, exact.init(key), context, key)[0]  # which has learned all but the last

    context, told, followed = beliefs()
    np.testing.assert_array_equal(np.flatnonzero(context.truncated), [8, 17])
    assert context.feedback[:18].sum() > 1 and followed.misses.min() == 0
    np.testing.assert_allclose(told, weights(followed))
    assert 0 < told.max() < 1 and (told > 0).sum() < 24


def test_dpt_tabular_mdp_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dpt_tabular_mdp"]
    sizes = (
        "--num-states 3 --num-actions 2 --episode-steps 3 --width 8 --num-layers 1 --num-heads 2 --context-len 10 "
        "--horizon 9 --batch-size 4 --eval-tasks 11 --num-updates 4 --num-chunks 2 --num-seeds 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert {"dpt", "psrl", "posterior", "ucbvi", "random", "oracle"} == set(results["agents"])
    regret = {who: found["cumulative_regret"] for who, found in results["agents"].items()}
    assert regret["oracle"]["mean"] == 0 < regret["psrl"]["mean"] < regret["random"]["mean"]
    assert regret["dpt"]["n"] == 11 and len(regret["dpt"]["per_seed"]) == 2
    assert results["agents"]["random"]["mean_return"]["mean"] < results["agents"]["oracle"]["mean_return"]["mean"]
    curves = results["curves"]["dpt"]
    assert [len(curves[what]) for what in ("regret", "return", "tv_distance")] == [9, 3, 9]
    assert len(results["conditions"]["histories_dpt"]["psrl"]["tv_distance"]["per_seed"]) == 2
    for condition in ("histories_psrl", "histories_dpt"):
        away = {who: found["tv_distance"]["mean"] for who, found in results["conditions"][condition].items()}
        assert {"dpt", "untrained", "psrl", "ucbvi"} == set(away)
        assert 0 < away["psrl"] < min(away["dpt"], away["ucbvi"])


def test_regret_in_an_mdp_is_what_the_best_actions_would_have_earned_more():
    """Two states, of which 1 pays 1 whatever one does; action 1 goes there, action 0 to state 0; three steps left or
    fewer, so that the last step costs nothing and each earlier one in vain a reward."""
    env = icrl_envs.make("tabular_mdp", num_states=2, num_actions=2, horizon=3)
    task = env.default_params.replace(
        transitions=jnp.broadcast_to(jnp.eye(2), (2, 2, 2)), reward_means=jnp.array([[0.0, 0.0], [1.0, 1.0]])
    )
    obs, actions = jnp.array([0, 0, 0, 0, 1, 0]), jnp.array([0, 0, 0, 1, 0, 1])
    lived = Transition(obs, actions, jnp.zeros(6), obs, jnp.zeros(6, bool), jnp.zeros(6, bool))
    lost = importlib.import_module("experiments.dpt_tabular_mdp").regret(env, task, lived)
    np.testing.assert_allclose(lost, [1, 2, 2, 2, 3, 3])


def test_a_context_of_an_mdp_is_made_of_whole_episodes():
    config = EXPERIMENTS["dpt_tabular_mdp"].presets["cpu"]
    with pytest.raises(ValueError, match="horizon=75: must be a multiple of episode_steps=7"):
        dataclasses.replace(config, episode_steps=7)


def test_dit_dark_room_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dit_dark_room"]
    sizes = (
        "--size 3 --episode-steps 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 "
        "--eval-tasks 6 --eval-episodes 3 --num-updates 4 --num-chunks 2 --weights critic --update episode"
    )
    config = parse(experiment.name, experiment.presets, "", [*sizes.split(), "--runs-dir", str(tmp_path)])
    results = read_results(run(experiment, config, Console(quiet=True)))
    assert {"dit", "bc", "wbc", "dpt", "behaviour", "random", "oracle"} == set(results["agents"])
    final = {who: found["final_return"]["mean"] for who, found in results["agents"].items()}
    assert final["random"] < final["oracle"] and final["behaviour"] < final["oracle"]
    assert len(results["curves"]["dit"]["return"]) == 3 and results["env_steps"] == 4 * 4 * 4 * 7
    contexts = {f"offline_{who}{how}" for who in ("random", "behaviour", "expert") for how in ("", "_greedy")}
    assert contexts == set(results["conditions"])
    for found in results["conditions"].values():
        assert {"dit", "bc", "wbc", "dpt"} == set(found) and found["dit"]["offline_return"]["n"] == 2


def test_dit_linear_bandit_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dit_linear_bandit"]
    sizes = (
        "--num-arms 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 --eval-tasks 11"
    )
    argv = [*sizes.split(), "--num-updates", "4", "--num-chunks", "2", "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    others = {"linucb", "thompson", "ucb", "empirical_mean", "behaviour", "random", "oracle"}
    assert {"dit", "bc", "dpt", *others} == set(results["agents"])
    assert results["agents"]["oracle"]["cumulative_regret"]["mean"] == 0
    for condition in ("offline_behaviour", "offline_thompson"):
        assert {"dit", "bc", "dpt", "linreg", "thompson", "lcb", "empirical_mean"} == set(
            results["conditions"][condition]
        )


@pytest.mark.parametrize("name", ["dit_dark_room", "dit_linear_bandit"])
def test_controls_of_dit_learn_from_the_same_contexts(name):
    """And differ in what is made of them alone."""
    experiment, config = EXPERIMENTS[name], EXPERIMENTS[name].presets["cpu"]
    made = {"bc": ("next", "uniform"), "wbc": ("next", "returns"), "dpt": ("optimal", "uniform")}
    for who, spec in experiment.controls(config).items():
        labels, weights = made[who]
        assert spec.options == dataclasses.replace(config.dit, labels=labels, weights=weights)
    assert experiment.controls(dataclasses.replace(config, control=False)) == {}


def test_icpo_dueling_bandit_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["icpo_dueling_bandit"]
    sizes = (
        "--num-arms 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 --eval-tasks 11"
    )
    argv = [*sizes.split(), "--num-updates", "2", "--num-chunks", "1", "--no-control", "--runs-dir", str(tmp_path)]
    run_dir = run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True))
    results = read_results(run_dir)
    classics = {"double_thompson", "rucb", "winner_stays", "random", "oracle"}
    assert {"icpo", "no_context", *classics} == set(results["agents"])
    assert results["agents"]["oracle"]["strong_regret"]["mean"] == 0 < results["agents"]["icpo"]["weak_regret"]["mean"]
    assert results["env_steps"] == 2 * 4 * (7 + 8 * 8)  # comparisons in contexts, and eight after each prefix
    assert len(results["curves"]["icpo"]["suboptimality"]) == 8
    assert {"icpo", "double_thompson"} == set(results["conditions"]["noise_0.2"])
    agent, env = icrl_jax.load(run_dir)[:2]
    tasks = icrl_envs.sample_tasks(env, jax.random.key(0), 3)
    assert evaluate(agent, env, tasks, jax.random.key(0), num_steps=7).record.transition.action.shape == (3, 7, 2)


def test_icpo_dark_room_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["icpo_dark_room"]
    sizes = (
        "--size 3 --episode-steps 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 "
        "--eval-tasks 6 --eval-episodes 3 --num-updates 4 --num-chunks 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert {"icpo", "dpt", "no_context", "random", "oracle"} == set(results["agents"])
    final = {who: found["final_return"]["mean"] for who, found in results["agents"].items()}
    assert final["random"] < final["oracle"] and len(results["curves"]["dpt"]["return"]) == 3
    assert {"noise_0.2", "offline_low", "offline_medium", "offline_high"} == set(results["conditions"])
    assert results["conditions"]["offline_high"]["icpo"]["offline_return"]["n"] == 2
    assert (tmp_path / "icpo_dark_room" / "latest" / "figures" / "episodes.png").exists()


@pytest.mark.parametrize("name", ["icpo_dark_room", "icpo_dueling_bandit"])
def test_agents_act_where_they_see_what_they_were_trained_on(name):
    """Who learned from rewards is not shown a label, and the other way round."""
    experiment, config = EXPERIMENTS[name], EXPERIMENTS[name].presets["cpu"]
    env = experiment.env(config).build()
    for who, spec in {"icpo": experiment.method(config), **experiment.controls(config)}.items():
        method = spec.build(env)
        agent = jax.eval_shape(lambda key, method=method: method.agent(method.init(key).params), jax.random.key(0))
        assert world_of(agent, env) is (env.env if who == "dpt" else env)
    assert world_of(agents.uniform(env), env) is env


@pytest.fixture(scope="module")
def tiny_ad(tmp_path_factory):
    experiment = EXPERIMENTS["ad_dark_room"]
    sizes = (
        "--width 8 --num-layers 1 --num-heads 2 --context-len 60 --horizon 60 --batch-size 4 --eval-tasks 32 "
        "--eval-episodes 3 --num-steps 600 --num-streams 2 --stride 5 --num-updates 4 --num-chunks 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path_factory.mktemp("runs"))]
    return run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)), argv


def test_ad_dark_room_runs_a_few_steps(tiny_ad):
    run_dir, _ = tiny_ad
    results = read_results(run_dir)
    assert {"ad", "ed", "source", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["oracle"]["final_return"]["mean"] == 16.375  # of the 16 goals held out (Zisman et al.)
    assert results["agents"]["ad"]["first_return"]["n"] == 16
    assert results["env_steps"] == 2 * 65 * 2 * 600  # of AD and of ED
    assert results["tokens"] == 2 * 4 * 4 * 60
    assert len(results["curves"]["source"]["return"]) == 30 and len(results["curves"]["ad"]["return"]) == 3
    agent, env = icrl_jax.load(run_dir)[:2]
    tasks = jax.tree.map(lambda x: x[:3], env.tasks("test"))
    found = evaluate(agent, env, tasks, jax.random.key(0), num_episodes=3)
    assert found.curves["return"].shape == (3, 3)


def test_dicp_dark_room_runs_a_few_steps(tmp_path):
    """With planning and without, from the same weights, and what an act of each costs."""
    experiment = EXPERIMENTS["dicp_dark_room"]
    sizes = (
        "--room-size 5 --episode-steps 5 --width 8 --num-layers 1 --num-heads 2 --context-len 15 --horizon 15 "
        "--batch-size 4 --eval-tasks 8 --eval-episodes 3 --num-steps 60 --num-streams 2 --stride 2 --num-updates 4 "
        "--num-chunks 2 --dynamics-steps 3 --beam-width 2 --plan-depth 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    run_dir = run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True))
    results = read_results(run_dir)
    assert {"dicp_ad", "ad", "source", "random", "oracle"} == set(results["agents"])
    assert all(len(results["curves"][who]["return"]) == 3 for who in ("dicp_ad", "ad"))
    cost = results["conditions"]["one task at a time"]
    assert cost["dicp_ad"]["act_ms"]["mean"] > 0 and cost["ad"]["act_ms"]["n"] == 5
    agent, env = icrl_jax.load(run_dir)[:2]
    found = evaluate(agent, env, jax.tree.map(lambda x: x[:2], env.tasks("test")), jax.random.key(0), num_episodes=1)
    assert found.record.info["planned_return"].shape == (2, 5)


def test_methods_are_compared_on_the_same_tasks(tmp_path):
    experiment = EXPERIMENTS["compare_dark_room"]
    sizes = (
        "--room-size 5 --episode-steps 5 --width 8 --num-layers 1 --num-heads 2 --context-len 16 --horizon 15 "
        "--batch-size 4 --eval-tasks 5 --eval-episodes 3 --num-steps 60 --num-streams 2 --stride 2 --num-updates 2 "
        "--num-chunks 2 --dynamics-steps 3 --beam-width 2 --plan-depth 2 --decision-steps 5"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    learned = {"ad", "dicp_ad", "idt", "dicp_idt", "dpt", "dicp_dpt", "dit"}
    assert set(results["agents"]) == learned | {"source", "posterior", "random", "oracle"}
    assert set(results["conditions"]["offline_random"]) == learned | {"posterior"}
    numbers = {who: found["final_return"]["n"] for who, found in results["agents"].items()}
    assert set(numbers.values()) == {5}  # one row of the table for all


def test_the_histories_that_were_distilled_are_drawn(tiny_ad):
    run_dir, _ = tiny_ad
    assert imread(run_dir / "figures" / "histories.png").std() > 0.01
    report = (run_dir / "report.html").read_text()
    assert "return of each episode in the 10 histories of each of 65 training tasks" in report  # 2, dealt to 5 each
    assert "The source learns from scratch for 30 episodes." in report


def test_the_curve_of_histories_counts_each_as_often_as_it_is_drawn():
    """Three streams of two tasks, two steps an episode; the last stream has ended one episode fewer."""
    returns = np.array([[[0, 2, 5], [1, 3, 9], [7, 7, 7]], [[2, 4, 1], [0, 0, 3], [6, 8, 4]]])
    steps = np.full((2, 3), 6).tolist()
    steps[1][2] = 5
    ends = np.broadcast_to(np.arange(6) % 2 == 1, (2, 3, 6)) & (np.arange(6) < np.array(steps)[..., None])
    feedback = np.repeat(returns / 2, 2, axis=-1).astype(np.float32)
    lived = Transition(None, None, jnp.asarray(feedback), None, jnp.zeros((2, 3, 6), bool), jnp.asarray(ends))
    made = Histories(lived, np.zeros((2, 3, 6), np.uint8), jnp.asarray(steps), None, Form((), 2, False, 5))
    alike = episodes.learning_curve(Distilled(made, None))
    np.testing.assert_allclose(alike["mean"], returns[..., :2].mean(axis=(0, 1)))
    drawn = episodes.learning_curve(Distilled(made, jnp.array([[3, 0, 0], [0, 1, 0]])))
    np.testing.assert_allclose(drawn["mean"], [0, 1.5])
    np.testing.assert_allclose([drawn["low"], drawn["high"]], [[0, 0], [0, 2]])
    np.testing.assert_allclose(drawn["each"], [[0, 2], [0, 2], [0, 0], [0, 0]])


def test_a_control_is_trained_once_and_found_again(tiny_ad):
    run_dir, argv = tiny_ad
    experiment = EXPERIMENTS["ad_dark_room"]
    before = read_results(run_dir)
    config = parse(experiment.name, experiment.presets, "", [*argv, "--resume", str(run_dir)])
    assert run(experiment, config, Console(quiet=True)) == run_dir
    again = read_results(run_dir)
    assert again["agents"] == before["agents"]
    assert [p.name for p in (run_dir / "controls").iterdir()] == ["ed"]
    assert checkpoint.list_steps(run_dir / "controls" / "ed" / "checkpoints") == [2]


def test_ad_learns_the_same_from_disk_and_from_an_imported_store(tiny_ad, tmp_path, capsys):
    run_dir, argv = tiny_ad
    experiment, store = EXPERIMENTS["ad_dark_room"], tmp_path / "data" / "room"
    options = [*argv[:-2], "--runs-dir", str(tmp_path), "--store", str(store), "--eval-episodes", "2"]
    parsed = lambda *more: parse(experiment.name, experiment.presets, "", [*options, *more])
    losses = lambda run_dir: [row["loss"] for row in read_metrics(run_dir)]
    from_disk = run(experiment, parsed("--checkpoint-every", "1"), Console(quiet=True))
    assert losses(from_disk) == losses(run_dir)
    assert losses(from_disk / "controls" / "ed") == losses(run_dir / "controls" / "ed")
    assert open_histories(store).about["source"]["source"] == "q_learning"
    before = read_results(from_disk)
    shutil.rmtree(from_disk / "checkpoints" / "2")  # as if it had been killed before the last chunk
    run(experiment, parsed("--checkpoint-every", "1", "--resume", str(from_disk)), Console(quiet=True))
    assert losses(from_disk) == losses(run_dir) and read_results(from_disk)["agents"] == before["agents"]
    imported = ["--source", "logged", "--no-control"]
    logged = run(experiment, parsed(*imported), Console(quiet=True))
    assert losses(logged) == losses(run_dir)
    assert {"ad", "random", "oracle"} == set(read_results(logged)["agents"])

    def refused(*more):
        with pytest.raises(SystemExit):
            main(experiment, "", [*options, *imported, *more])
        return " ".join(capsys.readouterr().err.split())

    other = open_histories(store).read_all()
    other = dataclasses.replace(other, update=other.update[::-1])
    shutil.rmtree(store)
    assert icrl_jax.load(from_disk) and icrl_jax.load(logged)  # an agent is loaded without its data
    assert "room holds no histories" in refused()
    write_histories(store, make_plan(experiment, parsed("--store", "None")).env, other)
    assert "was trained on other data than was built now" in refused("--resume", str(logged))
    assert "room holds other histories: env.options._minus is [" in refused("--env-preset", "ad")  # its actions


def test_held_out_tasks_are_met_as_often_as_fits():
    room, bandit = icrl_envs.make("dark_room", "ad_eps"), icrl_envs.make("point_robot")
    tasks, repeats = episodes.held_out(room, 50)
    assert tasks.goal.shape == (16, 2) and repeats == 3
    assert episodes.held_out(room, 7)[0].goal.shape == (7, 2)
    tasks, repeats = episodes.held_out(bandit, 7)
    assert jax.tree.leaves(tasks)[0].shape[0] == 7 and repeats == 1


def test_an_unknown_experiment_is_refused_and_the_known_ones_are_listed(capsys):
    from experiments.sweep import find

    assert find("dpt_bandit").name == "dpt_bandit"
    with pytest.raises(SystemExit) as refused:
        find("dpt_bandits")
    assert refused.value.code == 2
    assert (
        "experiment='dpt_bandits': must be one of ad_bandit, ad_dark_room, ad_dark_room_hard, ad_eps_dark_room, "
        "ad_key_to_door, compare_dark_room, dicp_dark_room, dicp_key_to_door, dit_dark_room, dit_linear_bandit, "
        "dpt_bandit, dpt_dark_room, dpt_dark_room_permuted, dpt_linear_bandit, dpt_pixels, dpt_tabular_mdp, "
        "icpo_dark_room, icpo_dueling_bandit, lhf_dark_room, rl2_bandit, s5_memory_chain" in capsys.readouterr().err
    )


def test_ad_bandit_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["ad_bandit"]
    sizes = (
        "--width 8 --num-layers 1 --num-heads 2 --context-len 7 --horizon 7 --num-steps 7 --num-tasks 11 "
        "--batch-size 4 --eval-tasks 5 --num-updates 4 --num-chunks 2"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert {"ad", "ed", "source", "thompson", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["oracle"]["cumulative_regret"]["mean"] == 0 and results["env_steps"] == 2 * 11 * 7
    assert len(results["curves"]["ad"]["regret"]) == 7
    argv += ["--source", "thompson_beta", "--no-control", "--num-updates", "2"]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert results["curves"]["source"] == results["curves"]["thompson"]


def test_rl2_bandit_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["rl2_bandit"]
    sizes = "--width 5 --trial-steps 7 --num-steps 7 --num-streams 4 --num-minibatches 2 --eval-tasks 11"
    argv = [*sizes.split(), "--num-updates", "4", "--num-chunks", "2", "--runs-dir", str(tmp_path)]
    run_dir = run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True))
    results = read_results(run_dir)
    assert {"ppo_gru", "bayes", "thompson", "greedy", "ucb1", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["oracle"]["cumulative_regret"]["mean"] == 0
    assert set(results["conditions"]["modes"]) == {"ppo_gru", "bayes"}
    assert results["env_steps"] == 4 * 4 * 7 and results["tokens"] == 4 * 4 * 4 * 7  # four epochs
    agent, env = icrl_jax.load(run_dir)[:2]
    tasks = icrl_envs.sample_tasks(env, jax.random.key(0), 3)
    assert evaluate(agent, env, tasks, jax.random.key(0), num_steps=9).curves["regret"].shape == (3, 9)


@pytest.mark.parametrize("trial_steps", ["201", "None"])
def test_trials_whose_optimum_is_out_of_reach_are_refused(trial_steps, capsys):
    said = refused(capsys, "rl2_bandit", "--trial-steps", trial_steps)
    assert f"trial_steps={trial_steps}: must be at most 200, for which the optimum can be computed" in said


def test_s5_memory_chain_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["s5_memory_chain"]
    sizes = (
        "--width 6 --num-layers 1 --state-size 4 --memory-length 3 --num-steps 4 --num-streams 4 --eval-tasks 11 "
        "--asked-lengths --timed-lengths 3 5 --num-updates 2 --num-chunks 2 --no-control"
    )
    argv = [*sizes.split(), "--runs-dir", str(tmp_path)]
    results = read_results(run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True)))
    assert {"ppo_s5", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["oracle"]["mean_return"]["mean"] == 1
    lengths = {"length_3", "update_3", "update_5"}
    assert lengths == set(results["conditions"]) and len(results["curves"]["ppo_s5"]["update_ms"]) == 2


def test_the_gru_on_the_memory_chain_is_as_large_as_what_it_is_held_against():
    module = importlib.import_module("experiments.s5_memory_chain")
    for config in module.PRESETS.values():
        gru = module.controls(config)["ppo_gru"].options
        sizes = [module.num_weights(model) for model in (gru.model, config.ppo.model)]
        assert 0.95 * sizes[1] < sizes[0] <= sizes[1]
        assert dataclasses.replace(gru, model=config.ppo.model) == config.ppo
        recurrent = dataclasses.replace(config, ppo=gru)
        assert module.controls(recurrent) == module.controls(dataclasses.replace(config, control=False)) == {}


@pytest.mark.parametrize("source", ["ppo", "a2c", "sac"])
def test_a_source_that_is_no_agent_is_refused_by_bandits(source, capsys):
    said = f"source='{source}': must be one that can be held against AD as an agent"
    assert said in refused(capsys, "ad_bandit", "--source", source)


def refused(capsys, name, *argv):
    """What the command line is answered."""
    with pytest.raises(SystemExit):
        parse(name, EXPERIMENTS[name].presets, "", argv)
    return " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().err).split())


@pytest.mark.parametrize("preset", ["cpu", "noisy", "half", "few", "light"])
def test_filtered_and_plain_histories_differ_in_nothing_else(preset):
    """Nor do a scenario and the clean one, but in what it is named for."""
    experiment = EXPERIMENTS["lhf_dark_room"]
    config = experiment.presets[preset]
    filtered, plain = experiment.method(config).options, experiment.controls(config)["ad"].options
    assert filtered.histories.lhf and not plain.histories.lhf
    assert dataclasses.replace(filtered, histories=plain.histories) == plain
    assert dataclasses.replace(filtered.histories, lhf=False) == plain.histories
    clean = experiment.presets["cpu"].ad
    same = {"noisy": "random_share", "half": "kept_share stride", "few": "num_streams"}.get(preset, "").split()
    restored = {name: getattr(clean.histories, name) for name in same}
    assert dataclasses.replace(filtered.histories, **restored) == clean.histories
    assert (filtered.model == clean.model) == (preset != "light")


def test_more_episodes_than_the_model_has_positions_for_are_refused_before_anything_compiles():
    experiment = EXPERIMENTS["ad_dark_room"]
    config = dataclasses.replace(experiment.presets["cpu"], eval_episodes=21)
    with pytest.raises(OptionsError, match="tokens of eval_episodes=21=420 is more than context_len=400"):
        make_plan(experiment, config)


@pytest.mark.parametrize("name", ["ad_dark_room", "lhf_dark_room", "ad_key_to_door"])
def test_no_episodes_to_evaluate_are_refused(name, capsys):
    for number in ("0", "-1"):
        assert f"eval_episodes={number}: must be at least 1" in refused(capsys, name, "--eval-episodes", number)


SMALL_ROOM = ["--num-streams", "3", "--num-steps", "400", "--stride", "1"]


def notes_of(*argv, name="ad_dark_room"):
    return make_plan(EXPERIMENTS[name], parse(name, EXPERIMENTS[name].presets, "", [*SMALL_ROOM, *argv])).notes


def mib(line):
    """The first of its amounts of memory."""
    return float(re.search(r"([\d,.]+) MiB of memory", line)[1].replace(",", ""))


def test_what_is_printed_is_what_has_to_be_free(monkeypatch):
    """The control's histories are collected while those of AD are held."""
    ad, ed = notes_of()
    (alone,) = notes_of("--source", "expert", "--no-control")
    assert ad.startswith("histories: q_learning, ") and ed.startswith("histories: expert, ")
    held = 65 * 3 * 400 * 12 / 2**20  # 12 bytes a step
    assert mib(ed) == pytest.approx(mib(alone) + held, abs=0.11) and held > 0.8
    monkeypatch.setattr(_distilled, "free_bytes", lambda: (mib(ed) + 0.1) * 2**20)
    notes_of()
    monkeypatch.setattr(_distilled, "free_bytes", lambda: (mib(ed) - 0.1) * 2**20)
    advice = f"histories of source='expert' need {mib(ed)} MiB .* about --num-streams 1, or --num-steps 200, or --store"
    with pytest.raises(OptionsError, match=advice):
        notes_of()
    notes_of("--no-control")


def test_what_does_not_fit_is_refused_before_anything_is_computed():
    with pytest.raises(OptionsError, match="need .* MiB of memory, and .* are free; what would do: about .*--store"):
        notes_of("--num-tasks", "100000000")


def test_what_a_store_takes_is_foretold(tmp_path):
    ad, ed = notes_of("--store", f"{tmp_path}/room/")
    assert f"streamed from {tmp_path}/room-ed, where" in ed
    (size,) = re.findall(r"take ([\d.]+) MiB of the disk; made 65 of 65 tasks at a time", ad)
    assert float(size) == pytest.approx(65 * 3 * 400 * 12 / 2**20, abs=0.06)
    many = notes_of("--store", f"{tmp_path}/room", "--num-tasks", "100000000", "--no-control")[0]
    assert mib(many) <= 256 and "of 100,000,000 tasks at a time" in many


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("ad_", "lhf"))])
def test_a_control_has_histories_of_its_own_on_disk(name):
    """Or it would be refused, as made with other options."""
    experiment, config = EXPERIMENTS[name], EXPERIMENTS[name].presets["cpu"]
    on_disk = dataclasses.replace(config.ad, histories=dataclasses.replace(config.ad.histories, store="data/here/"))
    config = dataclasses.replace(config, ad=on_disk, control=True)
    for who, spec in experiment.controls(config).items():
        assert spec.options.histories.store == f"data/here-{who}"
        assert spec.options.histories != dataclasses.replace(on_disk.histories, store=f"data/here-{who}")
    assert experiment.controls(dataclasses.replace(config, control=False)) == {}
