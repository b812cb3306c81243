"""See why each preference pair is a pair, and say when it is not.

RUN_OR_FILE is a run's folder, a pairs.parquet or candidates.parquet, or any TRL preference dataset (Parquet, JSON lines or
what `datasets` saved, with prompt, chosen and rejected as text or as messages).
"""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

_COMMANDS = {
    "summary": "counts, distributions, and what would spoil training",
    "show": "one pair: question, schema, both queries and what they return, why it is a pair",
    "serve": "a web page on this machine to browse, run and label pairs",
    "label": "label pairs in the terminal",
    "agreement": "how often people agree with the executor and with each other",
    "apply": "write pairs.parquet anew, people's word above the executor's",
    "export": "write TRL's preference format to a folder or to the hub",
}


def main(arguments: list[str] | None = None) -> None:
    parser, subparsers = _parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character still gets the rest
    try:
        _run(options, subparsers[options.command])
    except (ValueError, OSError) as error:
        from preference.report_page.text import visible

        sys.exit(f"error: {visible(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="inspect-preferences", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    found = {}
    for name, words in _COMMANDS.items():
        found[name] = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        found[name].add_argument("path", type=Path, metavar="RUN_OR_FILE")
    found["summary"].add_argument("--json", action="store_true", help="for machines")
    found["show"].add_argument("pair_id", metavar="ID", help="id of a pair, or its first characters")
    found["serve"].add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1, this machine alone)")
    found["serve"].add_argument("--port", type=int, help="default: 7861 or the next free one; 0 takes any free one")
    found["serve"].add_argument("--token", help="secret that visitors must give; beyond this machine one is always needed")
    found["serve"].add_argument("--no-browser", action="store_true", help="do not open the page")
    for name in ("serve", "label"):
        found[name].add_argument("--annotator", default=_login(), help="your name (default: login name)")
        found[name].add_argument("--blind", action="store_true", help="hide which side was chosen, and why")
    found["label"].add_argument("--filter", action="append", default=[], metavar="NAME=VALUE",
                                help="only some pairs, e.g. reason=rows, labelled=no, kind=join")
    found["agreement"].add_argument("--json", action="store_true", help="for machines")
    found["export"].add_argument("--output", type=Path, help="folder to write to; it must not exist or be empty")
    found["export"].add_argument("--hub", metavar="OWNER/NAME", help="dataset on the hub to write to (private)")
    found["export"].add_argument("--evidence", action="store_true", help="with all columns, not only TRL's three")
    return parser, found


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "me"


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.command == "export" and bool(options.output) == bool(options.hub):
        parser.error("give --output FOLDER or --hub OWNER/NAME")
    if options.command == "serve":
        from preference.inspection.server import serve

        serve(options.path, host=options.host, port=options.port, token=options.token, annotator=options.annotator,
              blind=options.blind, browser=not options.no_browser)
        return
    from rich.console import Console

    from preference.inspection.store import open_store

    console = Console(highlight=False)
    store = open_store(options.path)
    try:
        match options.command:
            case "summary":
                from preference.inspection.summary import print_summary

                print_summary(store, options.json, console)
            case "show":
                from preference.inspection.show import print_pair

                print_pair(store, options.pair_id, console)
            case "label":
                from preference.inspection.terminal_label import label_pairs

                label_pairs(store, options.annotator, _filters(options.filter), options.blind, console)
            case "agreement":
                from preference.inspection.agreement import print_agreement

                print_agreement(store, options.json, console)
            case "apply":
                from preference.inspection.apply import apply_labels

                apply_labels(store, console)
            case "export":
                from preference.inspection.export import export_pairs

                export_pairs(store, options.output, options.hub, options.evidence, console)
    finally:
        store.close()


def _filters(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--filter {text}: no NAME=VALUE. Write for instance --filter reason=rows.")
        found[name.strip()] = value
    return found


if __name__ == "__main__":
    main()
