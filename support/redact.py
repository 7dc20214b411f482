"""Removal of secrets from all output: logs, parameters, tags and reports.

    text -> redact -> the same text, each secret replaced by ***

Secrets are recognised by their position (before the @ of a URI, after a word such as token or
password, in an Authorization header) and by the formats of well-known cloud keys. The values of
environment variables with names like API_TOKEN are secrets everywhere.
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
# names of environment variables whose values are secrets
NAMED = re.compile(
    r"(^|_)(pass(word|wd|phrase)?|pwd|secret|token|api_?key|access_?key(_id)?|key|credentials?)$",
    re.IGNORECASE,
)
# shorter values are words such as "none"; redacting them would make the text unreadable
SHORTEST = 6
PATTERNS = (
    # scheme://user:password@host, also with an @ in the password; s3://KEY:SECRET@bucket; a URI
    # that was converted to a path has one slash
    (re.compile(r"\b((?:s3|gs|gcs|abfss?)://?)[^\s/:@'\"]+:[^\s@'\"<>]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://?)[^\s/?#'\"<>]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)\s+(?=\S*[0-9=])[A-Za-z0-9._~+/=-]{6,}", re.I), rf"\1 {HIDDEN}"),
    # password=..., "token": "...", ?sig=...; the word may end a longer name
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
    """Replace the secrets in a text by ***."""
    # other threads may remove variables meanwhile, as MLflow does
    named = {os.environ.get(name, "") for name in list(os.environ) if NAMED.search(name)}
    secrets = (v for v in named if len(v) >= SHORTEST and not v.startswith("/"))  # not paths
    for value in sorted(secrets, key=len, reverse=True):  # one may contain a shorter one
        text = text.replace(value, HIDDEN)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redacted(value: T) -> T:
    """Redact all texts in a JSON value."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(item) for item in value)
    return value


class RedactingFormatter(logging.Formatter):
    """Formats log records and their tracebacks without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Format and redact one record."""
        return redact(super().format(record))


def excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an uncaught exception as Python does, without secrets."""
    text = logging.Formatter().formatException((kind, error, trace))
    sys.stderr.write(f"{redact(text)}\n")
