"""What an upgrade needs of systemd: holds a socket, runs a service on it, and restarts it when asked.

Usage: service_manager.py ADDRESS PORT USER COMMAND...

Runs as root. On the Unix socket CONTROL it takes `restart` or `stop`, and answers when that is done: a new process
when it has said READY=1 (sd_notify(3)). The socket is passed as LISTEN_FDS (sd_listen_fds(3)).
"""

import os
import pwd
import signal
import socket
import sys

CONTROL = "/run/service_manager"
NOTIFY = "/run/service_manager.notify"


def main() -> None:
    address, port, user, *command = sys.argv[1:]
    listener = socket.create_server((address, int(port)), backlog=4096)
    notify = unix(NOTIFY, socket.SOCK_DGRAM)
    os.chmod(NOTIFY, 0o666)
    notify.settimeout(1)
    control = unix(CONTROL, socket.SOCK_STREAM)
    control.listen()
    process = start(listener, notify, user, command)
    while True:
        asking, _ = control.accept()
        word = asking.recv(64).decode().strip()
        os.kill(process, signal.SIGTERM)
        _, status = os.waitpid(process, 0)
        assert status == 0, status
        if word == "restart":
            process = start(listener, notify, user, command)
        asking.sendall(b"done\n")
        asking.close()
        if word == "stop":
            return


def unix(path: str, kind: int) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(path)
    return made


def start(listener: socket.socket, notify: socket.socket, user: str, command: list[str]) -> int:
    """The process id of the service, once it is ready."""
    process = os.fork()
    if process == 0:
        account = pwd.getpwnam(user)
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "NOTIFY_SOCKET": NOTIFY}
        os.execve(command[0], command, {"PATH": os.environ["PATH"], **passed})
    while b"READY=1" not in said(notify).split(b"\n"):
        ended, status = os.waitpid(process, os.WNOHANG)
        assert ended == 0, f"it ended with {status} instead of getting ready"
    return process


def said(notify: socket.socket) -> bytes:
    """What a service said within a second."""
    try:
        return notify.recv(4096)
    except TimeoutError:
        return b""


main()
