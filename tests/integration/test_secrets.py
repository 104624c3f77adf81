"""Secrets are planted wherever one may be given; then everything that comes out of the process is searched for them."""

import base64
import json
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalyd.cli import main
from anomalyd.kafka.access import rights
from anomalyd.settings import Settings
from tests.integration.daemon import Daemon, incident
from tests.integration.test_notify import Notifier
from tests.support.certificates import Authority
from tests.support.poll import poll_until
from tests.support.secured import SecuredKafka
from tests.support.topics import produce, read_until, unique

PLANTED = {
    name: f"planted-{name}-5f0c"
    for name in (
        "wrong-password",
        "password",
        "key-password",
        "client-secret",
        "http-token",
        "plain-http-token",
        "typed-wrongly",
        "member-token",
        "member-password",
    )
}

STREAM = {"name": "hosts", "topics": ["metrics"], "format": "plain-json"}
SASL = {"bootstrap_servers": "127.0.0.1:1", "security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "me"}
OAUTH = {
    "bootstrap_servers": "127.0.0.1:1",
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "sasl_oauth_token_url": "http://127.0.0.1:1/token",
    "sasl_oauth_client_id": "me",
}


def clean(text: str) -> str:
    """The text, in which none of them may be."""
    assert [name for name, secret in PLANTED.items() if secret in text] == []
    return text


def anomalyd(*arguments: str) -> tuple[int, str]:
    """Exit code and all that a command said."""
    command = [sys.executable, "-m", "anomalyd", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, clean(done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("kafka", "code"),
    [
        (SASL | {"sasl_password": PLANTED["password"]}, 0),
        (OAUTH | {"sasl_oauth_client_secret": PLANTED["client-secret"]}, 0),
        (SASL | {"sasl_pasword": PLANTED["password"]}, 2),
        (SASL | {"sasl_password": [PLANTED["password"]]}, 2),
        (SASL | {"sasl_password": {"value": PLANTED["password"]}, "sasl_mechanism": "SCRAM"}, 2),
        (OAUTH | {"sasl_oauth_client_secret": {"value": PLANTED["client-secret"]}}, 2),
        (OAUTH | {"sasl_oauth_client_secret": PLANTED["client-secret"], "sasl_oauth_token_url": f"https://me:{PLANTED['password']}@a/"}, 2),
        ({"bootstrap_servers": "a:1", "sasl_password": PLANTED["password"]}, 2),
    ],
)
def test_a_configuration_is_shown_and_refused_without_them(
    kafka: dict[str, Any], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"kafka": kafka, "streams": [STREAM]}))

    with pytest.raises(SystemExit) as ended:
        main(["config", "show", "-c", str(config)])

    assert int(ended.value.code or 0) == code
    said = capsys.readouterr()
    assert "kafka" in clean(said.out + said.err)


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"remote_write": {"headers": {"Authorization": f"Bearer {PLANTED['client-secret']}"}}}, 0),
        ({"remote_write": {"headers": {"Authorization": [PLANTED["client-secret"]]}}}, 2),
        ({"remote_write": {"url": f"https://me:{PLANTED['password']}/@x@a/"}}, 2),
        ({"alertmanager": {"urls": [f"http://me:{PLANTED['password']}@a:9093"]}}, 2),
        ({"alertmanager": {"proxy_url": f"me:{PLANTED['password']}@a:3128"}}, 2),
        ({"alertmanager": {"generator_url": f"http://{PLANTED['password']}@a/{{x"}}, 2),
        ({"kafka": {"bootstrap_servers": f"SASL://me:{PLANTED['password']}@a:1"}}, 2),
    ],
)
def test_urls_and_headers_are_shown_and_refused_without_them(
    sections: dict[str, Any], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"kafka": {"bootstrap_servers": "a:1"}, "streams": [STREAM]} | sections))

    with pytest.raises(SystemExit) as ended:
        main(["config", "show", "-c", str(config)])

    assert int(ended.value.code or 0) == code
    said = capsys.readouterr()
    assert str(config) in clean(said.out + said.err) or "Authorization: '**" in said.out


def test_what_nobody_can_connect_with_is_told_without_them(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    kafka = OAUTH | {"sasl_oauth_client_secret": PLANTED["client-secret"]}
    config.write_text(yaml.safe_dump({"kafka": kafka, "streams": [STREAM], "log": {"level": "debug"}}))

    code, said = anomalyd("topics", "plan", "-c", str(config))

    assert code == 1
    assert "Kafka: no answer" in said


@pytest.mark.timeout(240)
def test_a_daemon_says_none_of_them_in_log_metrics_or_status(secured_kafka: SecuredKafka, tmp_path: Path) -> None:
    """At level debug, refused at first, then at work, then with files that cannot be used."""
    user = unique("user")
    secured_kafka.set_password(user, PLANTED["password"])
    certificate, key = secured_kafka.authority.issue("client", password=PLANTED["key-password"])
    files = {name: tmp_path / name for name in ("password", "key-password", "tokens")}
    files["password"].write_text(PLANTED["wrong-password"])
    files["key-password"].write_text(PLANTED["key-password"])
    files["tokens"].write_text(f"{PLANTED['http-token']}\n{PLANTED['plain-http-token']}\n")
    kafka = secured_kafka.sasl("SCRAM-SHA-512", sasl_username=user, sasl_password_file=str(files["password"])) | {
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key),
        "ssl_keyfile_password_file": str(files["key-password"]),
    }
    http = {"host": "127.0.0.1", "port": 0, "token_file": str(files["tokens"])}
    daemon = Daemon(secured_kafka.bootstrap, tmp_path, kafka=kafka, settings={"http": http, "log": {"level": "debug", "format": "json"}})
    secured_kafka.grant(user, *rights(Settings.model_validate_json(daemon.config.read_text())))

    def get(path: str) -> str:
        url = f"http://127.0.0.1:{daemon.events('http_listening')[0]['port']}{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {PLANTED['http-token']}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return clean(answer.read().decode())

    with daemon:
        (refused, *_) = poll_until(lambda: daemon.events("kafka_unreachable"), "a refusal", 60)
        assert "SaslAuthenticationFailed" in refused["reason"]
        files["password"].write_text(PLANTED["password"])
        produce(secured_kafka.bootstrap, daemon.source, incident("web-1"))
        read_until(secured_kafka.bootstrap, daemon.alerts, lambda found: len(found) >= 2, "an episode", 60)
        assert "anomalyd_build_info" in get("/metrics")
        assert json.loads(get("/readyz"))["kafka"] == "reached"
        assert daemon.get("/metrics")[0] == 401
        files["tokens"].write_text("")
        assert daemon.get("/metrics")[0] == 401
        assert daemon.stop() == 0

    assert daemon.events("http_tokens_unusable")
    clean(daemon.log())


class _Echo(BaseHTTPRequestHandler):
    """A member that answers with what it was sent: that it may not first, and that it is not well formed then."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        self.send_response(401 if type(self).asked == 1 else 400)
        self.end_headers()
        self.wfile.write(f"no, with {self.headers['Authorization']}".encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize("way", ["token", "password"])
def test_a_notifier_says_none_of_them_even_where_a_member_does(way: str, kafka: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(PLANTED[f"member-{way}"])
    proof = {"bearer_token_file": str(file)} if way == "token" else {"basic_auth_username": "me", "basic_auth_password_file": str(file)}
    encoded = base64.b64encode(f"me:{PLANTED['member-password']}".encode()).decode()
    _Echo.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as member:
        thread = threading.Thread(target=member.serve_forever, args=(0.05,))
        thread.start()
        own = {"urls": [f"http://127.0.0.1:{member.server_port}"], "http": {"host": "127.0.0.1", "port": 0}, **proof}
        with Notifier(kafka, tmp_path, settings={"alertmanager": own, "log": {"level": "debug", "format": "json"}}) as notifier:
            notifier.until_ready()
            notifier.tell("a")
            (told,) = poll_until(lambda: notifier.events("alert_rejected"), f"a refusal; its log: {notifier.log()[-2000:]}")
            assert notifier.events("alertmanager_unreachable")
            assert told["reason"].startswith("status 400: no, with B")
            seen = [notifier.get(path)[1] for path in ("/metrics", "/readyz")]
            assert notifier.stop() == 0
        member.shutdown()
        thread.join()
    for text in (*seen, notifier.log()):
        assert encoded not in clean(text)


def test_a_key_whose_password_is_wrong_is_told_of_without_it(tmp_path: Path) -> None:
    issued = Authority(tmp_path, "authority").issue("client", password=PLANTED["key-password"])
    tls = {"bootstrap_servers": "127.0.0.1:1", "security_protocol": "SSL"}
    mine = {"ssl_certfile": str(issued.certificate), "ssl_keyfile": str(issued.key), "ssl_keyfile_password": PLANTED["typed-wrongly"]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"kafka": tls | mine, "streams": [STREAM]}))

    code, said = anomalyd("topics", "plan", "-c", str(config))

    assert code == 2
    assert "kafka.ssl_certfile, kafka.ssl_keyfile: " in said
