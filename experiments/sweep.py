"""Learning rates times seeds of an experiment, in one compiled program: one table, one figure.

They are compared on validation tasks, which no final table uses: the best rate is not chosen by the tasks that test it.

make sweep                                             dpt_bandit at 1e-3, 3e-3 and 1e-2, two seeds each
make sweep ARGS="--learning-rates 1e-4 1e-3 --num-seeds 5"
"""

import argparse
import importlib
import sys
from pathlib import Path

from icrl_jax.run.experiment import guarded
from icrl_jax.run.options import parse
from icrl_jax.run.sweep import as_sweep, sweep


def main() -> None:
    """Reads which experiment, then all options of that experiment."""
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--experiment", default="dpt_bandit")
    seen, argv = first_look.parse_known_args(sys.argv[1:])
    experiment = as_sweep(find(seen.experiment), learning_rates=(1e-3, 3e-3, 1e-2), num_seeds=2)
    with guarded() as console:
        sweep(experiment, parse(experiment.name, experiment.presets, __doc__ or "", argv, "sweep"), console)


def find(name: str):
    """The experiment `experiments/<name>.py` defines; where there is none, says which there are and exits with 2."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "sweep")
    if name not in known:
        print(f"error: experiment={name!r}: must be one of {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


if __name__ == "__main__":
    main()
