"""What a node is asked to run first, over one channel: take the agent if it isn't there yet, and become it.

    we send    the program below, as one line of JSON; a line of JSON that says which agent is wanted
    it says    {"agent": {"have": true}} or false, or {"agent": {"refused": {what, why, hint}}}
    we send    the agent's bytes, where it has none
    it says    {"ready": true}: from here on it is the agent's verb `serve`

So a node needs one login, one interpreter and no file transfer subsystem, and a second run sends nothing again.
"""

from __future__ import annotations

import json

from retina_runner.bundle import AgentBundle

_PROGRAM = """
import gc
gc.disable()
import fcntl, hashlib, json, os, stat, sys
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
def hold():
    # As own_file.hold does, which isn't here yet: another run that ends now takes the file away, but not one that is held.
    try:
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
        except OSError:
            pass
        if os.path.samestat(os.fstat(held), os.stat(path)):
            return held
    except FileNotFoundError:
        return None
    os.close(held)
broken = False
def take():
    global broken
    os.umask(0o077)
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        refuse(folder, "it isn't a directory that this user alone may write to",
               "remove it, or choose another with retina_work_dir in the inventory")
    held = hold()
    have = held is not None and hashlib.sha256(os.pread(held, want["size"] + 1, 0)).hexdigest() == want["sha256"]
    say(have=have)
    if have:
        return held
    broken = held is not None
    content = b""
    while len(content) < want["size"]:
        chunk = source.read(want["size"] - len(content))
        if not chunk:
            sys.exit(1)
        content += chunk
    for _ in range(9):
        try:
            put(content)
        except FileNotFoundError:  # the last of other runs has just taken the folder away
            os.makedirs(folder, 0o700, exist_ok=True)
            continue
        held = hold()
        if held is not None:
            return held
    refuse(path, "other runs take it away again and again", "try once more")
def place(part):
    # As own_file.place does: another that was faster holds the file of this name, which another in its stead would end.
    if broken:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(part, path)
        return
    os.unlink(part)
def put(content):
    part = "%s.%d.part" % (path, os.getpid())
    try:
        with open(part, "wb") as file:
            file.write(content)
        place(part)
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
    held = take()
except OSError as error:
    space = error.errno in (28, 122)
    refuse("disk space" if space else str(error.filename or folder), str(error.strerror),
           "free some there, or choose another place with retina_work_dir" if space
           else "choose another place with retina_work_dir in the inventory")
source.close()
sys.argv[:] = [path, "serve"]
sys.path.insert(0, path)
from retina_runner.agent import own_file
from retina_runner.agent.__main__ import main
own_file.held = held
sys.exit(main())
"""
"""What `python3 -I` runs on a node that may not have the agent yet: takes it if it isn't there, and becomes it, in the
same interpreter: starting another one would cost the node as much as all the rest of this."""


LOADER = 'import json;i=open(0,"rb",0,closefd=False);exec(json.loads(i.readline()))'
"""What `python3 -I -c` is told: nothing in it that shells other than POSIX ones would read otherwise."""


def opening(agent: AgentBundle, directory: str) -> bytes:
    """The two lines that come first: the program, and what it is to find or to take."""
    want = {"directory": directory, "name": agent.name, "sha256": agent.sha256, "size": len(agent.content)}
    return (json.dumps(_PROGRAM) + "\n" + json.dumps(want) + "\n").encode()
