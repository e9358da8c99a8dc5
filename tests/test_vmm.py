"""The command lines of VMMs: their contents, and paths that are errors."""

import pytest

from vsock.vmm import credential_args, notify_credential, qemu_args, uml_args


def options(args: list[str], flag: str) -> list[str]:
    """All values that follow `flag`."""
    return [value for key, value in zip(args[::2], args[1::2], strict=True) if key == flag]


def test_qemu_memory_is_shared_and_as_large_as_the_guest() -> None:
    """A memory size that differs between -m and the backend makes QEMU refuse to start."""
    args = qemu_args("/run/a.sock", "alpha", memory_mib=256)
    assert options(args, "-m") == ["256M"]
    assert options(args, "-object") == [
        "memory-backend-memfd,id=vsock-memory-alpha,size=256M,share=on"
    ]
    assert options(args, "-machine") == ["memory-backend=vsock-memory-alpha"]


def test_qemu_chardev_has_no_reconnect() -> None:
    """With reconnect= QEMU 7.2 does not start."""
    assert all("reconnect" not in value for value in qemu_args("/run/a.sock", "alpha"))


def test_qemu_path_with_comma_is_doubled() -> None:
    """A comma in a path would otherwise start the next option."""
    assert "socket,id=vsock-socket-a,path=/run/x,,y.sock" in qemu_args("/run/x,y.sock", "a")


def test_qemu_name_becomes_a_valid_id() -> None:
    """QEMU ids take only letters, digits and `-._`."""
    assert (
        "vhost-user-vsock-pci,id=vsock-my-vm-1,chardev=vsock-socket-my-vm-1,vectors=4"
        in qemu_args("/run/a.sock", "my vm/1", device_options=["vectors=4"])
    )


def test_uml_args_name_device_memory_and_id() -> None:
    """The form of the device for User-Mode Linux is SOCKET:VIRTIO-ID."""
    assert uml_args("/run/b.sock", "beta", memory_mib=128) == [
        "mem=128M",
        "umid=beta",
        "virtio_uml.device=/run/b.sock:19",
    ]


@pytest.mark.parametrize("path", ["/run/a b.sock", "/run/a:b.sock", '/run/a".sock'])
def test_uml_path_that_breaks_the_command_line_is_refused(path: str) -> None:
    """The kernel would cut such a path and attach to nothing."""
    with pytest.raises(ValueError, match="cannot take"):
        uml_args(path, "b")


def test_event_queue_comes_with_the_generic_device() -> None:
    """As tried with QEMU 11.1; `reconnect` would end that QEMU."""
    args = qemu_args("/run/a.sock", "alpha", event_queue=True)
    assert args[-1] == (
        "vhost-user-test-device-pci,virtio-id=19,num_vqs=3,vq_size=128,config_size=8,"
        "id=vsock-alpha,chardev=vsock-socket-alpha"
    )
    assert args[:-1] == qemu_args("/run/a.sock", "alpha")[:-1]
    assert all("reconnect" not in value for value in args)


@pytest.mark.parametrize("make", [qemu_args, uml_args])
def test_path_too_long_for_a_unix_socket_is_refused(make: object) -> None:
    """The VMM would fail later with a message about something else."""
    assert callable(make)
    with pytest.raises(ValueError, match="1 to 107"):
        make("/" + "x" * 107, "a")


@pytest.mark.parametrize("make", [qemu_args, uml_args])
def test_too_little_memory_is_refused(make: object) -> None:
    """A kernel that cannot unpack its initramfs panics without a word about vsock."""
    assert callable(make)
    with pytest.raises(ValueError, match="at least 64 MiB"):
        make("/run/a.sock", "a", memory_mib=32)


def test_credentials_are_strings_of_the_firmware() -> None:
    """Printable text as it is, with QEMU's commas; what is not printable in base64."""
    args = credential_args({"a.b": "x,y=z", "ssh.authorized_keys.root": "ssh-ed25519 AAAA\n"})
    assert options(args, "-smbios") == [
        "type=11,value=io.systemd.credential:a.b=x,,y=z",
        "type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root=c3NoLWVkMjU1MTkgQUFBQQo=",
    ]
    assert credential_args({"empty": ""}) == credential_args({"empty": b""})
    assert credential_args({}) == []


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a=b", "../a", ".", "a" * 256, "ä"])
def test_name_that_systemd_would_not_take_is_refused(name: str) -> None:
    """systemd would ignore it, and the guest would lack the credential without a word."""
    with pytest.raises(ValueError, match="no name of a credential"):
        credential_args({name: "x"})


def test_more_credentials_than_the_firmware_holds_are_refused() -> None:
    """QEMU would not start, or leave some out."""
    with pytest.raises(ValueError, match="60000 bytes at most"):
        credential_args({"big": bytes(45_000)})
    with pytest.raises(ValueError, match="256 credentials"):
        credential_args({f"c{n}": "x" for n in range(256)})
    assert len(credential_args({"big": bytes(44_000)})) == 2


def test_guest_notifies_the_host() -> None:
    """The form of systemd's sd_notify(3): a stream, CID and port."""
    assert notify_credential(9000) == {"vmm.notify_socket": "vsock-stream:2:9000"}
