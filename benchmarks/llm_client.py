"""What the chat client costs: replies a second, CPU time a call, and memory over 100,000 rows.

    python benchmarks/llm_client.py [--calls 40000] [--rows 100000]

Against the test suite's own server (tests/llm_server.py) in a process of its own on loopback, which answers after a
fixed time. Each measurement runs in a fresh process. The openai package is measured beside it where it is installed.
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from llm_server import server_process
from medley.llm import LlmSettings, Message, Request, complete_stream, open_chat

PROMPT = "word " * 500
"""2,500 characters, about what a prompt with a positive and a mined negative has."""
IN_FLIGHT = 256


def requests(first: int, count: int) -> Iterator[Request]:
    return (Request((Message("user", f"{PROMPT}{i}"),)) for i in range(first, first + count))


def ask_medley(url: str, calls: int, cache: Path | None) -> Callable[[int], None]:
    chat = open_chat(LlmSettings(base_url=url, model="m"), cache)

    def ask(first: int) -> None:
        replies = complete_stream(chat, requests(first, calls), concurrency=IN_FLIGHT)
        assert sum(reply.finish_reason == "stop" for reply in replies) == calls

    return ask


def ask_openai(url: str, calls: int, _: Path | None) -> Callable[[int], None]:
    """The openai package's asynchronous client, with as many tasks as there are requests in flight."""
    import openai

    async def main(first: int) -> None:
        numbers = iter(range(first, first + calls))
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def work() -> None:
                for number in numbers:
                    message: Any = {"role": "user", "content": f"{PROMPT}{number}"}
                    await client.chat.completions.create(
                        model="m", messages=[message], temperature=0.7, max_tokens=700
                    )

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    return lambda first: asyncio.run(main(first))


CLIENTS = {"medley": ask_medley, "medley, replies on disk": ask_medley, "openai (asyncio)": ask_openai}


def measure(client: str, latency_s: float, calls: int) -> dict[str, float]:
    """In this process: replies a second and CPU milliseconds a call, of the second of two rounds."""
    with tempfile.TemporaryDirectory() as folder, server_process(latency_s) as server:
        cache = Path(folder) / "replies.jsonl" if "disk" in client else None
        CLIENTS[client](server.url, IN_FLIGHT, None)(0)
        ask = CLIENTS[client](server.url, calls, cache)
        cpu, start = time.process_time(), time.perf_counter()
        ask(IN_FLIGHT)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        most = server.stats()["most"]
    return {"rate": calls / seconds, "cpu_ms": 1000 * cpu / calls, "most": most}


def measure_memory(rows: int) -> dict[str, Any]:
    """In this process: resident memory on the way through many rows, then of a second pass that only resumes."""
    with tempfile.TemporaryDirectory() as folder, server_process() as server:
        cache = Path(folder) / "replies.jsonl"
        marks = {}
        for name in ("asked", "resumed"):
            chat = open_chat(LlmSettings(base_url=server.url, model="m"), cache)
            start = time.perf_counter()
            for count, _ in enumerate(
                complete_stream(chat, requests(0, rows), concurrency=IN_FLIGHT), start=1
            ):
                if count in (rows // 10, rows):
                    marks[f"{name} {count}"] = resident_mb()
            marks[f"{name} s"] = time.perf_counter() - start
            assert chat.ledger.calls == (rows if name == "asked" else 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        return marks | {"file_mb": cache.stat().st_size / 1e6, "peak": peak}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def in_fresh_process(*arguments: str) -> Any:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="The chat client's throughput, CPU time and memory.")
    parser.add_argument("--calls", type=int, default=40_000, help="of each measurement at 50 ms")
    parser.add_argument("--rows", type=int, default=100_000, help="of the memory measurement")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], float(args.one[1]), int(args.one[2]))))
        return
    if args.memory:
        print(json.dumps(measure_memory(args.rows)))
        return
    print(f"{IN_FLIGHT} in flight\n")
    print("| client | answers after | replies/s | of concurrency/latency | CPU a call | most in flight |")
    print("|---|---|---|---|---|---|")
    for latency_s in (0.05, 0.5):
        for client in CLIENTS:
            if client.startswith("openai") and importlib.util.find_spec("openai") is None:
                continue
            calls = args.calls if client.startswith("medley") else args.calls // 8
            calls = calls if latency_s < 0.1 else calls // 5
            found = in_fresh_process("--one", client, str(latency_s), str(calls))
            share = found["rate"] * latency_s / IN_FLIGHT
            print(
                f"| {client} | {1000 * latency_s:g} ms | {found['rate']:.0f} | {share:.0%} | "
                f"{found['cpu_ms']:.2f} ms | {found['most']:.0f} |",
                flush=True,
            )
    found = in_fresh_process("--memory", "--rows", str(args.rows))
    print(f"\n{args.rows} rows, prompts of {len(PROMPT)} characters, replies on disk\n")
    print("| | resident after a tenth | at the end | time |\n|---|---|---|---|")
    for name in ("asked", "resumed"):
        tenth, end = found[f"{name} {args.rows // 10}"], found[f"{name} {args.rows}"]
        print(f"| {name} | {tenth:.1f} MB | {end:.1f} MB | {found[f'{name} s']:.0f} s |")
    print(f"\npeak {found['peak']:.1f} MB; file of replies {found['file_mb']:.0f} MB")


if __name__ == "__main__":
    main()
