"""Health gates against real servers."""

import http.server
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from vmkeep.components import web
from vmkeep.components.echo import echo
from vmkeep.components.gates import Clock, pass_gates
from vmkeep.components.subject import Subject
from vmkeep.errors import SourceError, TemporaryError, UnsupportedError
from vmkeep.fleet.model import VM
from vmkeep.guests.ssh import SshGuest
from vmkeep.hypervisors.memory import MemoryHypervisor
from vmkeep.testing.ports import free_port
from vmkeep.testing.sshd import sshd

pytestmark = pytest.mark.integration

LOCAL = {"ssh": {"host": "127.0.0.1"}}


def subject(*health, guest=LOCAL, hypervisor=None, original=True, base=Path("/")):
    vm = VM.model_validate({"hypervisor": "rack1", "guest": guest, "health": health})
    return Subject("db1", vm, hypervisor or MemoryHypervisor(), base, original=original)


class Page(http.server.BaseHTTPRequestHandler):
    """Answers /CODE with that status, and says whom it was asked for."""

    asked: ClassVar = []

    def do_GET(self):
        self.asked.append(self.headers["Host"])
        self.send_response(int(self.path.lstrip("/") or 200))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        Page.asked = []
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def port(server):
    return server.server_address[1]


# --- the network


def test_a_port_that_opens_late_is_waited_for():
    port = free_port()
    listener = socket.socket()
    timer = threading.Timer(0.6, lambda: (listener.bind(("127.0.0.1", port)), listener.listen()))
    timer.start()

    (found,) = pass_gates(subject({"tcp": port, "timeout": "60s"}))
    timer.join()
    listener.close()
    assert f"127.0.0.1 accepts connections on port {port} (after" in found


def test_a_gate_that_stays_closed_says_why_the_last_try_failed():
    port = free_port()

    with pytest.raises(
        SourceError,
        match=rf"VM db1: health check tcp {port} did not pass within 1 s \(\d+ tries\): .*refused",
    ):
        pass_gates(subject({"tcp": port, "timeout": "1s"}))


def test_gates_are_tried_in_order_and_none_after_one_that_stays_closed(port):
    closed = free_port()
    with pytest.raises(SourceError, match=f"tcp {closed}"):
        pass_gates(
            subject({"tcp": port}, {"tcp": closed, "timeout": "500ms"}, {"http": f"http://127.0.0.1:{port}/"})
        )

    assert Page.asked == []


@pytest.mark.parametrize("code", [200, 204, 302, 399])
def test_a_page_below_400_is_healthy(port, code):
    assert pass_gates(subject({"http": f"http://127.0.0.1:{port}/{code}"}))


@pytest.mark.parametrize("code", [400, 404, 500, 503])
def test_a_page_from_400_on_is_not(port, code):
    with pytest.raises(SourceError, match=f"answers with status {code}"):
        pass_gates(subject({"http": f"http://127.0.0.1:{port}/{code}", "timeout": "300ms"}))


def test_a_server_that_sends_a_byte_now_and_then_does_not_keep_us():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=_drip, args=(listener,), daemon=True).start()
        began = time.monotonic()

        with pytest.raises(TemporaryError):
            web.status(f"http://127.0.0.1:{port}/", timeout_s=0.5)
    assert time.monotonic() - began < 50  # all bytes take 100 s


def _drip(listener):
    connection, _ = listener.accept()
    with connection:
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            return


def test_https_is_asked_at_an_address_for_the_name_in_the_url(server, port, tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=shop.example",
         "-addext", "subjectAltName=DNS:shop.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    assert web.status(f"https://shop.example:{port}/", at="127.0.0.1", timeout_s=5) == 200
    assert Page.asked[-1] == f"shop.example:{port}"
    with pytest.raises(TemporaryError, match="certificate"):
        web.status(f"https://other.example:{port}/", at="127.0.0.1", timeout_s=5)


def test_this_host_answers_a_ping():
    assert "127.0.0.1 answers a ping" in pass_gates(subject({"ping": True}))[0]


def test_an_address_that_leads_nowhere_does_not():
    with pytest.raises(TemporaryError, match=r"240\.0\.0\.1"):
        echo("240.0.0.1", timeout_s=0.3)


def test_nobody_who_wants_to_know_any_more_ends_the_waiting():
    with pytest.raises(TemporaryError, match="not waited for"):
        pass_gates(subject({"tcp": free_port()}), Clock(wait=lambda _: True))


# --- under another name


class Elsewhere(Subject):
    """A VM whose inside tells these addresses."""

    def addresses(self):
        return ("127.9.9.9", "127.0.0.1")


def test_a_vm_under_another_name_is_asked_where_its_inside_says_that_it_is(port):
    vm = VM.model_validate(
        {"hypervisor": "rack1", "health": [{"http": f"http://shop.example:{port}/"}, {"tcp": port}]}
    )

    found = pass_gates(Elsewhere("db1-drill", vm, MemoryHypervisor(), Path("/"), original=False))
    assert "shop.example" in found[0]
    assert "at 127.0.0.1" in found[0]
    assert Page.asked == [f"shop.example:{port}"]


def test_a_vm_under_another_name_is_never_asked_where_the_original_is(port):
    with pytest.raises(UnsupportedError, match="nothing says what its address is"):
        pass_gates(subject({"tcp": port}, original=False))
    with pytest.raises(UnsupportedError, match="only its guest agent leads into it"):
        pass_gates(subject({"exec": "true"}, original=False))


# --- the inside


@pytest.fixture(scope="module")
def postgres():
    """A real PostgreSQL with the database `orders`; returns the folder of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    shutil.chown(folder, "postgres", "postgres")
    owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    (tools,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    data, log = folder / "data", folder / "log"
    subprocess.run(
        [*owner, tools / "initdb", "-D", data, "-A", "peer", "-N"], check=True, capture_output=True
    )
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    subprocess.run(
        [*owner, tools / "pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start"], check=True
    )
    subprocess.run([*owner, "createdb", "-h", folder, "orders"], check=True)
    yield folder
    subprocess.run([*owner, tools / "pg_ctl", "-D", data, "-m", "fast", "-w", "stop"], check=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def inside(tmp_path_factory, postgres):
    """This host, reached by SSH as if it were a guest."""
    with sshd(tmp_path_factory.mktemp("sshd"), environment={"PGHOST": str(postgres)}) as target:
        guest = SshGuest(target, name="VM db1")
        yield lambda *health: Subject(
            "db1", VM.model_validate({"hypervisor": "rack1", "guest": LOCAL, "health": health}),
            MemoryHypervisor(), Path("/"), _guest=guest,
        )  # fmt: skip
        guest.close()


def sql(query, **how):
    return {"sql": {"database": "orders", "query": query, **how}, "timeout": "10s"}


def pass_at_once(subject):
    """Pass gates with a clock that goes on only between tries: these may take as long as they need."""
    waited = []
    clock = Clock(lambda: sum(waited), lambda seconds: bool(waited.append(seconds)))
    return pass_gates(subject, clock)


def test_a_command_that_ends_with_0_is_healthy(inside):
    assert pass_gates(inside({"exec": "test -d /etc"}))


def test_a_command_that_fails_says_why(inside):
    with pytest.raises(SourceError, match=r"health check exec .* it ended with 3: not yet"):
        pass_at_once(inside({"exec": "echo not yet >&2; exit 3", "timeout": "10s"}))


def test_a_vm_that_declares_a_way_into_it_and_no_gate_must_answer(inside):
    assert "its inside answers" in pass_gates(inside())[0]


@pytest.mark.parametrize("query", ["select 1", "select null", "select ''", "table pg_class"])
def test_a_query_that_gives_a_row_is_healthy(inside, query):
    assert pass_at_once(inside(sql(query)))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select 1 where false", "gave no row"),
        ("select * from nothing", 'relation "nothing" does not exist'),
        ("create table if not exists t (n int)", "gave no row"),
    ],
)
def test_a_query_that_gives_none_or_fails_is_not(inside, query, reason):
    with pytest.raises(SourceError, match=reason):
        pass_at_once(inside(sql(query)))


def test_a_database_that_is_not_there_is_not_healthy(inside):
    with pytest.raises(SourceError, match='database "stock" does not exist'):
        pass_at_once(inside(sql("select 1", database="stock")))


def test_sqlite_is_asked_in_the_guest(inside, tmp_path):
    path = tmp_path / "notes.db"
    subprocess.run(["sqlite3", path, "create table t (n); insert into t values (1)"], check=True)

    assert pass_gates(inside(sql("select n from t", database=str(path), engine="sqlite")))
    with pytest.raises(SourceError, match="gave no row"):
        pass_at_once(inside(sql("select n from t where n > 1", database=str(path), engine="sqlite")))


def test_a_check_of_images_is_for_vms_that_stay_powered_off(inside):
    with pytest.raises(UnsupportedError, match="for VMs that stay powered off"):
        pass_gates(inside({"image": True}))
