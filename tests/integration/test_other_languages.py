"""Code for other languages is generated from the protos as they are: no option has to be added to
them, nor to the command."""

import subprocess

import harness
from google.protobuf import descriptor_pb2

PROTOS = harness.ROOT / "proto"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def protoc(*arguments):
    subprocess.run(["protoc", f"-I{PROTOS}", *arguments, *FILES], check=True)


def test_go_is_told_an_import_path(tmp_path):
    """protoc-gen-go refuses a file that says none."""
    written = tmp_path / "descriptors"
    protoc(f"--descriptor_set_out={written}")
    files = descriptor_pb2.FileDescriptorSet.FromString(written.read_bytes()).file
    assert {file.name: file.options.go_package for file in files} == dict.fromkeys(
        FILES, "blockserve/v1;blockservev1")


def test_java_has_a_class_for_each_message(tmp_path):
    """Not one class around them all."""
    protoc(f"--java_out={tmp_path}")
    for name in ("GenerateRequest", "Started", "FinishReason", "GenerationProto"):
        assert (tmp_path / "blockserve/v1" / f"{name}.java").exists(), name
