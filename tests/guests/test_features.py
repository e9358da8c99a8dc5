"""F9: virtio features that the device does not offer and a VMM acknowledges all the same."""

import logging
import os
import time
from pathlib import Path

import pytest

from vsock.switch import Switch
from vsock.testing.blocking import QemuGuest
from vsock.testing.errors import GuestUnavailable
from vsock.testing.plugin import REQUIRED_VARIABLE

BOOT_SECONDS = 240
"""A guest with a virtual IOMMU boots slowly, and others may keep the processors busy."""


@pytest.mark.timeout(2 * BOOT_SECONDS)
@pytest.mark.parametrize(
    ("extra", "feature"),
    [
        (("-global", "vhost-user-vsock-pci.packed=on"), "VIRTIO_F_RING_PACKED (packed=on)"),
        (
            (
                *("-device", "intel-iommu", "-global", "vhost-user-vsock-pci.iommu_platform=on"),
                *("-global", "vhost-user-vsock-pci.disable-legacy=on"),
            ),
            "VIRTIO_F_ACCESS_PLATFORM (a virtual IOMMU)",
        ),
    ],
)
def test_feature_that_was_not_offered_is_a_warning_with_its_name(
    extra: tuple[str, ...], feature: str, runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The device does not work in that guest, and the warning is the only sign of the cause."""
    caplog.set_level(logging.INFO, "vsock.switch")
    with Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch:
        guest = QemuGuest(switch, "alpha", extra=extra, boot_timeout=BOOT_SECONDS)
        try:
            guest.start()
        except GuestUnavailable as missing:
            if os.environ.get(REQUIRED_VARIABLE):
                raise
            pytest.skip(str(missing))
        try:
            deadline = time.monotonic() + 30
            while feature not in caplog.text:
                assert time.monotonic() < deadline, caplog.text
                guest.run("true")
        finally:
            guest.kill()
    found = [record for record in caplog.records if feature in record.getMessage()]
    assert {record.levelno for record in found} == {logging.WARNING}
