"""Measures the execution reward: a table on standard output, one line a measure with its target.

    python tests/benchmarks/reward.py [--only speed,mutants,rewrites,fuzz,scale] [--quick] [--json FILE] [--shared FOLDER]

Each section is the file `reward_SECTION.py` beside this one, with `measure(shared, quick)`.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# This file bears the name of the package that it measures, so its folder must not come first.
sys.path[0] = str(ROOT)
sys.path.append(str(Path(__file__).parent))  # for what sections share

SECTIONS = ("speed", "mutants", "rewrites", "fuzz", "scale")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the execution reward.")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="small samples: a look, not a figure to report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measures there too")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the development data")
    options = parser.parse_args()
    wanted = options.only.split(",")
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}; allowed are {', '.join(SECTIONS)}; choose among them")
    if not (options.shared / "data").is_dir():
        parser.error(f"--shared {options.shared} holds no folder data; give the folder of the development data")
    report = {"machine": _machine(), "quick": options.quick, "sections": {}}
    for name in wanted:
        started = time.perf_counter()
        print(f"{name} ...", file=sys.stderr)
        measures = _section(name).measure(options.shared, options.quick)
        report["sections"][name] = {"seconds": round(time.perf_counter() - started, 1), "measures": measures}
        _show(name, measures)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _section(name: str):
    path = Path(__file__).with_name(f"reward_{name}.py")
    if not path.is_file():
        raise SystemExit(f"section {name} has no file {path.name}; add it beside {Path(__file__).name}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _machine() -> dict:
    import sqlite3

    import apsw

    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite3": sqlite3.sqlite_version,
        "apsw": apsw.apsw_version(),
    }


def _show(name: str, measures: list[dict]) -> None:
    print(f"\n| {name} | value | target | n | holds |\n|---|---|---|---|---|")
    for entry in measures:
        value = f"{entry['value']:.4g}" if isinstance(entry["value"], float) else str(entry["value"])
        holds = {True: "yes", False: "NO", None: ""}[entry["holds"]]
        print(f"| {entry['measure']} | {value} | {entry['target']} | {entry['n']} | {holds} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
