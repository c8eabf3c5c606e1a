"""Every kind of inventory: what is read of it, and one clear error with its place for what is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from retina_runner.errors import DocumentError, UsageError
from retina_runner.inventory import connections, resolve, select, sources
from retina_runner.inventory.model import Inventory
from tests.lab import REPOSITORY

CANARY = "canary-9f3a1c"


def write(folder: Path, **files: str) -> Path:
    """Files by name, `__` for a slash and `_.` for nothing; the folder."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def read(folder: Path, name: str, text: str) -> Inventory:
    (folder / name).write_text(text)
    return sources.read([str(folder / name)])


def wrong(folder: Path, name: str, text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(folder, name, text)
    return str(caught.value).replace(f"{folder}/", "")


# -- examples ----------------------------------------------------------------------------------------------------------

EXAMPLES = sorted(p for p in (REPOSITORY / "inventories").iterdir() if p.is_file())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_valid_and_every_host_can_be_reached(path: Path) -> None:
    hosts = resolve([str(path)])
    assert len(connections(hosts)) == len(hosts) >= 5


def test_there_is_an_example_of_each_shape() -> None:
    assert {p.suffix for p in EXAMPLES} == {".yaml", ".ini", ".py"}


def test_the_examples_mean_what_they_say() -> None:
    folder = REPOSITORY / "inventories"
    production = {c.host: c for c in connections(resolve([str(folder / "production.yaml")]))}
    assert list(production) == [*(f"web0{n}.example" for n in range(1, 5)), "db01.example", "db02.example"]
    db = production["db01.example"]
    assert (db.address, db.port, db.user, db.become) == ("192.0.2.7", 2222, "ops", True)
    assert (db.become_password, db.work_directory, db.host_keys) == ("env:SUDO_PASSWORD", "/data/retina-run", "strict")
    assert [h.name for h in resolve([str(folder / "production.yaml")], "web:&eu:!canary")] == [
        "web01.example",
        "web02.example",
    ]
    inside = connections(resolve([str(folder / "bastion.yaml")]))
    assert len(inside) == 20
    assert {c.jump for c in inside} == {"ops@bastion.example:2200"}
    assert len({c.hops for c in inside}) == 1
    lab = {c.host: c for c in connections(resolve([str(folder / "lab.py")]))}
    assert lab["router2.example"].port == 2222
    assert (lab["hv02.example"].user, lab["hv02.example"].become) == ("admin", True)
    assert lab["@local"].connector == "local"


PLACES = {
    "hosts": "[web]\nw\n", "sub__more": "[db]\nd\n", "sub__group_vars__db_dot_yml": "z: 1\n",
    "group_vars__all__x_dot_yml": "a: 1\n", "group_vars__all_dot_yml": "z: 1\n", "group_vars__web": "b: 2\n",
    "group_vars__web_dot_json": '{"z": 1}', "host_vars__w__deep__y_dot_yaml": "c: 3\n", "host_vars__w__old_dot_d__y_dot_yml": "z: 1\n",
    "host_vars__w___dot_git__y_dot_yml": "z: 1\n", "host_vars__w__y_dot_ini": "z: 1\n", "host_vars__w_dot_yml": "z: 1\n",
}  # fmt: skip
"""Files in which `z` is said where nobody reads it."""

# -- words -------------------------------------------------------------------------------------------------------------


def test_a_list_of_hosts_is_an_inventory() -> None:
    found = connections(resolve(["web1,root@db[1:2]:2222,[2001:db8::1]:22,"]))
    assert [(c.host, c.port) for c in found] == [("web1", 22), ("db1", 2222), ("db2", 2222), ("2001:db8::1", 22)]
    assert found[1].user == "root"


def test_several_inventories_are_one_and_the_later_overrides(tmp_path: Path) -> None:
    write(
        tmp_path, a_dot_yaml="web: {hosts: {w1: {ansible_port: 1}, w2: }}", b_dot_ini="[web]\nw1 ansible_port=2\nw3\n"
    )
    hosts = resolve([str(tmp_path / "a.yaml"), str(tmp_path / "b.ini")], "web")
    assert [(c.host, c.port) for c in connections(hosts)] == [("w1", 2), ("w2", 22), ("w3", 22)]


def test_a_folder_is_its_files_in_order_without_its_variables(tmp_path: Path) -> None:
    write(
        tmp_path, b_dot_ini="[web]\nw1 x=2\n", a_dot_yaml="web: {hosts: {w1: {x: 1}, w2: }}", group_vars__web_dot_yml="y: 3\n",
        host_vars__w1_dot_yaml="z: 4\n", notes_dot_md="# not one\n", old_dot_bak="???",
        README_dot_txt="Of whom?\n", README_dot_rst="Of whom?\n", ansible_dot_cfg="[defaults]\n",
    )  # fmt: skip
    one, _two = resolve([str(tmp_path)])
    assert {k: s.value for k, s in one.settings.items()} == {"x": 2, "y": 3, "z": 4}
    assert one.settings["y"].origin == f"{tmp_path}/group_vars/web.yml:1:4"


def test_variables_are_looked_for_where_ansible_looks(tmp_path: Path) -> None:
    """A folder hides a file of the same name, and only what was named has variables beside it: not a folder in a folder."""
    write(tmp_path, **PLACES)
    web, db = resolve([str(tmp_path)])
    assert {k: s.value for k, s in web.settings.items()} == {"a": 1, "b": 2, "c": 3}
    assert {k: s.value for k, s in db.settings.items()} == {"a": 1}


@pytest.mark.root
@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ("", ": Permission denied"),
        ("group_vars", "/group_vars/all: Permission denied"),
        ("group_vars/all", "/group_vars/all: Permission denied"),
        ("group_vars/web.yml", "/group_vars/web.yml: Permission denied"),
    ],
)
def test_what_may_not_be_read_is_told(closed: str, said: str) -> None:
    """To somebody without root's rights, whom tests are: variables that are passed over would reach hosts in another way."""
    with tempfile.TemporaryDirectory() as name:
        folder = write(
            Path(name), hosts="[web]\nw\n", group_vars__all__x_dot_yml="a: 1\n", group_vars__web_dot_yml="b: 1\n"
        )
        folder.chmod(0o755)
        assert sources.read([name]).names == ("w",)
        (folder / closed).chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(DocumentError) as caught:
                sources.read([name])
        finally:
            os.seteuid(0)
        assert f"{name}{said}\n" in str(caught.value)


def test_localhost_is_this_machine_where_nobody_says_otherwise(tmp_path: Path) -> None:
    (here,) = connections(select(read(tmp_path, "a.ini", "web1\n"), "localhost"))
    assert here.connector == "local"
    (there,) = connections(select(read(tmp_path, "b.ini", "localhost ansible_port=2222\n"), "localhost"))
    assert (there.connector, there.port) == ("ssh", 2222)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "nothere.yaml",
            "nothere.yaml: no such inventory (for a host of that name write nothere.yaml, with the comma)",
        ),
        ("a:b:c:,", "a:b:c:"),
        ("web[5:1],", "before the beginning"),
        ("web[1-5],", "'web[1-5]' is no host; a range is written [1:3]"),
        ("nowhere/hosts", "nowhere/hosts: no such inventory\n"),
        ("web1:99999,", "99999 is no port"),
        ("", "-i: it is empty (a file or folder, host1,host2, or @connector)"),
        ("~nobody-here/hosts", "~nobody-here/hosts: no such inventory"),
        ("x" * 300, "File name too long"),
        ("@nonsense", "pyinfra has no connector @nonsense"),
        ("@vagrnt/x", "did you mean vagrant?"),
    ],
)
def test_a_word_that_is_no_inventory(word: str, said: str) -> None:
    if word == "a:b:c:,":
        assert sources.read([word]).names == ("a:b:c:",)  # an IPv6 address, as far as a list of hosts can tell
        return
    with pytest.raises(DocumentError) as caught:
        sources.read([word])
    assert said in str(caught.value)


# -- YAML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("web: {hots: {w1: }}", "hosts.yaml:1:7: web.hots: unknown key hots (did you mean hosts?)"),
        (
            "web: {hosts: [w1]}\ndb: {hosts: {d1: }}",
            "hosts.yaml:1:14: web.hosts: expected a mapping or text or nothing, found a list",
        ),
        ("web: {hosts: {'w[3:1]': }}", "hosts.yaml:1:15: web.hosts.w[3:1]: [3:1]: the end is before the beginning"),
        ("web: {hosts: {w1: text}}", "hosts.yaml:1:19: web.hosts.w1: expected a mapping or nothing"),
        (
            "plugin: aws_ec2\nregions: [x]",
            "hosts.yaml:1:9: plugin: the configuration of Ansible's inventory plugin aws_ec2",
        ),
        ("a: {children: {b: }}\nb: {children: {a: }}", "groups contain each other: a > b > a"),
        ("- w1", "hosts.yaml:1:1: expected a mapping"),
        ("web: {hosts: {w1: {a: 1, a: 2}}}", "hosts.yaml:1:26: web.hosts.w1.a: the key a is here twice"),
        ("web:\n\thosts:", "hosts.yaml:2:1: a tab"),
        ("# ours\n[web]\nw1\n", "(Ansible's INI? Then give the file a name that ends in .ini)"),
    ],
)
def test_a_yaml_inventory_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    assert said in wrong(tmp_path, "hosts.yaml", text)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("web: {hots: , hosts: {'w[9:1]': }}\ndb: {childern: }")
    (tmp_path / "b.ini").write_text("[web\nw1:\n")
    with pytest.raises(DocumentError) as caught:
        sources.read([str(tmp_path / "a.yaml"), str(tmp_path / "b.ini")])
    assert len(caught.value.problems) >= 3


def test_what_ansible_inventory_prints_is_an_inventory(tmp_path: Path) -> None:
    text = json.dumps({
        "_meta": {"hostvars": {"w1": {"ansible_port": 7}, "d1": {"x": 1}}},
        "all": {"children": ["ungrouped", "web", "db"]},
        "web": {"hosts": ["w1", "w2"], "vars": {"ansible_user": "ops"}},
        "db": ["d1"],
    })  # fmt: skip
    found = read(tmp_path, "list.json", text)
    assert found.members("web") == ("w1", "w2")
    assert found.members("db") == ("d1",)
    assert [(c.host, c.port, c.user) for c in connections(select(found, "w1"))] == [("w1", 7, "ops")]


def test_an_inventory_script_is_asked_for_its_list(tmp_path: Path) -> None:
    script = tmp_path / "cloud.py"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --list ] && echo \'{"web": {"hosts": ["w1"]}, "_meta": {"hostvars": {}}}\'\n'
    )
    script.chmod(0o755)
    assert sources.read([str(script)]).members("web") == ("w1",)
    script.write_text("#!/bin/sh\necho no credentials >&2\nexit 3\n")
    with pytest.raises(DocumentError, match=r"the inventory script: .*exit status 3: no credentials"):
        sources.read([str(script)])
    script.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(DocumentError, match="printed no JSON"):
        sources.read([str(script)])


# -- INI ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[web]\nw1 port\n", "hosts:2:1: w1: expected key=value behind the host, found a word without ="),
        ("[web:var]\n", "hosts:1:1: there is no kind of section var (hosts, vars or children)"),
        ("[web servers]\n", "hosts:1:1: no section"),
        ("[web:vars]\nx=1\n", "hosts:1:1: [web:vars] is of a group that isn't there (declare it: [web])"),
        ("[a:children]\nb\n", "hosts:2:1: [a:children] has a group that isn't there: b"),
        ("[web]\nw1:\n", "'w1:': the port after : is missing or is no number (YAML?"),
        ("w1 a='x\n", "a quotation mark without its other one"),
        ("[web:vars]\njust words\n[web]\n", "hosts:2:1: expected key=value"),
        (
            "[web]\nansible_user=ops\n",
            "hosts:2:1: a variable where a host should be (write it below [web:vars], or behind its host)",
        ),
        ("ansible_user = ops\n", "hosts:1:1: a variable where a host should be (write it below [all:vars], "),
    ],
)
def test_an_ini_inventory_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    assert said in wrong(tmp_path, "hosts", text)


def test_a_toml_inventory_is_told_as_that(tmp_path: Path) -> None:
    said = wrong(tmp_path, "hosts.toml", "[web.hosts]\nw1 = {}\n")
    assert "hosts.toml: TOML isn't read here (ansible-inventory -i " in said


def test_a_line_that_is_wrong_is_not_shown_when_it_may_hold_a_password(tmp_path: Path) -> None:
    said = wrong(tmp_path, "hosts", f"w1 ansible_password={CANARY} oops\nw2 {CANARY}\n")
    assert CANARY not in said.replace(f"w2 {CANARY}", "")
    assert "hosts:1:1" in said


def test_a_file_without_a_suffix_is_what_it_looks_like(tmp_path: Path) -> None:
    assert read(tmp_path, "one", "# hosts\nweb:\n  hosts:\n    w1:\n").members("web") == ("w1",)
    assert read(tmp_path, "two", "[web]\nw1 a=b\n").members("web") == ("w1",)
    assert read(tmp_path, "three", "Host w1\n  User ops\n").names == ("w1",)


# -- Python ------------------------------------------------------------------------------------------------------------


def test_a_python_inventory_is_pyinfras(tmp_path: Path) -> None:
    write(
        tmp_path,
        group_data__web_dot_py="import os\nssh_port = 2022\n_private = 1\n",
        group_data__all_dot_py="ssh_user = 'ops'\n",
    )
    found = read(
        tmp_path,
        "lab.py",
        "import sys\nNUMBERS = [1, 2]\n_hidden = ['x']\nweb = ['w1', ('w2', {'ssh_port': 7})]\ndb = (['d1'], {'x': 1})\n",
    )
    assert found.names == ("w1", "w2", "d1")
    assert found.members("lab") == ("w1", "w2", "d1")
    assert [(c.host, c.port, c.user) for c in connections(select(found, "all"))] == [
        ("w1", 2022, "ops"), ("w2", 7, "ops"), ("d1", 22, "ops"),
    ]  # fmt: skip
    assert found.hosts(["w1"])[0].settings["ssh_port"].origin == f"{tmp_path}/group_data/web.py:2:1"


def test_a_python_inventory_that_fails_says_its_line(tmp_path: Path) -> None:
    assert "lab.py:2:1: the inventory's program failed: ZeroDivisionError" in wrong(
        tmp_path, "lab.py", "x = 0\nweb = [1 / x]\n"
    )
    assert "has no list of hosts" in wrong(tmp_path, "lab.py", "x = 0\n")
    assert "lab.py:1:1: the inventory's program failed: SyntaxError" in wrong(tmp_path, "lab.py", "web = [\n")


def test_connectors_are_pyinfras(tmp_path: Path) -> None:
    found = sources.read(["@local,@ssh/192.0.2.7,@docker/nginx,@podman/redis"])
    to = {c.host: c for c in connections(select(found, "all"))}
    assert {h: (c.connector, c.address) for h, c in to.items()} == {
        "@local": ("local", "@local"),
        "@ssh/192.0.2.7": ("ssh", "192.0.2.7"),
        "@docker/nginx": ("docker", "@docker/nginx"),
        "@podman/redis": ("podman", "@podman/redis"),
    }
    assert found.members("@docker") == ("@docker/nginx",)


TERRAFORM = '{"pyinfra_inventory": {"value": {"web": [{"ssh_hostname": "192.0.2.1", "ssh_user": "ops"}, "192.0.2.2"]}}}'
VAGRANT_STATUS = "1,default,metadata,provider,libvirt\n1,default,state,running\n"
VAGRANT_CONFIG = "Host default\n  HostName 192.0.2.9\n  User vagrant\n  Port 2201\n  IdentityFile /k/insecure\n  StrictHostKeyChecking no\n"


def test_terraform_and_vagrant_are_asked_through_pyinfra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With programs that print what these print: neither can run here."""
    for name, text in {
        "terraform": f"#!/bin/sh\ncat <<'E'\n{TERRAFORM}\nE\n",
        "vagrant": f"#!/bin/sh\n[ \"$1\" = status ] && cat <<'E' && exit\n{VAGRANT_STATUS}E\ncat <<'E'\n{VAGRANT_CONFIG}\nE\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    terraform = connections(select(sources.read(["@terraform"]), "all"))
    assert next((c.connector, c.address, c.user) for c in terraform) == ("ssh", "192.0.2.1", "ops")
    (vagrant,) = connections(select(sources.read(["@vagrant"]), "all"))
    assert (vagrant.connector, vagrant.address, vagrant.port, vagrant.user, vagrant.key_files) == (
        "ssh", "192.0.2.9", 2201, "vagrant", ("/k/insecure",),
    )  # fmt: skip


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variable",
    ["ansible_password", "ansible_ssh_pass", "ansible_become_password", "ansible_become_pass", "retina_password", "ssh_password",
     "_sudo_password", "ansible_private_key_passphrase"],
)  # fmt: skip
def test_a_secret_itself_is_refused_and_never_shown(tmp_path: Path, variable: str) -> None:
    for value in (CANARY, f"'{{{{ {CANARY} | default(1) }}}}'", f"'{{{{ inner }}}}'\n      inner: {CANARY}"):
        found = read(tmp_path, "hosts.yaml", f"web:\n  hosts:\n    w1:\n      {variable}: {value}\n    w2:\n")
        with pytest.raises(DocumentError) as caught:
            connections(select(found, "all"))
        said = str(caught.value)
        assert CANARY not in said
        assert f"{tmp_path}/hosts.yaml:" in said
        assert "env:NAME or file:PATH" in said
        assert connections(select(found, "w2"))  # a host that isn't meant troubles nobody


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("env:FLEET_PASSWORD", "env:FLEET_PASSWORD"),
        ("file:~/.secrets/fleet", "file:~/.secrets/fleet"),
        ("\"{{ lookup('env', 'FLEET_PASSWORD') }}\"", "env:FLEET_PASSWORD"),
        ("\"{{ lookup('ansible.builtin.file', '/run/secrets/x') }}\"", "file:/run/secrets/x"),
        ("\"{{ inner }}\"\n      inner: \"{{ lookup('env', 'DEEP') }}\"", "env:DEEP"),
    ],
)
def test_a_secret_by_reference(tmp_path: Path, value: str, reference: str) -> None:
    found = read(tmp_path, "hosts.yaml", f"web:\n  hosts:\n    w1:\n      ansible_password: {value}\n")
    assert connections(select(found, "all"))[0].password == reference


def test_what_ansible_vault_encrypts_is_an_error_only_where_it_is_needed(tmp_path: Path) -> None:
    vault = "!vault |\n        $ANSIBLE_VAULT;1.1;AES256\n        6162\n"
    found = read(tmp_path, "a.yaml", f"web:\n  hosts:\n    w1:\n      app_key: {vault}")
    assert connections(select(found, "all"))
    found = read(tmp_path, "b.yaml", f"web:\n  hosts:\n    w1:\n      ansible_password: {vault}")
    with pytest.raises(DocumentError, match=r"b\.yaml:4:25: ansible_password: is encrypted by ansible-vault"):
        connections(select(found, "all"))
    write(tmp_path, group_vars__web_dot_yml="$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    (host,) = select(read(tmp_path, "a.yaml", "web: {hosts: {w1: }}"), "all")
    assert host.notes == (f"{tmp_path}/group_vars/web.yml was not read: it is encrypted by ansible-vault",)
    # The habit of Ansible's own documentation: a plain name for what the encrypted file says.
    for variable, said in {
        "ansible_become_password": "stands for vault_sudo, which is said nowhere that can be read here",
        "ansible_host": "there is no variable vault_sudo for this host",
    }.items():
        found = read(tmp_path, "c.yaml", f"web: {{hosts: {{w1: {{{variable}: '{{{{ vault_sudo }}}}'}}}}}}")
        with pytest.raises(DocumentError) as caught:
            connections(select(found, "all"))
        assert f"{variable}: {said}; {tmp_path}/group_vars/web.yml was not read" in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ("{ansible_port: 70000}", "ansible_port: 70000 is not a port, 1 to 65535"),
        ("{ansible_port: ssh}", "ansible_port: ssh is not a port"),
        ("{ansible_become: maybe}", "ansible_become: maybe is neither yes nor no"),
        ("{ansible_become_method: su}", "ansible_become_method: su can't be used here (sudo, or log in as root)"),
        ("{ansible_connection: winrm}", "ansible_connection: hosts with the connection winrm can't be reached"),
        ("{ansible_host: '{{ x | lower }}'}", "ansible_host: an expression that only Ansible can evaluate"),
        ("{ansible_host: '{{ nowhere }}'}", "ansible_host: there is no variable nowhere for this host"),
        ("{ansible_host: '{{ a }}', a: '{{ b }}', b: '{{ a }}'}", "ansible_host: variables that stand for each other"),
        ("{ansible_host: [1, 2]}", "ansible_host: expected text, found a list"),
        ("{ansible_ssh_common_args: -D 1080}", "ansible_ssh_common_args: ssh's -D can't be honoured here"),
        (
            "{retina_host_keys: off-course}",
            "retina_host_keys: off-course is no way to treat host keys (strict or accept-new)",
        ),
        ("{ansible_timeout: 0}", "ansible_timeout: 0 is not a number of seconds above 0"),
        ("{retina_work_dir: ~/diag}", "retina_work_dir: ~/diag is no absolute path (for example /data/retina-run)"),
        (
            "{retina_host_key: accept-new}",
            "retina_host_key: there is no such variable (did you mean retina_host_keys?)",
        ),
    ],
)
def test_a_variable_that_can_not_be(tmp_path: Path, variables: str, said: str) -> None:
    found = read(tmp_path, "hosts.yaml", f"web: {{hosts: {{w1: {variables}}}}}")
    with pytest.raises(DocumentError) as caught:
        connections(select(found, "all"))
    assert f"{tmp_path}/hosts.yaml:1:" in str(caught.value)
    assert said in str(caught.value)


def test_simple_templates_are_put_in(tmp_path: Path) -> None:
    found = read(
        tmp_path, "hosts.yaml",
        "web:\n  vars: {domain: example.net, ansible_host: '{{ inventory_hostname }}.{{domain}}', ansible_port: '{{ port }}', port: 2222}\n"
        "  hosts: {w1: }\n",
    )  # fmt: skip
    (to,) = connections(select(found, "all"))
    assert (to.address, to.port) == ("w1.example.net", 2222)


def test_host_keys_are_strict_unless_accept_new_is_said(tmp_path: Path) -> None:
    for text, policy in {
        "{}": "strict",
        "{ansible_host_key_checking: false}": "strict",
        "{ansible_ssh_common_args: -o StrictHostKeyChecking=no}": "strict",
        "{ansible_ssh_common_args: -o StrictHostKeyChecking=accept-new}": "accept-new",
        "{retina_host_keys: accept-new}": "accept-new",
    }.items():
        found = read(tmp_path, "hosts.yaml", f"web: {{hosts: {{w1: {text}}}}}")
        assert connections(select(found, "all"))[0].host_keys == policy, text


def test_relative_paths_are_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to where the command is called, as for ssh and Ansible; `retina-run resume` may be called elsewhere."""
    monkeypatch.chdir(tmp_path)
    text = (
        "web:\n  hosts:\n    w1: {ansible_ssh_private_key_file: keys/id, retina_known_hosts: known ~/known, retina_password: 'file:pw',"
        " ansible_ssh_common_args: '-o CertificateFile=id-cert.pub -o IdentityAgent=SSH_AUTH_SOCK -o RevokedHostKeys=none'}\n"
        "    w2: {retina_known_hosts: none, ansible_ssh_private_key_file: ''}\n"
    )
    one, two = connections(select(read(tmp_path, "hosts.yaml", text), "all"))
    assert one.key_files[0] == f"{tmp_path}/keys/id"
    assert one.known_hosts[:2] == (f"{tmp_path}/known", str(Path("~/known").expanduser()))
    assert one.certificate_files == (f"{tmp_path}/id-cert.pub",)
    assert (one.password, one.identity_agent, one.revoked_host_keys) == (f"file:{tmp_path}/pw", "SSH_AUTH_SOCK", "")
    assert two.known_hosts[0] == "none"
    assert "" not in two.key_files


def test_a_problem_of_a_group_is_told_once(tmp_path: Path) -> None:
    found = read(tmp_path, "hosts.yaml", f"web: {{vars: {{ansible_password: {CANARY}}}, hosts: {{'w[1:50]': }}}}")
    with pytest.raises(DocumentError) as caught:
        connections(select(found, "all"))
    assert len(caught.value.problems) == 1


def test_thousands_of_hosts(tmp_path: Path) -> None:
    """More than a megabyte, and more values than a runbook may have: no bound of documents is in the way of a fleet."""
    lines = "".join(
        f"    n{i:05d}.example: {{ansible_host: 10.0.{i // 256}.{i % 256}, a: 1, b: [{', '.join('x' * 40)}]}}\n"
        for i in range(3000)
    )
    assert len(lines) > 400_000
    hosts = resolve([str(write(tmp_path, all_dot_yaml=f"all:\n  hosts:\n{lines}") / "all.yaml")])
    assert len(connections(hosts)) == 3000


def test_limits(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text("[web]\nw[1:4]\n[eu]\nw1\nw3\n")
    (tmp_path / "failed").write_text("w3\n# a comment\n\nw4\n")
    words = [str(tmp_path / "hosts.ini")]
    assert [h.name for h in resolve(words, "web", "&eu:!w1")] == ["w3"]
    assert [h.name for h in resolve(words, "web", f"@{tmp_path}/failed")] == ["w3", "w4"]
    (tmp_path / "a:!b").write_text("w1\n")
    assert [h.name for h in resolve(words, "web", f"@{tmp_path}/failed:!w4")] == ["w3"]
    assert [h.name for h in resolve(words, "web", f"@{tmp_path}/a:!b")] == ["w1"]
    for limit, said in {
        "": "--limit: it is empty; leave it out for every host",
        ",": "--limit: it is empty",
        "euu": "euu is no host and no group; did you mean eu?",
        "w1:!w1": "none of the 4 hosts matches",
        f"@{tmp_path}/nothing": "No such file",
    }.items():
        with pytest.raises(UsageError) as caught:
            resolve(words, "web", limit)
        assert said in str(caught.value)
