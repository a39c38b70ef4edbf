"""Signals: while a model loads, and a second one while a program drains, also as a container's first
process; and programs whose standard descriptors are closed."""

import os
import pathlib
import shutil
import signal
import subprocess
import threading

import blockserve
import harness
import pytest
from scraping import scrape

MODEL = harness.GOLDEN / "concat_l4"
# Its child is the first process of a namespace, which the default action of a signal does not end.
AS_THE_FIRST = ["unshare", "--pid", "--fork", "--kill-child"]


@pytest.mark.parametrize("program, flag", [("blockserve-block", "--listen"),
                                           ("blockserve-token", "--listen"),
                                           ("blockserve", "--grpc-address")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_the_process(launcher, tmp_path, program, flag, number):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    for weights in model.glob("*.safetensors"):
        weights.unlink()
        os.mkfifo(weights)  # nobody writes: loading does not end
    health = f"127.0.0.1:{harness.free_port()}"
    serve = ["serve"] if program == "blockserve" else []
    server = launcher.start(program, [*serve, f"--model={model}", f"--health-listen={health}"], flag)
    harness.wait_until(lambda: harness.is_healthy(health, "liveness"), "its health can be asked")
    assert not harness.is_healthy(health, "startup")
    server.process.send_signal(number)
    assert server.process.wait(harness.STOP_LIMIT_S) == -number
    server.kill()  # has ended, and not with 0


@pytest.mark.parametrize("wrapper", [[], AS_THE_FIRST], ids=["alone", "first of a container"])
def test_a_second_signal_ends_a_program_that_drains(launcher, wrapper):
    if wrapper and subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    address, health = (f"127.0.0.1:{harness.free_port()}" for _ in range(2))
    nobody = f"127.0.0.1:{harness.free_port()}"
    server = launcher.start_at(address, "blockserve-gateway", [
        f"--model={MODEL}", f"--health-listen={health}", "--metrics-listen=127.0.0.1:0",
        f"--block-services={nobody}", f"--token-services={nobody}", "--tier-wait=10m",
        "--drain-time=10m"], wrapper)
    harness.wait_until(lambda: harness.is_healthy(health, "readiness"), "it is ready")
    pid = server.process.pid
    if wrapper:
        pid = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    # A request that waits for the tiers is what the gateway waits for.
    client = launcher.client(server)
    ends = threading.Thread(target=lambda: pytest.raises(
        blockserve.Error, lambda: client.generate([1, 2, 3], max_tokens=4)))
    ends.start()
    harness.wait_until(lambda: scrape(server).value("blockserve_gateway_streams") == 1,
                       "the request is there")
    os.kill(pid, signal.SIGTERM)
    harness.wait_until(lambda: not harness.is_healthy(health, "readiness"), "it drains")
    assert server.is_alive()
    os.kill(pid, signal.SIGTERM)
    status = server.process.wait(harness.STOP_LIMIT_S)
    # The first of a container ends by itself; in gVisor the default action ends it too.
    assert status in ([128 + signal.SIGTERM, -signal.SIGTERM] if wrapper else [-signal.SIGTERM])
    ends.join()
    server.kill()  # has ended, and not with 0


def test_no_socket_takes_the_place_of_a_closed_standard_descriptor(launcher):
    server = launcher.start_at(f"127.0.0.1:{harness.free_port()}", "blockserve-token",
                               [f"--model={MODEL}"],
                               ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    server.wait_until_ready()
    descriptors = pathlib.Path(f"/proc/{server.process.pid}/fd")
    assert [os.readlink(descriptors / str(number)) for number in range(3)] == ["/dev/null"] * 3
