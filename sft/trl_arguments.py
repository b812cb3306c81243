"""The free map `train.trl`, arguments of trl by their own names: checked before anything runs, not when trl reads them."""

from __future__ import annotations

import difflib
import json
from enum import Enum
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError


def validate_trl(arguments: dict[str, Any], trl_class: type, reserved: set[str]) -> None:
    """Check the free `train.trl` map against a TRL configuration class before it is handed over as it is.

    Raises ValueError for a name that the class does not have, one that a key of ours already sets, a value of another type
    or outside its enumeration, and for a tracker in report_to that is unknown or not installed.
    """
    known, hints = trl_class.__dataclass_fields__, get_type_hints(trl_class)
    for name, value in arguments.items():
        if name in reserved:
            raise ValueError(f"train.trl.{name}: set by this project's own keys, or of no effect here. Leave it out, and change those.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"train.trl.{name}: {trl_class.__name__} has no such argument{hint}")
        kinds = [kind for kind in (hints[name], *get_args(hints[name])) if isinstance(kind, type) and issubclass(kind, Enum)]
        choices = [member.value for kind in kinds for member in kind]
        try:
            kind = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
            kind.validate_json(json.dumps(value, default=str), strict=True)  # as JSON, where words may stand for enumerations
        except ValidationError as error:
            allowed = " or ".join(dict.fromkeys(item["msg"][0].lower() + item["msg"][1:] for item in error.errors()))
            raise ValueError(f"train.trl.{name}: found {value!r}; {allowed}") from None
        if choices and isinstance(value, str) and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            raise ValueError(f"train.trl.{name}: found {value!r}; " + (f"did you mean {near[0]}? " if near else "")
                             + f"Allowed: {', '.join(choices)}.")
    if "report_to" in arguments:
        from transformers.integrations import get_reporting_integration_callbacks

        wanted = arguments["report_to"]
        try:
            for tracker in get_reporting_integration_callbacks(wanted[0] if wanted in (["none"], ["all"]) else wanted):
                tracker()
        except ValueError as error:
            raise ValueError(f"train.trl.report_to: found {wanted!r}; {error}") from None
        except (RuntimeError, ImportError) as error:
            raise ValueError(f"train.trl.report_to: found {wanted!r}; {error} Install it, or take tensorboard, which is "
                             "there.") from None
