"""Leases, the locks of runs in buckets: who holds one, who takes it, and what an outage changes."""

import threading
import time

import buckets
import pytest

from xception_flax.base import locks, paths

pytestmark = buckets.needs_server


@pytest.fixture
def bucket():
    return buckets.new_bucket()


class TestLease:
    """Leases of short lives."""

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch, bucket):
        monkeypatch.setattr(locks, 'RENEWAL', 0.2)
        monkeypatch.setattr(locks, 'LIFETIME', 2.0)
        self.ended = []
        monkeypatch.setattr(locks, '_end', self.ended.append)
        self.path = paths.path(f'{bucket}/run/.lock')

    def wait_for(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_it_is_held_renewed_and_given_back(self):
        with locks.lock(self.path) as lease:
            first = lease._read()
            self.wait_for(lambda: lease._read()[0] != first[0])
            lease.check()
            with locks.lock(self.path) as second:
                assert second is None
        assert not self.path.exists()
        with locks.lock(self.path) as third:
            assert third is not None
        assert not self.ended

    def test_that_of_a_dead_owner_is_taken(self):
        dead = locks.Lease(self.path)
        assert dead._write(0, None)  # and never again
        with locks.lock(self.path) as lease:
            assert lease is not None
        assert not self.ended

    def test_only_one_of_several_gets_it(self):
        dead = locks.Lease(self.path)
        assert dead._write(0, None)
        leases = [locks.Lease(self.path) for _ in range(4)]
        got = []
        racing = [
            threading.Thread(target=lambda lease=lease: got.append(lease.acquire()))
            for lease in leases
        ]
        for thread in racing:
            thread.start()
        for thread in racing:
            thread.join()
        assert sorted(got) == [False, False, False, True]
        for lease in leases:
            lease.release()

    def test_an_owner_that_was_frozen_ends(self, monkeypatch):
        lease = locks.Lease(self.path)
        assert lease._write(0, None)
        with locks.lock(self.path) as second:
            lease.check()  # before its own renewal does
            assert len(self.ended) == 1
            assert (
                f'{self.path} was removed or taken by another process ({second._me})'
                in (self.ended[0])
            )
            second.check()

    def test_an_owner_whose_lease_is_removed_ends(self):
        with locks.lock(self.path) as lease:
            self.path.unlink()
            self.wait_for(lambda: self.ended)
            assert 'one that has ended' in self.ended[0]
            lease._ended.set()

    def test_its_own_write_is_known_when_the_answer_was_lost(self, monkeypatch):
        lease = locks.Lease(self.path)
        assert lease._write(0, None)
        first = lease._generation
        assert lease._write(first, None)
        written = lease._generation
        lease._generation = first  # what it knows without the second answer
        assert lease._write(first, None)
        assert lease._generation == written

    def test_an_outage_ends_nothing(self):
        with locks.lock(self.path) as lease:
            buckets.server().stop()
            checked = threading.Thread(target=lease.check)
            try:
                time.sleep(1.5 * locks.LIFETIME)
                checked.start()
                time.sleep(0.5)
                assert checked.is_alive()  # not certain yet
            finally:
                buckets.server().start()
            checked.join(60)
            assert not checked.is_alive()
            assert not self.ended

    def test_who_watches_in_an_outage_does_not_take_it(self):
        with locks.lock(self.path):
            found = []
            watching = threading.Thread(
                target=lambda: found.append(locks.Lease(self.path).acquire())
            )
            buckets.server().stop()
            try:
                time.sleep(0.5)
                watching.start()
                time.sleep(1.5 * locks.LIFETIME)
            finally:
                buckets.server().start()
            watching.join(60)
            assert found == [False]
            assert not self.ended
