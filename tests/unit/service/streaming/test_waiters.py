from __future__ import annotations

import asyncio

from service.streaming.waiters import Waiters


async def test_all_who_wait_are_woken_once() -> None:
    news = Waiters(10)
    waiting = [asyncio.create_task(news.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    news.tell()
    news.tell()
    assert await asyncio.gather(*waiting) == [True] * 3


async def test_without_news_it_ends_after_its_time() -> None:
    news = Waiters(0.01)
    news.tell()  # before anybody waits
    assert not await news.wait()
    assert not news._waiting


async def test_each_wait_has_its_own_time_though_one_timer_serves_them() -> None:
    news, loop = Waiters(0.2), asyncio.get_running_loop()
    first = asyncio.create_task(news.wait())
    await asyncio.sleep(0.1)
    news.tell()
    assert await first
    began = loop.time()
    early = asyncio.create_task(news.wait())
    await asyncio.sleep(0.05)
    late = asyncio.create_task(news.wait())
    assert not await early
    assert 0.19 < loop.time() - began < 0.24
    assert not late.done()
    assert not await late
    assert 0.24 < loop.time() - began < 0.5


async def test_who_leaves_takes_nobody_along() -> None:
    news = Waiters(10)
    leaving, staying = (asyncio.create_task(news.wait()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    assert len(news._waiting) == 1
    news.tell()
    assert await staying
