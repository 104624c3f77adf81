"""The rights that are asked for, and the commands that grant them."""

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from anomalyd.kafka import access
from anomalyd.kafka.access import Right, commands, rights
from anomalyd.settings import KafkaSettings, Settings


def configured(**more: object) -> Settings:
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": "b:1", "group_id": "g"},
            "streams": [{"name": "hosts", "topics": ["m1", "m2"], "format": "influx"}],
            **more,
        }
    )


def test_each_input_has_its_changelog_and_its_transactional_ids() -> None:
    found = set(map(str, rights(configured())))

    assert found >= {f"{operation} on topic g-state-{topic}" for operation in ("Read", "Write") for topic in ("m1", "m2")}
    assert {right for right in found if "transactional" in right} == {f"Write on transactional id g-state-{m}.*" for m in ("m1", "m2")}
    assert not any(right.startswith(("Create", "Alter", "Delete")) for right in found)


@pytest.mark.parametrize(
    ("more", "gone"),
    [
        ({"delivery": "at-least-once"}, {"Write on transactional id g-state-m1.*", "Write on transactional id g-state-m2.*"}),
        ({"models": {"most_alerts": 0}}, {"Write on topic g-models"}),
    ],
)
def test_what_is_switched_off_needs_no_right(more: dict[str, object], gone: set[str]) -> None:
    assert set(map(str, rights(configured()))) - set(map(str, rights(configured(**more)))) == gone


def test_only_who_creates_topics_may_create() -> None:
    made = {right.name for right in rights(configured(), "create") if right.operation == "Create"}

    assert made == {"anomalyd.alerts", "g-dead-letters", "g-state-m1", "g-state-m2", "g-models"}
    for part in ("retrain", "notify"):
        assert {right.operation for right in rights(configured(), part)} <= {"Read", "Write"}


def test_commands_are_one_a_resource() -> None:
    told = commands(
        [Right("topic", "a", "Read"), Right("topic", "a", "Write"), Right("transactional-id", "s.", "Write", prefixed=True)],
        "b:1",
        "User:x",
    )

    start = "kafka-acls.sh --bootstrap-server b:1 --add --allow-principal User:x"
    assert told == [
        f"{start} --operation Read --operation Write --topic a",
        f"{start} --operation Write --transactional-id s. --resource-pattern-type prefixed",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "User:ANONYMOUS"),
        ({"security_protocol": "SSL"}, "User:ANONYMOUS"),
        ({"security_protocol": "SSL", "ssl_certfile": __file__, "ssl_keyfile": __file__}, access.UNKNOWN),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "me", "sasl_password": "x"}, "User:me"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_file": __file__}, access.UNKNOWN),
    ],
)
def test_rights_go_to_the_user_that_the_configuration_names(given: dict[str, str], expected: str) -> None:
    assert access.principal(KafkaSettings.model_validate({"bootstrap_servers": "b:1"} | given)) == expected


@pytest.mark.parametrize("broker", ["kafka", "mock_kafka"])
async def test_a_broker_without_an_authorizer_lacks_nothing(broker: str, request: pytest.FixtureRequest) -> None:
    """And that topics do not exist is no right that lacks."""
    admin = AIOKafkaAdminClient(bootstrap_servers=request.getfixturevalue(broker))
    await admin.start()
    try:
        assert await access.lacking(admin, rights(configured())) == []
    finally:
        await admin.close()
