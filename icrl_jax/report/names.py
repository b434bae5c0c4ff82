"""How agents and metrics are called and drawn: one label, one kind and one colour per agent, everywhere."""

import zlib
from typing import Literal, NamedTuple

Kind = Literal["trained", "classical", "reference"]


class AgentLook(NamedTuple):
    label: str
    kind: Kind  # trained: drawn strong; classical: thin; reference (oracle, random): grey dashes
    colour: str


class Metric(NamedTuple):
    label: str
    lower_is_better: bool


# Okabe-Ito colours and darker relatives; agents that meet in one figure differ (tests/report/test_tables.py).
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PINK, PURPLE, WINE = "#56B4E9", "#CC79A7", "#6A3D9A", "#882255"
TEAL, OLIVE, BROWN, BLACK, GREY = "#2A8C99", "#8A8A1F", "#8C6239", "#2B2B2B", "#8C8C8C"

AGENTS: dict[str, AgentLook] = {
    "dpt": AgentLook("DPT", "trained", BLUE),
    "ad": AgentLook("AD", "trained", VERMILLION),
    "ed": AgentLook("ED", "trained", GREEN),
    "ad_eps": AgentLook("AD-eps", "trained", WINE),
    "ad_lhf": AgentLook("AD-LHF", "trained", PURPLE),
    "idt": AgentLook("IDT", "trained", PINK),
    "dicp_ad": AgentLook("DICP-AD", "trained", TEAL),
    "dicp_idt": AgentLook("DICP-IDT", "trained", OLIVE),
    "dicp_dpt": AgentLook("DICP-DPT", "trained", WINE),
    "dit": AgentLook("DIT", "trained", PURPLE),
    "bc": AgentLook("BC", "trained", OLIVE),
    "wbc": AgentLook("Weighted BC", "trained", SKY),
    "dp2t": AgentLook("DP2T", "trained", TEAL),
    "icpo": AgentLook("ICPO", "trained", VERMILLION),
    "no_context": AgentLook("No context", "trained", OLIVE),
    "icrg": AgentLook("ICRG", "trained", PURPLE),
    "ppo_s5": AgentLook("PPO, S5", "trained", BLUE),
    "ppo_gru": AgentLook("PPO, GRU", "trained", VERMILLION),
    "ppo_transformer": AgentLook("PPO, transformer", "trained", GREEN),
    "relic": AgentLook("ReLIC", "trained", PURPLE),
    "relic_full_updates": AgentLook("ReLIC, full updates", "trained", PINK),
    "relic_no_sink": AgentLook("ReLIC, no sink", "trained", SKY),
    "source": AgentLook("Source algorithm", "classical", BROWN),
    "behaviour": AgentLook("Behaviour", "classical", BROWN),
    "thompson": AgentLook("Thompson sampling", "classical", GREEN),
    "ucb": AgentLook("UCB", "classical", ORANGE),
    "ucb1": AgentLook("UCB1", "classical", BROWN),
    "empirical_mean": AgentLook("Empirical mean", "classical", PINK),
    "lcb": AgentLook("LCB", "classical", SKY),
    "linucb": AgentLook("LinUCB", "classical", VERMILLION),
    "linreg": AgentLook("Linear regression", "classical", SKY),
    "thompson_linear": AgentLook("Linear Thompson", "classical", PURPLE),
    "double_thompson": AgentLook("Double Thompson", "classical", GREEN),
    "rucb": AgentLook("RUCB", "classical", ORANGE),
    "winner_stays": AgentLook("Winner stays", "classical", BROWN),
    "posterior": AgentLook("Exact posterior", "classical", GREEN),
    "psrl": AgentLook("PSRL", "classical", BLACK),
    "ucbvi": AgentLook("UCBVI", "classical", ORANGE),
    "bayes": AgentLook("Bayes-optimal", "classical", BLACK),
    "greedy": AgentLook("Greedy", "classical", PINK),
    "oracle": AgentLook("Oracle", "reference", GREY),
    "random": AgentLook("Random", "reference", GREY),
}

METRICS: dict[str, Metric] = {
    "cumulative_regret": Metric("cumulative regret", True),
    "suboptimality": Metric("suboptimality", True),
    "weak_regret": Metric("weak regret", True),
    "strong_regret": Metric("strong regret", True),
    "final_return": Metric("final return", False),
    "mean_return": Metric("mean return", False),
    "first_return": Metric("first return", False),
    "offline_return": Metric("offline return", False),
    "success": Metric("success", False),
    "tv_distance": Metric("total-variation distance", True),
    "act_ms": Metric("milliseconds an act", True),
    "update_ms": Metric("milliseconds an update", True),
}

# Whom a trained agent is held against when the caller names nobody: the first of these that is there.
REFERENCES = (
    "thompson",
    "double_thompson",
    "posterior",
    "source",
    "psrl",
    "linucb",
    "ucb",
    "ucbvi",
    "rucb",
    "lcb",
    "oracle",
)

_LOWER = ("regret", "suboptimality", "loss", "distance", "error")
_SPARE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, WINE, TEAL, PINK)


def look(agent: str) -> AgentLook:
    """Label, kind and colour of an agent.

    A name the library does not know counts as trained (classical agents are a closed list, methods are not) and gets
    a colour that depends on the name alone, so it too is the same in every figure.
    """
    known = AGENTS.get(agent)
    return known or AgentLook(agent, "trained", _SPARE[zlib.crc32(agent.encode()) % len(_SPARE)])


def is_trained(agent: str) -> bool:
    return look(agent).kind == "trained"


def metric_facts(metric: str) -> Metric:
    """Label of a metric and whether less of it is better; unknown names are judged by their words."""
    known = METRICS.get(metric)
    return known or Metric(metric.replace("_", " "), any(word in metric for word in _LOWER))


def number(value: float | int | None) -> str:
    """Three significant digits without an exponent where that reads well; a dash for what is missing."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    if size in (0.0, float("inf")) or 1e-4 <= size < 1e5:
        digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
        return f"{value:,.{digits}f}" if size else "0"
    return f"{value:.1e}"
