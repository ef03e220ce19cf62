"""Work in the background ends with what waits for it, and never keeps it from ending."""

import asyncio
import signal
import socket
import threading
import time

import pytest

from afmrl_jax.runtime.background import run_in_background


def test_results_and_errors_come_through_inside_another_loop_too():
    async def double(number):
        await asyncio.sleep(0)
        return 2 * await asyncio.to_thread(int, number)

    async def outer():
        return run_in_background(double("4"))

    assert run_in_background(double("3")) == 6
    assert asyncio.run(outer()) == 8
    with pytest.raises(ValueError, match="three"):
        run_in_background(double("three"))


class Asked(Exception):
    """What a signal raises."""


@pytest.mark.parametrize("blocking", [False, True])
def test_a_signal_ends_the_wait_and_cancels_the_work(monkeypatch, blocking):
    """Also while a call blocks that cannot be cancelled, such as a name being looked up."""
    ended, released = threading.Event(), threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30))

    async def work():
        try:
            if blocking:
                await asyncio.get_running_loop().getaddrinfo("somewhere", 80)
            await asyncio.sleep(30)
        finally:
            ended.set()

    def stop(*_):
        raise Asked

    before = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Asked):
            run_in_background(work())
    finally:
        signal.signal(signal.SIGALRM, before)
        released.set()
    assert ended.is_set()
    assert time.monotonic() - began < 2


def test_work_that_does_not_end_is_left_behind(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("afmrl_jax.runtime.background.GRACE", 0.1)

    async def work():
        released.wait(30)

    def stop(*_):
        raise Asked

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        with pytest.raises(Asked):
            run_in_background(work())
        assert time.monotonic() - began < 2
    finally:
        signal.signal(signal.SIGALRM, before)
        released.set()


def test_a_signal_that_another_thread_receives_ends_the_wait_too():
    async def work():
        await asyncio.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
        await asyncio.sleep(30)

    def stop(*_):
        raise Asked

    before = signal.signal(signal.SIGALRM, stop)
    try:
        began = time.monotonic()
        with pytest.raises(Asked):
            run_in_background(work())
        assert time.monotonic() - began < 2
    finally:
        signal.signal(signal.SIGALRM, before)
