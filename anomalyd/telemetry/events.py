"""The log's vocabulary: what each event means and what the operator must do.

An event's name and level are public: alert rules on logs rely on them. A level says what is asked of the operator:
error: act, something stays broken until you do; warning: look, it may pass by itself; info: nothing, the life of the
daemon; debug: for whoever hunts a problem. A test holds this table and the code together.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple


class Event(NamedTuple):
    """One entry of the vocabulary."""

    level: Literal["debug", "info", "warning", "error"]
    meaning: str
    action: str = "nothing"


EVENTS: Final[Mapping[str, Event]] = {
    # the life of the daemon
    "starting": Event("info", "The daemon begins: version, group and streams."),
    "http_listening": Event("info", "Metrics and probes are served from here on."),
    "detector_loading": Event(
        "info",
        "The compiled scoring step is loaded: seconds; where there is no cache of it yet, as at a first start outside the image, it is "
        "compiled, for a minute or more.",
    ),
    "http_tokens_unusable": Event(
        "warning",
        "The file with the HTTP server's tokens cannot be read or holds none; nobody is let in meanwhile.",
        "see `reason`; write it again",
    ),
    "tls_files_read": Event("info", "Certificates or keys have been replaced; connections from now on have the new ones."),
    "tls_files_unusable": Event(
        "warning",
        "Certificates or keys have been replaced and cannot be used, or only a part of them has been; new connections go on with the ones "
        "before, until a file changes again.",
        "see `reason`; soon after a rotation it passes by itself",
    ),
    "model_loaded": Event("info", "The model that scores a stream, and the device that it runs on."),
    "model_scores": Event("info", "From this input offset on this model scores the partition; it is committed with what it says."),
    "model_unfit": Event(
        "error",
        "A model that a stream had gone over to does not keep to what is asked of it; the one before (`instead`) scores again.",
        "see `reason`; try the model beside the champion before it is promoted again",
    ),
    "model_missing": Event(
        "warning",
        "The model that scored a partition last cannot be had; nothing has to be replayed, so the present one (`instead`) goes on with its "
        "state.",
        "see `reason`; where records have to be replayed the partition stops instead",
    ),
    "config_reloaded": Event("info", "The configuration was read again (SIGHUP); its alert policies hold for these streams from now on."),
    "config_needs_restart": Event(
        "warning",
        "Keys have changed in the configuration that was read again, and hold after a restart only.",
        "restart when it suits, or undo the change",
    ),
    "config_reload_failed": Event(
        "error",
        "The configuration was to be read again (SIGHUP) and is not valid; everything stays as it was.",
        "correct what `reason` names (`anomalyd config check`), then send SIGHUP again; a restart would fail",
    ),
    "stopping": Event("info", "A signal asked the daemon to end; it finishes its batch and commits."),
    "stopped": Event("info", "The daemon ended in order."),
    "stopped_uncommitted": Event(
        "warning",
        "The last commit failed or took too long; what was not committed is done again after the start.",
        "see whether brokers are well",
    ),
    "crashed": Event(
        "error",
        "A fault of our own ended the daemon; nothing behind it was committed.",
        "report it with the traceback; a restart goes on from the last checkpoint",
    ),
    "model_shadowing": Event("info", "A challenger (models.shadow) scores a stream beside its model from now on, and alerts nobody."),
    "config_reload_passed_over": Event(
        "warning", "SIGHUP: retrainer and notifier read their configuration at the start only.", "restart them to have changed settings"
    ),
    # the notifier
    "notify_starting": Event("info", "The notifier begins: the Alertmanagers that it tells."),
    "notify_caught_up": Event("info", "The alerts topic has been read to its end; `open` alerts are told to every Alertmanager."),
    "alertmanager_unreachable": Event(
        "warning",
        "An Alertmanager does not take alerts, told each five minutes until it does; attempts go on, and what is open waits for it.",
        "see `reason`; [AnomalydAlertmanagerUnreachable](runbooks/AnomalydAlertmanagerUnreachable.md)",
    ),
    "alertmanager_reached": Event("info", "It takes them again."),
    "alertmanager_unknown": Event(
        "warning", "The name of an Alertmanager cannot be looked up; the addresses that it had stay.", "check alertmanager.urls and DNS"
    ),
    "alert_rejected": Event(
        "error",
        "An Alertmanager refuses one alert, all others of its batch are sent; it is tried again when it changes.",
        "see `reason` and `labels`; check labels that `alerts.labels` adds",
    ),
    "alerts_unreadable": Event(
        "warning",
        "Messages of the alerts topic are no alerts, or of a newer schema; they are passed over. Told of at most each minute.",
        "if they are newer, upgrade the notifier; else see who writes to the topic",
    ),
    # the retrainer
    "retrain_starting": Event("info", "The retrainer begins: its streams, and how many series of each it keeps at most."),
    "retrain_waiting": Event("info", "A round was due and there is too little to learn from yet; `reason` says of what."),
    "retrain_round": Event("info", "A round ended: what came of the challenger, why, and the figures of both models."),
    "retrain_drift": Event(
        "info", "The champion forecasts worse than it did at first, beyond doubt, and than at the last round; a round is held at once."
    ),
    "retrain_failed": Event(
        "warning", "A round could not be concluded; `reason` says why, and the next one is tried soon.", "see `reason`; brokers, or memory"
    ),
    "retrain_champion_unusable": Event(
        "warning",
        "The champion in the models topic cannot be read; challengers are held against the model of the configuration.",
        "`anomalyd models list`; promote another one or roll back",
    ),
    "retrain_state_unusable": Event(
        "warning",
        "What was kept over the restart cannot be used; the sample begins anew.",
        "none is needed; the file is written again within a minute",
    ),
    "retrain_state_unwritable": Event(
        "error", "What was kept cannot be written down; a restart would begin anew.", "see whether retrain.folder is full or read-only"
    ),
    "retrain_pinned": Event("info", "These streams are pinned to a model (models.pin); no rounds are held for them."),
    "retrain_offsets_not_committed": Event("info", "The positions of the retrainer's group could not be written; only its lag looks old."),
    "intake_records_unreadable": Event(
        "warning",
        "Records that cannot be read are passed over by the retrainer or the notifier.",
        "see what wrote them; the daemon tells of the same ones",
    ),
    # Kafka, coming and going
    "kafka_reached": Event("info", "Brokers answer again, or for the first time."),
    "kafka_unreachable": Event(
        "warning",
        "No broker answers; attempts go on, with growing pauses. Nothing is lost while the input topics retain it.",
        "see whether brokers, network and credentials are well",
    ),
    "kafka_client": Event("debug", "A line of the Kafka client's own log."),
    "kafka_client_replaced": Event(
        "warning",
        "The Kafka client failed in a way it does not recover from; a new one takes its place and goes on where it was.",
        "look at `reason` if it keeps coming",
    ),
    "client_abandoned": Event(
        "info", "A consumer that was closed did not end in time, as while brokers do not answer; its tasks and connections were cut off."
    ),
    "records_wrapped": Event(
        "warning",
        "This version of the Kafka client (`aiokafka`) has no way to hand out records fast; they are read slower.",
        "install aiokafka 0.14",
    ),
    "input_topics_missing": Event(
        "warning", "Input topics do not exist (yet); the daemon waits for them.", "create them, or correct `streams[].topics`"
    ),
    "input_topics_found": Event("info", "Input topics that were missing exist now."),
    "topic_settings_hidden": Event(
        "warning",
        "Brokers do not show this user the settings of topics that are written to, so nobody has made sure that they keep what they must.",
        "allow DescribeConfigs on them, or look at `anomalyd topics plan` with a user who may",
    ),
    # partitions and positions
    "partitions_assigned": Event("info", "The group gave this instance partitions."),
    "partitions_revoked": Event("info", "The group takes partitions back; what was read is committed first."),
    "partition_begun": Event("info", "A partition without a committed position is read from where `start_from` says."),
    "membership_lost": Event(
        "warning",
        "The group's coordinator does not know this member any more, and it joins anew: it did not answer for "
        "`kafka.session_timeout_ms`, or another process has the same `kafka.group_instance_id`; two that have it put each other out every "
        "few seconds.",
        "if it keeps coming, look for the other process: each instance needs a `kafka.group_instance_id` of its own",
    ),
    "handover_late": Event(
        "warning",
        "A rebalance did not wait for the last commit; the next owner does again what was not committed.",
        "raise `kafka.rebalance_timeout_ms` if it keeps coming",
    ),
    "positions_unknown": Event("warning", "Committed positions can't be asked for; attempts go on.", "look at `reason`"),
    "partitions_unknown": Event(
        "warning",
        "The group gave us a partition that the topic does not have as far as we have heard; we wait until we hear of it.",
        "see whether brokers are well if it keeps coming",
    ),
    "positions_not_published": Event(
        "info", "The group's positions, which are for lag monitoring only, were not taken; they come with the next attempt."
    ),
    "partition_restored": Event("info", "A partition's state was read from its changelog; `replay` records follow before it goes on."),
    "state_shared": Event(
        "warning",
        "An instance of another group (`by`) has claimed a partition of ours: both have the same `state.prefix`. While both run they take "
        "the partitions from each other, and each alert is told by one of them, in its alerts topic.",
        "give each group a `state.prefix` of its own; nothing, if the other group is gone",
    ),
    "partition_lost": Event(
        "warning",
        "Somebody else wrote for a partition of ours; nothing of what we computed meanwhile was committed. It is restored anew. Told once "
        "a minute and partition at most; `times` says how often it came since.",
        "nothing, unless it keeps coming: then two groups use one `state.prefix`",
    ),
    "partition_stopped": Event(
        "error",
        "A partition cannot go on: its state is damaged, from a newer release, or does not fit its input. The others go on.",
        "see `reason`; `anomalyd state verify` says what is damaged, `anomalyd state restart --help` how to begin anew",
    ),
    "partition_tried": Event(
        "warning",
        "Owners of a partition have died without getting anywhere: its records are tried a few at a time, to find one that kills.",
        "see why the process ended (memory?); report the record that ends as a dead letter with reason `deadly`",
    ),
    "record_deadly": Event(
        "error",
        "The process ended each time it tried this record; it went to the dead-letter topic with reason `deadly`.",
        "report it with the record",
    ),
    "claim_failed": Event("warning", "A partition could not be taken over; attempts go on, with growing pauses.", "look at `reason`"),
    "commit_in_doubt": Event(
        "warning",
        "It is not known whether a transaction was committed; the changelog is asked, and what is missing is written again.",
        "see whether brokers are well if it keeps coming",
    ),
    "state_gap": Event(
        "error",
        "Input that a restored partition needs is no longer retained; series that lack it go on from what is there.",
        "raise the input topic's retention above `state.turn_s` plus the longest outage",
    ),
    "state_missing": Event(
        "error",
        "A partition had state and its changelog holds none: the topic was deleted, or its records were. With `state.on_gap: continue` it "
        "goes on with empty state where the group's offset is; alerts that were open are never resolved.",
        "find out who deletes from the state topics; their `cleanup.policy` has to be compact and nothing else",
    ),
    "state_discarded": Event(
        "error",
        "The input topic ends in front of the position: it was made anew. What was learned of this partition is void; it begins anew.",
        "nothing, if the topic was made anew on purpose",
    ),
    "position_out_of_range": Event(
        "error",
        "The committed position is no longer in the topic: records expired before they were read, or the topic was made anew.",
        "raise the topic's retention, or let the instances catch up",
    ),
    # records that cannot be had
    "records_unreadable": Event(
        "error",
        "A partition holds records that can't be read (a damaged batch); the next readable one is looked for.",
        "look after that partition's disk or replica",
    ),
    "salvage_failed": Event("warning", "The next readable record could not be looked for; it is tried again.", "look at `reason`"),
    "records_lost": Event(
        "error",
        "Records were passed over because Kafka can't hand them out; `loss` says why.",
        "see `loss`: expired: raise retention; corrupt: look after the brokers' disks; too-large: raise `kafka.max_partition_fetch_bytes`",
    ),
    # what goes out
    "commit_late": Event(
        "warning", "Commits have been waiting for brokers; what was read meanwhile waits with them.", "see whether brokers are well"
    ),
    "records_rejected": Event(
        "warning",
        "Records could not be read and went to the dead-letter topic; told at once and then once a minute at most.",
        "if most of a stream is rejected, its `format` is not what its producers write; else look at the dead letters",
    ),
    "intake_held": Event(
        "warning", "Too much waits to be written, so nothing more is read: memory stays bounded, lag grows.", "see whether brokers are well"
    ),
    "intake_resumed": Event("info", "What waited is written; reading goes on."),
    "message_truncated": Event(
        "warning",
        "A dead letter is larger than its topic allows; the first 1 KB of its key and value were written, with the header "
        "`anomalyd-truncated`.",
        "raise `max.message.bytes` of the dead-letter topic to keep such records whole",
    ),
    "message_dropped": Event(
        "error",
        "An alert, or a dead letter that was cut already, is larger than its topic (`topic`) allows; it was given up.",
        "raise `max.message.bytes` of the topic",
    ),
    # models
    "remote_write_failed": Event(
        "warning",
        "Scores could not be written to remote_write.url; attempts go on where that may help. Alerts do not wait. "
        "Told once a minute at most.",
        "see `reason`; anomalyd_remote_write_dropped_samples_total says what was given up",
    ),
    "remote_write_crashed": Event(
        "error",
        "Our own code failed to write scores down for remote_write.url; these are given up, alerts are not touched.",
        "report it with the traceback",
    ),
    "model_preparing": Event("info", "A stream is to have another model, which is made ready while the present one goes on."),
    "model_compiled": Event("info", "Machine code for a model's shape was made by a process of its own."),
    "model_swapped": Event("info", "Another model (`model`) scores a stream from the next batches on; `reason`: whose doing."),
    "model_unusable": Event(
        "error",
        "The model that a stream is to have is missing, damaged, not for its features or can't be made ready; `at_work` goes on.",
        "see `reason`; promote another model, or roll back (`anomalyd models rollback`)",
    ),
    "rollback_not_published": Event(
        "warning",
        "This instance went back to the model before by rule, and could not say so in the models topic yet; others may go on with it.",
        "it is tried again; see `reason`; the user needs Write on the topic; `anomalyd models rollback` says it by hand",
    ),
    "models_not_followed": Event(
        "warning",
        "The models topic can't be read; streams go on with the models that they have, and attempts go on.",
        "look at `reason` if it keeps coming; the user needs Read and Describe on the topic",
    ),
    "models_unreadable": Event(
        "error",
        "The models topic holds what can't be read, so the models of the configuration score, or those that partitions were written with.",
        "see `reason`; look after the brokers' disks",
    ),
    "models_followed": Event("info", "The models topic can be read again."),
    "model_records_unusable": Event(
        "error",
        "Records of the models topic are damaged, foreign or of a newer release; they were passed over and what was known before holds.",
        "see `reason`; publish or promote the model again, and find out what else writes to the topic",
    ),
    # faults of our own
    "batch_retried_singly": Event(
        "warning",
        "Our own code failed to decode a batch; its records go through one by one. Nothing is lost or done twice.",
        "see record_crashed; report the traceback if none follows",
    ),
    "record_crashed": Event(
        "error",
        "Our own code failed to decode this record, or to write an alert that came of it; the record went to the dead-letter topic with "
        "reason `internal-error`.",
        "report it with the record and the traceback",
    ),
    "library_message": Event(
        "warning",
        "A library below anomalyd (`logger`) says something (`message`), at this level or above; repeated lines come once a minute.",
        "look at it if it keeps coming",
    ),
}
