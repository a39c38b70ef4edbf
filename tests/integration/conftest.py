"""Fixtures of the integration tests: programs that are stopped, and checked, when a module ends."""

import json
import pathlib

import blockserve
import golden_folders
import harness
import pytest
import secured_tiers

LOG_LINES_OF_A_FAILURE = 20

_largest: dict[str, float] = {}


@pytest.fixture(scope="module", params=golden_folders.NAMES)
def golden(request) -> pathlib.Path:
    return golden_folders.golden_folder(request.param)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    started = harness.Launcher(tmp_path_factory.mktemp("servers"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def demo_model() -> pathlib.Path:
    """The demo model: real text, a tokenizer, bf16."""
    if not (harness.DEMO_MODEL / "config.json").exists():
        pytest.skip(f"{harness.DEMO_MODEL} is not in this checkout")
    return harness.DEMO_MODEL


@pytest.fixture(scope="session")
def note():
    """note(what, value): the largest value of each `what` is printed after the tests."""

    def keep(what: str, value: float) -> None:
        _largest[what] = max(value, _largest.get(what, value))

    return keep


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.ended_before = {server.log_path for server in harness.started if not server.is_alive()}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the last lines of the programs that lived during it."""
    report = (yield).get_result()
    if not report.failed:
        return
    for server in harness.started:
        if server.log_path not in item.ended_before and server.log_path.exists():
            last = "".join(server.log().splitlines(keepends=True)[-LOG_LINES_OF_A_FAILURE:])
            report.sections.append((f"{server.log_path.name}, {server.address}", last))


def pytest_terminal_summary(terminalreporter):
    if _largest:
        terminalreporter.section("measured")
        for what, value in sorted(_largest.items()):
            terminalreporter.write_line(f"{what} {value:.1e}")


@pytest.fixture(scope="session")
def chat_model(demo_model, tmp_path_factory):
    """The demo model with a role format: it answers in fairy tales, but it answers."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    folder.mkdir()
    for path in demo_model.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (folder / "chat_format.json").write_text(json.dumps({
        "roles": {"system": {"after": "\n"}, "user": {"before": "Q: ", "after": "\n"},
                  "assistant": {"before": "A: ", "after": "\n"}},
        "answer": "A:", "stop": ["\nQ:"]}))
    return folder


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return secured_tiers.make_authorities(tmp_path_factory)


@pytest.fixture(scope="module")
def secured(pki, demo_model, launcher, tmp_path_factory):
    return secured_tiers.start(pki, demo_model, launcher, tmp_path_factory.mktemp("keys"))


@pytest.fixture
def secured_client(secured, pki):
    tls = blockserve.Tls(ca=pki.public / "ca.crt")
    with blockserve.Client(secured.gateway.address, tls=tls, api_key=secured.key,
                           timeout=60) as made:
        yield made
