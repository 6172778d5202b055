from __future__ import annotations

import asyncio

from service.news import News


async def test_all_who_wait_are_woken_once() -> None:
    news = News()
    waiting = [asyncio.create_task(news.wait(10)) for _ in range(3)]
    await asyncio.sleep(0)
    news.tell()
    news.tell()
    assert await asyncio.gather(*waiting) == [True] * 3


async def test_without_news_it_ends_after_its_time() -> None:
    news = News()
    news.tell()  # before anybody waits
    assert not await news.wait(0.01)
    assert news._waiting == []


async def test_who_leaves_takes_nobody_along() -> None:
    news = News()
    leaving, staying = (asyncio.create_task(news.wait(10)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    assert len(news._waiting) == 1
    news.tell()
    assert await staying
