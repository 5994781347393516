"""Runs the command blocks of documents and compares their output. Each document gets its own server with an empty data directory.

usage: readme.py TARGET_DIR SUMMARY DOCUMENT...

A ```console block contains commands after `$ ` and their output, including standard error. A line `...` matches any
number of lines. Ids, times and values that depend on the day of the month may differ. An HTML comment before a block can say:

  <!-- ci: server -->   a ```sh block whose first command starts the server; the second is a step of CI (cargo test)
  <!-- ci: live -->     a command that does not end: it keeps running during the next block and must then have printed its output
  <!-- ci: trace -->    AzureLLMInferenceTrace_conv.csv is replaced by a small file of the same form, so all numbers may differ
  <!-- ci: .ci/name --> the block is not run here but in that step of CI
  <!-- ci: examples/… --> the block is a part of that file, which a step of CI runs; indentation may differ

Any other block of ```sh, ```console or a programming language is an error. SUMMARY receives the numbers of passed and failed
commands.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from decimal import Decimal

ADDRESS = "127.0.0.1:50051"
BINARY = "target/debug/meterd"
TRACE = "AzureLLMInferenceTrace_conv.csv"
START_SECONDS = 120
COMMAND_SECONDS = 120
LIVE_SECONDS = 10

# Texts that differ in every run: a pattern, and its replacement.
MASKS = [
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\bmtr_[0-9a-f]{16}_[0-9a-f]{64}\b", "API KEY"),
    (r"\b[0-9a-f]{16}\b", "KEY ID"),
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
    (r"\d{4}-\d\d-\d\d", "DAY"),
    (r"\d{4}-\d\d", "MONTH"),
    (r"day \d+ of \d+", "day N of N"),
    (r"\d+ days old", "N days old"),
    (r'"priceId": "\d+"', "PRICE ID"),
    (r"[0-9.,]+ USD projected", "N USD projected"),
    (r"\d+\.\d+ s, [0-9,]+ rows/s", "N s, N rows/s"),
    (r"█+", "BAR"),
    (r'"resumeToken": "[^"]+"', "TOKEN"),
    (r"whsec_[A-Za-z0-9+/=]+", "KEY"),
    (r"\b(January|February|March|April|May|June|July|August|September|October|November|December) \d{4}", "MONTH"),
]
# Lines that are missing on some days, and the value of a projection.
DAILY_LINE = re.compile(r'^\s*"days(Elapsed|Remaining)": \d+,$')
PROJECTION = re.compile(r'("projectedCost": \{\s*"currency": "USD",\s*"amount": )"[0-9.]+"')


def blocks(text):
    """Yields (mark, language, lines, line number) of each fenced block."""
    mark, fence = None, None
    for number, line in enumerate(text.splitlines(), 1):
        if fence is None:
            if found := re.fullmatch(r"<!-- ci: (.+) -->", line):
                mark = found[1]
            elif found := re.fullmatch(r"```(\w*)", line):
                fence = (mark, found[1], [], number)
            elif line.strip():
                mark = None
        elif line == "```":
            yield fence
            fence, mark = None, None
        else:
            fence[2].append(line)


def commands(lines):
    """Yields (command, expected output lines) of a console block."""
    command, output = None, []
    continues = quoted = False
    for line in lines:
        if continues or quoted:
            command += "\n" + line
        elif line.startswith("$ "):
            if command is not None:
                yield command, output
            command, output = line[2:], []
        else:
            output.append(line)
            continue
        continues = line.endswith("\\")
        quoted = command.count("'") % 2 == 1
    if command is not None:
        yield command, output


def normal(text, numbers):
    lines = [line.rstrip() for line in text.splitlines() if not DAILY_LINE.match(line)]
    text = PROJECTION.sub(r'\1"N"', "\n".join(lines)).strip("\n")
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    if numbers:
        text = re.sub(r"\d[\d,.]*\d|\d", "N", text)
    # The width of columns depends on their contents.
    return re.sub(r" {2,}", "  ", re.sub(r"(?m)^ +", "", text))


def matches(expected, actual):
    pattern = "\n".join(".*" if line == "..." else re.escape(line) for line in expected.split("\n"))
    # "..." also matches no lines: for example, no projection follows an alert on the last days of a month.
    pattern = re.sub(r"\n\.\*$", r"(?:\\n.*)?", pattern.replace("\n.*\n", "\n(?:.*\n)?"))
    return re.fullmatch(pattern, actual, re.DOTALL) is not None


class Server:
    def __init__(self, command, root, data):
        self.log = tempfile.NamedTemporaryFile("r", suffix=".log")
        settings = {"LISTEN": "127.0.0.1:0", "HTTP_LISTEN": "127.0.0.1:0", "DATA_DIR": data, "LOG": "warn"}
        env = os.environ | {f"METERD_{name}": value for name, value in settings.items()}
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=root, env=env, stdout=open(self.log.name, "w"), stderr=subprocess.STDOUT
        )
        until = time.monotonic() + START_SECONDS
        while not (found := re.search(r"gRPC +(\S+)", self.output())):
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise SystemExit(f"`{command}` did not start a server:\n{self.output()}")
            time.sleep(0.1)
        self.address = found[1]

    def output(self):
        return pathlib.Path(self.log.name).read_text()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)


class Live:
    """A command that keeps running, and its expected output."""

    def __init__(self, command, env, output, work_dir, server, number):
        self.log = tempfile.NamedTemporaryFile("r", suffix=".live")
        real = command.replace(ADDRESS, server.address)
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {real}"], cwd=work_dir, env=env, stdout=open(self.log.name, "w"), stderr=subprocess.STDOUT
        )
        self.command, self.expected, self.number = command, normal("\n".join(output), False), number
        self.wait(lambda: self.output())

    def output(self):
        return pathlib.Path(self.log.name).read_text()

    def wait(self, done):
        until = time.monotonic() + LIVE_SECONDS
        while not done() and time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.05)

    def end(self):
        good = lambda: matches(self.expected, normal(self.output(), False))
        self.wait(good)
        self.process.kill()
        self.process.wait()
        if not good():
            print(f"{self.number}: {self.command}\nprinted\n{self.output()}")
        return good()


def write_trace(path):
    """Writes a small trace in the form of the real one: same columns, seven decimals of a second, CRLF. Returns its rows and cost."""
    rows, cost = 250, Decimal(0)
    with open(path, "w", newline="") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens")
        for row in range(rows):
            context, generated = 100 + row * 37 % 4000, 10 + row * 11 % 700
            file.write(f"\r\n2023-11-16 18:{15 + row // 60:02}:{row % 60:02}.{row * 39916:07},{context},{generated}")
            cost += context * Decimal("0.00000015") + generated * Decimal("0.0000006")
    return rows, f"{cost.normalize():f} USD"


class Document:
    """A document and the results of its commands."""

    def __init__(self, path, root, target):
        self.path, self.root, self.target = path, root, target
        self.name = str(path.relative_to(root))
        self.passed = self.failed = 0
        self.server = self.live = None

    def fail(self, number, what):
        raise SystemExit(f"{self.name}:{number}: {what}")

    def report(self, good, number, text):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            print(f"{self.name}:{number}: {text}")

    def start(self, command, work_dir, data):
        self.server = Server(command, self.root, data)
        self.trace = write_trace(f"{work_dir}/{TRACE}")

    def run(self):
        with tempfile.TemporaryDirectory() as work_dir, tempfile.TemporaryDirectory() as data:
            try:
                for mark, language, lines, number in list(blocks(self.path.read_text())):
                    self.block(mark, language, lines, number, work_dir, data)
            finally:
                if self.live:
                    self.live.process.kill()
                if self.server and self.server.stop() != 0:
                    self.failed += 1
                    print(f"the server did not stop with status 0:\n{self.server.output()}")

    def block(self, mark, language, lines, number, work_dir, data):
        if mark and mark.startswith("examples/"):
            bare = lambda text: [line.strip() for line in text if line.strip()]
            here, there = bare(lines), bare((self.root / mark).read_text().splitlines())
            found = any(there[i : i + len(here)] == here for i in range(len(there)))
            return self.report(found, number, f"the block is not in {mark}")
        if mark and mark.startswith(".ci/"):
            if not os.access(self.root / mark, os.X_OK):
                self.fail(number, f"there is no CI step {mark}")
            return
        if language in ("", "text", "toml"):
            return
        if mark == "server":
            self.start(re.sub(r"\s+#.*", "", lines[0]), work_dir, data)
            self.passed += 1
            return
        if language != "console":
            self.fail(number, "this block is not run; mark it with <!-- ci: … -->")
        if self.server is None:
            self.start(f"{self.target}/debug/meterd", work_dir, data)
        env = os.environ | {"METERD_SERVER": self.server.address, "METERD_DATA_DIR": data}
        if mark == "live":
            (command, output), = commands(lines)
            self.live = Live(command, env, output, work_dir, self.server, f"{self.name}:{number}")
            return
        for command, output in commands(lines):
            self.command(command, output, mark == "trace", env, work_dir, number)
        if self.live:
            good, self.live = self.live.end(), None
            self.passed, self.failed = self.passed + good, self.failed + (not good)

    def command(self, command, output, trace, env, work_dir, number):
        real = command.replace(ADDRESS, self.server.address).replace(BINARY, f"{self.target}/debug/meterd")
        run = subprocess.run(
            ["bash", "-c", real], cwd=work_dir, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=COMMAND_SECONDS,
        )
        shown = run.stdout.replace(self.server.address, ADDRESS)
        good = matches(normal("\n".join(output), trace), normal(shown, trace))
        good = good and (run.returncode == 0) != shown.startswith("ERROR")
        if trace and " import " in command:
            rows, cost = self.trace
            good = good and f"{rows}" in shown and (cost in shown or f"duplicates     {rows}" in shown)
        self.report(good, number, f"{command}\nprints (exit status {run.returncode})\n{shown}")


def main():
    target, summary, *paths = sys.argv[1:]
    root = pathlib.Path.cwd()
    passed = failed = 0
    for path in paths:
        document = Document(pathlib.Path(path).resolve(), root, target)
        document.run()
        passed, failed = passed + document.passed, failed + document.failed
    pathlib.Path(summary).write_text(f"{passed} {failed}\n")
    print(f"{passed} commands and examples of {len(paths)} documents passed, {failed} failed")
    return 1 if failed or not passed else 0


sys.exit(main())
