"""Three tiers whose every connection is encrypted and whose every caller is known."""

from __future__ import annotations

import os
import pathlib
import subprocess
import types

import harness


def make_certificates(folder, *names, also=None):
    extra = ["--also", also] if also else []
    subprocess.run([harness.ROOT / "scripts" / "make_certificates", folder, *extra, *names],
                   check=True, stdout=subprocess.DEVNULL)
    return folder


def make_authorities(tmp_path_factory) -> types.SimpleNamespace:
    """Two: of the tiers, and of the port that clients see."""
    return types.SimpleNamespace(
        tiers=make_certificates(tmp_path_factory.mktemp("tiers"), "gateway", "block", "token",
                                also="DNS:blockserve-tiers"),
        public=make_certificates(tmp_path_factory.mktemp("public"), "server", "client"))


def server_flags(folder, name, client_ca=None):
    flags = [f"--tls-cert={folder}/{name}.crt", f"--tls-key={folder}/{name}.key"]
    return flags + ([f"--tls-client-ca={client_ca}"] if client_ca else [])


def keys_command(*arguments):
    return subprocess.run([harness.program("blockserve"), "keys", *arguments], text=True,
                          capture_output=True, check=False)


def put_in_place(new, old):
    """With the time of the file that was there, as packages and images of fixed times have it."""
    before = old.stat()
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, old)


def start(pki, model: pathlib.Path, launcher: harness.Launcher,
          folder: pathlib.Path) -> types.SimpleNamespace:
    """With a key in the file of keys, in `folder`, and metrics of all."""
    ca = f"{pki.tiers}/ca.crt"
    keys = folder / "api.keys"
    key = keys_command("--name=alice", f"--file={keys}").stdout.strip()
    metrics = {tier: harness.free_port() for tier in ("block", "token", "gateway")}
    block, token = (start(model, *server_flags(pki.tiers, tier, ca),
                          f"--metrics-listen=127.0.0.1:{metrics[tier]}")
                    for tier, start in (("block", launcher.block), ("token", launcher.token)))
    gateway = launcher.gateway(
        model, [block], [token], *server_flags(pki.public, "server"), f"--api-keys={keys}",
        f"--tier-tls-ca={ca}", f"--tier-tls-cert={pki.tiers}/gateway.crt",
        f"--tier-tls-key={pki.tiers}/gateway.key", "--tier-tls-name=blockserve-tiers",
        f"--http-listen=127.0.0.1:{(http_port := harness.free_port())}",
        f"--metrics-listen=127.0.0.1:{metrics['gateway']}")
    for server in (block, token):
        gateway.wait_for_log(f"at {server.address} connected")
    gateway.wait_for_log("listening on")
    return types.SimpleNamespace(block=block, token=token, gateway=gateway, keys=keys, key=key,
                                 http_port=http_port, metrics=metrics)
