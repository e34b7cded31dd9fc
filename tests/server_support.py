"""Real servers on loopback for tests: each in a folder of its own, ended by its process group."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from kcap.guard.rights import User
from kcap.model.batch import Batch
from kcap.writers.sinks import spec
from kcap.writers.sinks.delivery import Delivery
from kcap.writers.sinks.transport import Message

START_S = 60.0


# Below those that the kernel gives to whoever asks for any: a server that was killed gets it again.
_PORTS = itertools.cycle(range(10_000, 15_000))
for _ in range(os.getpid() * 37 % 5_000):
    next(_PORTS)


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody has; another one each time."""
    for port in itertools.islice(_PORTS, 5_000):
        with socket.socket(socket.AF_INET, kind) as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def wait_for(ready: Callable[[], Any], what: str, seconds: float = START_S) -> Any:
    """Wait until something is so, and give it."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)
    return found


def listens(port: int) -> bool:
    """Whether somebody answers on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def needed(program: str, package: str) -> str:
    """The path of a server's program; without it the test is skipped."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/lib/systemd"])
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"needs {program} (Debian package {package})")
    return found


def made(count: int, start: int = 0, size: int = 0) -> list[Message]:
    """Messages as the pipeline makes them, with their numbers as bodies."""
    filler = "x" * size
    return [
        Message(
            f"{'0' * 32}:{n}", b'{"event":"e%d","n":%d,"fill":"%s"}' % (n, n, filler.encode()), n
        )
        for n in range(start, start + count)
    ]


def deliver(url: str, *batches: Batch, **options: Any) -> Delivery:
    """A sink whose courier has no rights, which is given some batches: close it.

    As root its courier is nobody, so that whatever it loads too late is missing.
    """
    user = User("nobody", 65534, 65534) if os.geteuid() == 0 else None
    made = spec.opened(spec.parse(url, options), live=False, user=user)
    assert isinstance(made, Delivery)
    for batch in batches:
        made.write(batch)
    return made


class Certificates:
    """A certificate authority of a test, and what it signed for localhost."""

    def __init__(self, folder: Path) -> None:
        needed("openssl", "openssl")
        folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.cert, self.key = (folder / n for n in ("ca.pem", "cert.pem", "key.pem"))
        authority, request = folder / "ca.key", folder / "request.pem"
        names = folder / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
        for arguments in (
            [*new, "-x509", "-days", "2", "-subj", "/CN=kcap tests", "-keyout", authority,
             "-out", self.ca],
            [*new, "-subj", "/CN=localhost", "-keyout", self.key, "-out", request],
            ["openssl", "x509", "-req", "-days", "2", "-in", request, "-CA", self.ca,
             "-CAkey", authority, "-CAcreateserial", "-extfile", names, "-out", self.cert],
        ):  # fmt: skip
            subprocess.run(arguments, check=True, capture_output=True)
        for file in folder.iterdir():  # A server, or a courier, is not always root.
            file.chmod(0o644)


class Started:
    """A process with those that it started, ended with it."""

    def __init__(self, arguments: Sequence[str | Path], folder: Path, **environment: str) -> None:
        self.log = folder / f"{Path(arguments[0]).name}.log"
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(a) for a in arguments],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], Any], what: str) -> None:
        """Wait until it serves."""

        def look() -> Any:
            assert self._process.poll() is None, f"{what} ended: {self.log.read_text()[-2000:]}"
            return ready()

        wait_for(look, f"{what} serves")

    def kill(self) -> None:
        """End all of it, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class RabbitMq:
    """A broker of Debian's rabbitmq-server: its own node, cookie and folders."""

    def __init__(self, folder: Path, tls: Certificates | None = None) -> None:
        needed("epmd", "erlang-base")
        program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        if not program.exists():
            pytest.skip("needs Debian's package rabbitmq-server")
        folder.mkdir(parents=True)
        self._folder, self._program = folder, program
        self.port, self.port_tls = free_port(), free_port()
        epmd, node = free_port(), free_port()
        lines = ["log.console = false", f"listeners.tcp.1 = 127.0.0.1:{self.port}"]
        if tls is not None:
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.port_tls}",
                f"ssl_options.cacertfile = {tls.ca}",
                f"ssl_options.certfile = {tls.cert}",
                f"ssl_options.keyfile = {tls.key}",
                "ssl_options.verify = verify_none",
            ]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (folder / "plugins").write_text("[].\n")
        self._environment = {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": f"kcap{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(node),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2"
            ),
        }
        # Its own, in the foreground: what Erlang would start stays behind as a daemon.
        self._epmd = Started(
            [needed("epmd", "erlang-base"), "-address", "127.0.0.1", "-port", str(epmd)], folder
        )
        self._node: Started | None = None
        try:
            self._epmd.wait_until(lambda: listens(epmd), "epmd")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self, *, wait: bool = True) -> None:
        """Start it, again if it was killed."""
        self._node = Started([self._program], self._folder, **self._environment)
        if wait:
            self._node.wait_until(lambda: listens(self.port), "rabbitmq")

    def control(self, *arguments: str) -> None:
        """Have its administrator do something."""
        subprocess.run(
            [self._program.with_name("rabbitmqctl"), *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), **self._environment},
            check=True,
            capture_output=True,
            timeout=60,
        )

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._node is not None:
            self._node.kill()
            self._node = None

    def close(self) -> None:
        """End all of it."""
        self.kill()
        self._epmd.kill()

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of another client."""
        import pika

        parameters = pika.ConnectionParameters("127.0.0.1", self.port, heartbeat=0)
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    def queue(self, name: str, exchange: str, key: str = "#", **arguments: Any) -> None:
        """Make an exchange and a durable queue that gets what goes there."""
        with self.channel() as channel:
            channel.exchange_declare(exchange, "topic", durable=True)
            channel.queue_declare(name, durable=True, arguments=arguments or None)
            channel.queue_bind(name, exchange, key)

    def drain(self, name: str) -> list[tuple[Any, Any, bytes]]:
        """All that is in a queue, in its order: how it came, its properties, its body."""
        found = []
        with self.channel() as channel:
            count = channel.queue_declare(name, passive=True).method.message_count
            channel.basic_qos(prefetch_count=2000)
            coming = channel.consume(name, inactivity_timeout=10) if count else ()
            for method, properties, body in coming:
                assert method is not None, f"{len(found)} of {count} messages"
                found.append((method, properties, body))
                if len(found) % 1000 == 0 or len(found) == count:
                    channel.basic_ack(method.delivery_tag, multiple=True)
                if len(found) == count:
                    break
            channel.cancel()
            assert channel.queue_declare(name, passive=True).method.message_count == 0
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Rsyslog:
    """Debian's rsyslogd, which writes a line of fields for each message that it understood."""

    FIELDS = (
        "pri", "timereported", "hostname", "app-name", "procid", "msgid", "structured-data", "msg",
    )  # fmt: skip

    def __init__(self, folder: Path, tls: Certificates | None = None) -> None:
        program = needed("rsyslogd", "rsyslog")
        folder.mkdir(parents=True)
        self._folder, self._program = folder, program
        self.udp, self.tcp, self.tls = free_port(socket.SOCK_DGRAM), free_port(), free_port()
        self.socket, self._out = folder / "log.sock", folder / "out"
        fields = ' constant(value="\\t") '.join(
            f'property(name="{name}"'
            + (' dateFormat="rfc3339"' if name == "timereported" else "")
            + ")"
            for name in self.FIELDS
        )
        lines = [
            f'global(workDirectory="{folder}" maxMessageSize="1m")',
            'module(load="imudp")',
            'module(load="imtcp")',
            'module(load="imuxsock" SysSock.Use="off")',
            f'template(name="fields" type="list") {{ {fields} constant(value="\\n") }}',
            'ruleset(name="all") {',
            f'  action(type="omfile" file="{self._out}" template="fields" flushOnTXEnd="on")',
            "}",
            f'input(type="imudp" address="127.0.0.1" port="{self.udp}" ruleset="all")',
            f'input(type="imtcp" address="127.0.0.1" port="{self.tcp}" ruleset="all")',
            f'input(type="imuxsock" Socket="{self.socket}" useSpecialParser="off" ruleset="all")',
        ]
        if tls is not None:
            lines[0] = (
                f'global(workDirectory="{folder}" maxMessageSize="1m" defaultNetstreamDriver="ossl"'
                f' defaultNetstreamDriverCAFile="{tls.ca}"'
                f' defaultNetstreamDriverCertFile="{tls.cert}"'
                f' defaultNetstreamDriverKeyFile="{tls.key}")'
            )
            lines.append(
                f'input(type="imtcp" address="127.0.0.1" port="{self.tls}" ruleset="all"'
                ' streamDriver.name="ossl" streamDriver.mode="1"'
                ' streamDriver.authMode="anon")'
            )
        (folder / "rsyslog.conf").write_text("\n".join(lines) + "\n")
        self._process: Started | None = None
        self.start()

    def start(self) -> None:
        """Start it, again if it was killed."""
        conf, pid = self._folder / "rsyslog.conf", self._folder / "pid"
        pid.unlink(missing_ok=True)
        self._process = Started([self._program, "-n", "-f", conf, "-i", pid], self._folder)
        self._process.wait_until(lambda: listens(self.tcp), "rsyslogd")

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def received(self) -> list[Mapping[str, str]]:
        """What it has got, in its order."""
        if not self._out.exists():
            return []
        whole, _, _ = self._out.read_text().rpartition("\n")  # it may be writing a line
        lines = whole.splitlines()
        return [dict(zip(self.FIELDS, line.split("\t", len(self.FIELDS) - 1), strict=True))
                for line in lines]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Journald:
    """The host's systemd-journald, with a /run and a journal that only it sees."""

    SCRIPT = """
        mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log &&
        mkdir -p /run/systemd/journal /run/systemd/journald.conf.d &&
        printf '[Journal]\\nStorage=volatile\\nRateLimitBurst=0\\nReadKMsg=no\\n' \
            >/run/systemd/journald.conf.d/test.conf && exec "$0"
    """

    def __init__(self, folder: Path) -> None:
        program, unshare = needed("systemd-journald", "systemd"), needed("unshare", "util-linux")
        self._reader = needed("journalctl", "systemd")
        if not Path("/etc/machine-id").exists():
            pytest.skip("needs a machine id (/etc/machine-id)")
        folder.mkdir(parents=True)
        self._process = Started([unshare, "--mount", "sh", "-c", self.SCRIPT, program], folder)
        root = Path(f"/proc/{self._process.pid}/root")
        self.socket = root / "run/systemd/journal/socket"
        self._journal = root / "run/log/journal"
        try:
            self._process.wait_until(self.socket.is_socket, "systemd-journald")
        except BaseException:
            self.kill()
            raise

    def entries(self, identifier: str) -> list[dict[str, Any]]:
        """What a program has logged, in its order."""
        done = subprocess.run(
            [self._reader, "--directory", self._journal, "--output", "json", "--all", "--no-pager",
             f"SYSLOG_IDENTIFIER={identifier}"],
            capture_output=True,
            check=False,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
