"""Cron expressions against their own definition, what is written of them, and files that are only ever ours."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.cli import main
from retina_runner.documents import parse_document, to_yaml
from retina_runner.errors import UsageError
from retina_runner.schedule import Schedule, crontab, installed, systemd
from retina_runner.schedule.cron import Cron, parse_cron
from retina_runner.schedule.kubernetes import cron_job

SELECTION = {"namespace": "shop", "pods": {"app": "web"}}


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    """One field, every form of it."""
    number = st.integers(low, high)
    ranges = st.tuples(number, number).map(sorted).map(lambda r: f"{r[0]}-{r[1]}")
    stepped = st.tuples(ranges, st.integers(1, high)).map(lambda r: f"{r[0]}/{r[1]}")
    part = st.one_of(number.map(str), ranges, stepped)
    several = st.lists(part, min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), st.integers(1, high).map(lambda n: f"*/{n}"), several)


def expressions() -> st.SearchStrategy[str]:
    """Expressions that all schedulers understand alike."""

    def alike(words: tuple[str, ...]) -> bool:
        try:
            parse_cron(" ".join(words))
        except ValueError as error:
            return not any(w in str(error) for w in ("means one thing", "never comes"))
        return True

    whole = st.tuples(fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 7))
    return whole.filter(alike).map(" ".join)


def expanded(field: str, low: int, high: int) -> set[int]:
    """The field by crontab(5), written another way than the code: every value is asked whether it is meant."""
    meant = set()
    for value in range(low, high + 1):
        for part in field.split(","):
            span, _, step = part.partition("/")
            first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
            if int(first) <= value <= int(last or first) and (value - int(first)) % int(step or 1) == 0:
                meant.add(value)
    return meant


@given(expressions(), st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2028, 12, 31)))
def test_an_expression_means_what_crontab_5_says(text: str, when: datetime.datetime) -> None:
    minute, hour, day, month, weekday = text.split()
    by_day = when.day in expanded(day, 1, 31)
    by_weekday = when.isoweekday() % 7 in {d % 7 for d in expanded(weekday, 0, 7)}
    stars = day.startswith("*"), weekday.startswith("*")
    expected = (
        when.minute in expanded(minute, 0, 59)
        and when.hour in expanded(hour, 0, 23)
        and when.month in expanded(month, 1, 12)
        and ((by_day and by_weekday) if any(stars) else (by_day or by_weekday))
    )
    assert parse_cron(text).matches(when) is expected


@given(expressions())
def test_what_is_written_is_read_back_the_same(text: str) -> None:
    assert parse_cron(parse_cron(text).text) == parse_cron(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("* * * *", "has 4 fields"),
        ("60 * * * *", "from 0 to 59"),
        ("5/15 * * * *", "5-59/15"),
        ("*/0 * * * *", "a step is from 1"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 */2 * 1", "another to Kubernetes"),
        ("@reboot", "no time that all schedulers know"),
        ("0 0 5-1 * *", "ends before it begins"),
        ("0 0 * foo *", "jan … dec"),
    ],
)
def test_what_schedulers_would_understand_differently_or_not_at_all_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        parse_cron(text)
    assert said in str(refused.value)


def schedule(**other: Any) -> Schedule:
    known: dict[str, Any] = {
        "name": "night.ly", "summary": "50 % of $it", "cron": parse_cron("@daily"), "timezone": "UTC",
        "program": "/opt/my tools/retina-run", "runbook": "/etc/retina run/night.ly.yaml",
        "arguments": ("-e", "share=50%"), "folder": "/var/lib/retina-run-night-ly", "jitter_s": 90.0, "deadline_s": 1800.0,
    }  # fmt: skip
    return Schedule(**{**known, **other})


def test_cron_gets_a_name_it_reads_and_no_bare_percent() -> None:
    text = crontab(schedule())
    assert "." not in schedule().unit
    line = text.splitlines()[-1]
    assert line.startswith("0 0 * * * root ")
    assert "share=50\\%" in line
    assert "--jitter 90s --deadline 1800s" in line


def test_systemd_spreads_by_itself_and_takes_words_as_they_are() -> None:
    text = systemd.service(schedule())
    assert '"/opt/my tools/retina-run" run --quiet-ok --lock' in text
    assert "share=50%%" in text
    assert "--jitter" not in text
    assert "Description=retina-run night.ly: 50 %% of $it" in text
    assert "RandomizedDelaySec=90s" in systemd.timer(schedule())


OUTSIDE = """name: night
duration: 2s
captures: [{nodes: %s, collect: [tcpdump]}]
metrics: {textfile: /srv/textfile}
upload:
  - directory: /srv/my evidence
  - host_path: {path: incidents}
  - s3: {bucket: captures, credential: "env:S3_KEYS", proxy: "env:STORE_PROXY"}
  - azure_blob: {container_url: "https://a.blob.core.windows.net/c", credential: "file:/run/secrets/sas"}
"""


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert main(["schedule", *words]) == 0
    return capsys.readouterr()


def test_a_service_may_write_where_its_runbook_says_and_has_its_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = tmp_path / "night.yaml"
    book.write_text(OUTSIDE % "local")
    unit, said = printed(capsys, str(book), "--on", "@daily")
    lines = unit.splitlines()
    assert 'ReadWritePaths=-/var/tmp "-/srv/my evidence" -/var/lib/retina-run/archives -/srv/textfile' in lines
    # The textfile folder is node_exporter's: one that isn't there is a mistake.
    assert 'ExecStartPre=-+/bin/mkdir -p -- "/srv/my evidence" /var/lib/retina-run/archives' in lines
    assert "EnvironmentFile=-/etc/retina-run/night.env" in lines
    assert "TasksMax=512" in lines
    assert said == (
        f"retina-run: {book}: its secrets (S3_KEYS, STORE_PROXY) are to be lines NAME='value' of "
        "/etc/retina-run/night.env, which only root may read\n"
    )
    text, _ = printed(capsys, str(book), "--on", "@daily", "--as", "cron")
    assert (
        "root if [ -r /etc/retina-run/night.env ]; then set -a; . /etc/retina-run/night.env; set +a; fi; mkdir -p"
        in text
    )
    # A thread or two a node: a fleet is more than one machine's few processes. Its inventory may name secrets, too.
    book.write_text(OUTSIDE.partition("upload")[0] % "{inventory: 'web1,web2'}")
    unit, said = printed(capsys, str(book), "--on", "@daily")
    assert "TasksMax=32768" in unit
    assert "EnvironmentFile=-/etc/retina-run/night.env" in unit
    assert "mkdir" not in unit
    assert said == ""
    book.write_text("name: night\nduration: 2s\ncaptures: [{nodes: local, collect: [tcpdump]}]\n")
    assert "EnvironmentFile" not in printed(capsys, str(book), "--on", "@daily")[0]


def test_a_cron_job_has_its_secrets_from_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "night.yaml"
    book.write_text((OUTSIDE % "{kubernetes: {nodes: all, image: i}}").replace("  - directory: /srv/my evidence\n", ""))
    text, said = printed(capsys, str(book), "--on", "@daily", "--as", "cronjob", "--image", "r", "--namespace", "ops")
    (job,) = [o for t in text.split("---\n")[1:] if (o := parse_document(t.encode(), "x").value)["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert {
        "name": "S3_KEYS",
        "valueFrom": {"secretKeyRef": {"name": "retina-run-night", "key": "S3_KEYS", "optional": True}},
    } in container["env"]
    assert "its secrets (S3_KEYS, STORE_PROXY) are to be keys of a Secret retina-run-night in the namespace ops" in said
    assert "not in the pod, unless you mount it there: file:/run/secrets/sas" in said


def test_a_cron_job_is_yaml_with_the_runbook_inside_and_rights_where_they_are_needed() -> None:
    runbook = "name: x\nvars:\n  a: 'b # c'\n"
    objects = cron_job(schedule(folder="/work"), runbook, [SELECTION], "ops", "example/retina-run:1", "")
    read = [parse_document(t.encode(), "x").value for t in to_yaml(objects).split("---\n")[1:]]
    assert read == objects
    by_kind: dict[str, dict[str, Any]] = {o["kind"]: o for o in objects}
    assert by_kind["ConfigMap"]["data"]["runbook.yaml"] == runbook
    assert by_kind["Role"]["metadata"]["namespace"] == "shop"
    assert by_kind["ClusterRole"]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}]
    rights = [r for o in objects for r in o.get("rules", ())]
    assert not any(
        "*" in (*r["resources"], *r["verbs"], *r["apiGroups"]) or "secrets" in r["resources"] for r in rights
    )
    assert by_kind["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"


def test_only_our_own_files_are_replaced_listed_or_removed(tmp_path: Path) -> None:
    files = {f"{installed.CRON}/{schedule().unit}": crontab(schedule())}
    theirs = tmp_path / installed.CRON / schedule().unit
    theirs.parent.mkdir(parents=True)
    theirs.write_text("0 0 * * * root /bin/true\n")
    with pytest.raises(UsageError, match="not from `retina-run schedule`"):
        installed.install(tmp_path, files, "")
    assert installed.found(tmp_path) == ()
    assert installed.remove(tmp_path, schedule().unit) == ()
    assert theirs.read_text() == "0 0 * * * root /bin/true\n"
    theirs.unlink()
    for _ in range(2):
        assert installed.install(tmp_path, files, "") == (theirs,)
    (there,) = installed.found(tmp_path)
    assert (there.kind, there.when) == ("cron", "0 0 * * *")
    assert installed.remove(tmp_path, schedule().unit) == (theirs,)
    assert list(theirs.parent.iterdir()) == []


def test_a_day_of_the_month_or_of_the_week_is_two_events_of_systemd() -> None:
    cron = parse_cron("30 3 1,15 * fri-7")
    assert cron == Cron((30,), (3,), (1, 15), tuple(range(1, 13)), (0, 5, 6))
    assert cron.on_calendar("UTC") == ("*-*-01,15 03:30:00 UTC", "Sun,Fri,Sat *-*-* 03:30:00 UTC")


KUBERNETES = "name: x\nduration: 1s\ncaptures:\n  - nodes: {kubernetes: {nodes: all%s}}\n    collect: [%s]\n"


@pytest.mark.parametrize(
    ("more", "collect", "words", "said"),
    [
        ("", "tcpdump", (), "name the image of its Jobs"),
        (", image: i", "tcpdump", ("-e", "@vars.yaml"), "isn't in the pod; give its values"),
        (", image: i, context: other", "tcpdump", (), "in a pod there is its own cluster only"),
        (", image: i", "{ebpf: {files: [./plugins/connects.c]}}", (), "isn't in the pod"),
    ],
)
def test_what_a_pod_would_not_have_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: str, collect: str, words: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("RETINA_RUN_NODE_IMAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vars.yaml").write_text("{}\n")
    shutil.copytree(Path(__file__).parents[2] / "runbooks" / "plugins", tmp_path / "plugins")
    (tmp_path / "x.yaml").write_text(KUBERNETES % (more, collect))
    status = main(["schedule", "x.yaml", "--as", "cronjob", "--on", "@daily", "--image", "runner", *words])
    assert status == 2
    assert said in capsys.readouterr().err


def test_a_cron_job_carries_the_image_of_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETINA_RUN_NODE_IMAGE", "registry.example/node:7")
    (tmp_path / "x.yaml").write_text(KUBERNETES % ("", "tcpdump"))
    words = ["schedule", str(tmp_path / "x.yaml"), "--as", "cronjob", "--on", "@daily", "--image", "runner"]
    assert main(words) == 0
    made = [parse_document(text.encode(), "x").value for text in capsys.readouterr().out.split("---\n")[1:]]
    (job,) = [d for d in made if d["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "RETINA_RUN_NODE_IMAGE", "value": "registry.example/node:7"} in container["env"]
