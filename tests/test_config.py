"""kcap config: what holds, where it comes from, and no secret anywhere."""

from __future__ import annotations

import json
import re
import string
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from cli_support import run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from settings_support import environment

from kcap.tools.settings import document, example, secrets
from kcap.tools.settings.merged import Merged, filament_keys, logging_keys
from kcap.tools.settings.secrets import MASK, Known, masked, masked_url
from kcap.tools.settings.show import as_yaml, rows

FULL = """\
record:
  keep: 48
  split-size: 256M
  scope: [comm=nginx, follow]
  where: "ps.name = 'bash' and evt.category != 'file'"
  note: "12: # 'quoted' \\u202e"
  force: yes
service:
  install: {name: web}
sinks:
  - "null:"
  - url: amqp://guest:fishbone@localhost/?routing-key={{ event }}
    headers: {site: berlin}
    password: !env BROKER
transformers:
  - remove: [irp, '5']
  - tags: {site: berlin, n: '7'}
filament: {path: [/a, /b], call-s: 500ms}
logging: {level: debug}
"""


def shown(path: Path, *words: str, **variables: str) -> str:
    """What kcap config prints of a file."""
    with environment(**variables):
        result = run("--config", path, "config", *words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_every_setting_is_shown_with_where_it_comes_from(tmp_path: Path) -> None:
    """File and line, or the variable; nothing that nobody has set."""
    path = tmp_path / "kcap.yaml"
    path.write_text(FULL)

    out = shown(path, KCAP_RECORD_KEEP="5", KCAP_LOGGING_FORMAT="json")

    assert out.startswith(f"# settings of {path}\nrecord:\n  keep: 5  # KCAP_RECORD_KEEP\n")
    assert f"  split-size: 256M  # {path} line 3\n" in out
    assert f"  install:\n    name: web  # {path} line 9\n" in out
    assert f'  - remove: ["irp", "5"]  # {path} line 16\n' in out
    assert f'    password: !env "BROKER"  # {path} line 14\n' in out
    assert "  format: json  # KCAP_LOGGING_FORMAT\n" in out
    assert "default" not in out
    assert "\u202e" not in out


def test_what_is_shown_is_a_file_of_the_same_settings(tmp_path: Path) -> None:
    """Read again, it shows the same, but for the lines; but for what is masked."""
    path, again = tmp_path / "kcap.yaml", tmp_path / "again.yaml"
    path.write_text(FULL)
    again.write_text(shown(path))

    first, second = (
        [(row.path, row.value) for row in rows(Merged(str(p), environ={}))] for p in (path, again)
    )

    assert first == second
    assert run("config", "--check", again).exit_code == 0


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20
)


@settings(max_examples=50)
@given(note=TEXTS, fields=st.lists(TEXTS, max_size=3), tag=TEXTS)
def test_any_text_is_shown_so_that_it_can_be_read_again(
    note: str, fields: list[str], tag: str
) -> None:
    """Quotes, colons, comments, controls: on one line, with the meaning that they had."""
    nodes = {
        "record": {"note": note, "scope": fields},
        "transformers": [{"tags": {"site": tag}}],
    }
    text = yaml.safe_dump(nodes)
    assume(secrets.masked(text) == text)
    found = Merged("kcap.yaml", environ={})
    found.__dict__["sections"] = document.parse(text.encode(), "kcap.yaml").value

    lines = list(as_yaml([*rows(found)], "kcap.yaml"))

    again = Merged("kcap.yaml", environ={})
    again.__dict__["sections"] = document.parse("\n".join(lines).encode(), "kcap.yaml").value
    expected = [note, fields, {"site": tag}]
    assert [row.value for row in rows(found)] == [row.value for row in rows(again)] == expected
    assert not any(set(line) & set("\x1b\x9b\u202e\x07") for line in lines)


def test_all_shows_defaults_and_is_itself_a_file(tmp_path: Path) -> None:
    """Every option of every verb, those without a default as a comment."""
    path, again = tmp_path / "kcap.yaml", tmp_path / "again.yaml"
    path.touch()

    out = shown(path, "--all")

    again.write_text(out)
    assert run("config", "--check", again).exit_code == 0
    assert "  durability: 1s  # default\n" in out
    assert "# keep:\n" in out.replace("#   keep", "# keep").replace("# " * 2, "# ")
    assert "  memory-bytes: 536870912  # default\n" in out
    assert len(out.splitlines()) > 200


def test_json_has_the_same(tmp_path: Path) -> None:
    """One object, with a path, a value and a source each."""
    path = tmp_path / "kcap.yaml"
    path.write_text(FULL)

    found = json.loads(shown(path, "--json"))

    assert found["file"] == str(path)
    by_name = {one["setting"]: one for one in found["settings"]}
    assert by_name["record.scope"]["value"] == ["comm=nginx", "follow"]
    assert by_name["sinks.1.password"]["value"] == {"env": "BROKER"}
    assert by_name["record.keep"]["source"] == f"{path} line 2"


def test_the_example_is_right(tmp_path: Path) -> None:
    """As it is, where it says nothing; and with everything in it taken for good."""
    path = tmp_path / "kcap.yaml"
    path.write_text(run("config", "--example").stdout)
    assert run("config", "--check", path).stdout == f"{path}: 0 settings, all right\n"

    path.write_text(re.sub(r"^#(?! \S)", "", example.TEXT, flags=re.MULTILINE))
    result = run("config", "--check", path)
    assert result.exit_code == 0, result.stderr
    assert int(re.search(r"(\d+) settings", result.stdout)[1]) > 20  # type: ignore[index]


def test_what_excludes_each_other_is_wrong_usage(tmp_path: Path) -> None:
    """One thing at a time."""
    assert run("config", "--example", "--json").exit_code == 2
    assert run("config", "--check", tmp_path, "--all").exit_code == 2
    missing = run("config", "--check", tmp_path / "none.yaml")
    assert missing.exit_code == 1
    assert "settings can't be read: No such file" in missing.stderr


# Secrets

SECRETS = st.text(string.ascii_letters + string.digits + "!$%&'()*+,;=@/?#[]{}~-._ äß", min_size=6)
PLACES = {
    "password of a URL": "sinks: ['amqp://guest:{quoted}@localhost/']",
    "password of a URL, not escaped": "sinks: ['amqp://guest:x{plain}@localhost/']",
    "parameter of a URL": "sinks: ['https://h.example/x?password={quoted}']",
    "path of a hook": "sinks: ['slack+https://hooks.slack.com/services/T0/B0/{quoted}']",
    "secret option": "sinks: [{{url: 'amqp://localhost/', password: {yaml}}}]",
    "header": "sinks: [{{url: 'https://h.example/', headers: {{Authorization: {yaml}}}}}]",
    "another header": "sinks: [{{url: 'https://h.example/', headers: {{X-Api-Key: {yaml}}}}}]",
    "unusual header": "sinks: [{{url: 'https://h.example/', headers: {{X-Tenant: {yaml}}}}}]",
    "header of a URL": "sinks: ['https://h.example/?headers=X-Tenant:%20{quoted}']",
    "user of a URL": "sinks: ['https://{quoted}@h.example/']",
    "user of a URL with nothing behind": "sinks: ['elasticsearch+https://{quoted}:@h.example/']",
    "option of a verb": "record: {{note: 'https://u:{quoted}@h.example/'}}",
    "tag of a transformer": "transformers: [{{tags: {{password: {yaml}}}}}]",
}


def written(secret: str, place: str) -> str:
    """A file with a secret in a place."""
    plain = re.sub(r"[\s'\"#?/\[\]{}%]", "x", secret)
    return PLACES[place].format(quoted=quote(secret, safe=""), plain=plain, yaml=json.dumps(secret))


@settings(max_examples=30)
@given(secret=SECRETS, place=st.sampled_from(sorted(PLACES)))
def test_no_secret_is_shown(
    tmp_path_factory: pytest.TempPathFactory, secret: str, place: str
) -> None:
    """Wherever it stands, what is shown is the same as with another one of another length."""
    path = tmp_path_factory.mktemp("secret") / "kcap.yaml"
    told: list[set[str]] = []
    for one in (secret, "sesame opens 1 door"):
        path.write_text(written(one, place))
        told.append({shown(path), shown(path, "--json")})
        if not place.startswith(("option", "tag")):
            told[-1].add(repr(Merged(str(path), environ={}).settings))

    assert told[0] == told[1]
    assert all(MASK in text for text in told[0])


@settings(max_examples=20)
@given(secret=SECRETS)
def test_what_is_no_secret_is_shown(tmp_path_factory: pytest.TempPathFactory, secret: str) -> None:
    """Negative control: the same text where nothing says that it is secret."""
    path = tmp_path_factory.mktemp("secret") / "kcap.yaml"
    path.write_text(f"record: {{note: {json.dumps(secret)}}}")

    assert json.dumps(secret, ensure_ascii=False)[1:-1] in shown(path)


@given(secret=SECRETS, around=TEXTS)
def test_known_secrets_are_found_in_any_text(secret: str, around: str) -> None:
    """As they are and as they look in a URL; the text around stays."""
    known = Known()
    known.add(secret)

    out = known.masked(f"\x01{around}\x01{secret} {quote(secret, safe='')}")

    assume(secret not in MASK)
    assert secret not in out
    assert quote(secret, safe="") not in out


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://guest:word@host:5672/%2f", f"amqp://guest:{MASK}@host:5672/%2f"),
        ("amqp://guest:w@rd@host/", f"amqp://guest:{MASK}@host/"),
        ("amqp://guest@host/", "amqp://guest@host/"),
        ("https://guest@host/", f"https://{MASK}@host/"),
        ("https://guest:@host/", f"https://{MASK}:{MASK}@host/"),
        ("https://guest:word@host/", f"https://guest:{MASK}@host/"),
        ("elasticsearch+http://guest@host/", f"elasticsearch+http://{MASK}@host/"),
        ("amqp://0123456789abcdef0123@host/", f"amqp://{MASK}@host/"),
        ("amqp://the-user-of-the-broker@host/", "amqp://the-user-of-the-broker@host/"),
        ("https://a/b?headers=X-Tenant:%20word&c=d", f"https://a/b?headers={MASK}&c=d"),
        ("https://a/b?headers=Accept:%20word&c=d", "https://a/b?headers=Accept:%20word&c=d"),
        (f"HKCU to ghp_{'a1' * 18}", f"HKCU to {MASK}"),
        ("amqp://:word@host/", f"amqp://:{MASK}@host/"),
        ("amqp://guest:wo/rd@host/", f"amqp://guest:{MASK}"),
        ("amqp://guest:12/34@host/", f"amqp://guest:{MASK}"),
        ("https://host:443/a?b=c&token=word&d=e", f"https://host:443/a?b=c&token={MASK}&d=e"),
        ("kafka://a:9092,b:9092/topic", "kafka://a:9092,b:9092/topic"),
        ("https://[::1]:443/x", "https://[::1]:443/x"),
        ("smtp://mail:25?to=ann@example.org", "smtp://mail:25?to=ann@example.org"),
        ("slack+https://hooks.slack.com/services/T/B/x", f"slack+https://hooks.slack.com/{MASK}"),
        ("slack+https://chat.example.org/hooks/x", f"slack+https://chat.example.org/{MASK}"),
        ("https://hooks.slack.com/services/T/B/x", f"https://hooks.slack.com/{MASK}"),
        ("https://h.example/services/T/B/x", "https://h.example/services/T/B/x"),
        (
            "two https://a:word@b and http://c:word@d",
            f"two https://a:{MASK}@b and http://c:{MASK}@d",
        ),
        ("Authorization: Basic d29yZDp3b3Jk", f"Authorization: {MASK}"),
        ("sent bearer d29yZDp3b3Jk to it", f"sent bearer {MASK} to it"),
        ("nothing to hide: /etc/passwd, 12:30", "nothing to hide: /etc/passwd, 12:30"),
    ],
)
def test_secrets_are_known_by_where_they_stand(url: str, expected: str) -> None:
    """In URLs and headers, in any text; what is not secret stays."""
    assert masked(url) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    ("header", "hidden"),
    [
        ("X-Tenant", True),
        ("DD-API-KEY", True),
        ("X-Anything", True),
        ("Content-Type", False),
        ("accept", False),
        ("User-Agent", False),
    ],
)
def test_headers_are_hidden_unless_they_are_known_to_be_harmless(
    tmp_path: Path, header: str, hidden: bool
) -> None:
    """What a server takes a header for nobody knows, so what it says is hidden everywhere."""
    path = tmp_path / "kcap.yaml"
    path.write_text(f"sinks: [{{url: 'https://h.example/', headers: {{{header}: open-the-door}}}}]")
    found = Merged(str(path), environ={})
    assert found.settings

    for text in (shown(path), shown(path, "--json"), repr(found.settings)):
        assert ("open-the-door" not in text) is hidden
        assert header in text
    said = "the server says open-the-door"
    assert (found.known.masked(said) != said) is hidden


def test_short_header_values_are_not_looked_for_in_other_text(tmp_path: Path) -> None:
    """A word such as ``prod`` is hidden where it stands, and stays in the name of a file."""
    path = tmp_path / "kcap.yaml"
    path.write_text("sinks: [{url: 'https://h.example/', headers: {X-Site: prod, X-Token: word}}]")
    found = Merged(str(path), environ={})
    assert found.settings

    assert "prod" not in shown(path).replace(str(path), "")
    assert found.known.masked("/srv/prod/x.kcap word") == f"/srv/prod/x.kcap {MASK}"


def test_what_is_replaced_is_a_rule_unless_it_is_kept_elsewhere(
    tmp_path: Path,
) -> None:
    """`replace` is shown as it is; a reference is shown as one, and its text known as a secret."""
    path = tmp_path / "kcap.yaml"
    replace = "transformers: [{{replace: {{param: cmdline, old: {}, new: x}}}}]"
    path.write_text(replace.format("open-the-door"))
    assert "open-the-door" in shown(path)
    path.write_text(replace.format("!env DOOR"))
    found = Merged(str(path), environ={"DOOR": "open-the-door"})

    assert "open-the-door" not in shown(path)
    assert "DOOR" in shown(path)
    assert found.settings.transformers[0].arguments["old"] == "open-the-door"
    assert found.known.masked("open-the-door") == MASK


def test_a_transports_own_secrets_are_masked() -> None:
    """Names that only the transport calls secret."""
    assert masked_url("x://h/?sesame=open", secret=["sesame"]) == f"x://h/?sesame={MASK}"
    assert masked_url("x://h/?sesame=open") == "x://h/?sesame=open"


@pytest.mark.parametrize("unit", ["x", ":", "x://", "x://h?a", "x://a:", "&a", "a=", "[", "basic "])
def test_masking_takes_no_longer_for_what_is_made_to_be_slow(unit: str) -> None:
    """A long text of anything is looked through in a moment."""
    for text in (unit * 60_000, f"x://h?{unit * 60_000}", f"x://{unit * 60_000}"):
        begun = time.process_time()
        masked(text)
        assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("password", True),
        ("sasl-password", True),
        ("Authorization", True),
        ("X-Auth-Token", True),
        ("api_key", True),
        ("password-file", False),
        ("routing-key", False),
        ("author", False),
        ("tokens", False),
        ("key", False),
    ],
)
def test_names_say_what_is_secret(name: str, secret: bool) -> None:
    """By words of their own."""
    assert secrets.is_secret_name(name) is secret


# The documentation


def test_the_page_has_every_key_with_its_default(read_text: Callable[[str], str]) -> None:
    """docs/configuration.md names what filament and logging may say, and what holds else."""
    text = read_text("docs/configuration.md")
    table = re.findall(
        r"^\| `(filament|logging): ([a-z-]+)` \| .* \| (\S+) \|$", text, re.MULTILINE
    )
    sections = {"filament": filament_keys(), "logging": logging_keys()}

    assert {(s, name) for s, name, _ in table} == {(s, n) for s in sections for n in sections[s]}
    for section, name, default in table:
        key = sections[section][name]
        said = None if default == "none" else key.type.convert(default, None, None)
        assert said == (key.default or None if default == "none" else key.default), name


def test_the_files_of_the_page_are_right(tmp_path: Path, read_text: Callable[[str], str]) -> None:
    """Each YAML block is a file that is fine."""
    blocks = re.findall(r"```yaml\n(.*?)```", read_text("docs/configuration.md"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        path = tmp_path / "kcap.yaml"
        path.write_text(block)
        assert run("config", "--check", path).exit_code == 0, block
