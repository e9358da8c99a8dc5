"""What a guest needs for an sshd on vsock, in the words of its system. Pure.

The texts can be pasted into a shell: what is not a command is a comment.
"""

from typing import Final

__all__ = ["SYSTEMS", "instructions"]


def _systemd(name: str, user: str, key: str) -> str:
    return f"""\
# Start QEMU with
qemu-system-x86_64 $(vsock qemu-args {name} --ssh{"" if user == "root" else f" --user {user}"}) ...

# systemd then takes your key from a credential, and its sshd listens on vsock (systemd-ssh-generator(8)).
# With another VMM, in the guest:
install -d -m 700 -o {user} {_home(user)}/.ssh
echo '{key}' >> {_home(user)}/.ssh/authorized_keys
chown {user} {_home(user)}/.ssh/authorized_keys
"""


def _older_systemd(name: str, user: str, key: str) -> str:
    return f"""\
# In the guest, as root:
install -d -m 700 -o {user} {_home(user)}/.ssh
echo '{key}' >> {_home(user)}/.ssh/authorized_keys
chown {user} {_home(user)}/.ssh/authorized_keys
cat > /etc/systemd/system/sshd-vsock.socket <<END
[Socket]
ListenStream=vsock::22
Accept=yes
[Install]
WantedBy=sockets.target
END
cat > /etc/systemd/system/sshd-vsock@.service <<END
[Service]
ExecStart=-/usr/sbin/sshd -i
StandardInput=socket
RuntimeDirectory=sshd
RuntimeDirectoryPreserve=yes
END
systemctl enable --now sshd-vsock.socket
"""


def _cloud_init(name: str, user: str, key: str) -> str:
    return f"""\
#cloud-config
users:
  - name: {user}
    ssh_authorized_keys: ['{key}']
write_files:
  - path: /etc/systemd/system/sshd-vsock.socket
    content: |
      [Socket]
      ListenStream=vsock::22
      Accept=yes
      [Install]
      WantedBy=sockets.target
  - path: /etc/systemd/system/sshd-vsock@.service
    content: |
      [Service]
      ExecStart=-/usr/sbin/sshd -i
      StandardInput=socket
      RuntimeDirectory=sshd
      RuntimeDirectoryPreserve=yes
runcmd:
  - [systemctl, enable, --now, sshd-vsock.socket]
"""


def _busybox(name: str, user: str, key: str) -> str:
    # A port of TCP, and not `dropbear -i`: that ends if getnameinfo(3) does not know the family of its peer's address,
    # and musl, the C library of Alpine, knows those of IP only.
    return f"""\
# In the guest, as root. It needs the packages dropbear and socat, and for `vsock cp` openssh-sftp-server.
mkdir -p {_home(user)}/.ssh /etc/dropbear
echo '{key}' >> {_home(user)}/.ssh/authorized_keys
chown {user} {_home(user)}/.ssh {_home(user)}/.ssh/authorized_keys
chmod go-w {_home(user)} {_home(user)}/.ssh {_home(user)}/.ssh/authorized_keys

# And at each boot, for instance in /etc/local.d/vsock.start (Alpine):
ip link set lo up
dropbear -R -s -p 127.0.0.1:2222 -P /run/dropbear-vsock.pid
socat VSOCK-LISTEN:22,fork TCP:127.0.0.1:2222 &
"""


def _none(name: str, user: str, key: str) -> str:
    return f"""\
# On the host: an initramfs with our server (docs/guide/guests-without-ssh.md), which lets root in with your key.
vsock guest agent --cpio --init -o agent.cpio
qemu-system-x86_64 $(vsock qemu-args {name}) -initrd agent.cpio ...

# Or put it into a root file system, and have the guest start /usr/lib/vsock/vsock-sshd.
vsock guest agent --into ROOTFS
"""


def _home(user: str) -> str:
    return "/root" if user == "root" else f"/home/{user}"


_TITLES: Final = {
    "systemd": ("systemd 256 and later (Debian 13, Fedora 41, Ubuntu 25.04)", _systemd),
    "older-systemd": ("systemd before 256 (Debian 12, Ubuntu 24.04)", _older_systemd),
    "cloud-init": ("a cloud image with systemd before 256, as user data", _cloud_init),
    "busybox": ("no systemd (Alpine, busybox)", _busybox),
    "none": ("no SSH server at all (an initramfs, a container image)", _none),
}

SYSTEMS: Final = tuple(_TITLES)
"""The kinds of guests that are known here."""


def instructions(name: str, user: str, key: str, system: str | None = None) -> str:
    """Return what to do for a guest of this kind, or for each of them with a title.

    Args:
        name: the guest's name in the switch.
        user: who is to be let in.
        key: the public key, one line.
        system: one of `SYSTEMS`; None for all.
    """
    if system:
        return _TITLES[system][1](name, user, key)
    parts = (f"# --- {title}\n{text(name, user, key)}" for title, text in _TITLES.values())
    return "\n".join(parts)
