"""The command lines of VMMs: their contents, and paths that are errors."""

import pytest

from vsock.vmm import qemu_args, uml_args


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
