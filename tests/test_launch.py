"""Submitting a sweep. What no machine here has (TPUs, Kubernetes, Google Cloud) is held to schemas, rules, stubs."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

import sd3_jax
from sd3_jax import cli, flops, hardware, platform, records
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.overlays import resolve
from sd3_jax.sweep import launch, slurm
from sd3_jax.sweep.submission import Submission

# When it is imported, submitit configures logging, which closes the handlers of pytest.
os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"

EXPERIMENT = textwrap.dedent(
    """\
    from sd3_jax.config import default_config


    def get_config():
        config = default_config()
        config.steps = 100
        config.optimizer.warmup_steps = 10
        return config
    """
)
SWEEP = "experiment: my exp.py  # $(touch owned) '\"\ncells: [{model.depth: 2, seed: [0, 1, 2, 3]}]\n"
FILE = "my sweep's $HOME.yaml"  # a name to be quoted everywhere
TPU = ("--hardware", "v5p-128", "--image", "registry/project/sd3:1")
JOBSET = ("--launcher", "jobset", *TPU, "--volume", "claim")
TPU_VM = ("--launcher", "tpu-vm", *TPU, "--volume", "10.0.0.2:/sd3", "--project", "p-1", "--zone", "us-east5-a")


@pytest.fixture(autouse=True)
def sigterm():
    """What a task does with SIGTERM does not outlive its test."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty directory with a sweep in it, as the working directory."""
    folder = tmp_path / "my work"
    folder.mkdir()
    (folder / "my exp.py").write_text(EXPERIMENT)
    (folder / FILE).write_text(SWEEP)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def sd3(work, capsys, monkeypatch):
    """Run the command line in this process: (status, standard output, standard error)."""
    monkeypatch.setattr(platform, "prepare", lambda *_: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A directory that is first on PATH, and how to put a program there that writes down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    calls = tmp_path / "calls.jsonl"

    def add(name: str, body: str = "") -> None:
        program = folder / name
        head = f"#!{sys.executable}\nimport json, os, sys\nargv = sys.argv[1:]\n"
        note = f"with open({str(calls)!r}, 'a') as file:\n    file.write(json.dumps([{name!r}, *argv]) + '\\n')\n"
        program.write_text(head + note + textwrap.dedent(body))
        program.chmod(0o755)

    def called() -> list[list[str]]:
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    add.called = called
    return add


# --- hardware -------------------------------------------------------------------------------------------------------

# name: (chips, hosts, chips of a host, topology, GKE's accelerator), as xpk 1.16.0 writes them into its JobSets.
GOLDEN = {
    "v5p-8": (4, 1, 4, "2x2x1", "tpu-v5p-slice"),
    "v5p-128": (64, 16, 4, "4x4x4", "tpu-v5p-slice"),
    "v5p-256": (128, 32, 4, "4x4x8", "tpu-v5p-slice"),
    "v6e-16": (16, 4, 4, "4x4", "tpu-v6e-slice"),
    "v6e-256": (256, 64, 4, "16x16", "tpu-v6e-slice"),
    "v5e-16": (16, 4, 4, "4x4", "tpu-v5-lite-podslice"),
    "v5e-256": (256, 64, 4, "16x16", "tpu-v5-lite-podslice"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_slices_are_what_xpk_makes_of_their_names(name):
    found = hardware.find(name)
    assert (found.chips, found.hosts, found.chips_per_host, found.topology, found.gke_accelerator) == GOLDEN[name]


@pytest.mark.parametrize("name", hardware.HARDWARE)
def test_all_hardware_is_consistent_and_has_a_peak(name):
    found = hardware.HARDWARE[name]
    assert hardware.find(name.upper()) == found
    assert found.device_kind in flops.PEAK_FLOPS
    assert found.hosts * found.chips_per_host == found.chips
    assert found.hbm_bytes >= 16e9
    if found.topology:
        assert math.prod(map(int, found.topology.split("x"))) == found.chips
        assert found.accelerator_type
        assert found.runtime_version
        assert found.gke_accelerator


@pytest.mark.parametrize(
    "name, nearest",
    [("v5p-100", "v5p-128"), ("v6e-255", "v6e-256"), ("h100", "h100x1"), ("h100x12", "h100x16"), ("v9-8", "v4-8")],
)
def test_unknown_hardware_names_its_neighbours(name, nearest):
    with pytest.raises(UserError, match=rf"^--hardware: '{name}' is not known; nearest: .*{nearest}\b"):
        hardware.find(name)


def test_gcloud_s_own_name_of_a_v5e_is_understood():
    assert hardware.find("v5litepod-16") == hardware.find("v5e-16")
    assert hardware.find("v5e-16").accelerator_type == "v5litepod-16"


# --- JobSet ---------------------------------------------------------------------------------------------------------


def manifests(out: str) -> list[dict]:
    return list(yaml.safe_load_all(out))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_jobset_asks_for_the_hosts_and_chips_of_its_slice(sd3, name):
    code, out, err = sd3("sweep", "submit", "figure8", *JOBSET, "--hardware", name, "--queue", "tpu-q", "--dry-run")
    assert (code, err) == (0, "")
    (document,) = manifests(out)
    chips, hosts, limit, topology, accelerator = GOLDEN[name]
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert hosts * container["resources"]["limits"]["google.com/tpu"] == chips
    assert container["resources"]["limits"] == {"google.com/tpu": limit}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert document["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpu-q"}
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert document["metadata"].get("annotations") == (exclusive if hosts > 1 else None)
    assert container["command"] == ["sd3-jax", "sweep", "run", "figure8", "--runs", "/runs/figure8"]
    assert container["image"] == "registry/project/sd3:1"
    assert container.get("env") == ([{"name": "SD3_JAX_HOSTS", "value": str(hosts)}] if hosts > 1 else None)
    check_jobset(document)


def check_jobset(document: dict) -> None:
    """What JobSet's schema and webhooks would refuse, and what they would let pass and do wrong."""
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name = document["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    hosts = document["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"]
    assert len(f"{name}-slice-0-{hosts}-abcde") <= 63  # the name of its longest pod
    assert "null" not in yaml.safe_dump(document)
    policy = document["spec"]["failurePolicy"]
    assert policy["maxRestarts"] >= 0
    for rule in policy["rules"]:
        assert set(rule) == {"name", "action", "onJobFailureReasons"}
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
    (replicated,) = document["spec"]["replicatedJobs"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", replicated["name"])
    assert replicated["replicas"] == 1
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    names = {container["name"] for container in pod["containers"]}
    for rule in job["podFailurePolicy"]["rules"]:
        exits = rule["onExitCodes"]
        assert rule["action"] == "FailJob"
        assert exits["containerName"] in names
        assert exits["operator"] == "In"
        assert 0 not in exits["values"]
        assert exits["values"] == sorted(set(exits["values"]))
    mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("options", [(), ("--spot",), ("--count", "3", "--queue", "q", "--workers", "2")])
def test_jobsets_pass_the_schema_without_a_field_that_it_does_not_know(sd3, options):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    code, out, _ = sd3("sweep", "submit", FILE, *JOBSET, *options, "--dry-run")
    assert code == 0
    for document in manifests(out)[1:]:
        known = models.JobsetV1alpha2JobSet.from_dict(document).to_dict()
        assert_kept(document, known)


def assert_kept(ours: object, theirs: object, where: str = "") -> None:
    """The models drop what they do not know: what is ours must be theirs too."""
    if isinstance(ours, dict):
        assert isinstance(theirs, dict), where
        for key, value in ours.items():
            assert key in theirs, f"{where}.{key}"
            assert_kept(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert isinstance(theirs, list), where
        assert len(ours) == len(theirs), where
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_kept(mine, other, f"{where}[{number}]")
    else:
        assert ours == theirs or str(ours) == str(theirs), where


def fate(document: dict, status: int) -> str:
    """What JobSet does when a worker exits so: its rules and those of Job, as their documentation has them."""
    if status == 0:
        return "complete"
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        if rule["action"] == "FailJob" and status in rule["onExitCodes"]["values"]:
            reason = "PodFailurePolicy"
    for rule in document["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_a_worker_s_exit_status_decides_whether_its_jobset_restarts(sd3):
    _, out, _ = sd3("sweep", "submit", "figure8", *JOBSET, "--restarts", "7", "--dry-run")
    (document,) = manifests(out)
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert fate(document, 0) == "complete"
    assert {fate(document, status) for status in (1, 2)} == {"FailJobSet"}  # a failed cell, bad input
    # Preempted, lost its lease, killed, out of memory, terminated.
    assert {fate(document, status) for status in (42, 75, 134, 137, 143)} == {"RestartJobSet"}


def test_workers_are_jobsets_of_their_own_with_the_sweep_s_files_verbatim(sd3, work):
    code, out, _ = sd3("sweep", "submit", FILE, *JOBSET, "--count", "3", "--workers", "2", "--dry-run")
    assert code == 0
    kept, *documents = manifests(out)
    assert kept["kind"] == "ConfigMap"
    assert kept["data"] == {"file-0": SWEEP, "file-1": EXPERIMENT}
    assert all(re.fullmatch("[-._a-zA-Z0-9]+", key) for key in kept["data"])
    assert [document["metadata"]["name"] for document in documents] == [f"my-sweep-s-home-{i}" for i in range(3)]
    assert "&id" not in out
    for document in documents:
        check_jobset(document)
        pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["runs"] == {"name": "runs", "persistentVolumeClaim": {"claimName": "claim"}}
        config_map = volumes["sweep"]["configMap"]
        assert config_map["name"] == kept["metadata"]["name"]
        placed = {item["path"]: kept["data"][item["key"]] for item in config_map["items"]}
        assert placed == {FILE: SWEEP, "my exp.py": EXPERIMENT}
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["command"][3] == f"{mounts['sweep']}/{FILE}"
        assert container["command"][4:] == ["--runs", f"{mounts['runs']}/{Path(FILE).stem}", "--workers", "2"]


def test_workers_without_a_volume_run_parts_of_a_sweep_whose_cells_live_in_a_bucket(sd3, work):
    (work / FILE).write_text(SWEEP + "set: {checkpoint_root: gs://bucket/sweep}\n")
    code, out, _ = sd3("sweep", "submit", FILE, *without(JOBSET, "--volume"), "--count", "2", "--dry-run")
    assert code == 0
    _, *documents = manifests(out)
    for number, document in enumerate(documents, 1):
        check_jobset(document)
        pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert {"name": "runs", "emptyDir": {}} in pod["volumes"]
        assert pod["containers"][0]["command"][-2:] == ["--cells", f"{number}/2"]
    code, out, _ = sd3("sweep", "submit", FILE, *without(TPU_VM, "--volume"), "--count", "2", "--dry-run")
    assert code == 0
    assert "--cells 1/2" in out
    assert "--cells 2/2" in out


def test_kubectl_gets_the_manifest_that_the_dry_run_prints(sd3, stubs, tmp_path):
    stubs("kubectl", f"open({str(tmp_path / 'applied.yaml')!r}, 'w').write(sys.stdin.read()); print('created')")
    _, printed, _ = sd3("sweep", "submit", FILE, *JOBSET, "--dry-run")
    assert sd3("sweep", "submit", FILE, *JOBSET) == (0, "created\n", "")
    assert stubs.called() == [["kubectl", "apply", "-f", "-"]]
    assert (tmp_path / "applied.yaml").read_text() == printed
    stubs("kubectl", "sys.exit('error: no matches for kind JobSet')")
    code, out, err = sd3("sweep", "submit", FILE, *JOBSET)
    assert (code, out, err) == (1, "", "sd3-jax: error: kubectl apply: error: no matches for kind JobSet\n")


# --- TPU VMs --------------------------------------------------------------------------------------------------------

GCLOUD = """
if "describe" in argv:
    if not os.path.exists("requested-" + argv[4]):
        sys.exit(1)
    print(open("requested-" + argv[4]).read())
if "create" in argv:
    open("requested-" + argv[4], "w").write("ACTIVE")
"""


def test_a_tpu_vm_is_requested_once_and_every_host_runs_the_same_command(sd3, stubs, work, tmp_path):
    stubs("gcloud", GCLOUD)
    arguments = ("sweep", "submit", FILE, *TPU_VM, "--count", "2", "--spot")
    _, script, _ = sd3(*arguments, "--dry-run")
    subprocess.run(["bash", "-n", "-c", script], check=True)
    assert sd3(*arguments)[0] == 0
    calls = [call[1:] for call in stubs.called()]
    assert all({"--project=p-1", "--zone=us-east5-a"} <= set(call) for call in calls)
    created = [call for call in calls if "create" in call]
    assert [call[4] for call in created] == ["my-sweep-s-home-0", "my-sweep-s-home-1"]
    assert all({"--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= set(c) for c in created)
    copied = [call for call in calls if "scp" in call]
    assert sorted(call[4:7] for call in copied) == [
        [str(work / FILE), str(work / "my exp.py"), f"my-sweep-s-home-{i}:my-sweep-s-home-{i}/"] for i in range(2)
    ]
    assert all("--worker=all" in call for call in calls if "tpu-vm" in call)

    remote = [word.removeprefix("--command=") for call in calls for word in call if "docker run" in word]
    assert len(remote) == 2
    stubs("sudo", "sys.exit(argv[:2] == ['docker', 'start'])")
    subprocess.run(["bash", "-c", min(remote)], check=True, env={**os.environ, "HOME": "/home/of the host"})
    docker = stubs.called()[-1][1:]
    assert "/home/of the host/my-sweep-s-home-0:/sweep:ro" in docker
    run = docker[docker.index("registry/project/sd3:1") + 1 :]
    assert run == ["sd3-jax", "sweep", "run", f"/sweep/{FILE}", "--runs", f"/runs/{Path(FILE).stem}"]
    assert docker[docker.index("--env") :][:2] == ["--env", "SD3_JAX_HOSTS=16"]
    assert "--restart=on-failure:20" in docker

    assert sd3(*arguments)[0] == 0  # again: nothing is requested twice
    assert len([call for call in stubs.called() if "create" in call]) == 2
    assert not (work / "owned").exists()


def test_a_queued_resource_that_failed_is_said(stubs, work, capfd):
    stubs("gcloud", GCLOUD)
    (work / "requested-figure8-0").write_text("SUSPENDED")
    place = {"volume": "10.0.0.2:/sd3", "project": "p-1", "zone": "us-east5-a"}
    with pytest.raises(RunFailed, match="a command of gcloud failed"):
        launch.submit(Submission("figure8", "tpu-vm", hardware="v5p-128", image="i:1", **place))
    assert "figure8-0 is SUSPENDED: delete the queued resource and submit again" in capfd.readouterr().err
    assert not any("ssh" in call for call in stubs.called())


def test_tpu_vms_without_a_shared_directory_take_their_parts_of_the_cells(sd3):
    place = ("--project", "p-1", "--zone", "us-east5-a", "--image", "i:1")
    arguments = ("--launcher", "tpu-vm", "--hardware", "v6e-8", *place, "--count", "3", "--dry-run")
    code, out, _ = sd3("sweep", "submit", FILE, *arguments)
    assert code == 0
    assert re.findall(r"--cells (\S+)'", out.replace("'\"'\"'", "")) == ["1/3", "2/3", "3/3"]
    assert "--volume /runs:/runs" in out
    assert "SD3_JAX_HOSTS" not in out


# --- Slurm ----------------------------------------------------------------------------------------------------------

SLURM_OPTIONS = {
    "plain": (),
    "array": ("--count", "4"),
    "gpus": ("--hardware", "h100x16", "--partition", "gpu", "--count", "2"),
    "all": (
        *("--partition", "my part", "--account", "a", "--qos", "q", "--time", "2-12", "--cpus", "8", "--gpus", "4"),
        *(
            "--nodes",
            "3",
            "--sbatch",
            "mem=64G",
            "--sbatch",
            "exclusive",
            "--sbatch",
            "mail-type=END",
            "--workers",
            "4",
        ),
    ),
}


@pytest.mark.parametrize("options", SLURM_OPTIONS.values(), ids=SLURM_OPTIONS)
def test_submitit_submits_the_script_that_the_dry_run_prints(sd3, stubs, work, options):
    submitit = pytest.importorskip("submitit", reason="needs submitit")
    stubs("sbatch", "print('Submitted batch job 7')")
    stubs("srun")
    code, printed, err = sd3("sweep", "submit", FILE, "--launcher", "slurm", *options, "--dry-run")
    assert (code, err) == (0, "")
    assert stubs.called() == []
    code, out, err = sd3("sweep", "submit", FILE, "--launcher", "slurm", *options)
    assert (code, err) == (0, "")
    assert out.startswith("submitted 7_0, 7_1" if "--count" in options else "submitted 7;")
    folder = work / "runs" / Path(FILE).stem / ".submit"
    script, _, comment = printed.rpartition("\n\n")
    assert (folder / "7_submission.sh").read_text() == f"{script}\n"
    for pickle in folder.glob("7*_submitted.pkl"):
        worker = submitit.core.utils.DelayedSubmission.load(pickle).function
        assert isinstance(worker, slurm.Worker)
        assert shlex.join(worker.argv) == comment.partition(" runs: ")[2].rstrip("\n")
        assert worker.argv[3:7] == ["sweep", "run", str(work / FILE), "--runs"]
    assert len(list(folder.glob("7*_submitted.pkl"))) == (int(options[-1]) if "--count" in options else 1)


def test_what_is_asked_of_slurm(sd3):
    _, out, _ = sd3("sweep", "submit", FILE, "--launcher", "slurm", *SLURM_OPTIONS["gpus"], "--dry-run")
    flags = dict(re.findall(r"#SBATCH --([a-z-]+)(?:=(.*))?", out))
    assert flags["nodes"] == "2"
    assert flags["ntasks-per-node"] == "1"
    assert flags["gpus-per-node"] == "8"
    assert flags["array"] == "0-1%2"
    assert flags["requeue"] == ""
    assert flags["signal"] == "TERM@120"
    assert flags["open-mode"] == "append"
    assert "export SD3_JAX_HOSTS=2" in out


def test_what_sbatch_refuses_is_one_line(sd3, stubs):
    pytest.importorskip("submitit", reason="needs submitit")
    stubs("srun")
    stubs("sbatch", "sys.exit('sbatch: error: invalid partition specified: gpu\\nsbatch: error: Batch job failed')")
    code, out, err = sd3("sweep", "submit", FILE, "--launcher", "slurm")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"sd3-jax: error: sbatch: [^\n]*\n", err)


def test_a_task_ends_with_its_command_and_outlives_one_that_was_stopped(stubs, sigterm, monkeypatch):
    assert slurm.Worker(["true"])() == 0
    with pytest.raises(RunFailed, match="exit status 3: sh -c 'exit 3'"):
        slurm.Worker(["sh", "-c", "exit 3"])()
    stubs("scontrol", "print('JobId=17 ArrayJobId=17\\n   JobState=RUNNING Reason=None')")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    slept: list[float] = []
    sleep = slurm.time.sleep
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: (slept.append(seconds), sleep(min(seconds, 0.01))))

    def stopped(script: str, rank: str = "0") -> bool:
        """Whether the task then waited for its end."""
        slept.clear()
        signal.signal(signal.SIGTERM, sigterm)
        monkeypatch.setenv("SLURM_PROCID", rank)
        with pytest.raises(RunFailed, match="and not requeued"):
            slurm.Worker(["sh", "-c", script])()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        return slept[-1] >= 600

    assert all(stopped(script) for script in ("exit 42", "exit 75", "kill -TERM $$"))
    assert stopped("exit 42", rank="1")  # leaves it to rank 0
    assert [call for call in stubs.called() if call[1] == "requeue"] == [["scontrol", "requeue", "17"]] * 3
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert stopped("exit 42")
    assert stubs.called()[-1] == ["scontrol", "requeue", "17_3"]
    stubs("scontrol", "print('JobId=17 ArrayJobId=17\\n   JobState=COMPLETING Reason=None')")  # scancel
    assert not stopped("exit 42")
    assert stubs.called()[-1] == ["scontrol", "show", "job", "17_3"]


def test_a_task_that_is_stopped_waits_until_the_command_has_ended(stubs, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="needs submitit")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    stubs("scontrol", "print('JobState=RUNNING')")
    worker = slurm.Worker(["sh", "-c", f"sleep 0.5; touch {tmp_path}/saved"])
    assert worker.checkpoint().function.argv == worker.argv  # before it has begun
    worker.process = subprocess.Popen(worker.argv)
    again = worker.checkpoint()
    assert (tmp_path / "saved").exists()
    assert (again.function.argv, again.function.process) == (worker.argv, None)
    assert worker.process.wait() == 0
    stubs("scontrol", "print('JobState=CANCELLED')")
    assert worker.checkpoint() is None


# --- here -----------------------------------------------------------------------------------------------------------

WORKER = """\
import json, os, sys, time
from pathlib import Path
starts = Path("starts.jsonl")
with open(starts, "a") as file:
    row = {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0)), "share": os.environ.get("SD3_JAX_CPUS")}
    file.write(json.dumps(row) + "\\n")
mode = sys.argv[1]
if mode == "restart" and len(starts.read_text().splitlines()) < 4:
    sys.exit(42 if len(starts.read_text().splitlines()) < 3 else 75)
while mode == "hang":
    time.sleep(0.02)
sys.exit(1 if mode == "fail" else 0)
"""


@pytest.fixture
def local(work, monkeypatch):
    """Submit to this machine, a stand-in in the place of the worker: its starts."""
    (work / "worker.py").write_text(WORKER)

    def submit(mode: str, **options) -> list[dict]:
        monkeypatch.setattr(launch, "command", lambda submission: [sys.executable, "worker.py", mode])
        launch.submit(Submission(FILE, **options))
        return records.read_rows(work / "starts.jsonl")[0]

    return submit


def test_local_workers_share_the_cores(local):
    cores = platform.cores()
    starts = local("work", count=2)
    assert len(starts) == 2
    assert sorted(core for start in starts for core in start["cores"]) == (cores if len(cores) > 1 else cores * 2)
    assert platform.cores() == cores


def test_a_local_worker_that_asks_for_another_start_gets_it_so_often_as_allowed(local, work):
    assert len(local("restart")) == 4
    (work / "starts.jsonl").unlink()
    with pytest.raises(RunFailed, match=r"1 of 1 workers failed, the first with status 42; see .*worker-0.log"):
        local("restart", restarts=1)


def test_a_local_worker_that_fails_is_said(local):
    with pytest.raises(RunFailed, match="2 of 2 workers failed, the first with status 1"):
        local("fail", count=2)


def test_workers_that_ended_while_others_were_at_work_have_not_failed_if_every_cell_is_done(local, work):
    for seed in range(4):
        run_dir = work / "runs" / Path(FILE).stem / f"d02-s{seed}"
        records.open_run(run_dir, resolve({"steps": 100, "seed": seed, "optimizer.warmup_steps": 10, "model.depth": 2}))
        records.append(run_dir / "lives.jsonl", {})
        records.finish(run_dir, {})
    assert len(local("fail", count=2)) == 2


STOPPED = """\
import sys
from sd3_jax.errors import Stopped
from sd3_jax.sweep import launch
from sd3_jax.sweep.submission import Submission
launch.command = lambda submission: [sys.executable, "worker.py", "hang"]
try:
    launch.submit(Submission(sys.argv[1]))
except Stopped:
    sys.exit(42)
"""


def test_stopping_the_submission_stops_its_workers(work):
    (work / "worker.py").write_text(WORKER)
    process = subprocess.Popen([sys.executable, "-c", STOPPED, FILE])
    try:
        while not (started := records.read_rows(work / "starts.jsonl")[0]):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=60) == 42
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(started[0]["pid"], 0)


# --- all of them ----------------------------------------------------------------------------------------------------

EVERYWHERE = {"local": ("--count", "2"), "slurm": ("--launcher", "slurm"), "jobset": JOBSET, "tpu-vm": TPU_VM}


@pytest.mark.parametrize("options", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_dry_run_needs_no_engine_and_writes_nothing(sd3, work, monkeypatch, options):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setenv("PATH", "/nowhere")
    before = sorted(work.rglob("*"))
    code, out, err = sd3("sweep", "submit", FILE, *options, "--dry-run")
    assert (code, err) == (0, "")
    assert "sweep" in out
    assert sorted(work.rglob("*")) == before
    assert sd3("sweep", "submit", FILE, *options, "--dry-run") == (0, out, "")


def test_a_local_dry_run_prints_commands_that_a_shell_takes_apart_again(sd3, work):
    _, out, _ = sd3("sweep", "submit", FILE, "--runs", "a b", "--count", "2", "--workers", "1", "--dry-run")
    lines = out.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[0])
    assert words[3:] == ["sweep", "run", str(work / FILE), "--runs", str(work / "a b"), "--workers", "1"]


@pytest.mark.parametrize("launcher, program", [("jobset", "kubectl"), ("tpu-vm", "gcloud"), ("slurm", "sbatch")])
def test_a_missing_engine_is_one_line(sd3, monkeypatch, launcher, program):
    if launcher == "slurm":
        pytest.importorskip("submitit", reason="needs submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = sd3("sweep", "submit", FILE, *EVERYWHERE[launcher])
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"sd3-jax: error: --launcher {launcher}: there is no {program} here[^\n]*--dry-run[^\n]*\n", err
    )


def test_missing_submitit_is_one_line(sd3, monkeypatch):
    find = slurm.importlib.util.find_spec
    monkeypatch.setattr(
        slurm.importlib.util, "find_spec", lambda name, *rest: None if name == "submitit" else find(name, *rest)
    )
    code, _, err = sd3("sweep", "submit", FILE, "--launcher", "slurm")
    expected = "sd3-jax: error: --launcher slurm: submitit is not installed: pip install 'sd3_jax[slurm]'\n"
    assert (code, err) == (2, expected)


def without(options: tuple[str, ...], name: str) -> tuple[str, ...]:
    at = options.index(name)
    return options[:at] + options[at + 2 :]


BAD = {
    "launcher": (("--launcher", "ray"), "--launcher: 'ray' is not one of local, slurm, jobset, tpu-vm"),
    "option of another": (("--partition", "gpu"), "--partition: is for --launcher slurm, not for local"),
    "image on slurm": (("--launcher", "slurm", "--image", "i"), "--image: is for --launcher jobset or tpu-vm"),
    "count": (("--count", "9"), "--count: 9 workers have nothing to share: the sweep has 4 cells"),
    "unknown hardware": ((*JOBSET, "--hardware", "v5p-100"), "--hardware: 'v5p-100' is not known; nearest: v5p-128"),
    "no hardware": (without(JOBSET, "--hardware"), "--hardware: is missing"),
    "gpus as a slice": ((*JOBSET, "--hardware", "h100x8"), "--hardware: h100x8 is no TPU"),
    "a slice on slurm": (("--launcher", "slurm", "--hardware", "v5p-8"), "--hardware: v5p-8 is a TPU"),
    "no image": (without(JOBSET, "--image"), "--image: is missing"),
    "no image on a vm": (without(TPU_VM, "--image"), "--image: is missing"),
    "image": ((*JOBSET, "--image", "a b; rm"), "--image: 'a b; rm' is not the name of an image"),
    "no claim": (without(JOBSET, "--volume"), "--volume: is missing"),
    "claim": ((*JOBSET, "--volume", "Not_A_Name"), "--volume: 'Not_A_Name' is not a name of Kubernetes"),
    "queue": ((*JOBSET, "--queue", "a b"), "--queue: 'a b' is not a name of Kubernetes"),
    "hosts share nothing": (without(TPU_VM, "--volume"), "--volume: is missing; the 16 hosts of a v5p-128"),
    "server": ((*TPU_VM, "--volume", "claim"), "--volume: 'claim' is not HOST:/PATH"),
    "no project": (without(TPU_VM, "--project"), "--project: is missing"),
    "zone": ((*TPU_VM, "--zone", "$(x)"), "--zone: '$(x)' is no name of Google Cloud's"),
    "relative runs": ((*JOBSET, "--runs", "runs/x"), "--runs: 'runs/x' is not a path inside the container"),
    "runs at the root": ((*JOBSET, "--runs", "/x"), "--runs: '/x' is not a path inside the container"),
    "time": (("--launcher", "slurm", "--time", "soon"), "--time: 'soon' is not a time of Slurm's"),
    "no time": (("--launcher", "slurm", "--time", "0"), "--time: is zero"),
    "sbatch": (("--launcher", "slurm", "--sbatch", "a b=c"), "--sbatch: 'a b=c' is not an option of sbatch"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dry_run", [True, False])
def test_bad_input_is_one_line_and_nothing_is_submitted(sd3, stubs, work, case, dry_run):
    for program in ("kubectl", "gcloud", "sbatch", "srun"):
        stubs(program)
    options, message = BAD[case]
    before = sorted(work.rglob("*"))
    code, out, err = sd3("sweep", "submit", FILE, *options, *(["--dry-run"] if dry_run else []))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"sd3-jax: error: [^\n]+\n", err)
    assert message in err
    assert stubs.called() == []
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("options", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_sweep_that_does_not_exist_is_one_line(sd3, options):
    code, out, err = sd3("sweep", "submit", "nothing", *options)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"sd3-jax: error: no sweep 'nothing'; shipped: [^\n]+\n", err)


ROOT = Path(sd3_jax.__file__).parent.parent
DOCUMENTED = [
    command
    for path in ("README.md", "docs/slurm.md", "docs/tpu-pod.md")
    for command in re.findall(r"^sd3-jax (sweep submit .*)$", (ROOT / path).read_text().replace("\\\n", " "), re.M)
]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_what_the_documents_submit_can_be_submitted(sd3, command):
    code, out, err = sd3(*shlex.split(command), *([] if "--dry-run" in command else ["--dry-run"]))
    assert (code, err) == (0, "")
    assert out


def test_the_documents_have_the_golden_slices(sd3):
    text = (ROOT / "docs" / "tpu-pod.md").read_text()
    for name, values in GOLDEN.items():
        assert f"| {name} | {' | '.join(map(str, values))} |" in text
    assert len(DOCUMENTED) >= 6


def test_an_experiment_from_elsewhere_does_not_go_along(sd3, work):
    (work / "exp.py").write_text(EXPERIMENT)
    (work / "sub").mkdir()
    (work / "sub" / "s.yaml").write_text("experiment: ../exp.py\ncells: [{model.depth: 2}]\n")
    code, _, err = sd3("sweep", "submit", "sub/s.yaml", *JOBSET, "--dry-run")
    assert code == 2
    assert "sub/s.yaml: experiment: '../exp.py' does not go along to the workers: put it beside the YAML" in err
    assert sd3("sweep", "submit", "sub/s.yaml", "--dry-run")[0] == 0


def test_runs_that_hold_another_sweep_are_found_before_anything_is_submitted(sd3, work):
    records.open_run(work / "runs" / Path(FILE).stem / "d02-s0", resolve({"steps": 100, "batch": 8}))
    code, _, err = sd3("sweep", "submit", FILE, "--launcher", "slurm", "--dry-run")
    assert code == 2
    assert "d02-s0: holds another run" in err
