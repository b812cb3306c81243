"""Run control arms of stage two on one SFT adapter, and compare them on the same questions.

    python preference/ablate.py [--config FILE] [--set key=value ...] [--arms NAME ...] [--jobs N]
    python preference/ablate.py --table tests/results/embedded [FOLDER ...] [--against ARM] [--json | --markdown] [--plot FILE.svg]

Each arm and seed of configs/ablation.yaml is trained in a run folder of its own by the stages' own commands, measured by
greedy execution accuracy, and leaves one small JSON file; what has its file is not run again, and an interrupted set goes on
where it stopped. Arms with equal settings of sampling share their samples. The table needs those files alone.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs" / "ablation.yaml", metavar="FILE",
                        help="list of the arms (default: configs/ablation.yaml)")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace single keys of that file, for instance --set run=runs/mine measure.data=test")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="run these arms alone (default: all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="runs at a time, each on its share of the cores (default: 1)")
    parser.add_argument("--launch", metavar="FILE", help="accelerate's configuration, e.g. launch/gpu.yaml (default: its own)")
    parser.add_argument("--overwrite", action="store_true", help="run anew the arms whose result has other settings")
    parser.add_argument("--table", type=Path, action="extend", nargs="+", metavar="FOLDER",
                        help="only show the table of a folder of results, or of several, each with arms on an SFT adapter of its own")
    parser.add_argument("--against", metavar="ARM", help="with --table: the arm that is compared with each other one; a positive "
                        "difference is to its advantage (default: default)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the table as JSON, with every interval and p value")
    form.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw each arm's error reduction with its interval")
    arguments = parser.parse_args()
    if arguments.against and not arguments.table:
        parser.error("--against changes a table alone: run the arms without it, then --table FOLDER --against ARM")
    for_runs = {"--set": "settings", "--arms": "arms", "--jobs": "jobs", "--launch": "launch", "--overwrite": "overwrite"}
    given = [option for option, name in for_runs.items() if getattr(arguments, name) != parser.get_default(name)]
    if arguments.table and given:
        parser.error(f"{', '.join(given)}: for running arms, and --table shows folders of results as they are. Take one or the other out")
    if arguments.plot and (arguments.plot.suffix != ".svg" or arguments.plot.is_dir() or not arguments.plot.parent.is_dir()):
        parser.error(f"--plot {arguments.plot}: allowed is the name of an .svg file in a folder that exists, e.g. --plot arms.svg")
    from preference import arm_plot, arm_results, arm_table

    try:
        folders = arguments.table or [run_arms(arguments)]
        table = arm_results.summary(*folders, against=arguments.against)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if arguments.json:
        print(json.dumps(table, indent=2))
    elif arguments.markdown:
        print(arm_table.markdown(table))
    else:
        arm_table.print_table(table)
    if arguments.plot:
        try:
            arguments.plot.write_text(arm_plot.drawing(table), encoding="utf-8")
        except OSError as error:
            sys.exit(f"error: {error}")
        print(f"drawing: {arguments.plot}", file=sys.stderr)


def run_arms(arguments) -> Path:
    """Run what has no result yet; gives the folder of results.

    Raises ValueError that names the arms that failed, and those whose samples could not be drawn, after all others.
    """
    from functools import partial

    from preference import arms
    from preference.arm_run import Ablation
    from preference.launcher import Launcher, WorkFailed
    from sft.configuration import read_configuration

    config = read_configuration(arms.AblationConfig, arguments.config, arguments.settings)
    runs = arms.planned(config)
    wanted = arms.chosen(runs, arguments.arms)
    launcher = Launcher(arguments.jobs, arguments.launch)
    ablation = Ablation(config, runs, arms.stage_one(config), launcher, arguments.overwrite)
    todo = [run for run in wanted
            if not arms.is_finished(run.result, ablation.identity(run), arguments.overwrite)]
    if todo:
        arms.check_trainings(todo, config, ablation.sft_config)
    print(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them have their result in {config.results}", flush=True)

    if not arms.is_finished(ablation.sft_result, ablation.sft_identity, arguments.overwrite):
        launcher.all({"sft": ablation.measure_sft}, "measured")
    elif todo and not ablation.sft_answered():  # its result came from another machine
        launcher.all({"sft": ablation.answer_sft}, "answered")
    # What several runs wait for goes first.
    samplers = {run.name: run for run in map(ablation.sampler, todo) if arguments.overwrite or not arms.sampled(run.folder)}
    failed = []
    try:
        launcher.all({name: partial(ablation.sample, run) for name, run in samplers.items()}, "sampled")
    except WorkFailed as error:
        left_out = [run.name for run in todo if ablation.sampler(run).name in error.names]
        failed += [str(error), f"not run, since their samples are missing: {', '.join(left_out)}"]
        todo = [run for run in todo if run.name not in left_out]
    try:
        launcher.all({run.name: partial(ablation.run_arm, run) for run in todo}, "finished")
    except WorkFailed as error:
        failed.append(str(error))
    if failed:
        raise ValueError("\n".join(failed))
    return Path(config.results)


if __name__ == "__main__":
    main()
