"""Generates the Java classes of proto/ into a directory without any option. Checks that each has the right package and its own file."""

import pathlib
import subprocess
import sys

from google.protobuf import descriptor_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "io.github.meterd.metering.v1"


def protoc(*arguments: str) -> None:
    """Runs the protoc of requirements.txt, which includes the generator for Java."""
    program = pathlib.Path(sys.executable).parent / "protoc"
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    subprocess.run([str(program), f"-I{ROOT / 'proto'}", *arguments, *files], check=True)


def main(out: pathlib.Path) -> None:
    for old in out.rglob("*.java"):
        old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    descriptors = out / "descriptors"
    protoc(f"--java_out={out}", f"--descriptor_set_out={descriptors}")
    expected = set()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file:
        expected |= {kind.name for kind in (*file.message_type, *file.enum_type)}
    generated = {path.stem: path for path in out.rglob("*.java")}
    missing = sorted(expected - generated.keys())
    assert expected and not missing, f"no file for: {missing}"
    for path in generated.values():
        assert path.parent == out / PACKAGE.replace(".", "/"), path
        assert f"\npackage {PACKAGE};\n" in path.read_text(), path
    print(f"Java: {len(expected)} messages and enums of {PACKAGE}, each in its own file")


main(pathlib.Path(sys.argv[1]))
