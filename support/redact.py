"""Keeps secrets out of everything that is written down: logs, parameters, tags, reports.

    text -> redact -> the same text, each secret replaced by ***

A secret is what stands where secrets stand: before the @ of a URI, behind a word such as token or
password, in an Authorization header, in the well-known forms of cloud keys; and, wherever it may
turn up, the value of every environment variable that is named like one.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
HIDDEN = "***"
WORDS = (
    r"pass(?:word|wd|phrase)?|secret(?:[_-]?key)?|token|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|"
    r"account[_-]?key|credentials?|sig(?:nature)?|authorization"
)
# an environment variable named so holds a secret
NAMED = re.compile(
    r"(^|_)(pass(word|wd|phrase)?|pwd|secret|token|api_?key|access_?key(_id)?|key|credentials?)$",
    re.IGNORECASE,
)
# shorter values are words such as "none", and would blot out the text
SHORTEST = 6
PATTERNS = (
    # scheme://user:password@host, also with an @ in the password; s3://KEY:SECRET@bucket; a path
    # that was made of a URI has one slash
    (re.compile(r"\b((?:s3|gs|gcs|abfss?)://?)[^\s/:@'\"]+:[^\s@'\"<>]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://?)[^\s/?#'\"<>]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (
        re.compile(r"\b(bearer|basic)\s+(?=\S*[0-9=])[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE),
        rf"\1 {HIDDEN}",
    ),
    # password=..., "token": "...", ?sig=...; the word may be the end of a longer name
    (
        re.compile(
            rf"((?:[A-Za-z0-9]+[_.-])*(?:{WORDS})[\"']?\s*(?:[=:]\s*)[\"']?)"
            rf"(?!\*\*\*|(?:bearer|basic)\s)[^\s\"'&,;}}<>]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA|AROA)[A-Z0-9]{16}\b"), HIDDEN),  # Amazon's key ids
    (re.compile(r"\bAIza[A-Za-z0-9_-]{35}"), HIDDEN),  # Google's API keys
    (re.compile(r"\bya29\.[A-Za-z0-9_-]+"), HIDDEN),  # Google's access tokens
    (re.compile(r"\b(?:ghp|gho|ghs|github_pat|glpat|hf|dapi|sk)[_-]?[A-Za-z0-9_]{20,}"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), HIDDEN),  # signed tokens
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.S),
        HIDDEN,
    ),
)


def redact(text: str) -> str:
    """The text without secrets."""
    for value in environment_secrets(os.environ):
        text = text.replace(value, HIDDEN)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of the variables that hold secrets, longest first."""
    found = {
        value
        for name, value in environment.items()
        if NAMED.search(name) and len(value) >= SHORTEST and not value.startswith("/")
    }
    return sorted(found, key=len, reverse=True)


def redacted(value: T) -> T:
    """The same JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(item) for item in value)
    return value


class RedactingFormatter(logging.Formatter):
    """Formats a log record, its traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The finished line or lines."""
        return redact(super().format(record))


def excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python prints of an exception that nobody caught, without secrets."""
    text = logging.Formatter().formatException((kind, error, trace))
    sys.stderr.write(f"{redact(text)}\n")
