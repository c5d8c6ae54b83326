"""What the environments' peer scripts share: our server as a process, and sessions with it."""

import contextlib
import json
import os
import subprocess
import time

from websockets.sync.client import connect


@contextlib.contextmanager
def serving(uncouple, *settings, sessions=1100):
    """Runs `uncouple env serve`; gives its address and process id."""
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [uncouple, "env", "serve", "--port", "0", "--sessions", str(sessions), *sets]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip(), server.pid
    finally:
        server.terminate()
        server.wait()


class Session:
    """One session of an OpenEnv server."""

    def __init__(self, url):
        self.socket = connect(url.replace("http://", "ws://") + "/ws", open_timeout=60)

    def call(self, kind, **data):
        self.socket.send(json.dumps({"type": kind, "data": data}))
        answer = json.loads(self.socket.recv())
        if answer["type"] == "error":
            raise RuntimeError(answer["data"]["message"])
        return answer["data"]

    def close(self):
        self.socket.close()


def resident(pid):
    """Memory of a process, bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def state(pid):
    """Name, state and parent of a process; "X" where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            name, _, rest = stat.read().rpartition(")")
        return name, rest.split()[0], int(rest.split()[1])
    except OSError:
        return "", "X", 0


def runs(pid):
    return state(pid)[1] not in "XZ"


def children(pid, name):
    """Running processes of this name below `pid`."""
    running = [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if runs(p)]
    return [p for p in running if state(p)[2] == pid and name in state(p)[0]]


def timed(work):
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began
