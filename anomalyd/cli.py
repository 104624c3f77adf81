# ruff: noqa: D301  in help, the character \b keeps a paragraph as it is written
"""The commands. Each one reads its arguments, loads the settings and hands over; what a command does lives elsewhere.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration (130: Ctrl-C, by the shell's convention).
Results go to stdout, logs and errors to stderr.
"""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, cast

import typer

from anomalyd import __version__
from anomalyd.errors import AnomalydError, ConfigError

if TYPE_CHECKING:
    from anomalyd.detector.detector import Device
    from anomalyd.evaluation.sets import Half
    from anomalyd.settings import Settings


def _commands() -> typer.Typer:
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # a traceback is for a bug report: plain, and without the values of variables
        rich_markup_mode=None,  # examples keep their shape
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _commands()
config_app = _commands()
topics_app = _commands()
state_app = _commands()
models_app = _commands()
app.add_typer(config_app, name="config", help="Check, show and describe the configuration.")
app.add_typer(topics_app, name="topics", help="Plan and create the topics that a configuration needs.")
app.add_typer(models_app, name="models", help="What models there are, how they compare, and which one scores a stream.")
app.add_typer(state_app, name="state", help="Look at what was learned and is kept in changelog topics; begin anew.")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="CONFIG", help="YAML file. ANOMALYD_ environment variables override it; without it they are all there is."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
TopicOption = Annotated[str | None, typer.Option(metavar="INPUT", help="This input topic only.  [default: all]")]
PartitionOption = Annotated[int | None, typer.Option(min=0, help="This partition only.  [default: all]")]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="DIR", help="Score with this artifact, of train or pretrain, and fit nothing.  [default: the one that ships]"
    ),
]
DirOption = Annotated[
    list[Path] | None,
    typer.Option("--dir", metavar="DIR", help="A folder with an artifact, or with folders of them; may be given again."),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="First 8 characters of a hash or more, a folder, the name of one in --dir, or: shipped.")
]
StreamOption = Annotated[str, typer.Option("--stream", metavar="NAME", help="As the configuration calls it.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept with the champion, for people.")]
ReportOption = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one self-contained HTML report.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the `anomalyd` command; always ends in SystemExit.

    What fails on purpose (AnomalydError) becomes its message on stderr and its exit code, never a traceback.
    """
    try:
        app(arguments, prog_name="anomalyd")
    except AnomalydError as error:
        typer.echo(f"anomalyd: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"anomalyd {__version__}")
        raise typer.Exit


@app.callback()
def anomalyd(
    _: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Streaming anomaly detection for metrics on Kafka.

    Start by looking:

    \b
      anomalyd demo                          no Kafka needed: this host's metrics and a fleet with incidents
      anomalyd backtest my-metrics.csv       what it would have said about your history
      anomalyd explain my-metrics.csv        and why: the strangest moment in it, taken apart
      anomalyd evaluate nab --data NAB       how well it detects, on labelled streams

    Then point it at your cluster. A good first config.yaml:

    \b
      kafka:
        bootstrap_servers: kafka-1:9092
        group_id: anomalyd
      streams:
        - name: hosts
          topics: [metrics]
          format: telegraf-json
      alerts:
        topic: anomalyd.alerts

    \b
      anomalyd config check -c config.yaml   is it valid?
      anomalyd topics create -c config.yaml  make the alerts, dead-letter, state and models topics
      anomalyd run -c config.yaml            metrics at http://localhost:9464/metrics

    Exit codes: 0 done, 1 failed while running (a file with something wrong in it, too), 2 wrong usage or configuration (a path that does
    not exist, too), 130 interrupted.
    """


@app.command()
def run(config: ConfigOption = None) -> None:
    """Read metrics from Kafka, write alerts to Kafka: the daemon.

    Works from the first record with the model that ships; needs no training. SIGTERM or Ctrl-C: it finishes the batch,
    commits, leaves the group (unless kafka.group_instance_id is set) and exits 0. With Kafka away it waits and says so.
    SIGHUP: it reads the configuration again and takes over the alert policies.

    \b
    Examples:
      anomalyd run -c config.yaml
      ANOMALYD_KAFKA__BOOTSTRAP_SERVERS=kafka-1:9092 ANOMALYD_LOG__LEVEL=debug anomalyd run -c config.yaml

    See what it does: http://localhost:9464/metrics, /healthz (the loop turns), /readyz (partitions are assigned).
    """
    from anomalyd import crashpoints
    from anomalyd.settings import crash_at, load
    from anomalyd.telemetry.logging import configure

    settings = load(config)
    configure(settings.log)
    crashpoints.arm(crash_at())

    from anomalyd.app import run as run_daemon

    raise typer.Exit(run_daemon(settings, lambda: load(config)))


@app.command()
def retrain(config: ConfigOption = None) -> None:
    """Keep models fresh: train challengers on the streams, publish those that prove better. A process of its own.

    It reads what the daemon reads, with a consumer group of its own, and keeps the newest samples of some series; what lies
    in alerts or mutes is left out. When a round is due (retrain.interval_s, or the champion drifts) it trains a challenger and holds
    it against the champion on later data. One that passes goes to the models topic, from where every instance takes it
    over without losing state. `anomalyd models` shows what was decided, and goes back.

    \b
    Examples:
      anomalyd retrain -c config.yaml
      ANOMALYD_RETRAIN__PUBLISH=false anomalyd retrain -c config.yaml
    """
    from anomalyd.settings import load
    from anomalyd.telemetry.logging import configure

    settings = load(config)
    configure(settings.log)

    from anomalyd.retrainer.main import run as run_retrainer

    raise typer.Exit(run_retrainer(settings))


@app.command()
def notify(config: ConfigOption = None) -> None:
    """Bring alerts from Kafka to Alertmanager. A process of its own, one of it.

    It reads the alerts topic from its beginning, so after a restart it knows what is open. Every member of alertmanager.urls is told at
    once what has changed, and each alertmanager.resend_s everything that is open. One that is away gets it when it is back.
    Labels say who an alert is (alertname, severity, stream, metric, labels of the series) and stay; value and score are annotations.

    \b
    Examples:
      anomalyd notify -c config.yaml
      ANOMALYD_ALERTMANAGER__URLS='["http://127.0.0.1:9093"]' anomalyd notify -c config.yaml
    """
    from anomalyd.settings import load
    from anomalyd.telemetry.logging import configure

    settings = load(config)
    configure(settings.log)

    from anomalyd.notifier.main import run as run_notifier

    raise typer.Exit(run_notifier(settings))


@app.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(min=1, help="How long to run.  [default: 120; with a terminal Ctrl-C ends it sooner]")
    ] = None,
    series: Annotated[int, typer.Option(min=1, help="Series of the generated fleet.")] = 200,
    json_output: JsonOption = False,
    kafka: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Use this Kafka instead of the embedded broker.")] = None,
    report: ReportOption = None,
    seed: Annotated[int, typer.Option(help="Equal seeds make equal fleets and incidents.")] = 0,
) -> None:
    """Watch it work: the same daemon on an embedded broker.

    Two topics flow: this host's real metrics each second, and a generated fleet in fast motion with injected incidents
    whose truth is known. At the end: how many of them were detected, how many alerts were false, how long it took.

    \b
    Examples:
      anomalyd demo
      anomalyd demo --seconds 60 --series 500 --report demo.html
      anomalyd demo --seconds 45 --json | tail -1
    """
    _log_warnings()
    from anomalyd.demo.main import run as run_demo

    raise typer.Exit(run_demo(seconds=seconds, series=series, json_output=json_output, kafka=kafka, report=report, seed=seed))


@app.command()
def backtest(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files (CSV, CSV.gz, npz, JSON lines) or directories of CSV and npz.")
    ],
    config: ConfigOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write scores (one npz for each input) and alerts.jsonl here.")] = None,
    report: ReportOption = None,
    json_output: JsonOption = False,
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="Files are JSON lines or line protocol in this stream format, such as plain-json."),
    ] = None,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Files with train and test: do not fit on train first.")] = False,
    shared: Annotated[
        bool, typer.Option("--shared", help="Files with train and test: one model for all files instead of one for each.")
    ] = False,
    model: ModelOption = None,
) -> None:
    """Run the production engine over history: would it have told you?

    CSV needs a header, a `timestamp` column (ISO 8601 or epoch) and one or more value columns. What comes out is what
    the daemon would have sent for the same samples. With -c, alerts follow the policy of that configuration.

    \b
    Examples:
      anomalyd backtest cpu.csv
      anomalyd backtest history/ --out results --report history.html
      anomalyd backtest dump.jsonl --format telegraf-json -c config.yaml --json
    """
    _log_warnings()
    from anomalyd.evaluation import readers
    from anomalyd.settings import load

    settings = load(config) if config is not None else None
    readers.glance(paths, lines=format_ is not None or settings is not None)

    from anomalyd.evaluation.backtest import run as run_backtest

    code = run_backtest(
        paths=paths,
        settings=settings,
        out=out,
        report=report,
        json_output=json_output,
        format=format_,
        no_fit=no_fit,
        shared=shared,
        model=model,
    )
    raise typer.Exit(code)


@app.command()
def evaluate(
    set_: Annotated[str, typer.Argument(metavar="SET", help="nab, smd, asd, jumpstarter, kpi; or folder: any labelled CSV and npz.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where the set lies: its folder, or the one above.")],
    detector: Annotated[
        str, typer.Option(metavar="NAME", help="anomalyd, a baseline, or a variant of anomalyd; a wrong name lists them.")
    ] = "anomalyd",
    compare: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Others on the same streams, with differences stream by stream; all: every baseline.")
    ] = "",
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Single metrics: what each part of anomalyd is good for, in one table.")
    ] = False,
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what is trained and calibrated for variants here, for the next time.")
    ] = None,
    config: ConfigOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write scores (one npz for each stream) and alerts.jsonl here.")] = None,
    report: ReportOption = None,
    json_output: JsonOption = False,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Streams with train and test: fit nothing on train.")] = False,
    shared: Annotated[bool, typer.Option("--shared", help="Streams with train and test: one joint model for the set.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of what is trained or drawn.  [default: 0]")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,N", help="Once for each of these seeds; a single number: so many. Prints mean and spread.")
    ] = None,
    half: Annotated[str | None, typer.Option(metavar="choose|hold", help="One half of the streams, by a hash of their names.")] = None,
    cold_start: Annotated[bool, typer.Option("--cold-start", help="Also begin fresh in front of each labelled segment.")] = False,
    model: ModelOption = None,
) -> None:
    """Measure detection on a labelled set: each row is scored before it is learned, no row is seen twice.

    Rankings (auc_pr, best_f1, vus_pr) say how well anomalous rows stand out at any threshold; event_recall, median_delay_s
    and false_episodes_per_series_day say what people would have got at the threshold that alerts.budget sets. Scores are
    never adjusted by the labels. For nab, its own score in three profiles.

    Variants of anomalyd have one thing left out or exchanged, and a threshold of their own, laid as anomalyd's is. The networks of rnn
    and gru are trained first, as anomalyd's was: about two minutes each on two cores.

    \b
    Examples:
      anomalyd evaluate nab --data NAB
      anomalyd evaluate kpi --data sets --compare robust-z,seasonal-z --report kpi.html
      anomalyd evaluate nab --data NAB --compare no-lstm,rnn,gru --models variants
      anomalyd evaluate nab --data NAB --ablations --models variants
      anomalyd evaluate smd --data sets --seeds 3 --json | tail -1
    """
    if half not in (None, "choose", "hold"):
        raise typer.BadParameter("valid are choose, hold", param_hint="--half")
    if seed is not None and seeds is not None:
        raise typer.BadParameter("say --seed or --seeds, not both", param_hint="--seeds")
    _log_warnings()
    from anomalyd.evaluation.evaluate import run as run_evaluate
    from anomalyd.settings import load

    code = run_evaluate(
        set_,
        data,
        load(config) if config is not None else None,
        detector=detector,
        compare=tuple(name for name in compare.split(",") if name),
        out=out,
        report=report,
        json_output=json_output,
        no_fit=no_fit,
        shared=shared,
        seeds=(seed or 0,) if seeds is None else _seeds(seeds),
        half=cast("Half | None", half),
        cold_start=cold_start,
        model=model,
        ablations=ablations,
        models=models,
    )
    raise typer.Exit(code)


@app.command()
def explain(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="History: CSV, CSV.gz, npz, or JSON lines with --format.")] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The newest sample of FILE up to this time: ISO 8601 or epoch.  [default: the strangest]"),
    ] = None,
    row: Annotated[int | None, typer.Option(min=0, help="The sample in this row or line of FILE, counted from 0.")] = None,
    series: Annotated[str | None, typer.Option(metavar="KEY", help="As alerts say it in series.key.  [default: the only one]")] = None,
    config: ConfigOption = None,
    topic: TopicOption = None,
    partition: PartitionOption = None,
    report: ReportOption = None,
    json_output: JsonOption = False,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="FILE is JSON lines or line protocol in this stream format.")
    ] = None,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="FILE with train and test: do not fit on train first.")] = False,
) -> None:
    """Why was it strange? What the model saw, what each channel says, what the network remembers.

    With a FILE the production engine runs over it, and one sample is explained: by the evidence of each channel against the threshold, the
    window that the network saw with its reconstruction, its gates, how long its cells remember, and which of them are in a state that is
    unusual for this series. An alert's series.key and event_time (--at) say which sample it was about; for an alert of backtest its
    source.offset (--row) does, too.

    Without a FILE the newest state of a series is read from the changelogs, while the daemon runs or not: what it has learned, what it
    expects next, what its cells hold against other series. Only reads.

    \b
    Examples:
      anomalyd explain cpu.csv
      anomalyd explain cpu.csv --at 2026-01-01T12:00:00Z --report why.html
      anomalyd explain dump.jsonl --format plain-json --series 'queue_depth{host="web-01"}' --row 700 --json
      anomalyd explain -c config.yaml --series 'cpu.usage{host="web-01"}'
    """
    from anomalyd.settings import load

    settings = load(config) if config is not None else None
    _log_warnings()

    from anomalyd.evaluation import readers

    if at is not None:
        readers.parse_time(at)
    if file is not None:
        readers.glance([file], lines=format_ is not None or settings is not None)

    from anomalyd.evaluation.explain.command import run as run_explain

    code = run_explain(
        path=file,
        settings=settings,
        series=series,
        at=at,
        row=row,
        topic=topic,
        partition=partition,
        report=report,
        json_output=json_output,
        format=format_,
        no_fit=no_fit,
    )
    raise typer.Exit(code)


DataArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="DATA...", help="History: CSV, CSV.gz, npz, or JSON lines with --format; or directories of them. Or none, with --topic."
    ),
]
HistoryTopicOption = Annotated[
    str | None, typer.Option(metavar="T", help="History is what this topic of the configuration holds now; committed records only.")
]
SinceOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Of the topic what was produced since: ISO 8601, or 90m, 12h, 7d ago.  [default: all]")
]
SamplesOption = Annotated[int | None, typer.Option(min=1, help="Of the topic at most so many samples, the newest.  [default: 2000000]")]
LinesOption = Annotated[
    str | None, typer.Option("--format", metavar="FORMAT", help="Files are JSON lines or line protocol in this stream format.")
]
ArtifactOption = Annotated[Path, typer.Option(metavar="DIR", help="Where to write the artifact: weights (safetensors) and manifest.")]


@app.command()
def train(
    out: ArtifactOption,
    data: DataArgument = None,
    config: ConfigOption = None,
    topic: HistoryTopicOption = None,
    since: SinceOption = None,
    samples: SamplesOption = None,
    format_: LinesOption = None,
    features: Annotated[
        int | None, typer.Option(min=1, help="Values of a sample; checked against the data.  [default: as in the data]")
    ] = None,
    units: Annotated[
        int | None, typer.Option(min=1, max=1024, help="LSTM cells of each layer.  [default: 32; several features: 64]")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, max=8, help="LSTM layers of encoder and of decoder.  [default: 1]")] = None,
    latent: Annotated[int | None, typer.Option(min=1, max=256, help="Size of the code between the two.  [default: 4; several: 8]")] = None,
    window: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Newest values that are reconstructed.  [default: 16; several: 1]")
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Passes over the data, instead of --steps.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of the weights, at most.  [default: 600; several: 300]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Series in an update.  [default: 64; several: 32]")] = None,
    stretch: Annotated[
        int | None, typer.Option(min=2, help="Samples that gradients reach back; the state is carried on.  [default: 128; several: 64]")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="student|huber|mse", help="[default: student; several: huber]")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-8, max=1.0, help="[default: 0.003; with --from 0.001]")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="[default: 0.0001]")] = None,
    dropout: Annotated[float | None, typer.Option(min=0.0, max=0.9, help="Outputs of encoder and decoder left out.  [default: 0]")] = None,
    noise: Annotated[
        float | None, typer.Option(min=0.0, max=10.0, help="Standard deviation of noise on inputs.  [default: 0; several: 0.3]")
    ] = None,
    masking: Annotated[float | None, typer.Option(min=0.0, max=0.9, help="Samples that the network is not shown.  [default: 0]")] = None,
    clip: Annotated[float | None, typer.Option(min=1e-6, help="Largest norm of a gradient.  [default: 1]")] = None,
    holdout: Annotated[
        float | None, typer.Option(min=0.0, max=0.9, help="Latest part of each series, not trained on.  [default: 0.2; several: 0]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, help="Looks at it (of 25) without an improvement that end the training; 0: none do.  [default: 6]")
    ] = None,
    generated: Annotated[
        float | None, typer.Option(min=0.0, max=0.99, help="One feature: share of generated series mixed in.  [default: 0.25]")
    ] = None,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="shipped|DIR", help="Begin with these weights.  [default: from scratch]")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Where the report goes.  [default: DIR/report.html]")] = None,
    json_output: JsonOption = False,
    seed: Annotated[int, typer.Option(help="Equal seeds and data make equal weights, on the CPU.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train; auto: the GPU where there is one.")] = "cpu",
) -> None:
    """Train a model on history: files, or what a topic holds.

    With one value a sample it is one network for all series, with generated ones mixed in; with several it is a joint network, which knows
    how the values of an entity move together. History is taken as normal, column `label` is not looked at, and of several values a
    missing one counts as the last known. Of npz files with train and test only train is read. Cells are LSTM: that is what the daemon runs.

    The model is saved at the end: a training that is interrupted (Ctrl-C, SIGTERM: exit code 130) is lost.

    \b
    Examples:
      anomalyd train servers/ --out servers-model                    CSV with several value columns
      anomalyd train cpu.csv --out cpu-model --units 50 --layers 2   one value column
      anomalyd train --out model -c config.yaml --topic metrics --since 7d
      anomalyd backtest server-17.csv --model servers-model --report why.html
    """
    _log_warnings()
    from anomalyd.settings import load

    if loss not in (None, "student", "huber", "mse"):
        raise typer.BadParameter("valid are student, huber, mse", param_hint="--loss")
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("valid are auto, cpu, cuda", param_hint="--device")
    if epochs is not None and steps is not None:
        raise typer.BadParameter("say --epochs or --steps, not both", param_hint="--epochs")
    settings = load(config) if config is not None else None
    plan = {
        "window": window,
        "steps": steps,
        "batch": batch,
        "stretch": stretch,
        "loss": loss,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "dropout": dropout,
        "input_noise": noise,
        "masking": masking,
        "clip": clip,
    }
    with _interruptible("nothing was saved"):
        _early(out, data or [], lines=format_ is not None or settings is not None)

        from anomalyd.training.design import Wanted
        from anomalyd.training.sources import source_of
        from anomalyd.training.train import run as run_train

        wanted = Wanted(
            features=features,
            units=units,
            layers=layers,
            latent=latent,
            epochs=epochs,
            held_back=holdout,
            patience=patience,
            generated=generated,
            begin=begin,
            plan={name: value for name, value in plan.items() if value is not None},
        )
        source = source_of(data or [], settings, format_, topic, since, samples)
        raise typer.Exit(run_train(source, out, seed, wanted, report=report, json_output=json_output, device=cast("Device", device)))


@app.command()
def tune(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the best model and the study go; a study that is there goes on.")],
    data: DataArgument = None,
    config: ConfigOption = None,
    topic: HistoryTopicOption = None,
    since: SinceOption = None,
    samples: SamplesOption = None,
    format_: LinesOption = None,
    trials: Annotated[int, typer.Option(min=1, help="In all, with those of an earlier run.")] = 20,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Begin no trial after so long.  [default: no limit]")] = None,
    steps: Annotated[int, typer.Option(min=4, help="Updates of the weights in a trial.")] = 200,
    final_steps: Annotated[
        int | None, typer.Option(min=1, help="Updates for the best at last.  [default: as train, 600; several features: 300]")
    ] = None,
    holdout: Annotated[float, typer.Option(min=0.01, max=0.9, help="Latest part of each series, by which trials are judged.")] = 0.2,
    refit: Annotated[bool, typer.Option("--refit", help="Train the best on all data at last, the latest part too.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Where the report goes.  [default: DIR/report.html]")] = None,
    json_output: JsonOption = False,
    seed: Annotated[int, typer.Option(help="Equal seeds and data make equal searches.")] = 0,
) -> None:
    """Search for settings of train that forecast later data best, then train the best in full.

    Tried are units, layers, latent, window, learning rate, weight decay, dropout, noise and masking; the first trial is what train does by
    itself. Each is judged on the latest part of every series, by how likely its forecast errors there are given those before. Trials that
    do worse than the median half way are cut short. Needs pip install 'anomalyd[tuning]'.

    When it is interrupted (Ctrl-C, SIGTERM: exit code 130), trials that are done are kept in DIR, and the same command goes on with them. A
    training that was under way begins again.

    \b
    Examples:
      anomalyd tune cpu.csv --out cpu-model --trials 20
      anomalyd tune servers/ --out servers-model --minutes 30 --refit
    """
    _log_warnings()
    from anomalyd.settings import load

    settings = load(config) if config is not None else None
    with _interruptible("no model was saved; trials that are done are kept, the same command goes on with them"):
        _early(out, data or [], lines=format_ is not None or settings is not None)

        from anomalyd.training.design import Wanted
        from anomalyd.training.sources import source_of
        from anomalyd.training.tune import run as run_tune

        source = source_of(data or [], settings, format_, topic, since, samples)
        code = run_tune(
            source,
            out,
            trials=trials,
            minutes=minutes,
            steps=steps,
            seed=seed,
            refit=refit,
            wanted=Wanted(held_back=holdout, plan={} if final_steps is None else {"steps": final_steps}),
            report=report,
            json_output=json_output,
        )
        raise typer.Exit(code)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the artifact: weights (safetensors) and manifest.")],
    seed: Annotated[int, typer.Option(help="Equal seeds make equal training series.")] = 0,
) -> None:
    """Train the model that ships again, from generated series. Takes about two minutes on two cores.

    You do not need this to use anomalyd.

    \b
    Example:
      anomalyd pretrain --out artifact --seed 1
    """
    _log_warnings()
    from anomalyd.training.pretrain import run as run_pretrain

    raise typer.Exit(run_pretrain(out=out, seed=seed))


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Validate the configuration: says what is wrong, field by field, or what was found. Certificates, keys, passwords and tokens are read.

    \b
    Examples:
      anomalyd config check -c config.yaml
      ANOMALYD_ALERTS__BUDGET=0.5 anomalyd config check -c config.yaml
    """
    from anomalyd.settings import environment_overrides, headed, load

    settings = load(config)
    if problems := settings.unusable():
        raise ConfigError(headed(config, problems))
    typer.echo(f"{config or 'environment'}: valid")
    for line in settings.summary():
        typer.echo(f"  {line}")
    if names := environment_overrides():
        typer.echo(f"  from the environment: {', '.join(names)}")


@config_app.command("show")
def config_show(config: ConfigOption = None) -> None:
    """Print the effective settings as YAML: file, environment and defaults together, secrets masked.

    \b
    Example:
      anomalyd config show -c config.yaml
    """
    import yaml

    from anomalyd.settings import load

    typer.echo(yaml.safe_dump(load(config).effective(), sort_keys=False, allow_unicode=True), nl=False)


@config_app.command("schema")
def config_schema(
    _: Annotated[
        Path | None, typer.Option("--config", "-c", hidden=True, help="Taken like by the other commands; the schema is the same.")
    ] = None,
) -> None:
    """Print the JSON Schema of the configuration, for editors and CI.

    \b
    Example:
      anomalyd config schema > anomalyd.schema.json
      (then, first line of config.yaml)  # yaml-language-server: $schema=anomalyd.schema.json
    """
    from anomalyd.settings import Settings

    typer.echo(json.dumps(Settings.model_json_schema(), indent=2, ensure_ascii=False))


@topics_app.command("plan")
def topics_plan(config: ConfigOption = None) -> None:
    """Show which topics are needed, with partitions and policies, what exists and what differs. Changes nothing.

    Exit code 0: all is as needed, or can be created; 1: something differs or cannot be asked.

    \b
    Example:
      anomalyd topics plan -c config.yaml
    """
    from anomalyd.kafka.topics import plan
    from anomalyd.settings import load
    from anomalyd.telemetry.logging import configure

    settings = load(config)
    configure(settings.log)
    raise typer.Exit(plan(settings))


@topics_app.command("create")
def topics_create(config: ConfigOption = None) -> None:
    """Create the topics that are missing. May be repeated; never alters a topic that exists.

    Input topics belong to their producers and are not created. Exit code 1 on any error or mismatch.

    \b
    Example:
      anomalyd topics create -c config.yaml
    """
    from anomalyd.kafka.topics import create
    from anomalyd.settings import load
    from anomalyd.telemetry.logging import configure

    settings = load(config)
    configure(settings.log)
    raise typer.Exit(create(settings))


@topics_app.command("rights")
def topics_rights(
    config: ConfigOption = None,
    principal: Annotated[
        str | None,
        typer.Option(help="Who gets the rights. Default: the user of the configuration, as brokers call it.", metavar="PRINCIPAL"),
    ] = None,
    part: Annotated[
        Literal["run", "retrain", "notify", "create"],
        typer.Option("--for", help="What this principal runs: run, retrain, notify, or create for topics create."),
    ] = "run",
) -> None:
    """Print the commands that grant, on a cluster with an authorizer, what is needed and no more. Asks nobody, changes nothing.

    \b
    Examples:
      anomalyd topics rights -c config.yaml
      anomalyd topics rights -c config.yaml --for create --principal User:deploy
    """
    from anomalyd.kafka import access
    from anomalyd.settings import load

    settings = load(config)
    user = principal or access.principal(settings.kafka)
    for command in access.commands(access.rights(settings, part), settings.kafka.bootstrap_servers, user):
        typer.echo(command)
    if user == access.UNKNOWN:
        typer.echo(f"In place of {user} goes what brokers call this client, see their log: give it as --principal.", err=True)


@state_app.command("inspect")
def state_inspect(
    config: ConfigOption = None, topic: TopicOption = None, partition: PartitionOption = None, json_output: JsonOption = False
) -> None:
    """Show what a restart would find: position, age and size of the state, open episodes, how much to replay. Only reads.

    It may run beside the daemon; what it shows is what was committed when it looked.

    \b
    For each partition:
      position   input offset up to which alerts are committed; number of the commit; newest event time
      restart    how many records would be replayed, and how much state read
      pages      of state rows, and how far the oldest lags behind the position
      episodes   alerts that are open
      claims     processes that took the partition over since the position last moved, but for those that were stopped in order: owners
                 that ended without getting anywhere, and one that has just begun. From 4 on, records are tried a few at a time

    \b
    Examples:
      anomalyd state inspect -c config.yaml
      anomalyd state inspect -c config.yaml --topic metrics --partition 3 --json
    """
    from anomalyd.settings import load

    settings = load(config)
    _log_warnings()

    from anomalyd.state_commands import inspect

    raise typer.Exit(inspect(settings, topic=topic, partition=partition, json_output=json_output))


@state_app.command("verify")
def state_verify(
    config: ConfigOption = None, topic: TopicOption = None, partition: PartitionOption = None, json_output: JsonOption = False
) -> None:
    """Read everything in the changelogs: checksums, the chain of positions, pages. Only reads. Exit code 1 if anything is wrong.

    Each finding has its offset in the changelog and what to do. At the end of each partition there is a fingerprint of the state, which
    is equal for equal state wherever its rows lie; two runs can be compared by it after instances were stopped in order. What was wrong
    before a partition was begun anew is shown until compaction takes it, and does not count.

    \b
    Examples:
      anomalyd state verify -c config.yaml
      anomalyd state verify -c config.yaml --topic metrics --partition 3 --json
    """
    from anomalyd.settings import load

    settings = load(config)
    _log_warnings()

    from anomalyd.state_commands import verify

    raise typer.Exit(verify(settings, topic=topic, partition=partition, json_output=json_output))


@state_app.command("restart")
def state_restart(
    config: ConfigOption = None,
    topic: TopicOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without, only what would happen is shown.")] = False,
) -> None:
    """Begin anew: forget what was learned, resolve the alerts that are open, go on at the same positions.

    Needed when the number of partitions of an input topic has changed (keys then come through other partitions, and the daemon refuses to
    mix their series up), or when `state verify` finds a changelog damaged. Series need 100 samples before they alert again.

    Stop every instance first. Each partition is done in one transaction, so the command may be interrupted and repeated; alerts that are
    open get a last message with status resolved. Changelogs get the partitions that their inputs have now.

    Exit code 0: all is done, or can be done with --yes; 1: something is left that only you can do, and is named.

    \b
    Examples:
      anomalyd state restart -c config.yaml --topic metrics          show what it would do
      anomalyd state restart -c config.yaml --topic metrics --yes
    """
    from anomalyd.settings import load

    settings = load(config)
    _log_warnings()

    from anomalyd.state_restart import restart

    raise typer.Exit(restart(settings, topic=topic, yes=yes))


@models_app.command("list")
def models_list(config: ConfigOption = None, folders: DirOption = None, json_output: JsonOption = False) -> None:
    """List models: those of the models topic and of the configuration (-c), those in folders (--dir), the one that ships.

    A model is named by its hash, of which the first 8 characters will do. Below the table: which model scores each stream, since when, by
    whose doing and why. Exit code 1 if one of them can't be used; the line says why.

    \b
    Examples:
      anomalyd models list -c config.yaml
      anomalyd models list --dir artifacts/ --json
    """
    settings = _settings_unless(config, folders)
    _log_warnings()
    from anomalyd.model_commands import list_models

    raise typer.Exit(list_models(settings, folders or [], json_output=json_output))


@models_app.command("show")
def models_show(model: ModelArgument, config: ConfigOption = None, folders: DirOption = None, json_output: JsonOption = False) -> None:
    """Show all that is written down about a model: shape, calibration, training, data, metrics, parent, and what was decided about it.

    \b
    Examples:
      anomalyd models show bab497f3 -c config.yaml
      anomalyd models show artifacts/hosts
      anomalyd models show hosts --dir artifacts/
      anomalyd models show shipped --json
    """
    settings = _settings_unless(config, folders, model)
    _log_warnings()
    from anomalyd.model_commands import show

    raise typer.Exit(show(settings, folders or [], model, json_output=json_output))


@models_app.command("compare")
def models_compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="First 8 characters of a hash or more, a folder, the name of one in --dir, or: shipped.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    config: ConfigOption = None,
    folders: DirOption = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="PATH", help="Run both over these files (as for backtest); may be given again."),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="Data is JSON lines or line protocol in this stream format.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Put two models side by side: shape, training, metrics; and with --data what each makes of the same files.

    Data goes through the production engine, each file from a fresh start: episodes, and how many that is for each series and day. In data
    without anomalies that is the rate of false alarms, to be held against alerts.budget; in files with a column `label` the measures of
    `anomalyd evaluate` come besides. With -c the alert policy of that configuration counts.

    \b
    Examples:
      anomalyd models compare shipped 0a1b2c3d -c config.yaml
      anomalyd models compare shipped artifacts/hosts --data history/ --json | tail -1
    """
    settings = _settings_unless(config, folders, a, b)
    _log_warnings()
    from anomalyd.model_commands import compare

    raise typer.Exit(compare(settings, folders or [], (a, b), data or [], format=format_, json_output=json_output))


@models_app.command("promote")
def models_promote(
    model: ModelArgument, stream: StreamOption, config: ConfigOption = None, reason: ReasonOption = "", json_output: JsonOption = False
) -> None:
    """Make a model the champion of a stream: publish it, unless the topic has it, and let all instances go over to it.

    Nothing is restarted. Each instance makes the model ready beside its work (a new shape needs half a minute or more of compiling), and
    each partition goes over between two batches, at an offset that is written down. A model that does not fit the stream is refused here.
    May be repeated.

    \b
    Examples:
      anomalyd models promote artifacts/hosts --stream hosts -c config.yaml --reason "trained on May"
      anomalyd models promote 0a1b2c3d --stream hosts -c config.yaml
    """
    settings = _settings_to_publish(config, "promote")
    _log_warnings()
    from anomalyd.model_commands import promote

    raise typer.Exit(promote(settings, model, stream, reason, json_output=json_output))


@models_app.command("rollback")
def models_rollback(stream: StreamOption, config: ConfigOption = None, reason: ReasonOption = "", json_output: JsonOption = False) -> None:
    """Go back to the champion before the present one. Instances have it ready, so it takes about a second.

    A second rollback undoes the first. To go back further, promote the model that is meant (`anomalyd models list`).

    \b
    Example:
      anomalyd models rollback --stream hosts -c config.yaml --reason "alerts at night"
    """
    settings = _settings_to_publish(config, "rollback")
    _log_warnings()
    from anomalyd.model_commands import rollback

    raise typer.Exit(rollback(settings, stream, reason, json_output=json_output))


def _settings_unless(config: Path | None, folders: Sequence[Path] | None, *models: str) -> "Settings | None":
    """The configuration, or None where it is not needed: models are in folders, or ship."""
    from anomalyd.settings import environment_overrides, load

    if config is not None:
        return load(config)
    if folders or (models and all(model == "shipped" or Path(model).is_dir() for model in models)):
        return None
    if not environment_overrides():
        raise typer.BadParameter("say where models are: -c CONFIG (the models topic), --dir DIR, or both")
    return load(None)


def _settings_to_publish(config: Path | None, verb: str) -> "Settings":
    """The configuration. Whoever forgets it is told what it is for; it may be in the environment altogether."""
    from anomalyd.settings import load

    try:
        return load(config)
    except ConfigError as error:
        if config is not None:
            raise
        raise ConfigError(f"{error}\nanomalyd models {verb} publishes to Kafka, so it needs -c CONFIG") from None


def _seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` are those, `3` is how many from 0."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    found = tuple(range(numbers[0])) if len(numbers) == 1 else numbers
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise typer.BadParameter(f"got {text!r}, must be different whole numbers from 0, such as 0,1,2, or how many", param_hint="--seeds")
    return found


def _early(out: Path, data: Sequence[Path], *, lines: bool) -> None:
    """What can be said of a training before what it needs is imported, which takes long."""
    from anomalyd.evaluation import readers
    from anomalyd.training.folder import free
    from anomalyd.training.history import LEAST_TRAIN

    free(out)
    readers.glance(data, lines=lines, least=LEAST_TRAIN)


@contextmanager
def _interruptible(lost: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block at once; a line says where it was, if it told that, and what is lost."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(f"anomalyd: interrupted{f' {error}' if error.args else ''}; {lost}", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_warnings() -> None:
    """Commands for people show progress of their own; of the log they show what is wrong."""
    from anomalyd.settings import LogSettings
    from anomalyd.telemetry.logging import configure

    configure(LogSettings(level="warning"))
