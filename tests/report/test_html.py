"""The report page: self-contained, escaped, and its headline true."""

from html.parser import HTMLParser

import pytest

from icrl_jax.report import headline, regret_figure, save_figure, write_report

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags and sources; fails on tags closed in the wrong order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.sources, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(path):
    checker = Checker()
    checker.feed(path.read_text())
    assert not checker.open
    return checker


def test_page_is_self_contained(results, curves, tmp_path):
    save_figure(regret_figure(curves), tmp_path, "regret")
    path = write_report(
        tmp_path,
        results,
        [("figures/regret.png", "Regret & more")],
        metrics={"loss": 0.51234},
        config={"learning_rate": 1e-4},
        command='make train ARGS="--seed 1"',
    )
    assert path == tmp_path / "report.html"
    page = parse(path)
    assert "script" not in page.seen and "link" not in page.seen
    assert len(page.sources) == 1 and page.sources[0].startswith("data:image/png;base64,iVBOR")
    for part in (
        "Regret & more",
        "0.512",
        "learning_rate",
        'make train ARGS="--seed 1"',
        "8 min 32 s",
        "sd_0",
        "two cores",
    ):
        assert part in page.text


def test_everything_is_escaped(results, tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    for name in ("experiment", "preset", "env", "hardware", "commit", "status"):
        results[name] = evil
    results["agents"][evil] = results["agents"]["dpt"]
    results["conditions"][evil] = {evil: results["agents"]["dpt"]}
    path = write_report(tmp_path, results, metrics={evil: evil}, config={evil: evil}, command=evil)
    page = parse(path)
    assert "script" not in page.seen
    assert page.text.count("<script>alert(1)</script>") >= 10


def test_headline_states_the_ratio(results):
    results["agents"]["dpt"]["cumulative_regret"].update(mean=10.5)
    results["agents"]["thompson"]["cumulative_regret"].update(mean=10.0)
    sentence, detail = headline(results)
    assert sentence == "DPT's cumulative regret is 1.05 times Thompson sampling's."
    assert detail == "10.5 against 10.0, means over 17 held-out tasks and 3 seeds."
    ratios = {"dpt": {"ratio": 1.05, "low": 0.9, "high": 1.2, "n": 17}}
    assert "95 % interval of the ratio 0.900 … 1.20" in headline(results, ratios=ratios)[1]
    assert headline(results, reference="ucb")[0].endswith("times UCB's.")


def test_headline_without_a_ratio(results):
    results["agents"]["thompson"]["cumulative_regret"].update(mean=0.0)
    assert "times" not in headline(results)[0]
    results["agents"] = {"dpt": results["agents"]["dpt"]}
    assert headline(results)[0].startswith("DPT's cumulative regret is ")
    results["agents"] = {}
    assert headline(results)[0] == "DPT on gaussian_bandit"


def test_incomplete_run_and_missing_figure_are_said(results, tmp_path):
    page = parse(write_report(tmp_path, {**results, "status": "diverged"}))
    assert "This run is diverged." in page.text
    with pytest.raises(FileNotFoundError, match="nothing.png does not exist"):
        write_report(tmp_path, results, [("figures/nothing.png", "")])
