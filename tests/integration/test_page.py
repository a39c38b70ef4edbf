"""The page at `/` in headless Chromium: type, watch the text come in, kill a token worker, text goes on."""

import os
import re
import shutil

import harness
import http_tools
import pytest

webdriver = pytest.importorskip("selenium.webdriver")

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no chromium on this machine")


@pytest.fixture
def deployment(launcher, demo_model):
    block = launcher.block(demo_model)
    tokens = [launcher.token(demo_model, f"--name=worker-{index}") for index in range(2)]
    return http_tools.gateway(launcher, demo_model, [block], tokens), tokens


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def picture(browser, name, width, height, dark=False):
    """Written where BLOCKSERVE_SCREENSHOTS says, for people to look at."""
    folder = os.environ.get("BLOCKSERVE_SCREENSHOTS")
    if folder:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
        browser.save_screenshot(f"{folder}/{name}.png")


def generated(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#output .block')].map(e => [e.textContent, e.dataset.worker])")


def test_text_streams_and_goes_on_when_a_token_worker_is_killed(deployment, browser):
    server, workers = deployment
    browser.get(server.url + "/")
    harness.wait_until(lambda: "demo-block" in browser.find_element("id", "model").text, "the page has the status")
    assert browser.find_element("id", "prompt") == browser.switch_to.active_element
    # By the keyboard alone.
    keys = webdriver.Keys
    browser.switch_to.active_element.send_keys(keys.CONTROL, "a", keys.NULL, "The old king", keys.TAB,
                                               keys.CONTROL, "a", keys.NULL, "1500", keys.TAB,
                                               keys.TAB, "5", keys.CONTROL, keys.ENTER)
    harness.wait_until(lambda: len({worker for _, worker in generated(browser)}) == 2, "both workers have written")
    picture(browser, "wide", 1280, 900)
    picture(browser, "dark", 1280, 900, dark=True)
    workers[0].kill()
    before = len(generated(browser))
    harness.wait_until(lambda: len(generated(browser)) > before + 10
                       or not browser.find_element("id", "stop").is_enabled(), "text goes on")
    harness.wait_until(lambda: "not connected" in browser.find_element("id", "token").text, "the loss is shown")
    picture(browser, "narrow", 390, 1200)
    harness.wait_until(lambda: not browser.find_element("id", "stop").is_enabled(), "the stream is over")
    assert browser.find_element("id", "error").text == ""
    text = "".join(piece for piece, _ in generated(browser))
    fields = {"prompt": "The old king", "max_tokens": 1500, "temperature": 0.8, "seed": 5}
    assert text == server.complete(**fields)["choices"][0]["text"], "nothing was lost"
    summary = browser.find_element("id", "summary").text
    assert re.search(r"tokens in [\d.]+ s.*written by 2 workers", summary), summary
    tokens, seconds = re.match(r"(\d+) tokens in ([\d.]+) s", summary).groups()
    rate = float(browser.find_element("id", "rate").text)
    assert rate == pytest.approx(int(tokens) / float(seconds), rel=0.05, abs=1), "the mean stays"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_escape_stops_a_stream_and_errors_are_shown(deployment, browser):
    server, _ = deployment
    browser.get(server.url + "/")
    browser.execute_script("document.getElementById('max_tokens').value = 8000")
    browser.find_element("id", "go").click()
    harness.wait_until(lambda: generated(browser), "text comes")
    browser.find_element("id", "prompt").send_keys(webdriver.Keys.ESCAPE)
    harness.wait_until(lambda: browser.find_element("id", "go").is_enabled(), "it has stopped")
    assert "stopped" in browser.find_element("id", "summary").text
    browser.execute_script("document.getElementById('max_tokens').value = 100000000")
    browser.find_element("id", "go").click()
    harness.wait_until(lambda: "max_tokens" in browser.find_element("id", "error").text, "the error is shown")
    assert browser.find_element("id", "summary").text == "", "that was of the request before"
    assert browser.find_element("id", "rate").text == "0"
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", browser.page_source.split("<script>")[0])


def test_seeds_and_temperatures_are_sent_as_they_were_typed(deployment, browser):
    """2^53 + 1 is a seed that JavaScript's numbers do not have."""
    server, _ = deployment
    fields = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.75}
    texts = {seed: server.complete(**fields, seed=seed)["choices"][0]["text"]
             for seed in (2**53, 2**53 + 1)}
    assert texts[2**53] != texts[2**53 + 1]
    browser.get(server.url + "/")
    for field, value in (("max_tokens", "40"), ("temperature", "0.75"), ("seed", str(2**53 + 1))):
        browser.find_element("id", field).clear()
        browser.find_element("id", field).send_keys(value)
    browser.find_element("id", "go").click()
    harness.wait_until(lambda: "40 tokens" in browser.find_element("id", "summary").text, "it is done")
    assert "".join(piece for piece, _ in generated(browser)) == texts[2**53 + 1]
    browser.find_element("id", "seed").send_keys("x")
    assert not browser.execute_script("return document.getElementById('form').checkValidity()")


def test_a_focus_ring_leaves_the_label_above_it_alone(deployment, browser):
    server, _ = deployment
    browser.get(server.url + "/")
    for field in ("prompt", "max_tokens"):
        gap = browser.execute_script(
            "const field = document.getElementById(arguments[0]); field.focus();"
            "const style = getComputedStyle(field);"
            "return field.getBoundingClientRect().top - field.labels[0].getBoundingClientRect().bottom"
            " - parseFloat(style.outlineWidth) - parseFloat(style.outlineOffset)", field)
        assert gap >= 0, field
