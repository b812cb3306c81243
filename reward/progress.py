"""Progress on standard error, where a person or a log can see it."""

import sys
from collections.abc import Iterable


def with_progress(lines: Iterable[dict], questions: Iterable[dict], label: str, progress: bool) -> Iterable[dict]:
    """The lines themselves, with a progress bar on standard error where wanted; its total where it is known."""
    if not progress:
        return lines
    from tqdm import tqdm

    total = len(questions) if hasattr(questions, "__len__") else None
    return tqdm(lines, total=total, desc=label, unit="question", mininterval=refresh_interval_s())


def refresh_interval_s() -> float:
    """How often a progress bar is drawn: often in a terminal, seldom into a log."""
    return 0.1 if sys.stderr.isatty() else 10.0
