"""One real broker with every way in that anomalyd knows, and an authorizer.

| listener | protocol | who one is there |
|---|---|---|
| PLAINTEXT | PLAINTEXT | ANONYMOUS, a super user: for tests that make topics and look |
| TLS | SSL | the same |
| MTLS | SSL, client certificate demanded | its common name |
| SASL | SASL_SSL: PLAIN, SCRAM-SHA-512, OAUTHBEARER with unsigned tokens | the user, or the token's subject |
| BRIEF | SASL_SSL, the same | the same; brokers end each connection after two seconds |
"""

import base64
import json
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import confluent_kafka.admin

from anomalyd.kafka.access import Right
from tests.support.certificates import Authority, Issued
from tests.support.kafka import Cluster, free_ports

PLAIN_USER: Final = "plain"
PLAIN_PASSWORD: Final = "plain-password"

_admin: Final[Any] = confluent_kafka.admin  # whose stubs do not say what it exports

_LISTENERS: Final = {"TLS": "SSL", "MTLS": "SSL", "SASL": "SASL_SSL", "BRIEF": "SASL_SSL"}
_KAFKA: Final = "org.apache.kafka.common.security"
_BRIEF_MS: Final = 2_000


class SecuredKafka:
    """From `with` to its end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="anomalyd-secured-"))
        self.authority = Authority(self.folder / "first", "authority")
        ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
        self.address = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self._store = self.folder / "broker.pem"
        self._store.write_text(self.authority.issue("broker").joined())
        self.cluster = Cluster(more=self._properties())

    def _properties(self) -> dict[str, object]:
        listeners = ",".join(f"{name}://{address}" for name, address in self.address.items())
        properties: dict[str, object] = {
            "listeners": listeners,
            "advertised.listeners": listeners,
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in _LISTENERS.items()),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.certificate,
            "listener.name.mtls.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": r"RULE:^CN=(.*?)$/$1/",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        for listener in ("sasl", "brief"):
            jaas = {
                "plain": f'{_KAFKA}.plain.PlainLoginModule required user_{PLAIN_USER}="{PLAIN_PASSWORD}";',
                "scram-sha-512": f"{_KAFKA}.scram.ScramLoginModule required;",
                "oauthbearer": f'{_KAFKA}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";',
            }
            for mechanism, module in jaas.items():
                properties[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = module
                if listener == "brief":
                    properties[f"listener.name.{listener}.{mechanism}.connections.max.reauth.ms"] = _BRIEF_MS
        return properties

    def __enter__(self) -> Self:
        self.cluster.__enter__()
        self._admin = _admin.AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cluster.__exit__(kind, error, trace)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def bootstrap(self) -> str:
        """Where one may do everything."""
        return self.cluster.bootstrap_servers

    # --- ways in ----------------------------------------------------------------------------------------------------

    def tls(self) -> dict[str, Any]:
        """Settings of `kafka` for a connection that is encrypted."""
        return {"bootstrap_servers": self.address["TLS"], "security_protocol": "SSL", "ssl_cafile": str(self.authority.certificate)}

    def mtls(self, issued: Issued) -> dict[str, Any]:
        """Settings of `kafka` for a client with a certificate."""
        files = {"ssl_certfile": str(issued.certificate), "ssl_keyfile": str(issued.key)}
        return self.tls() | {"bootstrap_servers": self.address["MTLS"]} | files

    def sasl(self, mechanism: str, listener: str = "SASL", **more: object) -> dict[str, Any]:
        """Settings of `kafka` for a mechanism of SASL; `more` says who comes."""
        sasl = {"bootstrap_servers": self.address[listener], "security_protocol": "SASL_SSL", "sasl_mechanism": mechanism}
        return self.tls() | sasl | more

    def scram(self, user: str, password: str, listener: str = "SASL") -> dict[str, Any]:
        """Settings of `kafka` for a user, who is made, or whose password becomes this one."""
        self.set_password(user, password)
        return self.sasl("SCRAM-SHA-512", listener, sasl_username=user, sasl_password=password)

    def set_password(self, user: str, password: str) -> None:
        """A user of SCRAM-SHA-512 has this password from now on."""
        change = _admin.UserScramCredentialUpsertion(
            user, _admin.ScramCredentialInfo(_admin.ScramMechanism.SCRAM_SHA_512, 4096), password.encode()
        )
        self._admin.alter_user_scram_credentials([change])[user].result(30)

    def use_authority(self, authority: Authority) -> None:
        """On BRIEF the broker has a certificate of this authority from now on, without a restart; elsewhere the one before."""
        store = self.folder / f"broker-{authority.certificate.stem}.pem"
        store.write_text(authority.issue("broker").joined())
        resource = _admin.ConfigResource(_admin.ConfigResource.Type.BROKER, "1")
        for name, value in (("type", "PEM"), ("location", str(store))):
            entry = _admin.ConfigEntry(
                f"listener.name.brief.ssl.keystore.{name}", value, incremental_operation=_admin.AlterConfigOpType.SET
            )
            resource.add_incremental_config(entry)
        self._admin.incremental_alter_configs([resource])[resource].result(30)

    # --- rights -----------------------------------------------------------------------------------------------------

    def grant(self, principal: str, *rights: Right) -> None:
        """Allows a principal, without `User:`, exactly these."""
        for granted in self._admin.create_acls([_binding(principal, right) for right in rights]).values():
            granted.result(30)

    def revoke(self, principal: str, *rights: Right) -> None:
        """Takes back what `grant` gave."""
        filters = [_binding(principal, right, _admin.AclBindingFilter) for right in rights]
        for revoked in self._admin.delete_acls(filters).values():
            assert revoked.result(30), "there was no such right"


def _binding(principal: str, right: Right, kind: type[Any] = _admin.AclBinding) -> Any:  # noqa: ANN401  what `kind` makes
    names = {
        "topic": _admin.ResourceType.TOPIC,
        "group": _admin.ResourceType.GROUP,
        "transactional-id": _admin.ResourceType.TRANSACTIONAL_ID,
    }
    operation = _admin.AclOperation["DESCRIBE_CONFIGS" if right.operation == "DescribeConfigs" else right.operation.upper()]
    pattern = _admin.ResourcePatternType.PREFIXED if right.prefixed else _admin.ResourcePatternType.LITERAL
    return kind(names[right.kind], right.name, pattern, f"User:{principal}", "*", operation, _admin.AclPermissionType.ALLOW)


def unsigned_token(subject: str, life_s: float = 3600) -> str:
    """A token as the broker's handler for tests takes it: a JSON web token that nobody has signed (RFC 7519, section 6)."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now - 1, "exp": now + life_s})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."
