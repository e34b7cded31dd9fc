"""Names and images of containers, out of the state files that their runtimes keep.

No runtime is asked: its socket may be slow, or answer to nobody but itself. The files are read by
a thread of their own, each container once, so that no event waits for a disk.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kcap.model import text
from kcap.readers.live.cache import Cache
from kcap.readers.live.probe import Item, Op, Prober, Request
from kcap.readers.live.probe.reader import state
from kcap.readers.live.probe.wire import NOBODY

FILE_BYTES: Final = 16 << 20
"""The largest state file that is read."""

CONTAINERS_MAX: Final = 16_384
"""Containers that are remembered."""

TRIES: Final = 10
RETRY_S: Final = 1.0
"""A runtime may write its files only when the container runs already."""

_WAITING_MAX: Final = 1024
_NAMESPACES_MAX: Final = 256
_SHA256_DIGITS: Final = 64


class Facts(NamedTuple):
    """What the state files say of a container."""

    container_name: str | None = None
    container_image: str | None = None
    container_image_digest: str | None = None
    """``sha256:`` and 64 digits: of the image's manifest, or its id where only that is known."""
    pod_name: str | None = None
    pod_namespace: str | None = None
    pod_uid: str | None = None
    pod_sandbox: bool | None = None
    """Whether this is the container that holds the pod's namespaces."""


NOTHING: Final = Facts()

# Annotations and labels by which runtimes and Kubernetes tell what a container is.
_NAME: Final = (
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
    "nerdctl/name",
)
_IMAGE: Final = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
_DIGEST: Final = ("io.kubernetes.cri-o.ImageRef",)
_POD_NAME: Final = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_POD_NAMESPACE: Final = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
_POD_UID: Final = ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
_TYPES: Final = (
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.docker.type",
)
_SANDBOXES: Final = frozenset({"sandbox", "podsandbox"})


class Runtimes:
    """Looks containers up, and remembers them.

    Args:
        root: The root of the host's file system.
        prober: Who reads, of the same root; None for this process itself.
    """

    def __init__(self, root: str = "/", *, prober: Prober | None = None) -> None:
        self._root = root.rstrip("/")
        self._prober = prober
        self._known: Cache[str, Facts] = Cache(CONTAINERS_MAX)
        self._tries: Cache[str, tuple[int, float]] = Cache(CONTAINERS_MAX)
        self._wanted: queue.Queue[str | None] = queue.Queue(_WAITING_MAX)
        self._thread: threading.Thread | None = None

    def facts(self, container_id: str) -> Facts:
        """What is known of a container by now; never waits.

        Args:
            container_id: Its id, 64 hex digits.

        Returns:
            What its files said; `NOTHING` as long as they were not read, or where there are none.
        """
        found = self._known.get(container_id)
        if found is None:
            self._want(container_id)
        return found or NOTHING

    def read(self, container_id: str) -> Facts | None:
        """Read the state files of a container now.

        Args:
            container_id: Its id.

        Returns:
            What they say; None where there are none.
        """
        if len(container_id) != _SHA256_DIGITS or not container_id.isalnum():
            return None  # it becomes part of a path
        for found in self._candidates(container_id):
            if found != NOTHING:
                return found
        return None

    @property
    def evicted(self) -> int:
        """Containers that were forgotten for want of room; they are looked up again."""
        return self._known.evicted + self._tries.evicted

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            with self._wanted.mutex:
                self._wanted.queue.clear()
            self._wanted.put(None)
            self._thread.join()
            self._thread = None

    def _want(self, container_id: str) -> None:
        tries, last_s = self._tries.get(container_id) or (0, -RETRY_S)
        now_s = time.monotonic()
        if tries >= TRIES or now_s - last_s < RETRY_S:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="kcap-runtimes", daemon=True)
            self._thread.start()
        try:
            self._wanted.put_nowait(container_id)
        except queue.Full:
            return  # a later event of it asks again
        self._tries.put(container_id, (tries + 1, now_s))

    def _work(self) -> None:
        while (container_id := self._wanted.get()) is not None:
            found = self.read(container_id)
            if found is not None:
                self._known.put(container_id, found)

    def _candidates(self, container_id: str) -> Iterator[Facts]:
        """What each place that may have the container says."""
        docker = self._json(f"/var/lib/docker/containers/{container_id}/config.v2.json")
        yield _docker(docker)
        tasks = "/run/containerd/io.containerd.runtime.v2.task"
        for namespace in self._folders(tasks):
            bundle = self._json(f"{tasks}/{namespace}/{container_id}/config.json")
            yield _annotated(_dict(bundle.get("annotations")))
        for base in ("/var/lib", "/run"):
            storage = f"{base}/containers/storage/overlay-containers"
            bundle = self._json(f"{storage}/{container_id}/userdata/config.json")
            labelled = _annotated(_dict(bundle.get("annotations")))
            for entry in _list(self._content(f"{storage}/containers.json")):
                if entry.get("id") == container_id:
                    labelled = _podman(entry, labelled)
            yield labelled

    def _folders(self, path: str) -> list[str]:
        found = self._read(Item(Op.NAMES, path)) or b""
        names = [os.fsdecode(name) for name in found.split(b"\0")]
        return [name for name in names if name][:_NAMESPACES_MAX]

    def _json(self, path: str) -> dict[str, Any]:
        return _dict(self._content(path))

    def _content(self, path: str) -> Any:  # noqa: ANN401  (plain JSON values)
        """The JSON of a file; None where it is gone, too large, or half written."""
        try:
            return json.loads(self._read(Item(Op.FILE, path, FILE_BYTES)) or b"")
        except (ValueError, RecursionError):
            return None

    def _read(self, item: Item) -> bytes | None:
        """What a file or folder holds; None where it is gone, or its disk does not answer."""
        if self._prober is not None:
            found = self._prober.read(Request(NOBODY, (item,))).found.get(item.name)
            return found if isinstance(found, bytes) else None
        try:
            return state(self._root, item)
        except OSError:
            return None


def _docker(config: Mapping[str, Any]) -> Facts:
    about = _dict(config.get("Config"))
    labels = _annotated(_dict(about.get("Labels")))
    name = _text(config.get("Name"))
    return labels._replace(
        container_name=labels.container_name or (name.removeprefix("/") if name else None),
        container_image=_text(about.get("Image")),
        container_image_digest=_digest(config.get("Image")),
    )


def _podman(entry: Mapping[str, Any], labelled: Facts) -> Facts:
    """What the list of containers says, where annotations do not say it."""
    try:
        told = _dict(json.loads(entry.get("metadata") or "{}"))
    except (TypeError, ValueError, RecursionError):
        told = {}
    names = entry.get("names")
    first = names[0] if isinstance(names, list) and names else None
    digest = _digest(told.get("image-id")) or _digest(entry.get("image"))
    return labelled._replace(
        container_name=labelled.container_name or _text(told.get("name")) or _text(first),
        container_image=labelled.container_image or _text(told.get("image-name")),
        container_image_digest=labelled.container_image_digest or digest,
    )


def _annotated(labels: Mapping[str, Any]) -> Facts:
    kind = _first(labels, _TYPES)
    return Facts(
        _first(labels, _NAME),
        _first(labels, _IMAGE),
        _digest(_first(labels, _DIGEST)),
        _first(labels, _POD_NAME),
        _first(labels, _POD_NAMESPACE),
        _first(labels, _POD_UID),
        None if kind is None else kind in _SANDBOXES,
    )


def _first(labels: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    return next((value for key in keys if (value := _text(labels.get(key)))), None)


def _digest(value: object) -> str | None:
    """The digest in an image's id or reference."""
    found = _text(value)
    digits = (found or "").rpartition("sha256:")[2]
    whole = len(digits) == _SHA256_DIGITS and set(digits) <= set("0123456789abcdef")
    return f"sha256:{digits}" if whole else None


def _text(value: object) -> str | None:
    return text.cut(text.clean(value)[0])[0] if isinstance(value, str) and value else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []
