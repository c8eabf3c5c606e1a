"""Whom is trusted, and as whom one logs in: the same as real ssh(1) decides, by the same ssh_config, on a real sshd.

Certificates are of a real `ssh-keygen` authority. Every case is judged twice: by what is right, and by what ssh does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.fleet import PASSWORD, Fleet
from tests.lab import REPOSITORY, eventually, sh

pytestmark = [pytest.mark.root, pytest.mark.fleet]

NODE = 7


@dataclass
class Case:
    """One way of knocking. `config` are lines of ssh_config for the host; `gets_in` is what must come of it.

    `says` must be in what retina-run says; `openssh` is ssh's own answer where it isn't the same (None: it isn't asked).
    """

    name: str
    config: list[str]
    gets_in: bool
    says: str = ""
    openssh: bool | str | None = "same"
    agent: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Keys:
    """Keys and certificates in a folder, and the node whose sshd they are for."""

    fleet: Fleet
    folder: Path

    @property
    def address(self) -> str:
        return self.fleet.address(NODE)

    def make(self, name: str, kind: str = "ed25519", passphrase: str = "") -> Path:
        path = self.folder / name
        size = ["-b", "2048"] if kind == "rsa" else []
        sh("ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", name, "-f", str(path))
        return path

    def public(self, name: str) -> str:
        """`TYPE BASE64` of a key."""
        return " ".join((self.folder / f"{name}.pub").read_text().split()[:2])

    def certify(self, name: str, authority: str, *words: str, principals: str = "", kind: str = "host") -> Path:
        """A certificate of that key, as NAME-cert.pub; whoever needs it elsewhere moves it."""
        said = ["-n", principals] if principals else []
        sh("ssh-keygen", "-q", "-s", str(self.folder / authority), "-I", f"{name} by {authority}", *said, *words,
           *(["-h"] if kind == "host" else []), str(self.folder / f"{name}.pub"))  # fmt: skip
        return self.folder / f"{name}-cert.pub"

    def known(self, name: str, *lines: str) -> Path:
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def put(self, place: str, content: str, mode: str = "600") -> None:
        """A file on the node."""
        self.fleet.run(
            NODE, "sh", "-c", f'mkdir -p "$(dirname "$1")"; printf %s "$0" > "$1"; chmod {mode} "$1"', content, place
        )

    def knock(self, cases: list[Case]) -> None:
        """Carry the cases out; all that aren't as they must be are told together."""
        asked = []
        for number, case in enumerate(cases):
            config = self.folder / f"config-{number}"
            given = [line.split(None, 1)[0].lower() for line in case.config]
            rest = {
                "HostName": self.address, "User": "root", "StrictHostKeyChecking": "yes", "GlobalKnownHostsFile": "none",
                "UserKnownHostsFile": str(self.folder / "known"), "IdentityFile": str(self.fleet.key), "IdentitiesOnly": "yes",
            }  # fmt: skip
            lines = [
                *case.config,
                *(f"{k} {v}" for k, v in rest.items() if k.lower() not in given and f"no{k.lower()}" not in given),
            ]
            config.write_text("Host there\n" + "".join(f"  {line}\n" for line in lines if not line.startswith("No")))
            asked.append({
                "config": str(config), "host": "there", "agent": case.agent, "openssh": case.openssh is not None,
                "variables": case.variables, "env": case.env, "home": str(self.folder),
            })  # fmt: skip
        done = subprocess.run(
            ["ip", "netns", "exec", self.fleet.netns, sys.executable, "-m", "tests.fleet.knock"], input=json.dumps(asked),
            capture_output=True, text=True, check=False, cwd=REPOSITORY,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wrong = []
        for case, answer in zip(cases, json.loads(done.stdout), strict=True):
            expected = case.gets_in if case.openssh == "same" else case.openssh
            if answer["ours"]["in"] != case.gets_in or case.says not in answer["ours"]["said"]:
                wrong.append(f"{case.name}: retina-run: {answer}")
            elif case.openssh is not None and answer["openssh"]["in"] != expected:
                wrong.append(f"{case.name}: ssh: {answer}")
            elif not case.gets_in and not answer["ours"].get("hint", "") and answer["ours"]["kind"] != "DocumentError":
                wrong.append(f"{case.name}: no hint: {answer}")
        assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def keys(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    made = Keys(fleet, tmp_path_factory.mktemp("keys"))
    for name in ("host_ed", "other_ed", "ca", "other_ca"):
        made.make(name)
    for name in ("host_rsa", "other_rsa", "rsa_ca"):
        made.make(name, "rsa")
    for name in ("host_ec", "ec_ca"):
        made.make(name, "ecdsa")
    for name in ("host_ed", "host_rsa", "host_ec"):
        made.put(f"/etc/ssh/{name}", (made.folder / name).read_text())
    yield made
    fleet.configure(NODE)
    made.fleet.run(NODE, "sh", "-c", "rm -f /etc/ssh/host_* /etc/ssh/user_ca.pub")


def serve(keys: Keys, *lines: str, certificates: list[str] | None = None) -> None:
    """The node's sshd with the host keys of the tests, these certificates of them, and these lines."""
    for name in certificates or []:
        keys.put(f"/etc/ssh/{name}-cert.pub", (keys.folder / f"{name}-cert.pub").read_text(), "644")
    keys.fleet.configure(
        NODE, "Port 22", "Port 2222", "PidFile none", "HostKey /etc/ssh/host_ed", "HostKey /etc/ssh/host_rsa",
        *(f"HostCertificate /etc/ssh/{name}-cert.pub" for name in certificates or []), *lines,
    )  # fmt: skip


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def test_known_hosts_means_what_it_means_to_ssh(keys: Keys) -> None:
    serve(keys)
    here, ed, rsa = keys.address, keys.public("host_ed"), keys.public("host_rsa")
    wrong_ed, wrong_rsa = keys.public("other_ed"), keys.public("other_rsa")
    count = 0

    def lines(*text: str) -> str:
        nonlocal count
        count += 1
        return f"UserKnownHostsFile {keys.known(f'known-{count}', *text)}"

    two = f"{keys.known('first', f'other.example {ed}')} {keys.known('second', f'{here} {ed}')}"
    blank = keys.known("with blank", f"{here} {ed}")
    revoked = keys.known("revoked", ed)
    keys.knock([
        Case("known", [lines(f"{here} {ed}")], True),
        Case("unknown", [lines("")], False, "it isn't known"),
        Case("no file", ["UserKnownHostsFile /nowhere/known"], False, "it isn't known"),
        Case("hashed", [lines(f"{hashed(here)} {ed}")], True),
        Case("hashed, another's", [lines(f"{hashed('192.0.2.1')} {ed}")], False, "it isn't known"),
        Case("hashed, damaged", [lines(f"|1|AA|BB {ed}", f"|2|x {ed}")], False, "it isn't known"),
        Case("a list", [lines(f"a.example,{here},b {ed}")], True),
        Case("a pattern", [lines(f"10.94.*,!10.94.9.* {ed}")], True),
        Case("one character", [lines(f"{here[:-1]}? {ed}")], True),
        Case("negated", [lines(f"!{here},10.94.* {ed}")], False, "it isn't known"),
        Case("changed", [lines(f"{here} {wrong_ed}")], False, "it has changed"),
        Case("two keys, one right", [lines(f"{here} {wrong_ed}", f"{here} {ed}")], True),
        Case("another type known", [lines(f"{here} {rsa}")], True),
        Case("one type right, one wrong", [lines(f"{here} {wrong_ed}", f"{here} {rsa}")], False, "it has changed"),
        Case("wrong of a type that it has", [lines(f"{here} {wrong_rsa}")], False, "it has changed"),
        Case("comments and rubbish", [lines("# x", "", "@unknown * x y", f"{here} ssh-ed25519 !!!", "one", f"{here}  {ed} x")], True),
        Case("windows line ends", [lines(f"{here} {ed} x\r")], True),
        Case("alias", ["HostKeyAlias web", lines(f"web {ed}")], True),
        Case("alias, capitals", ["HostKeyAlias WEB", lines(f"Web {ed}")], True),
        Case("alias, address known only", ["HostKeyAlias web", lines(f"{here} {ed}")], False, "it isn't known"),
        Case("alias, hashed", ["HostKeyAlias web", lines(f"{hashed('web')} {ed}")], True),
        Case("port", ["Port 2222", lines(f"[{here}]:2222 {ed}")], True),
        Case("port, hashed", ["Port 2222", lines(f"{hashed(f'[{here}]:2222')} {ed}")], True),
        Case("port, pattern", ["Port 2222", lines(f"[10.94.*]:2222 {ed}")], True),
        Case("another port's", ["Port 2222", lines(f"[{here}]:23 {ed}")], False, "it isn't known"),
        Case("without its port", ["Port 2222", lines(f"{here} {ed}")], True),
        Case("wrong at its port, right without", ["Port 2222", lines(f"[{here}]:2222 {wrong_ed}", f"{here} {ed}")], False, "changed"),
        Case("port doesn't matter to an alias", ["Port 2222", "HostKeyAlias web", lines(f"web {ed}")], True),
        Case("with a port, at 22", [lines(f"[{here}]:22 {ed}")], False, "it isn't known"),
        Case("the second of two files", [f"UserKnownHostsFile {two}"], True),
        Case("a file with a blank", [f'UserKnownHostsFile "{blank}"'], True),
        Case("the system's file", ["UserKnownHostsFile none", f"GlobalKnownHostsFile {keys.folder}/second"], True),
        Case("neither", ["UserKnownHostsFile none"], False, "it isn't known"),
        Case("revoked", [lines(f"@revoked {here} {ed}", f"{here} {ed}")], False, "@revoked"),
        Case("revoked for all", [lines(f"@revoked * {ed}", f"{here} {ed}")], False, "@revoked"),
        Case("revoked for others", [lines(f"@revoked other.example {ed}", f"{here} {ed}")], True),
        Case("revoked, known by hash", [lines(f"@revoked {hashed(here)} {ed}", f"{here} {ed}")], False, "@revoked"),
        Case("revoked, accept-new", ["StrictHostKeyChecking accept-new", lines(f"@revoked * {ed}")], False, "@revoked"),
        Case("RevokedHostKeys", [f"RevokedHostKeys {revoked}", lines(f"{here} {ed}")], False, "RevokedHostKeys"),
        Case("RevokedHostKeys, not there", ["RevokedHostKeys /nowhere", lines(f"{here} {ed}")], False, "can't be read"),
        Case("only RSA asked for", ["HostKeyAlgorithms rsa-sha2-512", lines(f"{here} {rsa}")], True),
        Case("only RSA asked for, unknown", ["HostKeyAlgorithms rsa-sha2-512", lines(f"{here} {ed}")], False, "it has changed"),
        Case("without Ed25519", ["HostKeyAlgorithms -ssh-ed25519*", lines(f"{here} {ed}", f"{here} {rsa}")], True),
        Case("nothing asked for", ["HostKeyAlgorithms ssh-dss", lines(f"{here} {ed}")], False, "HostKeyAlgorithms", openssh=None),
        Case("RSA too short", ["RequiredRSASize 4096", "HostKeyAlgorithms rsa-sha2-512", lines(f"{here} {rsa}")], False, "RequiredRSASize"),
        Case("ciphers", ["Ciphers aes256-ctr", "MACs hmac-sha2-256", lines(f"{here} {ed}")], True),
        Case("key exchange", ["KexAlgorithms curve25519-sha256@libssh.org", lines(f"{here} {ed}")], True),
        Case("no cipher of ours", ["Ciphers chacha20-poly1305@openssh.com", lines(f"{here} {ed}")], False, "Ciphers", openssh=True),
        Case("a program", ["KnownHostsCommand /bin/true", lines(f"{here} {ed}")], False, "isn't asked here", openssh=True),
    ])  # fmt: skip


def test_new_keys_are_written_down_as_ssh_would(keys: Keys) -> None:
    serve(keys)
    here, ed = keys.address, keys.public("host_ed")
    accept = "StrictHostKeyChecking accept-new"
    plain, again = keys.known("new-1", "# mine"), keys.known("new-2")
    again.write_text("# no newline at its end")
    keys.known("new-4", f"{here} {keys.public('other_ed')}")
    keys.knock([
        Case("new", [accept, f"UserKnownHostsFile {plain}", "HashKnownHosts no"], True, openssh=None),
        Case("new, no newline", [accept, f"UserKnownHostsFile {again}", "HashKnownHosts no"], True, openssh=None),
        Case("new, hashed", [accept, f"UserKnownHostsFile {keys.folder}/made/new-3", "HashKnownHosts yes"], True, openssh=None),
        Case("new, then known to ssh", [f"UserKnownHostsFile {plain}"], True, openssh=None),
        Case("changed", [accept, f"UserKnownHostsFile {keys.folder}/new-4"], False, "it has changed"),
        Case("nowhere to write", [accept, "UserKnownHostsFile none"], False, "there is none"),
        Case("can't be written", [accept, "UserKnownHostsFile /proc/known"], False, "can't be written", openssh=True),
    ])  # fmt: skip
    assert plain.read_text() == f"# mine\n{here} {ed}\n"
    assert again.read_text() == f"# no newline at its end\n{here} {ed}\n"
    assert (keys.folder / "new-4").read_text().count("\n") == 1
    sh("ssh-keygen", "-F", here, "-f", str(keys.folder / "made/new-3"))
    assert here not in (keys.folder / "made/new-3").read_text()
    downgraded = keys.known("new-5", f"{here} {keys.public('host_ec')}")
    # A host of which only another type is known is no new host: whoever stands between could offer just that.
    keys.knock([Case("another type", [accept, f"UserKnownHostsFile {downgraded}"], False, "it has changed")])
    assert downgraded.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("name", "authority", "words", "principals", "gets_in", "says"),
    [
        ("host_ed", "ca", [], "HERE", True, ""),
        ("host_ed", "ca", [], "a.example,HERE", True, ""),
        ("host_ed", "ca", [], "10.94.*", False, "it is for 10.94.*, not for"),
        ("host_ed", "ca", [], "", True, ""),
        ("host_ed", "ca", [], "a.example", False, "it is for a.example, not for"),
        ("host_ed", "ca", ["-V", "-2d:-1d"], "HERE", False, "it expired at"),
        ("host_ed", "ca", ["-V", "+1d:+2d"], "HERE", False, "it isn't valid before"),
        ("host_ed", "ca", ["-O", "critical:no-such=1"], "HERE", False, "critical options"),
        ("host_ed", "other_ca", [], "HERE", False, "an authority that isn't known"),
        ("host_rsa", "ca", [], "HERE", True, ""),
        ("host_ed", "rsa_ca", [], "HERE", True, ""),
        ("host_ed", "rsa_ca", ["-t", "ssh-rsa"], "HERE", False, "signed with ssh-rsa, which isn't accepted"),
        ("host_ed", "ec_ca", [], "HERE", True, ""),
    ],
    ids=lambda v: str(v) if isinstance(v, str) else "-".join(v) if isinstance(v, list) else str(v),
)  # fmt: skip
def test_a_host_certificate_vouches_for_its_host(
    keys: Keys, name: str, authority: str, words: list[str], principals: str, gets_in: bool, says: str
) -> None:
    keys.certify(name, authority, *words, principals=principals.replace("HERE", keys.address))
    serve(keys, certificates=[name])
    here, known_ca = keys.address, authority if authority != "other_ca" else "ca"
    ca = keys.known("ca-known", f"@cert-authority 10.94.*,!10.94.9.* {keys.public(known_ca)}")
    # As ssh does, a certificate that doesn't help leaves the plain key, which may be known.
    both = keys.known("ca-both", f"@cert-authority * {keys.public(known_ca)}", f"{here} {keys.public(name)}")
    only = "HostKeyAlgorithms " + (
        "rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512"
        if "rsa" in name
        else "ssh-ed25519-cert-v01@openssh.com,ssh-ed25519"
    )
    keys.knock([
        Case("by its authority", [f"UserKnownHostsFile {ca}", only], gets_in, says),
        Case("by its authority, accept-new", [f"UserKnownHostsFile {ca}", only, "StrictHostKeyChecking accept-new"], True, openssh=None),
        Case("by its own key", [f"UserKnownHostsFile {both}", only], True),
    ] if not gets_in else [
        Case("by its authority", [f"UserKnownHostsFile {ca}"], True),
        Case("at its port", [f"UserKnownHostsFile {ca}", "Port 2222"], True),
    ])  # fmt: skip


def test_authorities_are_believed_where_they_are_named_and_not_revoked(keys: Keys) -> None:
    keys.certify("host_ed", "ca", principals=f"{keys.address},web")
    serve(keys, certificates=["host_ed"])
    here, ca, ed = keys.address, keys.public("ca"), keys.public("host_ed")
    only = "HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519"

    def lines(name: str, *text: str) -> str:
        return f"UserKnownHostsFile {keys.known(name, *text)}"

    believed, revoked = f"@cert-authority * {ca}", f"@revoked * {ca}"
    another = f"{here} {keys.public('other_ed')}"
    keys.knock([
        Case("for other hosts", [only, lines("k1", f"@cert-authority *.example {ca}")], False, "it isn't known"),
        Case("as a key, not as an authority", [only, lines("k2", f"{here} {ca}")], False, "it has changed"),
        Case("hashed", [only, lines("k3", f"@cert-authority {hashed(here)} {ca}")], True),
        Case("authority revoked", [only, lines("k4", believed, revoked)], False, "authority of its certificate"),
        Case("authority revoked, key known", [only, lines("k5", revoked, believed, f"{here} {ed}")], False, "@revoked"),
        Case("key revoked", [only, lines("k6", believed, f"@revoked * {ed}")], False, "@revoked"),
        Case("alias", [only, "HostKeyAlias web", lines("k7", f"@cert-authority web {ca}")], True),
        Case("alias that it isn't for", [only, "HostKeyAlias db", lines("k8", f"@cert-authority db {ca}")], False, "not for db"),
        Case("another host's key, authority known", [lines("k9", another, believed)], True),
        Case("RSA only", [only, "CASignatureAlgorithms rsa-sha2-512", lines("k10", believed)], False, "isn't accepted"),
    ])  # fmt: skip


@pytest.fixture
def agent(keys: Keys, _unharmed: None) -> Iterator[tuple[str, Any]]:
    """A real ssh-agent: its socket, and a function that gives it keys."""
    folder = keys.folder / "agent"
    folder.mkdir(exist_ok=True)
    path = folder / "socket"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)

    def give(*files: str) -> None:
        env = {"SSH_AUTH_SOCK": str(path), "PATH": "/usr/bin:/bin"}
        subprocess.run(["ssh-add", "-q", "-D"], env=env, check=True, capture_output=True)
        for file in files:
            subprocess.run(["ssh-add", "-q", file], env=env, check=True, capture_output=True)

    def answers() -> bool:  # 1: it has no keys
        look = subprocess.run(["ssh-add", "-l"], env={"SSH_AUTH_SOCK": str(path)}, capture_output=True, check=False)
        return look.returncode == 1

    eventually(answers, "the agent answers")
    yield str(path), give
    process.terminate()
    process.wait()
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def users(keys: Keys) -> Keys:
    """Keys of users; only a certificate of `user_ca` for `root` lets anybody in."""
    for name, kind in [("user_ca", "ed25519"), ("u_ed", "ed25519"), ("u_rsa", "rsa"), ("u_ec", "ecdsa")]:
        keys.make(name, kind)
    keys.make("u_bare")
    keys.make("u_locked", passphrase="canary-phrase-91")
    for number in range(7):
        keys.make(f"stray_{number}")
    for name in ("u_ed", "u_rsa", "u_ec", "u_locked"):
        keys.certify(name, "user_ca", principals="root,ops", kind="user")
    for name in ("u_ed", "u_locked"):  # elsewhere than beside its key, where it would be found anyway
        shutil.move(keys.folder / f"{name}-cert.pub", keys.folder / f"{name}.certificate")
    keys.known("known", f"{keys.address} {keys.public('host_ed')}")
    keys.put("/etc/ssh/user_ca.pub", keys.public("user_ca"), "644")
    return keys


def test_users_certificates_and_agents_do_what_they_do_for_ssh(users: Keys, agent: tuple[str, Any]) -> None:
    serve(users, "TrustedUserCAKeys /etc/ssh/user_ca.pub", "AuthorizedKeysFile /etc/ssh/none")
    socket_path, give = agent
    at = users.folder

    def key(name: str, *lines: str) -> list[str]:
        return [f"IdentityFile {at}/{name}", *lines]

    certificate = f"CertificateFile {at}/u_ed.certificate"
    for number, words in enumerate((["-V", "-2d:-1d"], ["-n", "deploy"], [])):
        users.certify(
            "u_ed",
            "user_ca" if number < 2 else "other_ca",
            *words,
            kind="user",
            principals="" if number == 1 else "root",
        )
        shutil.move(at / "u_ed-cert.pub", at / f"bad_{number}")
    give(str(at / "u_rsa"))  # with its certificate, which is beside it
    keyless = [f"{at}/u_ed.pub"]
    users.knock([
        Case("beside its key", key("u_rsa"), True),
        Case("ECDSA", key("u_ec"), True),
        Case("another user", [*key("u_rsa"), "User ops"], True),
        Case("a user that it isn't for", [*key("u_rsa"), "User plain"], False, "refused for user plain"),
        Case("no certificate", key("u_ed"), False, "refused for user root"),
        Case("CertificateFile", key("u_ed", certificate), True),
        Case("CertificateFile that isn't there", key("u_ed", "CertificateFile /nowhere/c"), False, "certificate /nowhere/c: No such file"),
        Case("CertificateFile of another key", key("u_bare", certificate), False, "no key that it is for"),
        Case("no certificate in it", key("u_ed", f"CertificateFile {at}/u_ed.pub"), False, "is no certificate"),
        Case("the second certificate", key("u_ed", f"CertificateFile {at}/bad_0", certificate), True),
        Case("expired", key("u_ed", f"CertificateFile {at}/bad_0"), False, "it expired at"),
        Case("another's", key("u_ed", f"CertificateFile {at}/bad_1"), False, "refused for user root"),
        Case("another authority's", key("u_ed", f"CertificateFile {at}/bad_2"), False, "refused for user root"),
        Case("locked", key("u_locked", f"CertificateFile {at}/u_locked.certificate"), False, "encrypted, and no passphrase"),
        Case("unlocked", key("u_locked", f"CertificateFile {at}/u_locked.certificate"), True, openssh=None,
             variables={"retina_key_passphrase": "env:PHRASE"}, env={"PHRASE": "canary-phrase-91"}),
        Case("wrong passphrase", key("u_locked", f"CertificateFile {at}/u_locked.certificate"), False, "the passphrase is wrong",
             openssh=None, variables={"retina_key_passphrase": "env:PHRASE"}, env={"PHRASE": "canary-phrase-92"}),
        Case("from the agent", ["IdentitiesOnly no", f"IdentityFile {at}/u_bare"], True, agent=socket_path),
        Case("from the agent, not named", key("u_bare"), False, "refused for user root", agent=socket_path),
        Case("from the agent, no agent", ["IdentitiesOnly no", f"IdentityFile {at}/u_bare"], False, "refused for user root"),
        Case("IdentityAgent", ["IdentitiesOnly no", f"IdentityFile {at}/u_bare", f"IdentityAgent {socket_path}"], True),
        Case("IdentityAgent none", ["IdentitiesOnly no", f"IdentityFile {at}/u_bare", "IdentityAgent none"], False, agent=socket_path),
        Case("IdentityAgent that isn't there", [*key("u_bare"), "IdentityAgent /nowhere/agent"], False, "agent /nowhere/agent"),
        Case("only other algorithms", [*key("u_rsa"), "PubkeyAcceptedAlgorithms ssh-ed25519*"], False, "PubkeyAcceptedAlgorithms"),
        Case("rsa-sha2-256", [*key("u_rsa"), "PubkeyAcceptedAlgorithms rsa-sha2-256*"], True),
    ])  # fmt: skip
    give(str(at / "u_ed"))
    users.knock([
        Case("its key in the agent", ["NoIdentityFile x", certificate, "IdentitiesOnly no"], True, agent=socket_path),
        Case("its public half named", [f"IdentityFile {keyless[0]}", certificate], True, agent=socket_path),
        Case("its public half named, no agent", [f"IdentityFile {keyless[0]}", certificate], False),
    ])  # fmt: skip


def test_of_many_keys_the_named_one_comes_first(users: Keys, agent: tuple[str, Any]) -> None:
    serve(users, "MaxAuthTries 3")
    socket_path, give = agent
    give(*(str(users.folder / f"stray_{n}") for n in range(7)))
    users.knock([
        Case("only strays", ["IdentitiesOnly no", f"IdentityFile {users.folder}/u_bare"], False, "MaxAuthTries", agent=socket_path),
        # ssh tries the agent's first, and is shown the door.
        Case("the named one", ["IdentitiesOnly no"], True, agent=socket_path, openssh=False),
        Case("IdentitiesOnly", [], True, agent=socket_path),
    ])  # fmt: skip


def test_two_factors_and_ways_in_that_are_not_given(users: Keys) -> None:
    serve(users, "AuthenticationMethods publickey,password")
    password = {"retina_password": "env:SECRET"}
    right, wrong = {"SECRET": PASSWORD}, {"SECRET": "canary-wrong-3"}
    users.knock([
        Case("key and password", ["User diag"], True, openssh=None, variables=password, env=right),
        Case("key and a wrong one", ["User diag"], False, "refused for user diag", openssh=None, variables=password, env=wrong),
        Case("key alone", ["User diag"], False, "wants password besides"),
    ])  # fmt: skip
    serve(users, "AuthenticationMethods password")
    users.knock([
        Case("password", ["User diag"], True, openssh=None, variables=password, env=right),
        Case("a key where passwords are wanted", ["User diag"], False, "password"),
    ])  # fmt: skip
