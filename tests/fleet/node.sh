#!/usr/bin/env bash
# The first process of a fleet's node, in namespaces of its own: builds its private root, then becomes sshd.
# node.sh NAME FOLDER PUBLIC_KEY CRYPTED_PASSWORD
set -euo pipefail
name=$1 folder=$2 keys=$(cat "$3") crypt=$4
mount --make-rprivate /
hostname "$name"
mkdir -p "$folder/mnt"
mount -t tmpfs -o size=512m,mode=755 "$name" "$folder/mnt"
mkdir -p "$folder"/mnt/{upper,work,root}
root=$folder/mnt/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/mnt/upper,workdir=$folder/mnt/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
if [ -d "$folder/disk" ]; then
    mount --bind "$folder/disk" "$root/var/tmp"
else
    mount -t tmpfs -o mode=1777,size=300m tmpfs "$root/var/tmp"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=700 tmpfs "$root/root"
mkdir -p "$root/run/sshd" "$root/etc/ssh/keys" "$root/home"/{diag,ops,plain}
install -m 600 "$folder/hostkey" "$root/etc/ssh/ssh_host_ed25519_key"
echo "$name" >"$root/etc/hostname"
echo "127.0.0.1 localhost $name" >"$root/etc/hosts"
id=7701
for user in diag ops plain; do
    echo "$user:x:$id:$id::/home/$user:/bin/sh" >>"$root/etc/passwd"
    echo "$user:x:$id:" >>"$root/etc/group"
    chown $id:$id "$root/home/$user"
    id=$((id + 1))
done
printf 'diag:%s:19000:0:99999:7:::\nops:*:19000:0:99999:7:::\nplain:*:19000:0:99999:7:::\n' "$crypt" >>"$root/etc/shadow"
for user in root diag ops plain; do echo "$keys" >"$root/etc/ssh/keys/$user"; done
mkdir -p "$root/etc/sudoers.d"
printf 'Defaults !syslog\nops ALL=(ALL) NOPASSWD:ALL\ndiag ALL=(ALL) ALL\n' >"$root/etc/sudoers.d/fleet"
chmod 440 "$root/etc/sudoers.d/fleet"
cat >"$root/etc/ssh/sshd_config" <<CONF
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/keys/%u
PermitRootLogin prohibit-password
PasswordAuthentication yes
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
CONF
[ -f "$folder/sshd_extra" ] && cat "$folder/sshd_extra" >>"$root/etc/ssh/sshd_config"
exec chroot "$root" /usr/sbin/sshd -D -e
