"""Generates the Python stubs of proto/ into a directory."""

import pathlib

import grpc_tools
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]


def generate(out: str) -> None:
    google = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    status = protoc.main(
        ["protoc", f"-I{ROOT / 'proto'}", f"-I{google}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    )
    assert status == 0, "protoc failed"
