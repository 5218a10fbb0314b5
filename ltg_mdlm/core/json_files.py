"""Reading of JSON files that other programs or people wrote.

Everything that can be wrong with such a file becomes one `UserError`, which names the file and, where it is known, the
line: no JSON, nested too deeply, a key that is given twice, text that is not UTF-8.  Python's parser alone accepts some
of it silently, such as the second of two equal keys.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError

_LARGEST = 2**63 - 1
"""Larger integers do not fit into a tensor."""


class _RepeatedKeyError(ValueError):
    """An object has a key twice; the argument is the key."""


def read_text(file: Path) -> str:
    """The text of a file, without a byte order mark. Raises UserError if it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def read_object(file: Path, *, finite: bool = True) -> dict[str, Any]:
    """The JSON object in a file, with finite numbers of up to 64 bits and valid text only.

    Without `finite`, also with infinity and NaN, as settings of a run may have them.

    Raises UserError if the file cannot be read or holds anything else.
    """
    found = parse_object(read_text(file), file)
    # Not recursive, as the parser's limit on nesting is larger than Python's own.
    left: list[tuple[str, Any]] = list(found.items())
    while left:
        key, value = left.pop()
        problem = _problem(key, finite) or _problem(value, finite)
        if problem:
            raise UserError(f"{file}: {key!a} {problem}")
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(key, inner) for inner in value]
    return found


def _problem(value: object, finite: bool) -> str:
    """What is wrong with a string or number; empty if nothing is."""
    if isinstance(value, str) and not is_unicode(value):
        return "has text with half a surrogate pair"
    if finite and isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "is a number of more than 64 bits"
    return ""


def parse_object(text: str, file: Path, line: int = 1) -> dict[str, Any]:
    """The JSON object in a text that begins at this line of a file. Raises UserError if it is not one."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{line + error.lineno - 1}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}:{line}: JSON nested too deeply") from None
    except _RepeatedKeyError as error:
        key = str(error)
        written = re.compile(rf"(?:{re.escape(json.dumps(key, ensure_ascii=False))}|{re.escape(json.dumps(key))})\s*:")
        lines = [line + text.count("\n", 0, found.start()) for found in written.finditer(text)]
        # The same key may also be in other objects; then no line is sure to be the wrong one.
        at = f":{lines[1]}" if len(lines) == 2 or len(set(lines)) == 1 else ""
        raise UserError(f"{file}{at}: the key {key!a} is given twice; delete one of the two") from None
    except ValueError:  # Python limits the digits of an integer
        raise UserError(f"{file}:{line}: not JSON that can be read: a number has too many digits") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}:{line}: expected a JSON object, not {shown(value)}")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def json_text(value: Any) -> str:
    """Indented JSON; infinity and NaN, which JSON does not have, are strings."""
    return json.dumps(replace_non_finite(value, str), indent=2, default=str, allow_nan=False)


def replace_non_finite(value: Any, replacement: Callable[[float], Any]) -> Any:
    """The value with `replacement(x)` for every x in its mappings and sequences that is infinite or NaN."""
    if isinstance(value, Mapping):
        return {key: replace_non_finite(part, replacement) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(part, replacement) for part in value]
    return replacement(value) if isinstance(value, float) and not math.isfinite(value) else value


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded; JSON can escape half a surrogate pair, which no tokenizer can read."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: object) -> str:
    """A value for an error message, shortened."""
    text = ascii(value) if isinstance(value, str) and not is_unicode(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
