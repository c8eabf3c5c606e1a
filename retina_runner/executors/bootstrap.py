"""What a node is asked to run first, over one channel: take the agent if it isn't there yet, and become it.

    we send    the program below, as one line of JSON; a line of JSON that says which agent is wanted, and brings own_file.py
    it says    {"agent": {"have": true}} or false, or {"agent": {"refused": {what, why, hint}}}
    we send    the agent's bytes, where it has none
    it says    {"ready": true}: from here on it is the agent's verb `serve`

So a node needs one login, one interpreter and no file transfer subsystem, and a second run sends nothing again.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from retina_runner.agent import own_file
from retina_runner.bundle import AgentBundle, bare

_PROGRAM = """
import gc
gc.disable()
import json, os, stat, sys
source = open(0, "rb", 0, closefd=False)
want = json.loads(source.readline())
def say(**answer):
    os.write(1, (json.dumps({"agent": answer}) + chr(10)).encode())
def refuse(what, why, hint=""):
    say(refused={"what": what, "why": why, "hint": hint})
    sys.exit(2)
if sys.version_info < (3, 9):
    refuse(sys.executable, "this is Python %s; the agent needs 3.9 or newer" % sys.version.split()[0],
           "name another with ansible_python_interpreter")
folder = want["directory"]
path = os.path.join(folder, want["name"])
# The agent's own module of that name, before the agent is here; it stays the agent's.
own_file = sys.modules["retina_runner.agent.own_file"] = type(sys)("retina_runner.agent.own_file")
exec(compile(want["own_file"], "own_file.py", "exec"), own_file.__dict__)
def whole(held):
    if os.fstat(held).st_size != want["size"]:
        return False
    import hashlib  # OpenSSL is loaded where there is something to look at
    return hashlib.sha256(os.pread(held, want["size"], 0)).hexdigest() == want["sha256"]
def take():
    os.umask(0o077)
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        refuse(folder, "it isn't a directory that this user alone may write to",
               "remove it, or choose another with retina_work_dir in the inventory")
    held = own_file.hold(own_file.Path(path))
    have = held is not None and whole(held)
    say(have=have)
    if have:
        return held
    broken = held is not None
    chunks, left = [], want["size"]
    while left:
        chunk = source.read(min(left, 1 << 16))
        if not chunk:
            sys.exit(1)
        chunks.append(chunk)
        left -= len(chunk)
    for _ in range(9):
        try:
            put(chunks, broken)
        except FileNotFoundError:  # the last of other runs has just taken the folder away
            os.makedirs(folder, 0o700, exist_ok=True)
            continue
        held = own_file.hold(own_file.Path(path))
        if held is not None:
            return held
    refuse(path, "other runs take it away again and again", "try once more")
def put(chunks, broken):
    part = "%s.%d.part" % (path, os.getpid())
    try:
        with open(part, "wb") as file:
            file.writelines(chunks)
        own_file.place(own_file.Path(part), own_file.Path(path), broken)
    except OSError:
        try:
            os.unlink(part)
        except OSError:
            pass
        try:
            os.rmdir(folder)
        except OSError:
            pass
        raise
try:
    own_file.held = take()
except OSError as error:
    space = error.errno in (28, 122)
    refuse("disk space" if space else str(error.filename or folder), str(error.strerror),
           "free some there, or choose another place with retina_work_dir" if space
           else "choose another place with retina_work_dir in the inventory")
source.close()
sys.argv[:] = [path, "serve"]
sys.path.insert(0, path)
from retina_runner.agent.__main__ import main
sys.exit(main())
"""
"""What `python3 -I` runs on a node that may not have the agent yet: takes it if it isn't there, and becomes it, in the
same interpreter: starting another one would cost the node as much as all the rest of this."""


FLAGS = ("-I", "-S")
"""Isolated: neither PYTHON* variables nor a user's site-packages can change what runs, perhaps as root. Without `site`, which is
a quarter of an interpreter's start: who wants what is installed beside the standard library says so (agent/framing.py)."""
LOADER = 'import json;i=open(0,"rb",0,closefd=False);exec(json.loads(i.readline()))'
"""What `python3 -I -c` is told: nothing in it that shells other than POSIX ones would read otherwise."""


@functools.cache
def _own_file() -> str:
    return bare(Path(own_file.__file__).read_bytes()).decode()


def opening(agent: AgentBundle, directory: str) -> bytes:
    """The two lines that come first: the program, and what it is to find or to take."""
    want = {
        "directory": directory,
        "name": agent.name,
        "sha256": agent.sha256,
        "size": len(agent.content),
        "own_file": _own_file(),
    }
    return (json.dumps(_PROGRAM) + "\n" + json.dumps(want) + "\n").encode()
