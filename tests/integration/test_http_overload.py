"""Far more requests over HTTP than can be served: each is answered, or refused, in its time."""

import asyncio
import collections

import aiohttp
import harness
import http_tools
from scraping import scrape

MODEL = harness.GOLDEN / "concat_l4"
REQUESTS = 2000
LIMIT_S = 60


def body(seed):
    return {"prompt": [seed % 50 + 1] * 20, "max_tokens": 40, "ignore_eos": True, "seed": seed,
            "stream": seed % 2 == 0}


async def outcome(session, url, seed):
    """(status, Retry-After, whether the answer is whole)"""
    async with session.post(f"{url}/v1/completions", json=body(seed),
                            headers={"X-Request-Timeout": str(LIMIT_S)}) as response:
        text = await response.text()
        if response.status == 200 and seed % 2 == 0:
            whole = len(list(http_tools.parse_events(text))) == 40
        else:
            whole = response.status != 200 or '"completion_tokens":40' in text
        return response.status, response.headers.get("Retry-After"), whole


async def offer(url):
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await asyncio.gather(*(outcome(session, url, seed) for seed in range(REQUESTS)))


def test_2000_requests_at_once_end_in_200_or_429_or_503(launcher, note):
    server = http_tools.serve(launcher, MODEL, "--max-queued-requests=128", "--nolog-requests",
                              "--metrics-listen=127.0.0.1:0")
    assert server.complete(**{**body(1), "stream": False})["usage"]["completion_tokens"] == 40
    before = scrape(server.server)
    results = asyncio.run(offer(server.url))
    statuses = collections.Counter(status for status, _, _ in results)
    assert set(statuses) <= {200, 429, 503} and statuses[200] and statuses[429] + statuses[503]
    for status, retry_after, whole in results:
        assert whole
        assert status == 200 or 1 <= int(retry_after) <= 60
    after = scrape(server.server)
    grown = (after.value("process_resident_memory_bytes") -
             before.value("process_resident_memory_bytes")) / 2**20
    note("HTTP overload: memory grown, MiB", grown)
    assert grown < 200
    # Nothing is left over, and it serves on.
    harness.wait_until(lambda: scrape(server.server).value("blockserve_gateway_streams") == 0, "all over")
    assert scrape(server.server).value("blockserve_block_sequences") == 0
    assert scrape(server.server).value("blockserve_gateway_live_choices") == 0
    assert server.complete(**{**body(1), "stream": False})["usage"]["completion_tokens"] == 40


def test_what_could_not_end_before_its_deadline_is_refused_at_once(launcher):
    """The pace is known from what has ended; requests that say that they have no time to wait are
    told 429, and those that have time are served."""
    server = http_tools.serve(launcher, MODEL, "--max-live-choices=2", "--max-starting-requests=2",
                              "--nolog-requests")

    async def run():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            async def one(max_tokens, limit_s):
                async with session.post(f"{server.url}/v1/completions", headers={"X-Request-Timeout": str(limit_s)},
                                        json={**body(1), "max_tokens": max_tokens}) as response:
                    return response.status, await response.text()

            await asyncio.gather(*(one(400, 600) for _ in range(12)))
            patient = [asyncio.ensure_future(one(400, 600)) for _ in range(40)]
            while server.request("GET", "/status")[2]["live_requests"] < 40:
                await asyncio.sleep(0)
            return await one(7000, 0.3), await asyncio.gather(*patient)

    (status, text), patient = asyncio.run(run())
    assert status == 429 and "the deadline would pass before this one could end" in text
    assert [status for status, _ in patient] == [200] * 40
