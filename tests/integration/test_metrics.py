"""What the programs show at /metrics, and whether documentation and dashboard say the same."""

import json
import re
import signal

import harness
import pytest
from answers import ask
from scraping import scrape

MODEL = harness.GOLDEN / "concat_l4"
LISTEN = "--metrics-listen=127.0.0.1:0"
ROW = re.compile(r"^\| `((?:blockserve|process)_\w+)` \| (\w+) \| ([\w, ]*) ?\|", re.MULTILINE)


@pytest.fixture(scope="module")
def tiers(launcher):
    block = launcher.block(MODEL, "--arithmetic=f32", LISTEN)
    token = launcher.token(MODEL, "--arithmetic=f32", LISTEN)
    gateway = launcher.gateway(MODEL, [block], [token], LISTEN)
    return block, token, gateway, launcher.connected_client(gateway, 1, 1)


def documented():
    """(kind, labels) by metric name."""
    text = (harness.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = ROW.findall(text)
    assert len({name for name, _, _ in rows}) == len(rows), "a metric is described twice"
    return {name: (kind, {label for label in re.split(r"[, ]+", labels) if label})
            for name, kind, labels in rows}


def test_the_page_describes_what_the_programs_show_and_nothing_else(tiers):
    *servers, client = tiers
    ask(client, {"prompt": [1] * 40, "max_tokens": 9, "ignore_eos": True, "seed": 1})
    client.score([5] * 9)
    shown: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    for server in servers:
        scraped = scrape(server)
        shown |= scraped.kinds()
        labels |= scraped.labels()
    pages = documented()
    assert {name: kind for name, (kind, _) in pages.items()} == shown
    assert {name: found for name, found in labels.items() if name in pages and
            found != pages[name][1]} == {}


def test_serve_shows_all_three_tiers_on_one_page(launcher, tiers):
    server = launcher.serve(MODEL, LISTEN).wait_until_ready()
    ask(launcher.client(server), {"prompt": [1] * 40, "max_tokens": 9, "ignore_eos": True, "seed": 1})
    scraped = scrape(server)
    assert set(scraped.kinds()) == set(documented())
    assert scraped.value("blockserve_gateway_completion_tokens_total") == 9
    assert scraped.total("blockserve_token_tokens_total") >= 9
    harness.wait_until(lambda: scrape(server).labels().get("blockserve_gateway_worker_busy_ratio") ==
                       {"tier", "worker"}, "the workers have been looked at")


def test_every_expression_of_the_dashboard_uses_metrics_that_exist():
    path = harness.ROOT / "k8s" / "components" / "monitoring" / "dashboard.json"
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    known = set()
    for name, (kind, _) in documented().items():
        known |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in
                   panel.get("targets", [])]
    assert len(expressions) > 20
    used = {name for expression in expressions
            for name in re.findall(r"\b(?:blockserve|process)_\w+", expression)}
    assert used - known == set()
    # The namespace that is chosen bears on all of them.
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "namespace"}
    for expression in expressions:
        assert re.findall(r"\b(?:blockserve|process)_\w+(?!\w|\{namespace=~\"\$namespace\")",
                          expression) == [], expression
    # And what matters most is on it.
    assert {"blockserve_gateway_time_to_first_token_seconds_bucket", "blockserve_block_kv_pages",
            "blockserve_token_busy_ratio", "blockserve_gateway_requests_total"} <= used


def test_autoscalers_and_alerts_use_metrics_that_exist():
    known = set(documented())
    for name, (kind, _) in documented().items():
        known |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else set()
    # Made by a rule from another one.
    known.add("blockserve_block_kv_used_ratio")
    used = set()
    for path in [*(harness.ROOT / "k8s").rglob("*.yaml"), harness.ROOT / "docs" / "operations.md"]:
        used |= set(re.findall(r"\bblockserve_(?:gateway|block|token)_[a-z]\w*",
                               path.read_text(encoding="utf-8")))
    assert used and used - known == set()


def test_the_tiers_silence_ends_with_every_block_that_comes_back(tiers):
    gateway, client = tiers[2:]
    name = "blockserve_gateway_tiers_silent_seconds"
    ask(client, {"prompt": [1] * 9, "max_tokens": 4, "ignore_eos": True, "seed": 1})
    harness.wait_until(lambda: scrape(gateway).value(name) > 0.5, "nothing has been asked for a while")
    silent = scrape(gateway).value(name)
    ask(client, {"prompt": [1] * 9, "max_tokens": 4, "ignore_eos": True, "seed": 1})
    harness.wait_until(lambda: scrape(gateway).value(name) < silent, "a block has come back")


def test_requests_and_tokens_are_counted_once(tiers):
    block, token, gateway, client = tiers
    before, blocks_before, rows_before = scrape(gateway), scrape(block), scrape(token)
    for seed in range(5):
        ask(client, {"prompt": [seed + 1] * 21, "max_tokens": 10, "ignore_eos": True, "seed": seed,
                     "n": 2})
    after, blocks, rows = scrape(gateway), scrape(block), scrape(token)

    def grew(name, earlier=before, later=after, **labels):
        return later.value(name, **labels) - earlier.value(name, **labels)

    assert grew("blockserve_gateway_requests_total", method="generate", outcome="ok") == 5
    assert grew("blockserve_gateway_prompt_tokens_total") == 5 * 21
    assert grew("blockserve_gateway_completion_tokens_total") == 5 * 2 * 10
    assert grew("blockserve_gateway_time_to_first_token_seconds_count") == 5
    assert grew("blockserve_gateway_queue_seconds_count") == 5
    assert grew("blockserve_gateway_request_seconds_count", method="generate") == 5
    assert grew("blockserve_token_tokens_total", rows_before, rows) == 5 * 2 * 10
    assert grew("blockserve_token_rows_total", rows_before, rows, outcome="ok") == \
        grew("blockserve_token_step_rows_sum", rows_before, rows)
    assert grew("blockserve_block_steps_total", blocks_before, blocks) == \
        grew("blockserve_block_step_seconds_count", blocks_before, blocks)
    pages = [blocks.value("blockserve_block_kv_pages", state=state)
             for state in ("used", "cached", "free")]
    assert min(pages) >= 0 and sum(pages) == \
        sum(blocks_before.value("blockserve_block_kv_pages", state=state)
            for state in ("used", "cached", "free"))


def test_what_is_refused_as_malformed_is_counted_too(tiers):
    *_, gateway, client = tiers
    name = {"method": "generate", "outcome": "invalid_argument"}
    before = scrape(gateway).value("blockserve_gateway_requests_total", **name)
    with pytest.raises(Exception):
        client.generate([1], max_tokens=-1)
    assert scrape(gateway).value("blockserve_gateway_requests_total", **name) == before + 1


def test_tokenizing_is_counted(tiers):
    *_, gateway, client = tiers
    before = scrape(gateway)
    with pytest.raises(Exception, match="tokenizer"):
        client.tokenize("the golden models have none")
    after = scrape(gateway)
    name = {"method": "tokenize", "outcome": "failed_precondition"}
    assert after.value("blockserve_gateway_requests_total", **name) == \
        before.value("blockserve_gateway_requests_total", **name) + 1


def test_a_client_that_goes_away_frees_its_kv_within_a_step(tiers):
    """The token worker is stopped in the middle of a block: nothing moves on but by the client's
    going, and the block tier needs no step at all to let go."""
    block, token, gateway, client = tiers
    harness.wait_until(lambda: scrape(block).value("blockserve_block_sequences") == 0, "idle")
    streams = [client.stream([index + 1] * 30, max_tokens=3000, ignore_eos=True)
               for index in range(4)]
    for stream in streams:
        next(iter(stream))
    token.process.send_signal(signal.SIGSTOP)
    try:
        def at_rest():
            first, second = scrape(block), scrape(block)
            return first.value("blockserve_block_steps_total") == \
                second.value("blockserve_block_steps_total") and \
                scrape(gateway).value("blockserve_gateway_rows") == 4

        harness.wait_until(at_rest, "every stream waits for the worker that was stopped")
        before = scrape(block)
        assert before.value("blockserve_block_sequences") == 4
        assert before.value("blockserve_block_kv_pages", state="used") > 0
        for stream in streams:
            stream.cancel()
        harness.wait_until(lambda: scrape(block).value("blockserve_block_sequences") == 0,
                           "the block tier has let go of all sequences")
        after = scrape(block)
        assert after.value("blockserve_block_kv_pages", state="used") == 0
        steps = after.value("blockserve_block_steps_total") - \
            before.value("blockserve_block_steps_total")
        assert steps <= 1
    finally:
        token.process.send_signal(signal.SIGCONT)
    harness.wait_until(lambda: scrape(gateway).value("blockserve_gateway_streams") == 0, "all over")
    harness.wait_until(lambda: scrape(token).value("blockserve_token_rows_waiting") == 0 and
                       scrape(token).value("blockserve_token_rows_running") == 0,
                       "the token tier has let go of all rows")


def test_workers_that_go_take_their_series_along(launcher):
    block = launcher.block(MODEL, "--arithmetic=f32")
    tokens = [launcher.token(MODEL, "--arithmetic=f32") for _ in range(2)]
    gateway = launcher.gateway(MODEL, [block], tokens, LISTEN)
    client = launcher.connected_client(gateway, 1, 2)
    ask(client, {"prompt": [1] * 9, "max_tokens": 9, "ignore_eos": True, "seed": 1})
    harness.wait_until(
        lambda: scrape(gateway).value("blockserve_gateway_workers", tier="token") == 2, "two workers")
    tokens[0].kill()
    harness.wait_until(
        lambda: scrape(gateway).value("blockserve_gateway_workers", tier="token") == 1, "one worker")


def test_a_metrics_port_that_is_taken_is_a_clear_error(tiers, launcher):
    taken = re.search(r"metrics on (\S+)", tiers[0].wait_for_log("metrics on "))[1]
    server = launcher.start("blockserve-token", [f"--model={MODEL}", f"--metrics-listen={taken}"])
    assert server.process.wait(harness.START_LIMIT_S) == 2
    server._expect_exit_0 = False
    assert f"--metrics-listen {taken}: cannot listen there" in server.log()
