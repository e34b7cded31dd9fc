"""What secrets look like: patterns by name, and those that a user gives."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from kcap.errors import KcapError

SECRETS: Final = "secrets"
"""Stands for all patterns of secrets."""

CUSTOM: Final = "custom"
"""How a pattern is called that a user gave: it may itself tell what it is to hide."""

_GROUP: Final = "secret"
_WORDS: Final = (
    r"(?:pass(?:word|wd|phrase|code)|(?<![A-Za-z])pass(?![A-Za-z])|mysql_pwd|secret|token"
    r"|(?:api|access|private|auth|encryption)[_-]?key|credentials?)"
)
_MORE: Final = r"(?:s?[_-](?!file|path|stdin|env)[\w-]{0,32})?"
_VALUE: Final = r"""(?P<quote>["'])?(?P<secret>(?(quote)[^"']+|[^\s"'&;,]+))"""
_BEFORE: Final = r"\s(?:[^\n]{0,512}?\s)?"
"""What may stand between a program and an option of it."""

_FLAG: Final = r"\s{1,4}-(?:C\s{1,4}\d{1,3}|\w{1,9})"
"""A flag of htpasswd."""

_HINTS: Final = ("pass", "mysql_pwd", "secret", "token", "key", "credential")


class Pattern(NamedTuple):
    """What is hidden where it matches."""

    name: str
    matches: re.Pattern[str]
    """Its group ``secret`` is what is hidden; where it has none, the whole match."""
    meaning: str = ""
    hints: tuple[str, ...] = ()
    """Small letters, of which a text that matches must have some; none of them: unknown."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where it stands in a text.

        Args:
            text: The text.

        Yields:
            First character and the one behind the last.
        """
        group: int | str = _GROUP if _GROUP in self.matches.groupindex else 0
        for match in self.matches.finditer(text):
            start, end = match.span(group)
            if end > start:
                yield start, end


def _pattern(name: str, meaning: str, text: str, *hints: str, case: bool = False) -> Pattern:
    flags = re.ASCII if case else re.ASCII | re.IGNORECASE
    return Pattern(name, re.compile(text, flags), meaning, hints)


# Every repetition before a word that must follow is bounded, so that no text takes long.
KNOWN: Final = {
    pattern.name: pattern
    for pattern in (
        _pattern(
            "password-option",
            "--password=…, --token …, -pass …: what stands behind such an option",
            rf"(?<![\w-])--?[\w.-]{{0,64}}?{_WORDS}{_MORE}(?:=|\s{{1,8}}){_VALUE}",
            *_HINTS,
        ),
        _pattern(
            "assignment",
            "PASSWORD=…, api_key: …, ?token=…: what is given to such a name",
            rf"{_WORDS}{_MORE}\s{{0,4}}[=:]\s{{0,4}}{_VALUE}",
            *_HINTS,
        ),
        _pattern(
            "mysql-password",
            "mysql -pPASSWORD",
            rf"\b(?:mysql\w{{0,16}}|mariadb[\w-]{{0,16}}){_BEFORE}(?-i:-p)(?P<secret>[^\s-]\S*)",
            "mysql",
            "mariadb",
        ),
        _pattern(
            "sshpass",
            "sshpass -p PASSWORD",
            r"\bsshpass(?:\s{1,4}-(?-i:[ev]|[dfP]\s{0,4}\S{1,128})){0,4}"
            r"\s{1,4}(?-i:-p)\s{0,4}(?P<secret>\S+)",
            "sshpass",
        ),
        _pattern(
            "redis-password",
            "redis-cli -a PASSWORD",
            rf"\bredis-cli{_BEFORE}(?-i:-a)\s{{1,4}}{_VALUE}",
            "redis-cli",
        ),
        _pattern(
            "htpasswd",
            "htpasswd -b FILE USER PASSWORD, htpasswd -nb USER PASSWORD",
            # The flags stand together or apart; with -n there is no file.
            rf"\bhtpasswd(?=(?:{_FLAG}){{0,8}}?\s{{1,4}}-\w{{0,8}}(?-i:b))"
            rf"(?:(?=(?:{_FLAG}){{0,8}}?\s{{1,4}}-\w{{0,8}}(?-i:n))(?P<printed>))?"
            rf"(?:{_FLAG}){{1,9}}(?(printed)|\s{{1,4}}[^\s-]\S{{0,512}})\s{{1,4}}[^\s-]\S{{0,256}}"
            rf"\s{{1,4}}{_VALUE}",
            "htpasswd",
        ),
        _pattern(
            "user-option",
            "curl -u USER:PASSWORD, -uUSER:PASSWORD, --user=USER:PASSWORD",
            # Before curl's -u may be letters that take nothing. 1000:1000 are a user and a group.
            r"(?:(?<!\S)(?:-u|--user|--proxy-user)[=\s]\s{0,4}"
            rf"|\bcurl{_BEFORE}-(?-i:[aBfgGiIjJklLMnNOpqRsSvVZ#0-46]{{0,8}}[uU])\s{{0,4}})"
            r"(?!\d{1,10}:\d{1,10}(?!\S))[^\s:=]{1,128}:(?P<secret>[^\s:]\S*)",
            "-u",
            "curl",
        ),
        _pattern(
            "url-password",
            "scheme://USER:PASSWORD@host",
            r"://[^\s/:@]{0,256}:(?P<secret>[^\s/@]+)@",
            "://",
        ),
        _pattern(
            "authorization",
            "Bearer …, Basic …: what a request is allowed by",
            r"\b(?:bearer|basic)\s{1,4}(?P<secret>[A-Za-z0-9._~+/=-]{8,})",
            "bearer",
            "basic",
        ),
        _pattern(
            "authorization-header",
            "-H 'Authorization: …': whatever it is",
            # A word that only says how it is meant stays; without quotes the rest is one word.
            r"""(?P<quote>["'])?\b(?:proxy-)?authorization:\s{0,4}"""
            r"(?:(?:bearer|basic|token|api-?key|digest|negotiate|ntlm|oauth|splunk)\s{1,4})?"
            r"(?!(?:none|off|on|no|yes|required|optional)\b)"
            r"""(?P<secret>(?(quote)[^"'\n]+|[^\s"']+))""",
            "authorization:",
        ),
        _pattern(
            "aws-key",
            "ids of AWS access keys",
            r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
            "akia",
            "asia",
            case=True,
        ),
        _pattern(
            "service-token",
            "tokens of GitHub, GitLab, Slack, npm, and JSON web tokens",
            r"\bgh[pousr]_\w{20,255}|\bgithub_pat_\w{20,255}|\bglpat-[\w-]{16,255}"
            r"|\bxox[abeprs]-[\w-]{10,255}|\bnpm_\w{30,255}"
            r"|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]{0,4096})?",
            *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
            "glpat-",
            "xox",
            "npm_",
            "eyj",
            case=True,
        ),
        _pattern(
            "private-key",
            "private keys in PEM",
            r"-----BEGIN[ A-Z]{0,32}PRIVATE KEY-----[\s\S]*?"
            r"(?:-----END[ A-Z]{0,32}PRIVATE KEY-----|\Z)",
            "private key-----",
            case=True,
        ),
        _pattern(
            "email",
            "e-mail addresses",
            r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b",
            "@",
        ),
        _pattern(
            "ip",
            "IPv4 and IPv6 addresses",
            r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])"
            r"|(?<![\w:.])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\w:])"
            r"|(?<![\w:.])(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6})?::"
            r"(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6}(?:\.\d{1,3}){0,3})?(?![\w:])",
        ),
    )
}
"""The patterns that have a name."""

_NAME: Final = re.compile(r"[a-z-]+")
_NO_SECRETS: Final = frozenset({"ip"})
ALL_SECRETS: Final = f"all of these but {', '.join(sorted(_NO_SECRETS))}"
"""What `SECRETS` means."""
OPTION: Final = re.compile(rf"--?[\w.-]{{0,64}}?{_WORDS}{_MORE}", re.ASCII | re.IGNORECASE)
"""An argument behind which a secret stands as the next one."""
_NAMED: Final = re.compile(rf"[\w.-]{{0,64}}?{_WORDS}{_MORE}", re.ASCII | re.IGNORECASE)


def chosen(given: Iterable[str]) -> tuple[Pattern, ...]:
    """The patterns that a user asked for.

    Args:
        given: Names, ``secrets``, or regular expressions of Python.

    Returns:
        The patterns, each once.

    Raises:
        KcapError: One is no name and no regular expression.
    """
    found: dict[tuple[str, str], Pattern] = {}
    for text in given:
        for pattern in _of(text):
            found.setdefault((pattern.name, pattern.matches.pattern), pattern)
    return tuple(found.values())


def _of(text: str) -> Sequence[Pattern]:
    if text == SECRETS:
        return [p for name, p in KNOWN.items() if name not in _NO_SECRETS]
    if text in KNOWN:
        return [KNOWN[text]]
    names = (SECRETS, *KNOWN)
    near = difflib.get_close_matches(text, names, 1, 0.75) if _NAME.fullmatch(text) else []
    expected = f"a regular expression, or one of {', '.join(names)}"
    if near:
        hint = f"did you mean {near[0]!r}? (?:{text}) is that regular expression"
        raise KcapError(f"there is no pattern {text!r}", expected=expected, hint=hint)
    try:
        made = re.compile(text)
    except (re.error, RecursionError, OverflowError) as e:
        what = f"{text!r} is no regular expression: {e}"
        raise KcapError(what, expected=expected) from e
    if made.fullmatch("") and _GROUP not in made.groupindex:
        what = f"{text!r} matches nothing at all, too"
        raise KcapError(what, expected="a pattern of at least one character")
    return [Pattern(CUSTOM, made)]


def follows_option(items: Sequence[str]) -> list[bool]:
    """Which arguments say that the next one is a secret.

    Args:
        items: Arguments.

    Returns:
        One answer each.
    """
    return [item.startswith("-") and OPTION.fullmatch(item) is not None for item in items]


def names_secret(name: str) -> bool:
    """Whether what has this name is a secret, in JSON or wherever values have names.

    Args:
        name: The name.

    Returns:
        True for ``password``, ``db_token``, ``X-Api-Key`` and the like.
    """
    return _NAMED.fullmatch(name) is not None
