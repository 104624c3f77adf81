"""The command line: what scripts rely on (exit codes, stdout, stderr) and what people read."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jsonschema
import pytest
import structlog
import yaml

from anomalyd import __version__
from anomalyd.cli import main
from anomalyd.errors import AnomalydError, ArtifactError, ConfigError, KafkaUnavailableError
from anomalyd.settings import environment_overrides, load

COMMANDS = [
    ["run"],
    ["demo"],
    ["backtest"],
    ["explain"],
    ["evaluate"],
    ["train"],
    ["pretrain"],
    ["config", "check"],
    ["config", "show"],
    ["config", "schema"],
    ["topics", "plan"],
    ["topics", "create"],
    ["topics", "rights"],
    ["models", "list"],
    ["models", "show"],
    ["models", "compare"],
    ["models", "promote"],
    ["models", "rollback"],
    ["state", "inspect"],
    ["state", "verify"],
    ["state", "restart"],
]
NEEDED = {
    "backtest": ["x.csv"],
    "evaluate": ["nab", "--data", "x"],
    "models show": ["shipped"],
    "models compare": ["shipped", "shipped"],
    "models promote": ["shipped", "--stream", "hosts"],
    "models rollback": ["--stream", "hosts"],
}
"""What commands can't do without."""
GOOD = """
kafka: {bootstrap_servers: "127.0.0.1:9092", group_id: g, security_protocol: SASL_PLAINTEXT, sasl_mechanism: PLAIN,
        sasl_username: me, sasl_password: hunter2}
streams: [{name: hosts, topics: [metrics], format: telegraf-json}]
log: {level: error}
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]
Handed = Callable[[str, str, object], dict[str, Any]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs a command in this process; afterwards logging is as it was."""
    for name in environment_overrides():
        monkeypatch.delenv(name)
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    yield run
    root.handlers, root.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Handed:
    """Puts a function that records what it is called with in place of a command's work."""

    def replace(module: str, function: str, outcome: object) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def stand_in(*positional: object, **named: object) -> int:
            seen.update(named, positional=positional)
            if isinstance(outcome, BaseException):
                raise outcome
            return int(str(outcome))

        fake = ModuleType(module)
        setattr(fake, function, stand_in)
        monkeypatch.setitem(sys.modules, module, fake)
        monkeypatch.setattr("anomalyd.evaluation.readers.glance", lambda *_, **__: None)
        return seen

    return replace


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: Command, name: list[str]) -> None:
    result = command(*name, "--help")

    assert result.code == 0
    assert re.search(r"Examples?:\n +.*anomalyd " + " ".join(name), result.out)


def test_help_shows_a_first_configuration_that_is_valid(command: Command, tmp_path: Path) -> None:
    """People copy what they see."""
    text = command("--help").out
    block = re.search(r"^ +kafka:\n(?: +.*\n)+?(?=\n)", text, re.MULTILINE)
    assert block is not None
    path = tmp_path / "copied.yaml"
    path.write_text(block[0])

    assert command("config", "check", "-c", path).code == 0


def test_version(command: Command) -> None:
    assert command("--version") == Result(0, f"anomalyd {__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("config",), ("run", "--colour"), ("runn",), ("demo", "--series", "0"), ("backtest",)])
def test_wrong_usage_is_2(command: Command, arguments: tuple[str, ...]) -> None:
    result = command(*arguments)

    assert result.code == 2
    assert result.out == "" or "Usage:" in result.out


def test_help_and_configuration_commands_do_not_wait_for_the_engine(good: Path) -> None:
    heavy = ["numba", "torch", "aiokafka", "numpy", "aiohttp"]
    for arguments in (["--help"], ["config", "check", "-c", str(good)], ["config", "schema"]):
        script = f"""
import sys
from anomalyd.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr == "[]\n"


def test_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "anomalyd", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"anomalyd {__version__}\n"


# --- config -------------------------------------------------------------------------------------------------------


def test_config_check_says_what_it_found(command: Command, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_ALERTS__TOPIC", "elsewhere")
    result = command("config", "check", "-c", good)

    assert (result.code, result.err) == (0, "")
    for found in (
        "valid",
        "127.0.0.1:9092",
        "group g",
        "telegraf-json from metrics",
        "elsewhere",
        "g-dead-letters",
        "ANOMALYD_ALERTS__TOPIC",
    ):
        assert found in result.out
    assert "hunter2" not in result.out


def test_config_check_reads_the_files(command: Command, tmp_path: Path) -> None:
    """What stands there is found by whoever writes the configuration, not by the first start."""
    secret, path = tmp_path / "secret", tmp_path / "config.yaml"
    secret.touch()
    path.write_text(GOOD.replace("sasl_password: hunter2", f"sasl_password_file: {secret}") + f"http: {{token_file: {secret}}}\n")
    told = [f"kafka.sasl_password_file: {secret}: is empty", f"http.token_file: {secret}: holds no token"]

    assert command("config", "check", "-c", path) == Result(2, "", "\n  ".join([f"anomalyd: {path}: 2 errors", *told]) + "\n")


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name not in (["demo"], ["train"], ["pretrain"], ["config", "schema"])], ids=" ".join
)
def test_wrong_configuration_is_2_and_names_the_field(command: Command, tmp_path: Path, name: list[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(GOOD + "alerts: {budget: -1}\n")
    result = command(*name, *NEEDED.get(" ".join(name), []), "-c", path)

    assert result == Result(2, "", f"anomalyd: {path}: alerts.budget: got -1, must be greater than 0\n")


def test_missing_file_is_2(command: Command, tmp_path: Path) -> None:
    assert command("run", "-c", tmp_path / "none") == Result(2, "", f"anomalyd: {tmp_path / 'none'}: No such file or directory\n")


def test_no_configuration_at_all_says_where_one_could_come_from(command: Command) -> None:
    result = command("run")

    assert result.code == 2
    assert "no file given (-c)" in result.err
    assert "kafka: missing" in result.err


def test_config_show_prints_what_is_effective_with_secrets_masked(command: Command, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_HTTP__PORT", "1234")
    result = command("config", "show", "-c", good)
    shown = yaml.safe_load(result.out)

    assert (result.code, result.err) == (0, "")
    assert shown == load(good).effective()
    assert shown["http"]["port"] == 1234
    assert "hunter2" not in result.out


def test_config_schema_is_a_schema_that_configurations_meet(command: Command, good: Path) -> None:
    schema = json.loads(command("config", "schema").out)

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(GOOD), schema)
    assert json.loads(command("config", "schema", "-c", good).out) == schema


# --- handing over -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1])
def test_run_hands_settings_to_the_daemon_and_returns_its_code(command: Command, good: Path, handed: Handed, code: int) -> None:
    seen = handed("anomalyd.app", "run", code)

    assert command("run", "-c", good).code == code
    settings, read_again = seen["positional"]
    assert settings == read_again() == load(good)


def test_demo_hands_over_its_options(command: Command, handed: Handed) -> None:
    seen = handed("anomalyd.demo.main", "run", 0)

    assert command("demo", "--seconds", 45, "--series", 10, "--json", "--kafka", "a:1", "--report", "r.html", "--seed", 3).code == 0
    assert seen["seconds"] == 45
    assert (seen["series"], seen["seed"], seen["json_output"], seen["kafka"], seen["report"]) == (10, 3, True, "a:1", Path("r.html"))


def test_backtest_hands_over_its_options(command: Command, good: Path, handed: Handed) -> None:
    seen = handed("anomalyd.evaluation.backtest", "run", 0)
    options = ["--out", "o", "--report", "r.html", "--json", "--format", "influx", "--no-fit", "--shared", "--model", "m"]

    assert command("backtest", "a.csv", "b", "-c", good, *options).code == 0
    seen.pop("positional")
    assert seen == {
        "paths": [Path("a.csv"), Path("b")],
        "settings": load(good),
        "out": Path("o"),
        "report": Path("r.html"),
        "json_output": True,
        "format": "influx",
        "no_fit": True,
        "shared": True,
        "model": Path("m"),
    }
    assert command("backtest", "a.csv").code == 0
    assert seen["settings"] is None


def test_evaluate_hands_over_its_options(command: Command, good: Path, handed: Handed) -> None:
    seen = handed("anomalyd.evaluation.evaluate", "run", 0)
    options = ["--detector", "robust-z", "--compare", "a,b", "--out", "o", "--report", "r.html", "--json", "--no-fit", "--shared"]
    options += ["--half", "hold", "--cold-start", "--model", "m", "--ablations", "--models", "v"]

    assert command("evaluate", "kpi", "--data", "d", "-c", good, *options).code == 0
    assert seen == {
        "positional": ("kpi", Path("d"), load(good)),
        "detector": "robust-z",
        "compare": ("a", "b"),
        "out": Path("o"),
        "report": Path("r.html"),
        "json_output": True,
        "no_fit": True,
        "shared": True,
        "seeds": (0,),
        "half": "hold",
        "cold_start": True,
        "model": Path("m"),
        "ablations": True,
        "models": Path("v"),
    }


@pytest.mark.parametrize(("option", "seeds"), [("3", (0, 1, 2)), ("0,5", (0, 5)), ("1", (0,))])
def test_seeds_are_named_or_counted(command: Command, handed: Handed, option: str, seeds: tuple[int, ...]) -> None:
    seen = handed("anomalyd.evaluation.evaluate", "run", 0)

    assert command("evaluate", "kpi", "--data", "d", "--seeds", option).code == 0
    assert seen["seeds"] == seeds
    assert command("evaluate", "kpi", "--data", "d", "--seed", 4).code == 0
    assert seen["seeds"] == (4,)


@pytest.mark.parametrize("option", ["", "0", "a", "1,1", "-1,2", "1,"])
def test_seeds_that_are_none_are_2(command: Command, option: str) -> None:
    result = command("evaluate", "kpi", "--data", "d", f"--seeds={option}")

    assert result.code == 2
    assert "must be different whole numbers" in result.err


def test_explain_hands_over_its_options(command: Command, good: Path, handed: Handed) -> None:
    seen = handed("anomalyd.evaluation.explain.command", "run", 0)
    where = ["--series", "k", "--topic", "metrics", "--partition", 3]
    options = ["--at", "2026-01-01", "--row", 7, *where, "--report", "r.html", "--json", "--format", "influx", "--no-fit"]

    assert command("explain", "a.csv", "-c", good, *options).code == 0
    assert seen == {
        "positional": (),
        "path": Path("a.csv"),
        "settings": load(good),
        "series": "k",
        "at": "2026-01-01",
        "row": 7,
        "topic": "metrics",
        "partition": 3,
        "report": Path("r.html"),
        "json_output": True,
        "format": "influx",
        "no_fit": True,
    }
    assert command("explain", "a.csv").code == 0
    assert (seen["settings"], seen["series"], seen["at"], seen["row"]) == (None, None, None, None)


def test_train_hands_over_its_options(command: Command, handed: Handed) -> None:
    seen = handed("anomalyd.training.train", "run", 0)

    options = ("--units", 50, "--layers", 2, "--epochs", 3, "--noise", 0.1, "--from", "shipped", "--holdout", 0, "--report", "r.html")
    assert command("train", "a.csv", "b", "--out", "o", "--seed", 7, *options).code == 0
    source, out, seed, wanted = seen["positional"]
    assert (source.paths, out, seed, seen["report"]) == ([Path("a.csv"), Path("b")], Path("o"), 7, Path("r.html"))
    assert (wanted.units, wanted.layers, wanted.latent, wanted.epochs) == (50, 2, None, 3)
    assert (wanted.begin, wanted.held_back, wanted.plan) == ("shipped", 0.0, {"input_noise": 0.1})

    assert command("train", "a.csv", "--out", "o", "--epochs", 3, "--steps", 3).code == 2
    assert command("train", "a.csv", "--out", "o", "--loss", "l1").code == 2
    assert command("train", "--out", "o").code == 2


def test_pretrain_hands_over_its_options(command: Command, handed: Handed) -> None:
    seen = handed("anomalyd.training.pretrain", "run", 0)

    assert command("pretrain", "--out", "o", "--seed", 7).code == 0
    assert (seen["out"], seen["seed"]) == (Path("o"), 7)


@pytest.mark.parametrize("name", ["plan", "create"])
@pytest.mark.parametrize("code", [0, 1])
def test_topics_return_the_code_of_what_they_found(command: Command, good: Path, handed: Handed, name: str, code: int) -> None:
    seen = handed("anomalyd.kafka.topics", name, code)

    assert command("topics", name, "-c", good).code == code
    assert seen["positional"] == (load(good),)


@pytest.mark.parametrize("name", ["inspect", "verify"])
@pytest.mark.parametrize("code", [0, 1])
def test_looking_at_state_hands_over_what_to_look_at(command: Command, good: Path, handed: Handed, name: str, code: int) -> None:
    seen = handed("anomalyd.state_commands", name, code)

    assert command("state", name, "-c", good, "--topic", "metrics", "--partition", 3, "--json").code == code
    assert seen == {"positional": (load(good),), "topic": "metrics", "partition": 3, "json_output": True}
    assert command("state", name, "-c", good).code == code
    assert (seen["topic"], seen["partition"], seen["json_output"]) == (None, None, False)


@pytest.mark.parametrize("code", [0, 1])
def test_restarting_state_hands_over_whether_to_do_it(command: Command, good: Path, handed: Handed, code: int) -> None:
    seen = handed("anomalyd.state_restart", "restart", code)

    assert command("state", "restart", "-c", good, "--topic", "metrics", "--yes").code == code
    assert seen == {"positional": (load(good),), "topic": "metrics", "yes": True}
    assert command("state", "restart", "-c", good).code == code
    assert (seen["topic"], seen["yes"]) == (None, False)


# --- failing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [(KafkaUnavailableError("no broker answers"), 1), (ArtifactError("damaged"), 1), (ConfigError("http.port: taken"), 2)],
)
def test_failure_on_purpose_is_its_message_and_its_code(
    command: Command, good: Path, handed: Handed, error: AnomalydError, code: int
) -> None:
    handed("anomalyd.app", "run", error)

    assert command("run", "-c", good) == Result(code, "", f"anomalyd: {error}\n")


def test_interrupt_is_quiet(command: Command, handed: Handed) -> None:
    handed("anomalyd.demo.main", "run", KeyboardInterrupt())
    result = command("demo")

    assert result.code == 130
    assert "Traceback" not in result.err


@pytest.mark.parametrize(("name", "where"), [("train", "at step 29 of 4,000"), ("tune", "")])
def test_an_interrupted_training_says_where_and_what_is_lost(command: Command, handed: Handed, name: str, where: str) -> None:
    handed(f"anomalyd.training.{name}", "run", KeyboardInterrupt(*([where] if where else [])))
    result = command(name, "a.csv", "--out", "o")

    assert result.code == 130
    assert re.fullmatch(rf"anomalyd: interrupted{f' {where}' * bool(where)}; (nothing|no model) was saved.*\n", result.err)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["backtest", "none.csv"], 2, "none.csv: no such file or directory"),
        (["explain", "none.csv"], 2, "none.csv: no such file or directory"),
        (["train", "none.csv", "--out", "o"], 2, "none.csv: no such file or directory"),
        (["backtest", "bad.csv"], 1, "bad.csv, line 1: the header must have a column timestamp"),
        (["explain", "short.csv", "--at", "yesterday"], 2, "--at: got 'yesterday', must be ISO 8601"),
        (["train", "short.csv", "--out", "o"], 1, "short.csv: has 2 rows, a model needs 256"),
        (["train", "short.csv", "--out", "bad.csv"], 2, "--out bad.csv: is a file, must be a folder"),
        (["train", "short.csv", "--out", "."], 2, "--out .: holds other files: bad.csv, short.csv; give a new or an empty folder"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_heavy_is_imported(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("time,value\n1,2\n")
    Path("short.csv").write_text("timestamp,value\n1,2\n2,3\n")
    for module in (
        "anomalyd.evaluation.backtest",
        "anomalyd.evaluation.explain.command",
        "anomalyd.training.train",
        "anomalyd.training.sources",
    ):
        monkeypatch.setitem(sys.modules, module, None)
    result = command(*arguments)

    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert not Path("o").exists()


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_who_forgets_where_to_publish_is_told_what_for(command: Command, verb: str) -> None:
    result = command("models", verb, *NEEDED[f"models {verb}"])

    assert result.code == 2
    assert f"models {verb} publishes to Kafka, so it needs -c CONFIG" in result.err


def test_fault_of_our_own_shows_a_traceback(handed: Handed) -> None:
    handed("anomalyd.demo.main", "run", ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        main(["demo"])
