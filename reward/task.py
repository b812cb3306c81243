"""One line of what the judge is asked: `{"id", "gold", "candidates", "database" or "context"}`."""

import os


def checked_task(task: dict) -> dict:
    """The task itself. Raises ValueError, in three parts, where it is not as `reward.judge` reads it."""
    if not isinstance(task, dict):
        raise ValueError(f"a task is a {type(task).__name__}; allowed is an object; write one a line")
    missing = [key for key in ("id", "gold", "candidates") if key not in task]
    if missing:
        raise ValueError(f"the task lacks {', '.join(missing)}; id, gold and candidates are needed; add them")
    name = task["id"]
    if task["gold"] is not None and not isinstance(task["gold"], str):
        raise ValueError(f"gold of task {name!r} is {task['gold']!r:.60}; allowed is SQL text or null; correct it")
    candidates = task["candidates"]
    if not isinstance(candidates, list) or not all(sql is None or isinstance(sql, str) for sql in candidates):
        raise ValueError(
            f"candidates of task {name!r} are not a list of texts; texts and null are allowed; correct them"
        )
    database, context = task.get("database"), task.get("context")
    if task["gold"] is None:
        return task
    if database is None and not isinstance(context, str):
        raise ValueError(f"task {name!r} has neither database nor context; one is needed; add a path or DDL")
    if database is not None and not (isinstance(database, str) and os.path.isfile(database)):
        raise ValueError(f"database of task {name!r} is {database!r}; allowed is a SQLite file; correct the path")
    return task
