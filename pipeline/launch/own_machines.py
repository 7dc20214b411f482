"""The end of a cluster of one's own machines, on which Ray's launcher ends the head alone.

The stop command of a machine is the line of its start commands in the cluster file that has
`ray stop`: with the path to Ray there. The head runs it on the workers through ssh, as Ray's
autoscaler has started them.
"""

import shlex

from pipeline.launch import ray_cli
from pipeline.launch.cluster_file import ClusterFile

# the key that `ray up` puts on the head, if the cluster file names one
HEAD_KEY = "~/ray_bootstrap_key.pem"
OPTIONS = (
    "-o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=no "
    "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10"
)


def stop_ray(cluster: ClusterFile) -> None:
    """End Ray on the head and then on all workers of a cluster file."""
    ray_cli.run("exec", str(cluster.path), stop_command(cluster))


def stop_command(cluster: ClusterFile) -> str:
    """The shell command by which the head ends Ray everywhere.

    The head comes first, because its autoscaler would bring the workers back. A worker that does
    not answer is named, and hinders nothing.
    """
    head, worker = (stopping(cluster, f"{kind}_start_ray_commands") for kind in ("head", "worker"))
    auth = cluster.config["auth"]
    key = f"-i {HEAD_KEY} " if auth.get("ssh_private_key") else ""
    each = (
        f"ssh {key}{OPTIONS} {shlex.quote(auth['ssh_user'])}@$ip {shlex.quote(worker)} || "
        f'echo "Ray may still run on $ip"'
    )
    addresses = " ".join(map(shlex.quote, cluster.worker_addresses))
    return f"{head}; for ip in {addresses}; do {{ {each}; }} & done; wait"


def stopping(cluster: ClusterFile, commands: str) -> str:
    """The start command that ends an earlier Ray; `ray stop` if the file has none."""
    return next((line for line in cluster.config[commands] if "ray stop" in line), "ray stop")
