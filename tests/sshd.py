"""ssh between the hosts of a test: a server on each, and one key pair that opens all.

serve(host, key)          # the host answers ssh, to the owner of the key
give(host, key)           # commands on this host may use it
"""

import subprocess
import time
from pathlib import Path

from hosts import Host

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync")
FOLDER, PRIVATE_KEY = "/srv/ssh", "/root/.ssh/id_ed25519"
SERVER = f"""
HostKey {FOLDER}/host_key
AuthorizedKeysFile {FOLDER}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 50
PrintMotd no
"""
CLIENT = """
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def make_key(folder: Path) -> Path:
    """A new private key in a folder; its public part is beside it."""
    key = folder / "id_ed25519"
    new_key(key)
    return key


def new_key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hosts", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def serve(host: Host, key: Path) -> subprocess.Popen:
    """Start the ssh server of a host, with the disk that it has; returns when it listens."""
    folder = host.path(FOLDER)
    if not folder.exists():
        folder.mkdir()
        new_key(folder / "host_key")
        (folder / "sshd_config").write_text(SERVER)
        (folder / "authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
        host.path("/run/sshd").mkdir(mode=0o755)
    command = ("/usr/sbin/sshd", "-D", "-e", "-f", f"{FOLDER}/sshd_config")
    log = host.log("sshd")
    server = host.start(*command, log=log)
    deadline = time.monotonic() + 30
    while "Server listening" not in log.read_text():
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return server


def give(host: Host, key: Path) -> None:
    """Put the private key on a host, as its user's."""
    folder = host.path(PRIVATE_KEY).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    target = host.path(PRIVATE_KEY)
    target.write_bytes(key.read_bytes())
    target.chmod(0o600)
    (folder / "config").write_text(CLIENT)
