"""One call at a time: waiting, the same thread again, and owners that are gone."""

from __future__ import annotations

import threading

import pytest

from vlmprune.runtime.call_lock import CallLock


def try_enter(lock: CallLock, seconds: float) -> threading.Event:
    """Another thread enters and leaves; the event says that it got in."""
    inside = threading.Event()

    def enter() -> None:
        lock.enter()
        inside.set()
        lock.leave()

    threading.Thread(target=enter, daemon=True).start()
    inside.wait(seconds)
    return inside


def test_another_thread_waits_until_the_forward_ends() -> None:
    lock = CallLock()
    lock.enter()
    inside = try_enter(lock, 0.2)
    assert not inside.is_set()
    lock.leave()
    assert inside.wait(60)


def test_a_whole_generate_is_held_through_its_forwards() -> None:
    lock = CallLock()
    with lock.generating():
        lock.enter()
        lock.leave()
        inside = try_enter(lock, 0.2)
        assert not inside.is_set()
    assert inside.wait(60)


def test_an_interrupted_forward_does_not_lock_its_own_thread_out() -> None:
    lock = CallLock()
    lock.enter()  # Ctrl-C: the hook that would leave never runs
    lock.enter()
    lock.leave()
    assert try_enter(lock, 60).is_set()


def test_an_exception_inside_generate_frees_it() -> None:
    lock = CallLock()
    with pytest.raises(KeyboardInterrupt), lock.generating():
        raise KeyboardInterrupt
    assert try_enter(lock, 60).is_set()


def test_a_thread_that_is_gone_holds_nothing() -> None:
    lock = CallLock()
    owner = threading.Thread(target=lock.enter)
    owner.start()
    owner.join()
    assert try_enter(lock, 60).is_set()
