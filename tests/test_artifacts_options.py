"""Artifacts are asked for in kcap's words, and in those of every release of Tracee."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.readers.live.artifacts.spelling import (
    LISTING,
    PAYLOAD_MAX,
    Asked,
    SpellingError,
    read,
)
from kcap.readers.live.artifacts.wanted import Caps, FileFilter, Network, Wanted

_TMP = FileFilter(("/tmp/",))
_SAME = (
    # each line: spellings of one thing, by release
    (Wanted(exec=True), "exec", "artifact:exec", "executable", "executable=true"),
    (Wanted(write=FileFilter()), "write", "artifact:write", "file-write"),
    (
        Wanted(write=_TMP),
        "write=/tmp/*",
        "write:path=/tmp/*",
        "artifact:write=/tmp/*",
        "file-write.filters=path=/tmp/*",
    ),
    (Wanted(read=_TMP), "read=/tmp/*", "read:path=/tmp/*", "file-read.filters=path=/tmp/*"),
    (
        Wanted(read=FileFilter(types=frozenset({"pipe"}))),
        "read:type=pipe",
        "artifact:read:type=pipe",
        "file-read.filters=type=pipe",
    ),
    (
        Wanted(read=FileFilter(fds=frozenset({0}))),
        "read:fd=stdin",
        "file-read.filters=fd=stdin",
    ),
    (Wanted(mem=True), "mem", "artifact:mem", "memory-regions"),
    (Wanted(module=True), "module", "artifact:module", "kernel-modules"),
    (Wanted(bpf=True), "bpf", "bpf-programs"),
    (Wanted(network=Network()), "network", "net", "pcap", "pcap:single", "network=true"),
    (
        Wanted(network=Network(split=frozenset({"process", "container", "command"}))),
        "pcap:process,container,command",
        "network.pcap.split=process,container,command",
    ),
    (
        Wanted(network=Network(filtered=True)),
        "pcap-options:filtered",
        "network.pcap.options=filtered",
    ),
    (Wanted(network=Network()), "pcap-options:none", "pcap-snaplen:default", "pcap-snaplen:96b"),
    (
        Wanted(network=Network(PAYLOAD_MAX)),
        "pcap-snaplen:max",
        "network.pcap.snaplen=max",
        "pcap-snaplen:64kb",
        "pcap-snaplen:999999k",
    ),
    (Wanted(network=Network(0)), "pcap-snaplen:headers", "network.pcap.snaplen=headers"),
    (Wanted(network=Network(16 << 10)), "pcap-snaplen:16kb", "pcap-snaplen:16k"),
    # kcap's own
    (Wanted(exec=True, hash_only=True), "exec:hash", "profile"),
    (Wanted(mem=True, maps=True), "mem:maps"),
)


@pytest.mark.parametrize(
    ("text", "wanted"), [(text, wanted) for wanted, *texts in _SAME for text in texts]
)
def test_every_spelling_means_what_it_says(text: str, wanted: Wanted) -> None:
    """Old and new names are one thing."""
    assert read([text]).wanted == wanted


def test_the_examples_of_the_manual() -> None:
    """All items of Tracee's introduction to artifacts, as they stand there."""
    first = read(["dir:/tmp/tracee/", "write=/tmp/*"])
    assert first.wanted == Wanted(write=_TMP)
    assert first.folder == "/tmp/tracee/"

    both = read(["dir:/tmp/tracee/", "read:type=pipe", "read:fd=stdin"])
    assert both.wanted.read == FileFilter(types=frozenset({"pipe"}), fds=frozenset({0}))

    packets = read(
        ["network", "pcap-options:filtered", "pcap:single,command", "pcap-snaplen:default"]
    )
    assert packets.wanted.network == Network(96, True, frozenset({"single", "command"}))

    module = read(["clear-dir", "module"])
    assert module.wanted == Wanted(module=True)
    assert module.clear
    assert "no dir:DIR" in module.notes[0]


@given(st.randoms(use_true_random=False), st.booleans())
def test_neither_order_nor_lists_matter(order: random.Random, listed: bool) -> None:
    """A snap length before the packets is not forgotten; commas are as good as options."""
    items = [
        "pcap-snaplen:max",
        "network",
        "pcap:process,container",
        "pcap-options:filtered",
        "write=/tmp/*",
        "file-write.filters=type=elf",
        "hash=md5,sha1",
        "dir:/srv/out",
        "exec",
        "exec:hash",
    ]
    order.shuffle(items)

    asked = read([",".join(items)] if listed else items)

    assert asked.wanted == Wanted(
        exec=True,
        write=FileFilter(("/tmp/",), frozenset({"elf"})),
        network=Network(PAYLOAD_MAX, True, frozenset({"process", "container"})),
        hashes=frozenset({"md5", "sha1"}),
    )
    assert asked.folder == "/srv/out"


def test_caps_and_several_paths() -> None:
    """Sizes have units; up to three paths of a kind are alternatives."""
    asked = read(["max=64M,max-cgroup=1G,max-capture=10g,write=/tmp/*,/var/a,b*,write=/srv/*"])

    assert asked.wanted.caps == Caps(64 << 20, 1 << 30, 10 << 30)
    assert asked.wanted.write == FileFilter(("/tmp/", "/var/a,b", "/srv/"))
    assert read(["write=*"]).wanted.write == FileFilter(("/",))


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("wirte=/tmp/*", "write"),
        ("exec,modul", "module"),
        ("write=/tmp", "write=/tmp/*"),
        ("write=tmp/*", "write=/tmp/*"),
        ("write:typ=pipe", "type"),
        ("read:type=fifo", "pipe"),
        ("read:fd=stdim", "stdin"),
        ("exec:hsah", "exec:hash"),
        ("pcap:proces", "process"),
        ("pcap-snaplen:big", "256b"),
        ("pcap-options:filterd", "filtered"),
        ("network.pcap.spilt=process", "network.pcap.split"),
        ("hash=md4", "md5"),
        ("max=much", "max=64M"),
        ("dir:", "dir:/var/tmp/artifacts"),
        ("dir:/tmp/a", "exec"),
        ("", "--list-artifacts"),
        ("exec,,mem", "exec"),
        (f"write=/{'a' * 50}*", "shorter"),
        ("write=/a*,/b*,/c*,/d*", "share"),
    ],
)
def test_what_is_no_artifact_is_refused_with_what_is_like_it(text: str, near: str) -> None:
    """An error says which item, and what may have been meant."""
    with pytest.raises(SpellingError) as caught:
        read([text])

    assert near in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@given(st.lists(st.text(alphabet="exchwrit=:,./*pca-snlmod ", max_size=30), max_size=4))
def test_no_text_is_more_than_refused(texts: list[str]) -> None:
    """Whatever is given, it is understood or it is a usage error."""
    with contextlib.suppress(SpellingError):
        assert isinstance(read(texts), Asked)


def test_what_is_listed_is_understood() -> None:
    """The list for users has no spelling that is refused."""
    stand_ins = {"TYPE": "pipe", "FD": "stdin", "SIZE": "1kb", "LIST": "process", "DIR": "/srv"}
    for name, _ in LISTING:
        item = name
        for word, value in stand_ins.items():
            item = item.replace(f":{word}", f":{value}").replace(f"={word}", f"={value}")

        read(["exec", item])
