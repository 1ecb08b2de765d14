"""One call at a time: waiting, the same thread again, and owners that are gone."""

from __future__ import annotations

import threading

import pytest

from vlmprune.runtime.call_lock import Turnstile


def try_enter(turnstile: Turnstile, seconds: float) -> threading.Event:
    """Another thread enters and leaves; the event says that it got in."""
    inside = threading.Event()

    def enter() -> None:
        turnstile.enter()
        inside.set()
        turnstile.leave()

    threading.Thread(target=enter, daemon=True).start()
    inside.wait(seconds)
    return inside


def test_another_thread_waits_until_the_forward_ends() -> None:
    turnstile = Turnstile()
    turnstile.enter()
    inside = try_enter(turnstile, 0.2)
    assert not inside.is_set()
    turnstile.leave()
    assert inside.wait(60)


def test_a_whole_generate_is_held_through_its_forwards() -> None:
    turnstile = Turnstile()
    with turnstile.generating():
        turnstile.enter()
        turnstile.leave()
        inside = try_enter(turnstile, 0.2)
        assert not inside.is_set()
    assert inside.wait(60)


def test_an_interrupted_forward_does_not_lock_its_own_thread_out() -> None:
    turnstile = Turnstile()
    turnstile.enter()  # Ctrl-C: the hook that would leave never runs
    turnstile.enter()
    turnstile.leave()
    assert try_enter(turnstile, 60).is_set()


def test_an_exception_inside_generate_frees_it() -> None:
    turnstile = Turnstile()
    with pytest.raises(KeyboardInterrupt), turnstile.generating():
        raise KeyboardInterrupt
    assert try_enter(turnstile, 60).is_set()


def test_a_thread_that_is_gone_holds_nothing() -> None:
    turnstile = Turnstile()
    owner = threading.Thread(target=turnstile.enter)
    owner.start()
    owner.join()
    assert try_enter(turnstile, 60).is_set()
