"""`warren check`: a broker that differs from the table in one thing is told in one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ops import definitions
from ops.check import compare, differences, switched_off
from tests.integration.helpers import acting_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.local import Stack

pytestmark = pytest.mark.integration

Broken = tuple[tuple[str, ...], tuple[str, ...], str]

POLICY = json.dumps({"max-length": 5})
#: What `rabbitmqctl` breaks, what undoes it beside an import of the definitions, and the words of the sentence.
COMMANDS: tuple[Broken, ...] = (
    (("clear_policy", "math"), (), "policy math is missing: import the definitions again"),
    (
        ("set_policy", "--apply-to", "queues", "--priority", "1", "math", "^math$", POLICY),
        (),
        "policy math: definition is {'max-length': 5}, the table says",
    ),
    (
        ("set_policy", "--apply-to", "all", "--priority", "9", "mine", "^(math|image)$", POLICY),
        ("clear_policy", "mine"),
        "policy mine (priority 9) takes the table's place for queue math, queue image: delete it",
    ),
    (
        ("set_policy", "--apply-to", "queues", "--priority", "1", "mine", "^math$", POLICY),
        ("clear_policy", "mine"),
        "policy mine (priority 1) takes the table's place for queue math: delete it",
    ),
    (
        ("set_policy", "--apply-to", "exchanges", "--priority", "5", "mine", "delivery$", '{"alternate-exchange":"x"}'),
        ("clear_policy", "mine"),
        "policy mine (priority 5) takes the table's place for exchange celery_delayed_delivery: delete it",
    ),
    (
        ("set_policy", "--apply-to", "queues", "--priority", "0", "mine", "^celery_delayed", '{"message-ttl":1}'),
        ("clear_policy", "mine"),
        "queue celery_delayed_4 and 23 more: delete it",
    ),
    (
        ("set_operator_policy", "--apply-to", "queues", "limit", "^image$", '{"max-length":7}'),
        ("clear_operator_policy", "limit"),
        "operator policy limit sets max-length to 7 for queue image, which the table does not: delete it",
    ),
    (
        ("set_operator_policy", "--apply-to", "queues", "limit", "^image$", '{"delivery-limit":2}'),
        ("clear_operator_policy", "limit"),
        "operator policy limit sets delivery-limit to 2 for queue image",
    ),
    (
        ("set_permissions", "producer", ".*", ".*", ".*"),
        (),
        "permission producer: configure is '.*', the table says '^$'; import the definitions again",
    ),
    (("clear_permissions", "worker-math"), (), "permission worker-math is missing"),
    (
        ("set_user_tags", "producer", "administrator"),
        ("set_user_tags", "producer"),
        "user producer has the tags ['administrator'], the table says []: run `rabbitmqctl set_user_tags producer`",
    ),
)


def found(stack: Stack) -> list[str]:
    return differences(stack.environment("operator"))


def restore(stack: Stack) -> None:
    stack.broker.ctl("import_definitions", str(stack.broker.definitions_path))


def test_a_broker_made_from_the_definitions_agrees(idle: Stack) -> None:
    assert found(idle) == []


@pytest.mark.parametrize(("command", "undo", "words"), COMMANDS, ids=[" ".join(row[0][:6]) for row in COMMANDS])
def test_a_changed_setting_is_one_sentence(
    idle: Stack, command: tuple[str, ...], undo: tuple[str, ...], words: str
) -> None:
    idle.broker.ctl(*command)
    try:
        (sentence, *more) = found(idle)
        assert words in sentence
        assert not [line for line in more if not line.startswith(sentence.partition(":")[0])], "of one thing alone"
    finally:
        if undo:
            idle.broker.ctl(*undo)
        restore(idle)
    assert found(idle) == []


def deleted(channel: Any) -> None:
    channel.queue_delete("image.dead")


def classic(channel: Any) -> None:
    channel.queue_delete("image")
    channel.queue_declare("image", durable=True, auto_delete=False)
    channel.queue_bind("image", "tasks.image", "image")
    channel.queue_bind("image", "celery_delayed_delivery", "#.image")


def without_sac(channel: Any) -> None:
    channel.queue_delete("email")
    channel.queue_declare("email", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    channel.queue_bind("email", "tasks.email", "email")
    channel.queue_bind("email", "celery_delayed_delivery", "#.email")


def direct(channel: Any) -> None:
    channel.exchange_delete("tasks.math")
    channel.exchange_declare("tasks.math", "direct", durable=True, auto_delete=False)
    channel.queue_bind("math", "tasks.math", "math")


def unbound(channel: Any) -> None:
    channel.queue_unbind("math", "tasks.math", "math")


def no_delays(channel: Any) -> None:
    channel.exchange_delete("celery_delayed_27")


def other_ttl(channel: Any) -> None:
    channel.queue_delete("celery_delayed_3")
    arguments = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-message-ttl": 1,
        "x-dead-letter-exchange": "celery_delayed_2",
        "x-dead-letter-strategy": "at-least-once",
    }
    channel.queue_declare("celery_delayed_3", durable=True, auto_delete=False, arguments=arguments)
    channel.queue_bind("celery_delayed_3", "celery_delayed_3", "*." * 24 + "1.#")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (deleted, ["queue image.dead is missing", "binding dead-letters -> image.dead -> queue -> image is missing"]),
        (classic, ["queue image: arguments is {}, the table says {'x-queue-type': 'quorum'}; an argument cannot be"]),
        (without_sac, ["queue email: arguments is {'x-queue-type': 'quorum'}, the table says"]),
        (direct, ["exchange tasks.math: type is 'direct', the table says 'topic'; delete it while its producers"]),
        (unbound, ["binding tasks.math -> math -> queue -> math is missing"]),
        (no_delays, ["exchange celery_delayed_27 is missing", "-> celery_delayed_26 -> exchange ->"]),
        (other_ttl, ["queue celery_delayed_3: arguments is"]),
    ],
)
def test_a_changed_object_is_named(idle: Stack, change: Callable[[Any], None], words: list[str]) -> None:
    with acting_as(idle, "operator").connection_for_write() as connection, connection.channel() as channel:
        change(channel)
    try:
        sentences = found(idle)
        for text in words:
            assert any(text in sentence for sentence in sentences), sentences
    finally:
        wrong = [line.split()[1].rstrip(":") for line in found(idle) if "arguments is" in line or "type is" in line]
        with acting_as(idle, "operator").connection_for_write() as connection, connection.channel() as channel:
            for name in wrong:
                channel.exchange_delete(name) if name.startswith("tasks.") else channel.queue_delete(name)
        restore(idle)
    assert found(idle) == []


@pytest.mark.parametrize(
    ("queue", "exchange", "key", "words"),
    [
        ("spy", "tasks.math", "math", "binding tasks.math -> spy ('math') copies messages"),
        ("spy", "dead-letters", "image", "binding dead-letters -> spy ('image') copies messages"),
        ("image", "tasks.math", "math", "binding tasks.math -> image ('math') copies messages"),
        ("math", "celery_delayed_delivery", "#.email", "-> math ('#.email') copies messages"),
        ("math", "celery.pidbox", "", "binding celery.pidbox -> math ('') copies messages"),
        ("math", "amq.topic", "#", "binding amq.topic -> math ('#') lets in what was not published to math's own"),
    ],
)
def test_a_binding_too_many_is_one_sentence(idle: Stack, queue: str, exchange: str, key: str, words: str) -> None:
    with acting_as(idle, "operator").connection_for_write() as connection, connection.channel() as channel:
        if queue == "spy":
            channel.queue_declare(queue, exclusive=True)
        channel.queue_bind(queue, exchange, key)
        try:
            (sentence,) = found(idle)
            assert words in sentence
            assert "the table does not have it: remove it" in sentence
        finally:
            channel.queue_unbind(queue, exchange, key)
    assert found(idle) == []


def test_what_workers_and_exporters_bind_for_themselves_is_no_difference(idle: Stack) -> None:
    with acting_as(idle, "operator").connection_for_write() as connection, connection.channel() as channel:
        for queue, exchange in (
            ("metrics.x", "metrics"),
            ("math@x.celery.pidbox", "celery.pidbox"),
            ("x.reply.celery.pidbox", "reply.celery.pidbox"),
            ("events", "celeryev"),
        ):
            channel.queue_declare(queue, exclusive=True)
            channel.queue_bind(queue, exchange, "x")
        assert found(idle) == []


def test_a_stranger_who_may_delete_our_queues_is_named(idle: Stack) -> None:
    idle.broker.ctl("add_user", "stranger", "password")
    try:
        idle.broker.ctl("set_permissions", "stranger", "^their\\.", ".*", ".*")
        assert found(idle) == []
        idle.broker.ctl("set_permissions", "stranger", "^(math|their\\..*)$", "", "")
        (sentence,) = found(idle)
        assert sentence.startswith("user stranger is not in the table and may delete math: run `rabbitmqctl clear_perm")
    finally:
        idle.broker.ctl("delete_user", "stranger")


def test_a_feature_that_is_switched_off_is_named() -> None:
    """A flag cannot be switched off again: this is what a broker answers that was upgraded from 3.7."""
    flags = [{"name": "quorum_queue", "state": "enabled"}, {"name": "stream_queue", "state": "disabled"}]
    assert list(switched_off(flags)) == [
        "feature flag stream_queue is disabled: run `rabbitmqctl enable_feature_flag stream_queue`"
    ]


def test_what_rabbitmq_4_leaves_out_of_its_answer_is_no_difference() -> None:
    wanted = definitions.build(dict.fromkeys(definitions.roles(), ""), rabbitmq=(4, 3))
    exchanges = [{name: value for name, value in item.items() if name != "internal"} for item in wanted["exchanges"]]
    assert list(compare(wanted, {**wanted, "exchanges": exchanges})) == []
    exchanges[0]["internal"] = True
    assert len(list(compare(wanted, {**wanted, "exchanges": exchanges}))) == 1
