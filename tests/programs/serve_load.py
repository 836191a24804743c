"""Load on eval/serve.py over loopback: throughput of clients together and one after the other, and a long run of many.

    python -m tests.programs.serve_load speed --clients 8
    python -m tests.programs.serve_load load --clients 64 --seconds 60

A GPT-2 124M with random weights (or --model), float32, on the CPU. `speed` asks the same server for the same texts, by
one client after the other and by all together, in turns; processor seconds of the server say how much work it was, also
on a busy machine. `load` counts the statuses, and prints latencies and the server's memory over time.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.helpers.commands import ROOT
from tests.helpers.random_gpt2 import save_random_gpt2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("speed", "load"))
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=64, help="generated for each request")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", type=Path, help="a model, instead of a new random one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            args.model = Path(folder)
            save_random_gpt2(args.model, n_layer=12, n_head=12, n_embd=768)
        command = [sys.executable, "eval/serve.py", "--model", str(args.model), "--port", "0", "--device", "cpu"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
            address = server.stdout.readline().split()[0]
            try:
                asyncio.run({"speed": speed, "load": load}[args.what](args, address, server.pid))
            finally:
                server.terminate()


def body(args: argparse.Namespace, number: int) -> dict:
    prompt = "Hello, I'm a language model, and " * (1 + number % 3)
    return {"prompt": prompt, "max_tokens": args.tokens, "seed": number, "model": str(args.model)}


async def speed(args: argparse.Namespace, address: str, pid: int) -> None:
    """Each turn: the clients one after the other, then together."""
    rates: dict[str, list[tuple[float, float]]] = {"one after the other": [], "together": []}
    async with httpx.AsyncClient(base_url=address, timeout=None) as client:

        async def ask(number: int) -> tuple[int, str]:
            answer = (await client.post("/v1/completions", json=body(args, number))).json()
            return answer["usage"]["completion_tokens"], answer["choices"][0]["text"]

        await ask(0)
        texts: dict[str, list[str]] = {}
        for _ in range(args.turns):
            for how in rates:
                start, processor = time.perf_counter(), processor_seconds(pid)
                if how == "together":
                    answers = await asyncio.gather(*map(ask, range(args.clients)))
                else:
                    answers = [await ask(number) for number in range(args.clients)]
                tokens = sum(count for count, _ in answers)
                texts[how] = [text for _, text in answers]
                seconds, work = time.perf_counter() - start, processor_seconds(pid) - processor
                rates[how].append((tokens / seconds, tokens / work))
                print(f"{how}: {tokens} tokens in {seconds:.1f} s, {work:.1f} s of processor time", flush=True)
    for kind, name in enumerate(("wall", "processor")):
        one, together = (statistics.median(rate[kind] for rate in rates[how]) for how in rates)
        print(f"{one:.1f} and {together:.1f} tokens a {name} second: {together / one:.2f} times")
    equal = sum(a == b for a, b in zip(*texts.values(), strict=True))
    print(f"{equal} of {args.clients} texts are the same both ways")


async def load(args: argparse.Namespace, address: str, pid: int) -> None:
    """The clients ask again and again, as streams."""
    statuses: Counter[int] = Counter()
    first_token, total = [], []
    end = time.perf_counter() + args.seconds

    async def client_loop(client: httpx.AsyncClient, number: int) -> None:
        while time.perf_counter() < end:
            start, seen = time.perf_counter(), False
            fields = {**body(args, number), "stream": True}
            async with client.stream("POST", "/v1/completions", json=fields) as response:
                statuses[response.status_code] += 1
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        assert "error" not in json.loads(line[6:]), line
                        if not seen:
                            first_token.append(time.perf_counter() - start)
                        seen = True
            if response.status_code == 200:
                total.append(time.perf_counter() - start)
            else:
                await asyncio.sleep(1)

    async def watch_memory() -> None:
        while time.perf_counter() < end:
            print(f"{end - time.perf_counter():4.0f} s left: {resident_bytes(pid) / 2**20:.0f} MiB", flush=True)
            await asyncio.sleep(args.seconds / 8)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits) as client:
        await asyncio.gather(watch_memory(), *(client_loop(client, number) for number in range(args.clients)))
        metrics = (await client.get("/metrics")).text
    print(f"statuses: {dict(statuses)}; memory at the end: {resident_bytes(pid) / 2**20:.0f} MiB")
    for name, seconds in (("first token", first_token), ("request", total)):
        p50, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
        print(f"{name}: median {p50:.2f} s, 95% within {p95:.2f} s, longest {max(seconds):.2f} s")
    print("\n".join(line for line in metrics.splitlines() if line.startswith("gpt2_generated") or "_steps" in line))


def processor_seconds(pid: int) -> float:
    """Of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
