"""What stands in launch/: short, clean by shellcheck, and a manifest with the fields of its API."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
OURS = ("local.sh", "slurm.sbatch", "tpu_pod.sh", "gke_jobset.yaml")
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# the [test] extra puts it beside this Python, on PATH only where the environment is activated
PLACES = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
SHELLCHECK = shutil.which("shellcheck", path=PLACES)


@pytest.mark.parametrize("name", OURS)
def test_launchers_are_short(name):
    assert (LAUNCH / name).read_text().count("\n") < 40


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", script], check=True)
    if SHELLCHECK is None:
        pytest.skip("needs shellcheck, of the [test] extra or the system")
    found = subprocess.run(
        [SHELLCHECK, "--external-sources", script],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_help_installs_nothing_and_shows_the_usage(name: str):
    result = subprocess.run(
        ["bash", LAUNCH / name, "--help"], capture_output=True, text=True, check=True
    )
    assert f"bash launch/{name}" in result.stdout and result.stderr == ""
    assert not any(line.startswith("#") for line in result.stdout.splitlines())


def fields(tree: dict, known: str) -> None:
    assert set(tree) <= set(known.split()), tree


def test_the_manifest_has_the_fields_of_jobset_and_job():
    """https://jobset.sigs.k8s.io v1alpha2; batch/v1 Job."""
    it = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (it["apiVersion"], it["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    fields(it["spec"], "failurePolicy replicatedJobs network successPolicy startupPolicy suspend")
    policy = it["spec"]["failurePolicy"]
    fields(policy, "maxRestarts restartStrategy rules")
    for rule in policy["rules"]:
        fields(rule, "name action targetReplicatedJobs onJobFailureReasons")
        assert rule["action"] in {"FailJobSet", "RestartJobSet"}
        assert set(rule["onJobFailureReasons"]) <= {"PodFailurePolicy", "BackoffLimitExceeded"}
    (group,) = it["spec"]["replicatedJobs"]
    fields(group, "name replicas template groupName dependsOn")
    job = group["template"]["spec"]
    fields(job, "parallelism completions backoffLimit podFailurePolicy template")
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy asks for it
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] * chips == x * y


def test_the_manifest_and_the_scripts_call_what_the_command_line_knows():
    from mllm_jax.commands.main import make_parser

    pod = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]["replicatedJobs"][0]
    command = pod["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert make_parser().parse_args(command[1:]).resume == "auto"
    for name in ("local.sh", "slurm.sbatch", "tpu_pod.sh"):
        assert "--resume auto" in (LAUNCH / name).read_text()
