"""The fixtures of `vsock.testing.plugin` that need no machine; tests/guests uses the others."""

import pytest

import vsock


def test_process_joins_under_several_names(join_guest, vsock_switch):
    """Its guests may connect to each other, and the host to both."""
    web, other = join_guest("web"), join_guest("other")
    with web.create_server(8080) as listener:
        with vsock.create_connection("web:8080", transport=vsock_switch.transport):
            theirs, peer = listener.accept()
            theirs.close()
            assert peer.cid == vsock.CID_HOST
        with other.create_connection((web.cid, 8080)):
            theirs, peer = listener.accept()
            theirs.close()
            assert peer.cid == other.cid


def test_guests_have_left_after_their_test(join_guest, vsock_switch):
    """A name can be used again."""
    assert {"web", "other"}.isdisjoint(guest.name for guest in vsock_switch.guests())
    join_guest("web")


def test_environment_leads_to_the_switch(vsock_environment, join_guest):
    """Also for calls that name no transport."""
    with join_guest("web").create_server(8080) as listener:
        with vsock.create_connection("web:8080"):
            listener.accept()[0].close()


def test_name_that_is_taken_is_an_error(join_guest):
    """And leaves the first guest alone."""
    join_guest("web")
    with pytest.raises(vsock.TransportError, match="web"):
        join_guest("web")
    with pytest.raises(vsock.TransportError, match="debian"):
        join_guest("debian")
