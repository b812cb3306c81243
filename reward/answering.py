"""Answering questions so that one which cannot be answered costs only itself."""

from collections.abc import Callable
from typing import NamedTuple


class Lost(NamedTuple):
    """In place of an answer: the question ended its process twice, or raised what is our own mistake."""

    detail: str


class Each(NamedTuple):
    """The work of one question, as work of several."""

    answer: Callable[[object, object], object]

    def __call__(self, judge: object, questions: list) -> list:
        return [self.answer(judge, question) for question in questions]


def answer_here(work: Callable[[object, list], list], judge: object, questions: list) -> list:
    """`work(judge, questions)`; where it raises, each alone, and Lost for the one that brings it about."""
    try:
        return work(judge, questions)
    except Exception as error:  # a mistake of ours must not cost the thousands of questions after this one
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            raise  # the sandbox does not start: so it would for every question
        if len(questions) == 1:
            return [Lost(f"{type(error).__name__}: {error}"[:500])]
    return [answer for question in questions for answer in answer_here(work, judge, [question])]
