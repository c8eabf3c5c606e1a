"""ssh_config: what OpenSSH's own `ssh -G` makes of a file, and what is made of it here."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import pytest

from retina_runner.errors import DocumentError
from retina_runner.inventory import Configurations, Connection, connections, explain, select, sources, ssh_config
from retina_runner.inventory.ssh_arguments import options

HOSTS = ["web1", "web2.example", "db", "bastion", "192.0.2.9"]
PATTERNS = ["*", "web*", "!web1 *", "db web1", "*.example", "192.0.2.?", "bastion", "!db !bastion *", "WEB*", "db # web1",
            '"db" "web1"']  # fmt: skip
COMPARED = ["hostname", "port", "user", "identityfile", "proxyjump", "stricthostkeychecking", "userknownhostsfile",
            "connecttimeout", "hostkeyalias", "identitiesonly", "certificatefile"]  # fmt: skip


def of_openssh(path: Path, host: str) -> dict[str, list[str]]:
    """What `ssh -G` says. OpenSSH is the measure: a machine without it can't run this test."""
    done = subprocess.run(["ssh", "-G", "-F", str(path), host], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + path.read_text()
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def made(number: int, folder: Path) -> Path:
    """A random configuration of Host and Match blocks, with an Include in some."""
    dice = random.Random(number)

    def option() -> str:
        key, value = dice.choice(
            [
                ("Port", str(dice.randint(1, 65535))),
                ("User", dice.choice(["ops", "root", "deploy"])),
                ("HostName", dice.choice(["192.0.2.7", "%h.internal", "real.example"])),
                ("IdentityFile", dice.choice(["/k/a", "/k/b", "/k/c"])),
                ("CertificateFile", "/k/a-cert.pub"),
                ("ProxyJump", dice.choice(["jumper", "ops@b1:2200,b2", "none"])),
                ("StrictHostKeyChecking", dice.choice(["yes", "accept-new", "no"])),
                ("UserKnownHostsFile", "/k/known /k/known2"),
                ("ConnectTimeout", str(dice.randint(1, 60))),
                ("HostKeyAlias", "alias"),
                ("IdentitiesOnly", dice.choice(["yes", "no"])),
            ]
        )
        return dice.choice(
            [
                f"{key} {value}",
                f"  {key.lower()}={value}",
                f"\t{key}   {value}",
                f"{key.upper()} = {value}",
                f"{key} {value} # why",
            ]
        )

    lines = [option() for _ in range(dice.randint(0, 2))]
    for block in range(dice.randint(1, 5)):
        lines.append(
            dice.choice(
                [
                    f"Host {dice.choice(PATTERNS)}",
                    f"Host {dice.choice(PATTERNS)}",
                    f"Match host {dice.choice(['web*', 'real.example', '192.0.2.*,db', '!db,*'])}",
                    f"Match originalhost {dice.choice(['web*', 'db', '*.example'])}",
                    "Match all",
                    f"Match !host {dice.choice(['web*', 'db'])}",
                    f"Match user {dice.choice(['ops', 'root,deploy'])} host *",
                ]
            )
        )
        lines += [option() for _ in range(dice.randint(1, 3))]
        if dice.random() < 0.3:
            included = folder / f"{number}-{block}.inc"
            included.write_text("\n".join([option(), "Host web1 db", option(), ""]))
            lines.append(f"Include {included}")
        lines += ["# a comment", ""]
    path = folder / f"{number}.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_option_is_what_openssh_makes_of_it(tmp_path: Path) -> None:
    wrong = []
    for number, host in itertools.product(range(30), HOSTS):
        path = made(number, tmp_path)
        theirs = of_openssh(path, host)
        ours = ssh_config.load((str(path),)).lookup(host)
        for key in COMPARED:
            mine = [str(s.value) for s in ours.get(key, [])]
            if not mine:
                continue  # OpenSSH tells its defaults, which are its own
            if key == "hostname":
                mine = [ssh_config.replace_tokens(mine[0], host=host, address=host, port=22, user="")]
            if key == "proxyjump" and mine == ["none"]:
                mine, theirs[key] = [], []  # `ssh -G` leaves it out, or says so where a comment follows
            if key == "stricthostkeychecking":
                mine = [{"yes": "true", "no": "false"}.get(mine[0], mine[0])]
            if mine != theirs.get(key):
                wrong.append(f"{path.name} {host} {key}: {mine} != {theirs.get(key)}\n{path.read_text()}")
        for key in ("hostname", "port", "user", "hostkeyalias", "proxyjump"):
            default = {"hostname": [host], "port": ["22"]}.get(key)
            if key not in ours and key in theirs and key != "user" and theirs[key] != default:
                wrong.append(f"{path.name} {host} {key}: nothing != {theirs[key]}\n{path.read_text()}")
    assert not wrong, f"{len(wrong)} differences; the first: " + "\n".join(wrong[:3])


# -- what becomes of it ------------------------------------------------------------------------------------------------


def reached(folder: Path, config: str, words: str = "web1,", **variables: str) -> Connection:
    path = folder / "ssh_config"
    path.write_text(config)
    inventory = sources.read([words])
    (host,) = select(inventory, "all")
    (found,) = connections([host], Configurations((str(path),)))
    return found


def test_an_alias_is_looked_up(tmp_path: Path) -> None:
    to = reached(
        tmp_path, "Host web1\n HostName 192.0.2.7\n Port 2222\n User ops\n IdentityFile /k/%h-%r\n HostKeyAlias w\n"
    )
    assert (to.address, to.port, to.user, to.key_files, to.host_key_alias) == (
        "192.0.2.7",
        2222,
        "ops",
        ("/k/192.0.2.7-ops",),
        "w",
    )
    assert to.host == "web1"


def test_the_inventory_goes_before_the_configuration(tmp_path: Path) -> None:
    to = reached(tmp_path, "Host web1\n User other\n Port 1\n", "ops@web1:2222,")
    assert (to.user, to.port) == ("ops", 2222)


def test_bastions_are_looked_up_as_hosts_of_their_own(tmp_path: Path) -> None:
    config = (
        "Host web1\n ProxyJump inner\nHost inner\n HostName 192.0.2.2\n User in\n ProxyJump outer\n IdentityFile /k/in\n"
        "Host outer\n HostName 192.0.2.1\n Port 2200\n User out\n"
    )
    to = reached(tmp_path, config)
    assert [(h.address, h.port, h.user, h.key_files) for h in to.hops] == [
        ("192.0.2.1", 2200, "out", ()),
        ("192.0.2.2", 22, "in", ("/k/in",)),
    ]
    assert to.jump == "out@192.0.2.1:2200,in@192.0.2.2"


def test_hosts_behind_one_bastion_share_it(tmp_path: Path) -> None:
    path = tmp_path / "ssh_config"
    path.write_text("Host web*\n ProxyJump ops@bastion\nHost web2\n User other\n")
    hosts = select(sources.read(["web1,web2"]), "all")
    one, two = connections(hosts, Configurations((str(path),)))
    assert one.hops[0].address == "bastion"
    assert one.hops == two.hops


def test_a_jump_that_leads_to_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="leads to itself"):
        reached(tmp_path, "Host web1\n ProxyJump a\nHost a\n ProxyJump b\nHost b\n ProxyJump a\n")


@pytest.mark.parametrize(
    "command",
    [
        "ssh -W %h:%p -q ops@bastion.example",
        "ssh -q -p 2200 -l ops bastion.example -W %h:%p",
        "ssh -i /k/b -W '%h:%p' ops@bastion.example",
    ],
)
def test_a_proxy_command_that_is_a_jump_is_one(tmp_path: Path, command: str) -> None:
    to = reached(tmp_path, f"Host web1\n ProxyCommand {command}\n")
    assert [(h.address, h.user) for h in to.hops] == [("bastion.example", "ops")]
    assert not to.proxy_command
    assert (
        "jump"
        in explain(select(sources.read(["web1,"]), "all"), Configurations((str(tmp_path / "ssh_config"),)))[0].origins
    )
    assert to.hops[0].port == (2200 if "2200" in command else 22)
    assert to.hops[0].key_files == (("/k/b",) if "-i" in command else ())


def test_any_other_proxy_command_stays_one(tmp_path: Path) -> None:
    to = reached(tmp_path, "Host web1\n HostName 192.0.2.7\n Port 2222\n ProxyCommand nc -X 5 -x proxy:1080 %h %p\n")
    assert to.proxy_command == "nc -X 5 -x proxy:1080 192.0.2.7 2222"
    assert not to.hops


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("-p CANARY", True),
        ("-v -pCANARY", True),
        ("-vp CANARY", True),
        ("-P word -p CANARY", True),
        ("-e", False),
        ("-f /k/p", False),
        ("-f /k/-p", False),
        ("-P word -e", False),
    ],
)
def test_a_password_in_a_proxy_command_is_refused_and_not_shown(tmp_path: Path, how: str, refused: bool) -> None:
    config = f"Host web1\n ProxyCommand sshpass {how} ssh -p 22 -W %h:%p ops@b\n"
    if not refused:
        assert reached(tmp_path, config).proxy_command.startswith(f"sshpass {how} ssh")
        return
    with pytest.raises(DocumentError) as told:
        reached(tmp_path, config)
    assert "its ProxyCommand holds a password" in str(told.value)
    assert f"{tmp_path}/ssh_config:2:" in str(told.value)
    assert "CANARY" not in str(told.value)


def test_hosts_of_a_configuration_are_an_inventory(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "Host web1 web2\n User ops\nHost *.example !x\n Port 1\nHost lonely\n# nothing below\nHost web1\n HostName 192.0.2.7\n"
    )
    inventory = sources.read([str(tmp_path / "config")])
    assert inventory.names == ("web1", "web2", "lonely")
    assert inventory.members("ssh_config") == inventory.names
    first, *_ = connections(select(inventory, "all"))
    assert (first.user, first.address, first.ssh_config) == ("ops", "192.0.2.7", str(tmp_path / "config"))


def test_a_comment_ends_a_line_but_not_a_command(tmp_path: Path) -> None:
    to = reached(
        tmp_path,
        'Host web1 # the old one\n Port 2222\t# behind the firewall\n User "o #ps" # a blank\n IdentityFile /k/a#b # no comment\n'
        " ProxyCommand nc %h %p # ours\nMatch host web1 # all\n HostName=192.0.2.7 #new\n",
    )
    assert (to.port, to.user, to.address, to.key_files) == (2222, "o #ps", "192.0.2.7", ("/k/a#b",))
    assert to.proxy_command == "nc 192.0.2.7 2222 # ours"


@pytest.mark.parametrize("port", ["abc", "0", "65536", "ssh"])
def test_a_port_that_is_none_is_an_error_and_not_the_usual_one(tmp_path: Path, port: str) -> None:
    with pytest.raises(DocumentError, match=rf"ssh_config:2:1: {port} is no port \(1 to 65535\)"):
        reached(tmp_path, f"Host web1\n Port {port}\n")


def test_match_exec_is_not_evaluated_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ssh_config"
    flag = tmp_path / "ran"
    path.write_text(f'Match exec "touch {flag}"\n User other\nHost *\n User ops\n')
    config = ssh_config.load((str(path),))
    assert config.lookup("web1")["user"][0].value == "ops"
    assert not flag.exists()
    assert config.notes == [f"{path}:1: Match exec isn't evaluated: its block doesn't apply"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-o ProxyJump=b -J c", [("proxyjump", "b"), ("proxyjump", "c")]),
        ("-o 'ProxyCommand=ssh -W %h:%p b'", [("proxycommand", "ssh -W %h:%p b")]),
        ('-o ProxyCommand="ssh -W %h:%p -q b"', [("proxycommand", "ssh -W %h:%p -q b")]),
        ("-C -o ControlMaster=auto -o ControlPersist=60s -p 22 -l u -i k", [("port", "22"), ("user", "u"), ("identityfile", "k")]),
        ("-oPort=2222 -F /dev/null", [("port", "2222"), ("configfile", "/dev/null")]),
        ("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
         [("stricthostkeychecking", "no"), ("userknownhostsfile", "/dev/null")]),
        ("", []),
    ],
)  # fmt: skip
def test_arguments_of_ssh(text: str, found: list[tuple[str, str]]) -> None:
    assert options(text) == found


@pytest.mark.parametrize("text", ["-D 1080", "-o LocalForward=1", "-o DynamicForward=1080", "host", "-J", "'", "-w 0"])
def test_arguments_of_ssh_that_can_not_be_honoured(text: str) -> None:
    with pytest.raises(ValueError, match=r"can't be honoured|needs a value|quotation"):
        options(text)
